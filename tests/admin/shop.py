"""A seeded schema for index advice: what is wrong with its indexes is known, and so is what only looks wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from kronos_db.admin.advice import Advice, Kind

SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE shop.customers (
    id int PRIMARY KEY, email text NOT NULL, country text NOT NULL, ref uuid NOT NULL, tenant int NOT NULL,
    code int NOT NULL, vip boolean NOT NULL, profile jsonb NOT NULL, tags text[] NOT NULL, note text NOT NULL
);
CREATE TABLE shop.orders (
    id int PRIMARY KEY, customer_id int NOT NULL, placed_at timestamptz NOT NULL, state text NOT NULL,
    total int NOT NULL, warehouse int NOT NULL, seller int NOT NULL, paid_at timestamptz, shipped_at timestamptz
);
CREATE TABLE shop.items (
    id int PRIMARY KEY, order_id int NOT NULL, product_id int NOT NULL, amount int NOT NULL, batch int NOT NULL,
    parcel int NOT NULL, serial text NOT NULL
);
CREATE TABLE shop.products (id int PRIMARY KEY, name text NOT NULL, maker int NOT NULL, shelf int NOT NULL);
CREATE TABLE shop.events (
    id int PRIMARY KEY, kind text NOT NULL, happened_at timestamptz NOT NULL, device int NOT NULL, value int NOT NULL,
    body jsonb NOT NULL
);
CREATE TABLE shop.jobs (
    id int PRIMARY KEY, queue int NOT NULL, state text NOT NULL, created_at timestamptz NOT NULL,
    done_at timestamptz, owner int NOT NULL
);
CREATE TABLE shop.settings (name text PRIMARY KEY, value int NOT NULL, scope int NOT NULL);
CREATE TABLE shop.ledger (id int PRIMARY KEY, account int NOT NULL, amount int NOT NULL);
CREATE TABLE shop.parts (
    id int PRIMARY KEY, a int NOT NULL, b int NOT NULL, c int NOT NULL, d text NOT NULL, product_id int NOT NULL
        REFERENCES shop.products (id),
    e int NOT NULL, f int NOT NULL, g int NOT NULL, h int NOT NULL
);

INSERT INTO shop.customers SELECT n, 'User' || n || '@Example.org', 'c' || n % 2, gen_random_uuid(), n % 50, n % 997,
    n % 100 = 0, jsonb_build_object('plan', 'p' || n % 3000, 'n', n), ARRAY['t' || n % 2000, 'u' || n % 3],
    repeat('n', 40)
FROM generate_series(1, 40000) AS n;
INSERT INTO shop.orders SELECT n, n % 40000, '2026-01-01'::timestamptz + n * interval '1 minute',
    CASE WHEN n % 500 = 0 THEN 'failed' WHEN n % 3 = 0 THEN 'open' ELSE 'done' END, n % 1000, n % 4, n % 25,
    CASE WHEN n % 250 <> 0 THEN now() END, CASE WHEN n % 2 = 0 THEN now() END
FROM generate_series(1, 60000) AS n;
INSERT INTO shop.items SELECT n, n % 60000, n % 5000, n % 10, n % 30000, n % 20000, 's' || n
FROM generate_series(1, 90000) AS n;
INSERT INTO shop.products SELECT n, 'product ' || n, n % 900, n % 2500 FROM generate_series(1, 20000) AS n;
INSERT INTO shop.events SELECT n, 'k' || n % 5, '2026-01-01'::timestamptz + (n * 7919 % 100003) * interval '1 second',
    n % 3000, n % 17, jsonb_build_object('trace', 'x' || n % 9000) FROM generate_series(1, 80000) AS n;
INSERT INTO shop.jobs SELECT n, n % 8, CASE WHEN n % 400 = 0 THEN 'pending' ELSE 'done' END,
    '2026-01-01'::timestamptz + (n * 7919 % 100003) * interval '1 second', CASE WHEN n % 200 <> 0 THEN now() END, n % 5
FROM generate_series(1, 60000) AS n;
INSERT INTO shop.settings SELECT 's' || n, n, n % 7 FROM generate_series(1, 300) AS n;
INSERT INTO shop.ledger SELECT n, n % 5000, 1 FROM generate_series(1, 30000) AS n;
INSERT INTO shop.parts SELECT n, n, n % 1000, n % 10, 'd' || n, n % 20000 + 1, n % 100, n % 300, n, n % 7
FROM generate_series(1, 50000) AS n;

-- What is wrong with indexes.
CREATE INDEX parts_unused ON shop.parts (h);
CREATE INDEX parts_b ON shop.parts (b);
CREATE INDEX parts_b_again ON shop.parts (b);
CREATE INDEX parts_lower ON shop.parts (lower(d));
CREATE INDEX parts_lower_again ON shop.parts (lower(d));
CREATE INDEX parts_e ON shop.parts (e);
CREATE INDEX parts_e_f ON shop.parts (e, f);
CREATE UNIQUE INDEX parts_f_g ON shop.parts (f, g);
CREATE INDEX parts_f ON shop.parts (f);
CREATE INDEX parts_pkey_again ON shop.parts (id);
CREATE INDEX ledger_account ON shop.ledger (account);
-- And what is not.
CREATE UNIQUE INDEX parts_g ON shop.parts (g);
CREATE INDEX parts_product ON shop.parts (product_id);
CREATE INDEX parts_b_some ON shop.parts (b) WHERE c = 3;
CREATE INDEX parts_d_pattern ON shop.parts (d text_pattern_ops);
CREATE INDEX parts_d ON shop.parts (d);
CREATE INDEX parts_b_c_down ON shop.parts (c, b DESC);
CREATE INDEX parts_c_b ON shop.parts (c, b);
CREATE INDEX settings_value ON shop.settings (value);
CREATE INDEX customers_tenant ON shop.customers (tenant, code) INCLUDE (vip);
CREATE INDEX orders_seller ON shop.orders (seller);
"""
# Of what grew and shrank again.
_SHRINK = "DELETE FROM shop.ledger WHERE id % 20 <> 0"


