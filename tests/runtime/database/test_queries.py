"""The loader of named SQL, and every query of the server prepared on a migrated database as its domain's role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

import kronos_db
from kronos_db.config import Settings
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query, load_queries
from kronos_db.schemas import SERVED
from tests.parts.domain import new_database, opened, settings_of

PACKAGE = Path(kronos_db.__file__).parent
RUNTIME_SQL = sorted((PACKAGE / "runtime" / "database").glob("*.sql"))
# What else there is are rights, for `kronos-db migrate`.
DOMAIN_SQL = sorted(
    path for domain in SERVED for path in (PACKAGE / domain).glob("*.sql") if path.name != "readable.sql"
)


def every_query() -> Iterator[tuple[str, Query]]:
    for domain in SERVED:
        for path in (*RUNTIME_SQL, *(path for path in DOMAIN_SQL if path.parent.name == domain)):
            yield from ((domain, query) for query in load_queries(path, domain).values())


@pytest.fixture(scope="module")
def served(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with new_database(postgres) as dsn:
        yield settings_of(tmp_path_factory.mktemp("queries"), dsn)


def test_no_query_of_any_domain_is_left_out() -> None:
    assert sorted(PACKAGE.glob("*/queries.sql")) == sorted(path for path in DOMAIN_SQL if path.name == "queries.sql")
    assert [path.name for path in RUNTIME_SQL] == [
        "changes.sql",
        "data_keys.sql",
        "holders.sql",
        "idempotency.sql",
        "leases.sql",
        "renewal.sql",
        "standbys.sql",
    ]


@pytest.fixture(scope="module")
def databases(served: Settings) -> Iterator[dict[str, Database]]:
    with ExitStack() as stack:
        yield {domain: stack.enter_context(opened(served, domain)) for domain in SERVED}


@pytest.mark.parametrize(("domain", "query"), list(every_query()), ids=lambda value: getattr(value, "name", value))
def test_every_query_prepares_as_the_role_of_its_domain(
    databases: dict[str, Database], domain: str, query: Query
) -> None:
    """With every parameter untyped, as None is sent: a call that gives nothing must not fail for want of a type."""
    numbered: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${numbered.setdefault(match[1], len(numbered) + 1)}"

    # As psycopg chooses the format, or in binary.
    text = re.sub(r"%\((\w+)\)[sb]", number, query.text)
    assert "%" not in text.replace("%%", ""), "psycopg wants every other % doubled"
    text = text.replace("%%", "%")
    with databases[domain].pool.connection() as connection:
        (user,) = connection.execute("SELECT session_user::text").fetchone() or ("",)
        assert user == f"kronos_{domain}"
        connection.execute("BEGIN")
        if " COPY " in query.text:
            # No plan, but rights: nothing is copied.
            with connection.cursor().copy(query.text):
                pass
            connection.execute("ROLLBACK")
            return
        try:
            connection.execute(f"PREPARE checked AS {text}", prepare=False)
            nulls = ", ".join(["NULL"] * len(numbered))
            # Planning it also checks the role's rights.
            privileges = connection.execute("EXPLAIN EXECUTE checked" + (f"({nulls})" if nulls else ""), prepare=False)
            assert privileges.fetchall()
        finally:
            connection.execute("ROLLBACK")
            connection.execute("DEALLOCATE ALL")


def test_every_query_says_what_it_is_for() -> None:
    for _domain, query in every_query():
        assert re.match(r"[A-Z].+", query.comment), query.name


GOOD = """-- A file.

-- fragment: columns
-- What makes a row.
a, b

-- name: one
-- Gets one row,
-- by its key. plan: custom.
SELECT {columns}
FROM {schema}.rows
WHERE a = %(key)s;

-- name: two
-- Counts.
SELECT count(*) FROM {schema}.rows
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "queries.sql"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_comments_fragments_and_plans(tmp_path: Path) -> None:
    queries = load_queries(write(tmp_path, GOOD), "own")
    assert list(queries) == ["one", "two"]
    assert queries["one"] == Query(
        "one",
        "/* own:one */ SELECT a, b\nFROM own.rows\nWHERE a = %(key)s",
        "Gets one row, by its key. plan: custom.",
        prepared=False,
    )
    assert queries["two"].prepared


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("SELECT 1;\n\n" + GOOD, "SQL before the first name"),
        (GOOD + "\n-- name: three\nSELECT 1", "three needs a comment, a text and a name of its own"),
        (GOOD + "\n-- name: three\n-- A comment alone.\n", "three needs a comment, a text and a name of its own"),
        (GOOD + "\n-- name: one\n-- The same name.\nSELECT 1", "one needs a comment, a text and a name of its own"),
        (GOOD + "\n-- fragment: one\n-- The same name.\na", "one needs a comment, a text and a name of its own"),
        (GOOD + "\n-- name: columns\n-- The same name.\na", "columns needs a comment, a text and a name of its own"),
        (GOOD + "\n-- name: schema\n-- A reserved name.\na", "schema needs a comment, a text and a name of its own"),
        (
            GOOD + "\n-- name: three\n-- No such fragment.\nSELECT {colums}",
            "three includes an unknown fragment {colums}",
        ),
        (GOOD.replace("columns}", "later}") + "\n-- fragment: later\n-- Too late.\na", "unknown fragment {later}"),
    ],
)
def test_what_the_loader_refuses(tmp_path: Path, fault: str, message: str) -> None:
    path = write(tmp_path, fault)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_queries(path, "own")
    assert str(path) in str(caught.value)


def test_stacked_statements_are_impossible(databases: dict[str, Database]) -> None:
    """The simple protocol would run both: whatever the server sends goes by the extended one."""
    database = databases[SERVED[0]]
    for prepared in (True, False):
        stacked = Query("stacked", "SELECT 1; SELECT 2", "", prepared)
        for call in (
            lambda: database.execute(stacked, {}),  # noqa: B023 # called at once
            lambda: database.fetch_all(stacked, {}, int),  # noqa: B023
            lambda: database.fetch_one(stacked, {}, int),  # noqa: B023
        ):
            with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
                call()
