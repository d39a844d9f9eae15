"""Each column of each table of each domain may be read by operators, or stands among the secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kronos_db import schemas
from kronos_db.config import Settings
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.dsn import as_role
from kronos_db.runtime.database.reading_role import HARMFUL, READER, Part, ReadingRole, read_readable
from tests.parts.domain import new_database, settings_of

# What says no more of a column than that: in its name.
TELLING = ("hash", "secret", "token", "password", "wrapped", "payload", "email", "phone", "reply")
# Of these the name says more than there is.
HARMLESS = {
    ("messages.queue", "max_payload_bytes"),
    ("admin.audit_events", "hash"),
    ("admin.audit_events", "previous_hash"),
}


@pytest.fixture(scope="module")
def settings(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with new_database(postgres) as dsn:
        made = settings_of(tmp_path_factory.mktemp("readable"), dsn)
        schemas.migrate(made, lambda _domain, _name: None)
        yield made


def columns(settings: Settings, domain: str) -> dict[str, set[str]]:
    """Every column of the domain's tables, but for partitions: these are read through their table."""
    found: dict[str, set[str]] = {}
    with psycopg.connect(str(settings.domain_direct_dsn(domain))) as connection:
        rows = connection.execute(
            "SELECT c.oid::regclass::text, attname FROM pg_class AS c JOIN pg_attribute ON attrelid = c.oid "
            "WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT relispartition "
            "AND attnum > 0 AND NOT attisdropped",
            (domain,),
        )
        for table, column in rows:
            found.setdefault(table, set()).add(column)
    return found


@pytest.mark.parametrize("domain", schemas.SERVED)
def test_each_column_may_be_read_or_is_a_secret(domain: str, settings: Settings) -> None:
    readable = read_readable(schemas.readable_file(domain))
    secrets = {table: set(names) for table, names in readable.secret.items()}
    for table, names in columns(settings, domain).items():
        granted = set(readable.granted.get(table, ()))
        assert names - granted - secrets.get(table, set()) == set(), f"{table}: neither granted nor secret"
        assert granted & secrets.get(table, set()) == set(), f"{table}: both granted and secret"
        assert (granted | secrets.get(table, set())) - names == set(), f"{table}: no such column"
        for name in granted:
            assert (table, name) in HARMLESS or not any(each in name for each in TELLING), f"{table}.{name} is granted"


@pytest.mark.parametrize("domain", schemas.SERVED)
def test_the_role_has_these_rights_and_no_others(domain: str, settings: Settings) -> None:
    readable = read_readable(schemas.readable_file(domain))
    with psycopg.connect(str(settings.domain_direct_dsn(domain))) as connection:
        for table, names in columns(settings, domain).items():
            rows = connection.execute(
                "SELECT attname, has_column_privilege(%(role)s, attrelid, attnum, 'SELECT'), "
                "has_any_column_privilege(%(role)s, attrelid, 'INSERT, UPDATE, REFERENCES'), "
                "has_table_privilege(%(role)s, attrelid, 'DELETE, TRUNCATE, TRIGGER, MAINTAIN') "
                "FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped",
                {"role": READER, "table": table},
            ).fetchall()
            assert {name for name, may, *_ in rows if may} == set(readable.granted.get(table, ())), table
            assert not any(more for _, _, *others in rows for more in others), table
            assert names == {name for name, *_ in rows}


def test_the_role_is_what_it_must_be(settings: Settings) -> None:
    with psycopg.connect(str(settings.domain_direct_dsn("users"))) as connection:
        row = connection.execute(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls, rolconnlimit, "
            "array_to_string(rolconfig, ',') FROM pg_roles WHERE rolname = %s",
            (READER,),
        ).fetchone()
        assert row is not None
        assert row[0] is False
        assert 0 < row[1] < 100
        for setting in ("statement_timeout", "transaction_timeout", "lock_timeout", "temp_file_limit", "work_mem"):
            assert f"{setting}=" in row[2]
        run = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s) "
            "AND has_function_privilege(%s, oid, 'EXECUTE')",
            (list(HARMFUL), READER),
        ).fetchall()
        assert run == []
        functions = connection.execute(
            "SELECT p.oid::regprocedure::text FROM pg_proc AS p WHERE pronamespace::regnamespace::text = ANY (%s) "
            "AND has_function_privilege(%s, p.oid, 'EXECUTE')",
            (list(schemas.SERVED), READER),
        ).fetchall()
        assert functions == []


def test_a_new_column_is_not_readable_and_one_taken_off_the_list_is_not_any_more(settings: Settings) -> None:
    dsn = str(settings.domain_direct_dsn("users"))
    asked = "SELECT has_column_privilege(%s, 'users.roles', %s, 'SELECT')"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE users.roles ADD COLUMN brought_later text")
        connection.execute(f"GRANT SELECT ON users.credentials TO {READER}".encode())
        schemas.migrate(settings, lambda _domain, _name: None)
        assert connection.execute(asked, (READER, "brought_later")).fetchone() == (False,)
        assert connection.execute(asked, (READER, "name")).fetchone() == (True,)
        assert connection.execute(
            "SELECT has_column_privilege(%s, 'users.credentials', 'password_hash', 'SELECT')", (READER,)
        ).fetchone() == (False,)
        connection.execute("ALTER TABLE users.roles DROP COLUMN brought_later")


def test_a_migrating_role_without_the_rights_leaves_all_as_it_is(settings: Settings) -> None:
    dsn = str(settings.domain_direct_dsn("users"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS test_poor_migrator")
        connection.execute("CREATE ROLE test_poor_migrator LOGIN CREATEROLE PASSWORD 'poor'")
        readable = read_readable(schemas.readable_file("users"))
        poor = ReadingRole(as_role(dsn, "test_poor_migrator", "poor"), "whatever", 30)
        poor.apply([Part("users", "kronos_users", readable)])
        connection.execute("DROP ROLE test_poor_migrator")
    test_the_role_has_these_rights_and_no_others("users", settings)
    test_the_role_is_what_it_must_be(settings)


def test_a_file_that_does_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "readable.sql"
    path.write_text("GRANT SELECT (id) ON users.users TO kronos_query;\nGRANT ALL ON users.users TO kronos_query;\n")
    with pytest.raises(ValueError, match="something else"):
        read_readable(path)