@dataclass(frozen=True)
class Known:
    """One known case: of which kind, where, and by which keys (any of them) or which index."""

    kind: Kind
    table: str
    what: Sequence[str]


# What is to be found of the indexes that are there.
EXISTING = (
    Known(Kind.UNUSED, "parts", ("parts_unused",)),
    Known(Kind.DUPLICATE, "parts", ("parts_b", "parts_b_again")),
    Known(Kind.DUPLICATE, "parts", ("parts_lower", "parts_lower_again")),
    Known(Kind.REDUNDANT, "parts", ("parts_e",)),
    Known(Kind.REDUNDANT, "parts", ("parts_f",)),
    Known(Kind.DUPLICATE, "parts", ("parts_pkey_again",)),
    Known(Kind.INVALID, "parts", ("parts_broken",)),
    Known(Kind.INVALID, "parts", ("parts_d_ccnew",)),
    Known(Kind.BLOATED, "ledger", ("ledger_account",)),
    Known(Kind.BLOATED, "ledger", ("ledger_pkey",)),
)

_C, _O, _I = "shop.customers", "shop.orders", "shop.items"
# Slow statements, with the index that each wants; its keys as they stand in the DDL.
WANTING: Mapping[str, tuple[str, str, Sequence[str]]] = {
    f"SELECT * FROM {_C} WHERE ref = %(a)s::uuid": ("5f4dcc3b-5aa7-65d6-1d83-27deb882cf99", "customers", ["(ref)"]),
    f"SELECT * FROM {_C} WHERE lower(email) = %(a)s": ("user7@example.org", "customers", ["(lower(email))"]),
    f"SELECT id, email FROM {_C} WHERE profile @> %(a)s::jsonb": (
        '{"plan": "p7"}', "customers", ["gin (profile jsonb_path_ops)"],
    ),
    f"SELECT id FROM {_C} WHERE profile ->> 'plan' = %(a)s": ("p7", "customers", ["((profile ->> 'plan'))"]),
    f"SELECT id FROM {_C} WHERE tags @> ARRAY[%(a)s::text]": ("t7", "customers", ["gin (tags)"]),
    f"SELECT id, note FROM {_C} WHERE vip AND country = %(a)s": (
        "c0", "customers", ["(id) WHERE vip", "(country) WHERE vip"],
    ),
    f"SELECT * FROM {_O} WHERE customer_id = %(a)s ORDER BY placed_at DESC LIMIT 10": (
        "77", "orders", ["(customer_id, placed_at DESC)", "(customer_id)"],
    ),
    f"SELECT * FROM {_O} ORDER BY placed_at DESC LIMIT 20": ("", "orders", ["(placed_at)"]),
    f"SELECT count(*), sum(total) FROM {_O} WHERE paid_at IS NULL": ("", "orders", ["(id) WHERE paid_at IS NULL"]),
    f"SELECT * FROM {_O} WHERE state = 'failed'": (
        "", "orders", ["(id) WHERE state = 'failed'", "(state)"],
    ),
    f"SELECT sum(total) FROM {_O} WHERE seller = %(a)s": ("7", "orders", ["(seller) INCLUDE (total)"]),
    f"SELECT i.* FROM {_O} AS o JOIN {_I} AS i ON i.order_id = o.id WHERE o.id = ANY(%(a)s::int[])": (
        "{5,6,7}", "items", ["(order_id)"],
    ),
    f"SELECT i.id FROM shop.products p JOIN {_I} i ON i.product_id = p.id AND p.maker = %(a)s::int": (
        "7", "items", ["(product_id)"],
    ),
    "SELECT p.id FROM shop.products AS p WHERE p.maker = %(a)s": ("7", "products", ["(maker)"]),
    f"SELECT id, amount FROM {_I} WHERE batch IN (%(a)s, 8, 9)": ("7", "items", ["(batch)"]),
    f"UPDATE {_I} SET amount = amount WHERE parcel = %(a)s": ("7", "items", ["(parcel)"]),
    f"DELETE FROM {_I} WHERE serial = %(a)s": ("none", "items", ["(serial)"]),
    "SELECT id FROM shop.events WHERE happened_at >= %(a)s AND happened_at < '2026-01-01 00:10:00+00'": (
        "2026-01-01 00:00:00+00", "events", ["(happened_at)", "(happened_at, id)"],
    ),
    "SELECT * FROM shop.events WHERE (happened_at, id) > (%(a)s, 5) ORDER BY happened_at, id LIMIT 20": (
        "2026-01-01 08:00:00+00", "events", ["(happened_at, id)"],
    ),
    "SELECT avg(value) FROM shop.events WHERE device = %(a)s AND kind = 'k1'": (
        "7", "events", ["(device)", "(device, kind)"],
    ),
    "SELECT id FROM shop.events WHERE body ->> 'trace' = %(a)s": ("x7", "events", ["((body ->> 'trace'))"]),
    "SELECT id FROM shop.jobs WHERE done_at IS NULL AND queue = %(a)s ORDER BY created_at LIMIT 5": (
        "3", "jobs", ["(queue, created_at) WHERE done_at IS NULL", "(created_at) WHERE done_at IS NULL"],
    ),
    "SELECT id FROM shop.jobs WHERE state = 'pending' ORDER BY created_at LIMIT 5": (
        "", "jobs", ["(created_at) WHERE state = 'pending'"],
    ),
    "SELECT o.id, (SELECT max(i.batch) FROM shop.items AS i WHERE i.order_id = o.id) FROM shop.orders AS o"
    " WHERE o.id < %(a)s": ("20", "items", ["(order_id)"]),
    "SELECT p.id FROM shop.products AS p WHERE p.shelf = %(a)s"
    " AND EXISTS (SELECT FROM shop.items AS i WHERE i.product_id = p.id AND i.amount > 3)": (
        "7", "products", ["(shelf)"],
    ),
}  # fmt: skip
# Slow statements that no index helps, or not enough.
WITHOUT: Mapping[str, str] = {
    f"SELECT * FROM {_C} WHERE country = %(a)s": "c0",
    f"SELECT count(*) FROM {_O}": "",
    f"SELECT state, sum(total) FROM {_O} GROUP BY state": "",
    f"SELECT count(*) FROM {_O} o JOIN {_I} i ON i.order_id = o.id": "",
    f"SELECT count(*) FROM {_O} WHERE warehouse = %(a)s": "1",
    "SELECT count(*) FROM shop.products p WHERE EXISTS (SELECT FROM shop.ledger l WHERE l.amount = p.shelf)": "",
    "SELECT count(*) FROM shop.ledger WHERE amount IN (SELECT shelf FROM shop.products)": "",
    f"SELECT count(*) FROM {_O} o JOIN {_C} c ON c.code = o.total WHERE c.country = %(a)s": "c0",
    f"SELECT o.id FROM {_O} o LEFT JOIN shop.jobs j ON j.owner = o.warehouse WHERE o.id = %(a)s": "7",
    f"SELECT count(*) FROM {_O} WHERE warehouse = %(a)s OR total = 3": "1",
    f"SELECT count(*) FROM {_O} WHERE total <> %(a)s": "7",
    f"SELECT count(*) FROM {_O} WHERE shipped_at IS NULL": "",
    f"SELECT count(*) FROM {_O} WHERE shipped_at IS NOT NULL AND warehouse > %(a)s": "1",
    f"SELECT id FROM {_I} WHERE serial LIKE %(a)s": "%77%",
    f"SELECT count(*) FROM {_I} WHERE serial || 'x' = %(a)s": "s7x",
    f"SELECT count(*) FROM {_I} WHERE amount::text = %(a)s": "7",
    "SELECT count(*) FROM shop.settings WHERE scope = %(a)s": "3",
    f"SELECT tenant, code FROM {_C} WHERE tenant = %(a)s AND code = 7": "7",
    "SELECT count(*) FROM shop.parts WHERE e = %(a)s AND f > 3": "7",
    "SELECT count(*) FROM shop.parts WHERE c > %(a)s": "2",
    "SELECT id FROM shop.parts WHERE b = %(a)s": "7",
    "SELECT id FROM shop.parts WHERE lower(d) = %(a)s": "d7",
    "SELECT count(*) FROM shop.events WHERE value = %(a)s": "7",
    "SELECT count(*) FROM shop.events WHERE happened_at > %(a)s": "2026-01-01 03:00:00+00",
    "SELECT kind, max(value) FROM shop.events WHERE happened_at::date = %(a)s::date GROUP BY kind": "2026-01-02",
    "SELECT count(*) FROM shop.jobs WHERE owner = %(a)s": "3",
    "WITH old AS (SELECT * FROM shop.jobs) SELECT count(*) FROM old WHERE queue = %(a)s::int": "3",
    "SELECT account, sum(amount) FROM shop.ledger GROUP BY account": "",
}
CALLS = 6


