"""Missing indexes are tried out in a scratch database, and what they gain there is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from kronos_db.admin.advice import Advice, Facts, Kind, Limits, Statement
from kronos_db.admin.advice_missing import advise_missing
from kronos_db.admin.changes import ScratchMissingError, ScratchTakenError
from kronos_db.admin.index_store import facts_of
from kronos_db.admin.scratch import Scratch
from kronos_db.admin.statement_store import Sources
from kronos_db.admin.trial import Parameter, parameters
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.operating import connected
from tests.parts.domain import new_database

LIMITS = Limits(observed=timedelta(0), rows=1_000)
# Each wants an index; all are slow as far as the advisor knows.
STATEMENTS = (
    "SELECT * FROM shop.orders WHERE customer = $1",
    "SELECT * FROM shop.orders WHERE document @> $1 AND total > 0",
    "UPDATE shop.orders SET total = total WHERE ref = ANY($1)",
    "SELECT id FROM shop.orders WHERE lower(name) = $1",
    "SELECT * FROM shop.orders ORDER BY placed_at DESC LIMIT $1",
    "SELECT i.id FROM shop.customers AS c JOIN shop.items AS i ON i.customer = c.id WHERE c.name = $1",
)


@pytest.fixture(scope="module")
def shop(postgres: EmbeddedPostgres) -> Iterator[tuple[str, Facts]]:
    with new_database(postgres) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA shop")
            connection.execute(
                "CREATE TABLE shop.orders AS SELECT n AS id, n % 5000 AS customer, 'r' || n AS ref, n AS total,"
                " 'Name ' || n % 9000 AS name, jsonb_build_object('k', n % 4000) AS document,"
                " now() + n % 977 * interval '1 s' AS placed_at FROM generate_series(1, 30000) AS n"
            )
            connection.execute("ALTER TABLE shop.orders ADD PRIMARY KEY (id)")
            connection.execute(
                "CREATE TABLE shop.customers AS SELECT n AS id, 'c' || n AS name FROM generate_series(1, 8000) AS n"
            )
            connection.execute(
                "CREATE TABLE shop.items AS SELECT n AS id, n % 8000 AS customer FROM generate_series(1, 40000) AS n"
            )
            connection.execute("ANALYZE")
        statements = [Statement(str(place), text, 100, 1_000.0, 200) for place, text in enumerate(STATEMENTS)]
        with connected(dsn, "test", 30.0) as direct:
            yield dsn, facts_of(direct, "shop", statements)


@contextmanager
def scratch_of(postgres: EmbeddedPostgres, dsn: str) -> Iterator[tuple[Scratch, str]]:
    with new_database(postgres) as there:
        yield Scratch(there, Sources({"shop": dsn})), there


def test_what_an_index_gains_and_costs_is_measured(postgres: EmbeddedPostgres, shop: tuple[str, Facts]) -> None:
    dsn, facts = shop
    advices = advise_missing(facts, LIMITS)
    assert len(advices) >= len(STATEMENTS)
    with scratch_of(postgres, dsn) as (scratch, there):
        faster = 0
        for advice in advices:
            measured = scratch.measured(facts, advice).measured
            assert measured is not None, scratch.measured(facts, advice).evidence
            assert measured.used, advice.statement
            faster += measured.after_ms < 0.5 * measured.before_ms
            assert measured.size > 0
            assert measured.write_us >= 0
            assert measured.sampled_rows >= 8000
        # The join wants two: the one that finds its customer is used, but alone it saves little.
        assert faster >= len(advices) - 1
        assert schemas_in(there) == set()


def test_an_index_that_helps_nobody_is_seen_not_to(postgres: EmbeddedPostgres, shop: tuple[str, Facts]) -> None:
    dsn, facts = shop
    useless = Advice(
        Kind.MISSING,
        "shop",
        "orders",
        "useless",
        'CREATE INDEX CONCURRENTLY "useless" ON "shop"."orders" USING btree ("total")',
        "",
        "",
        queries=["0"],
    )
    with scratch_of(postgres, dsn) as (scratch, _there):
        measured = scratch.measured(facts, useless).measured
    assert measured is not None
    assert not measured.used


def test_what_cannot_be_tried_says_why(postgres: EmbeddedPostgres, shop: tuple[str, Facts]) -> None:
    dsn, facts = shop
    odd = [Statement("9", "SELECT * FROM shop.orders WHERE total = 1 AND $1::boolean", 1, 1.0, 1)]
    advice = Advice(Kind.MISSING, "shop", "orders", "x", "CREATE INDEX", "", "", queries=["9"])
    with scratch_of(postgres, dsn) as (scratch, there):
        tried = scratch.measured(Facts("shop", "shop", facts.observed, facts.tables, (), odd), advice)
        assert schemas_in(there) == set()
    assert tried.measured is None
    assert "no column" in tried.evidence[-1]


def test_nobodys_schema_is_dropped(postgres: EmbeddedPostgres, shop: tuple[str, Facts]) -> None:
    dsn, facts = shop
    (advice, *_) = advise_missing(facts, LIMITS)
    # The wrong database: that of the data itself.
    with pytest.raises(ScratchTakenError):
        Scratch(dsn, Sources({"shop": dsn})).measured(facts, advice)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM shop.orders").fetchone() == (30_000,)


def test_without_a_scratch_database_nothing_is_measured(shop: tuple[str, Facts]) -> None:
    with pytest.raises(ScratchMissingError):
        Scratch(None, Sources({})).check()


def schemas_in(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {row[0] for row in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'shop'")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1 FROM t WHERE a = $1", [Parameter(1, "a", whole=True)]),
        ("SELECT 1 FROM t WHERE t.a IN ($1, $2)", [Parameter(1, "a", "t"), Parameter(2, "a", "t")]),
        ("SELECT 1 FROM t WHERE a = ANY($1::int[])", [Parameter(1, "a", array=True, whole=True)]),
        ("SELECT 1 FROM t WHERE (a, b) > ($1, $2)", [Parameter(1, "a"), Parameter(2, "b")]),
        ("SELECT 1 FROM t WHERE d ->> 'k' = $1", [Parameter(1, "d", member="k", whole=True)]),
        ("SELECT 1 FROM t WHERE d @> $1", [Parameter(1, "d", contained=True, whole=True)]),
        ("SELECT 1 FROM t LIMIT $1 OFFSET $2", [Parameter(1, limit=True), Parameter(2, limit=True)]),
        ("SELECT $1 FROM t", None),
    ],
)
def test_parameters_are_known_by_what_they_are_compared_with(text: str, expected: list[Parameter] | None) -> None:
    assert parameters(text) == expected
