"""The pgBouncers of the tests: a login role of PostgreSQL logs in through them with its own password."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.parts.pgbouncer import PgBouncer


@pytest.fixture
def login(database: str) -> tuple[str, str, str]:
    """Role, password and database of a login role that was just made."""
    role = f"role_{uuid.uuid4().hex}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'its own'")
    return role, "its own", str(conninfo_to_dict(database)["dbname"])


def test_118_lets_a_new_role_in(pgbouncer_118: PgBouncer, login: tuple[str, str, str]) -> None:
    with psycopg.connect(pgbouncer_118.dsn(*login), prepare_threshold=None) as connection:
        assert connection.execute("SELECT session_user::text, current_database()").fetchone() == (login[0], login[2])


def test_124_lets_a_new_role_in_and_keeps_prepared_statements(
    pgbouncer_124: PgBouncer, login: tuple[str, str, str]
) -> None:
    with psycopg.connect(pgbouncer_124.dsn(*login), prepare_threshold=0, autocommit=True) as connection:
        for number in range(10):
            row = connection.execute("SELECT session_user::text, %s::int", [number]).fetchone()
            assert row == (login[0], number)


@pytest.mark.parametrize("fixture", ["pgbouncer_118", "pgbouncer_124"])
def test_a_wrong_password_is_refused(fixture: str, request: pytest.FixtureRequest, login: tuple[str, str, str]) -> None:
    pgbouncer: PgBouncer = request.getfixturevalue(fixture)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(pgbouncer.dsn(login[0], "another", login[2]))
