"""What docs/scale.md says: its figures are those of the benchmarks, its tables of Citus those of the catalog."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kronos_db import schemas
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.domain import new_database, settings_of

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
FIGURES = {row["name"]: row for row in json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))}

GROWTH = (
    "tokens: IntrospectToken, p50 with 3,000,000 stored beside 10,000, cold",
    "tokens: IntrospectToken, p50 with 3,000,000 stored beside 10,000, hot",
    "users: CheckPermission not in copies, one at a time, p50 with 1,000,000 users beside 1,000",
    "routes: matching alone, time with 10,000 routes beside 1,000",
    "logs: resident memory after 5,000,000 records, beside 500,000",
    "messages: lease and ack beside an open snapshot and 2,000,000 messages gone since, beside none",
    "streams: GetUser beside 2,000 idle streams, beside none",
)
SIZES = (
    "cache: QueryEntries by equality among 1,000,000, pages of 50, p50",
    "cache: QueryEntries by range among 1,000,000, pages of 50, p50",
    "logs: QueryLogs of 5,000,000, last 100 of a service, p50",
    "logs: QueryLogs of 5,000,000, one trace id, p50",
    "messages: a lease with 500,000 delayed messages ahead, p50",
    "tokens: RevokeTokens of 100,000 of one subject",
)
# Of each figure how many calls a second of one core it says.
CORES = {
    "processes: GetUser of hot users, 2 processes beside 1, a core each": lambda value: value / 2,
    "tokens: IntrospectToken of hot tokens, 2 processes, processor time of a call": lambda value: 1e6 / value,
    "tokens: IntrospectToken of cold tokens, 2 processes, processor time of a call": lambda value: 1e6 / value,
    "tokens: IssueToken, 64 in flight, 2 processes, processor time of a call": lambda value: 1e6 / value,
}
# Hot reads, cold reads and writes of the mix, by the figures that stand for them.
MIX = (
    ("processes: GetUser of hot users, 2 processes beside 1, a core each", 0.7),
    ("tokens: IntrospectToken of cold tokens, 2 processes, processor time of a call", 0.2),
    ("tokens: IssueToken, 64 in flight, 2 processes, processor time of a call", 0.1),
)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def growth_rows() -> Iterator[str]:
    for name in GROWTH:
        row = FIGURES[name]
        yield f"| {name} | {number(row['value'])} | {row['unit']} | {number(row['floor'])} | {row['ratio']:.2f} |"


def size_rows() -> Iterator[str]:
    for name in SIZES:
        yield f"| {name} | {number(FIGURES[name]['value'])} | {FIGURES[name]['unit']} |"


def of_core(name: str) -> float:
    return CORES[name](FIGURES[name]["value"])


def core_rows() -> Iterator[str]:
    for name in CORES:
        yield f"| {name} | {of_core(name):,.0f} | {math.ceil(1e6 / of_core(name)):,} |"


def mixed_cores() -> int:
    return math.ceil(sum(share * 1e6 / of_core(name) for name, share in MIX))


@pytest.mark.parametrize("row", [*growth_rows(), *size_rows(), *core_rows()])
def test_figures_are_those_of_the_benchmarks(row: str) -> None:
    assert row in PAGE.splitlines(), "benchmarks/results.json says so by now"


def test_the_arithmetic_goes_by_them() -> None:
    mixed = mixed_cores()
    assert f"takes about {mixed} cores of serving processes" in PAGE
    assert f"{mixed} processes × 7 domains × 4 = {mixed * 28:,}" in PAGE  # noqa: RUF001  # as the page has it
    assert f"pgBouncer for each domain: {mixed} × 4 clients" in PAGE  # noqa: RUF001
    assert f"| {mixed} processes × 1 to 7 databases" in PAGE  # noqa: RUF001
    batch = FIGURES["users: BatchCheckPermissions of 1,000, 2 processes"]["value"]
    assert f"BatchCheckPermissions decides {batch:,.0f} times a second" in PAGE
    assert f"idle streams ({FIGURES['streams: memory of an idle watch stream']['value']:.1f} KB each)" in PAGE
    ingest = FIGURES["logs: IngestLogs, batches of 1,000, beside raw COPY"]["value"]
    assert f"some {round(ingest, -3):,.0f} a second" in PAGE


def test_what_goes_to_standbys_is_told() -> None:
    """Each read that may go to a standby is in a store that the page's calls are answered from."""
    uses = {
        path.relative_to(ROOT / "kronos_db").as_posix(): path.read_text(encoding="utf-8").count(".fetch_all_aside(")
        for path in (ROOT / "kronos_db").rglob("*.py")
    }
    assert {path: count for path, count in uses.items() if count} == {
        "logs/store.py": 4,
        "admin/audit_store.py": 2,
        "messages/inspection.py": 1,
    }
    for call in ("QueryLogs", "AggregateLogs", "GetLogStats", "ListAuditEvents, VerifyAuditLog", "ListDeadLetters"):
        assert f"| {call} |" in PAGE