def seed(connection: psycopg.Connection[Any]) -> None:
    """Make the schema, with what is wrong in it."""
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(_SHRINK)
    for name in ("parts_broken", "parts_d_ccnew"):
        # A build that fails leaves an index that is not valid.
        with suppress(psycopg.errors.UniqueViolation):
            connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON shop.parts (h, c, e)")
    for table in ("customers", "orders", "items", "products", "events", "jobs", "settings", "ledger", "parts"):
        connection.execute(f"VACUUM ANALYZE shop.{table}")
    # Used, so that only the one that is not is unused.
    connection.execute("SET enable_seqscan = off")
    for column in ("b", "e", "f", "d", "product_id", "c"):
        connection.execute(
            f"SELECT count(*) FROM shop.parts WHERE {column} = (SELECT {column} FROM shop.parts LIMIT 1)"
        )
    for rest in (
        "WHERE c = 3 AND b = 7",
        "WHERE d ~>=~ 'd77' AND d ~<~ 'd78'",
        "ORDER BY c, b DESC LIMIT 5",
        "ORDER BY c, b LIMIT 5",
    ):
        connection.execute(f"SELECT * FROM shop.parts {rest}")
    connection.execute("SELECT count(*) FROM shop.settings WHERE value = 3")
    connection.execute("SELECT count(*) FROM shop.ledger WHERE account = 3")
    connection.execute("RESET enable_seqscan")


def use(connection: psycopg.Connection[Any]) -> None:
    """Run every statement some times."""
    values = {statement: case[0] for statement, case in WANTING.items()} | dict(WITHOUT)
    for statement, value in values.items():
        for _ in range(CALLS):
            connection.execute(statement, {"a": value} if value else {}, prepare=True)
    # Once alone: not worth an index.
    connection.execute("SELECT count(*) FROM shop.ledger WHERE amount = %(a)s", {"a": 2}, prepare=True)


def written_by(advice: Advice) -> str:
    """Return what follows USING in the DDL of an index, without btree and quotes."""
    text = advice.statement.partition(" USING ")[2].replace('"', "")
    return text.removeprefix("btree ").replace("gin (", "gin (")


def matches(known: Known) -> Callable[[Advice], bool]:
    """Return what tells whether an advice is the one of a known case."""
    return lambda advice: (
        advice.kind is known.kind
        and advice.table == known.table
        and (written_by(advice) if known.kind is Kind.MISSING else advice.index) in known.what
    )