# Citus


_UNIQUE = """
SELECT n.nspname || '.' || t.relname, array_agg(DISTINCT x.indexrelid::regclass::text), array(
    SELECT a.attname::text
    FROM pg_attribute AS a
    WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT EXISTS (
        SELECT FROM pg_index AS u
        WHERE u.indrelid = t.oid AND u.indisunique
            AND NOT a.attnum = ANY((u.indkey::int2[])[0:u.indnkeyatts - 1])
    )
)
FROM pg_class AS t
JOIN pg_namespace AS n ON n.oid = t.relnamespace
LEFT JOIN pg_index AS x ON x.indrelid = t.oid AND x.indisunique
WHERE n.nspname = ANY(%s) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
GROUP BY t.oid, n.nspname, t.relname
"""
_REFERENCES = """
SELECT conrelid::regclass::text, confrelid::regclass::text, array(
    SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = conrelid AND a.attnum = ANY(conkey)
)
FROM pg_constraint
WHERE contype = 'f' AND connamespace::regnamespace::text = ANY(%s) AND conparentid = 0
"""


@pytest.fixture(scope="module")
def catalog(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    with new_database(postgres) as dsn:
        schemas.migrate(settings_of(tmp_path_factory.mktemp("page"), dsn), lambda _domain, _name: None)
        with psycopg.connect(dsn) as connection:
            yield connection


def told() -> dict[str, tuple[str, str]]:
    """Return what the page says of each table: the column, "" for none, and why."""
    rows = re.findall(r"^\| `([a-z*]+\.[a-z_]+)` \| (?:`(\w+)`|—) \| (.+) \|$", PAGE, re.MULTILINE)
    found = {table: (column, why) for table, column, why in rows}
    assert len(found) == len(rows), "a table is named twice"
    return found


def of(table: str) -> tuple[str, str]:
    """Return what the page says of a table of the catalog; what each schema has is told once."""
    page, general = told(), "*." + table.partition(".")[2]
    assert (table in page) != (general in page), f"{table} is not told of, or twice"
    return page.get(table) or page[general]


def test_each_table_is_told_of_once_and_its_column_is_in_every_unique_key(catalog: psycopg.Connection) -> None:
    rows = catalog.execute(_UNIQUE, [list(schemas.SERVED)]).fetchall()
    assert len(rows) > 50
    for table, _, common in rows:
        column, why = of(table)
        if column:
            assert column in common, f"{table} is not unique within {column}"
        else:
            assert common == [], f"{table} could go by one of {common}"
            assert "no column is in all unique keys" in why
    known = {table for table, *_ in rows} | {"*." + table.partition(".")[2] for table, *_ in rows}
    assert told().keys() <= known, "the page tells of tables that are not there"


def test_tables_that_refer_to_others_say_so(catalog: psycopg.Connection) -> None:
    found = catalog.execute(_REFERENCES, [list(schemas.SERVED)]).fetchall()
    assert found
    for table, target, columns in found:
        column, why = of(table)
        by_column = column in columns and target == "users.users" and "where users go" in why
        to_everywhere = "a reference table" in of(target)[1]
        assert by_column or to_everywhere, f"{table} refers to {target} by {columns}"
