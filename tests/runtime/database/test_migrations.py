"""The migration runner: alone, at once with others, against locks, faults and newer or changed schemas."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database import migrations
from kronos_db.runtime.database.dsn import as_role
from kronos_db.runtime.database.migrations import (
    RUNTIME_MIGRATIONS,
    MigrationChangedError,
    MigrationFailedError,
    Migrator,
    Role,
    SchemaTooNewError,
    chain,
)
from tests.parts.domain import LIMIT, new_database

ROOT = Path(__file__).parent.parent.parent.parent
PASSWORD = "a password of the tests alone"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The migrations of a made-up domain `things`."""
    files = tmp_path / "migrations"
    files.mkdir()
    (files / "0001_create.sql").write_text("CREATE TABLE thing (id int PRIMARY KEY, name text);")
    (files / "0002_more.sql").write_text(
        "CREATE TABLE things.other (id int GENERATED ALWAYS AS IDENTITY);\n"
        "CREATE FUNCTION things.twice(n int) RETURNS int LANGUAGE sql RETURN 2 * n;"
    )
    return files


@pytest.fixture
def role() -> Role:
    """A role that no other test makes."""
    return Role(f"kronos_things_{uuid.uuid4().hex[:8]}", PASSWORD)


def migrator(dsn: str, folder: Path, role: Role, domain: str = "things") -> Migrator:
    return Migrator(domain, dsn, chain(domain, folder), role, statement_timeout=3.0)


def ignore(_domain: str, _name: str) -> None:
    pass


def tables(dsn: str, schema: str = "things") -> list[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", [schema])
        return [name for (name,) in rows]


RUNTIME = [f"runtime/{path.stem}" for path in sorted(RUNTIME_MIGRATIONS.glob("*.sql"))]
ALL = sorted(
    {
        "data_key",
        "idempotency",
        "change",
        "change_horizon",
        "copy_holder",
        "lease",
        "other",
        "schema_migration",
        "thing",
    }
)
CHAIN = [*RUNTIME, "things/0001_create", "things/0002_more"]


def test_fresh_and_repeated(empty_database: str, folder: Path, role: Role) -> None:
    told: list[tuple[str, str]] = []
    fresh = migrator(empty_database, folder, role)
    assert fresh.applied() == []
    assert fresh.migrate(lambda *what: told.append(what)) == len(CHAIN)
    assert told == [("things", name) for name in CHAIN]
    assert tables(empty_database) == ALL
    assert tables(empty_database, "public") == []
    first = fresh.applied()
    assert [row.name for row in first] == CHAIN
    assert migrator(empty_database, folder, role).migrate(lambda *what: told.append(what)) == 0
    assert fresh.applied() == first
    assert len(told) == len(CHAIN)


def test_what_was_added_later_is_applied_alone(empty_database: str, folder: Path, role: Role) -> None:
    migrator(empty_database, folder, role).migrate(ignore)
    (folder / "0003_later.sql").write_text("ALTER TABLE thing ADD COLUMN later int;")
    told: list[str] = []
    assert migrator(empty_database, folder, role).migrate(lambda _domain, name: told.append(name)) == 1
    assert told == ["things/0003_later"]


def test_threads_at_once_apply_each_migration_once(empty_database: str, folder: Path, role: Role) -> None:
    barrier = threading.Barrier(6, timeout=LIMIT)

    def migrate(_number: int) -> int:
        barrier.wait()
        return migrator(empty_database, folder, role).migrate(ignore)

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(migrate, range(6))) == [0, 0, 0, 0, 0, len(CHAIN)]
    assert tables(empty_database) == ALL


def test_processes_at_once_apply_each_migration_once(empty_database: str, folder: Path, role: Role) -> None:
    program = (
        "import sys; from pathlib import Path; from kronos_db.runtime.database.migrations import *; "
        "sys.stdin.readline(); dsn, folder, role = sys.argv[1:]; "
        "m = Migrator('things', dsn, chain('things', Path(folder)), Role(role, 'secret'), 3.0); "
        "print(m.migrate(lambda d, n: None))"
    )
    command = [sys.executable, "-c", program, empty_database, str(folder), role.name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]  # type: ignore[call-overload] # a dict
    outcomes = [process.communicate("go\n", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outcomes
    assert sorted(out.strip() for out, _err in outcomes) == ["0", "0", str(len(CHAIN))]


def test_databases_at_once_make_one_role(postgres: EmbeddedPostgres, folder: Path) -> None:
    """Roles belong to the whole server, advisory locks to one database."""
    barrier = threading.Barrier(2, timeout=LIMIT)
    name = f"kronos_things_{uuid.uuid4().hex[:8]}"

    def migrate(dsn: str, role: Role) -> int:
        barrier.wait()
        return migrator(dsn, folder, role).migrate(ignore)

    with new_database(postgres) as a, new_database(postgres) as b, ThreadPoolExecutor(2) as threads:
        for attempt in range(5):
            role = Role(f"{name}_{attempt}", PASSWORD)
            assert sum(threads.map(migrate, (a, b), (role, role))) == (2 * len(CHAIN) if attempt == 0 else 0)


def test_a_failing_migration_rolls_back_whole_and_is_named(empty_database: str, folder: Path, role: Role) -> None:
    broken = folder / "0003_broken.sql"
    broken.write_text("CREATE TABLE half (id int);\nINSERT INTO half VALUES (1);\nSELECT 1 / 0;")
    with pytest.raises(MigrationFailedError) as caught:
        migrator(empty_database, folder, role).migrate(ignore)
    assert str(broken) in str(caught.value)
    assert "division by zero" in str(caught.value)
    assert tables(empty_database) == ALL, "what came before stays"
    assert [row.name for row in migrator(empty_database, folder, role).applied()] == CHAIN
    broken.write_text("CREATE TABLE half (id int);")
    assert migrator(empty_database, folder, role).migrate(ignore) == 1


def test_a_locked_table_is_waited_for_a_while(
    empty_database: str, folder: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_LOCK_TIMEOUT", "200ms")
    migrator(empty_database, folder, role).migrate(ignore)
    (folder / "0003_alter.sql").write_text("ALTER TABLE thing ADD COLUMN later int;")
    with psycopg.connect(empty_database) as holder:
        holder.execute("SELECT * FROM things.thing")
        started = time.monotonic()
        with pytest.raises(MigrationFailedError, match=r"0003_alter\.sql failed: .*lock timeout"):
            migrator(empty_database, folder, role).migrate(ignore)
        assert 0.2 <= time.monotonic() - started < LIMIT
        holder.rollback()
        assert migrator(empty_database, folder, role).migrate(ignore) == 1


def test_a_slow_migration_is_ended(
    empty_database: str, folder: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_STATEMENT_TIMEOUT", "200ms")
    (folder / "0003_slow.sql").write_text("SELECT pg_sleep(60);")
    with pytest.raises(MigrationFailedError, match=r"0003_slow\.sql failed: .*statement timeout"):
        migrator(empty_database, folder, role).migrate(ignore)


def test_another_migrator_is_waited_for_a_while(
    empty_database: str, folder: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_WAIT_FOR_OTHER_MIGRATOR", "200ms")
    with psycopg.connect(empty_database, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s, hashtext('things'))", [migrations._LOCK_CLASS])
        with pytest.raises(MigrationFailedError, match="things: waiting for another migrator failed"):
            migrator(empty_database, folder, role).migrate(ignore)
    assert migrator(empty_database, folder, role).migrate(ignore) == len(CHAIN)


def test_a_migrator_that_dies_leaves_no_lock(empty_database: str, folder: Path, role: Role) -> None:
    holder = psycopg.connect(empty_database, autocommit=True)
    holder.execute("SELECT pg_advisory_lock(%s, hashtext('things'))", [migrations._LOCK_CLASS])
    with psycopg.connect(empty_database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [holder.info.backend_pid])
    assert migrator(empty_database, folder, role).migrate(ignore) == len(CHAIN)
    holder.close()


def test_a_newer_schema_is_refused(empty_database: str, folder: Path, role: Role) -> None:
    migrator(empty_database, folder, role).migrate(ignore)
    (folder / "0002_more.sql").rename(folder.parent / "gone.sql")
    with pytest.raises(SchemaTooNewError, match="things/0002_more"):
        migrator(empty_database, folder, role).migrate(ignore)


def test_a_changed_migration_is_refused(empty_database: str, folder: Path, role: Role) -> None:
    migrator(empty_database, folder, role).migrate(ignore)
    (folder / "0001_create.sql").write_text("CREATE TABLE thing (id bigint PRIMARY KEY);")
    (folder / "0003_later.sql").write_text("CREATE TABLE later (id int);")
    with pytest.raises(MigrationChangedError, match="things/0001_create"):
        migrator(empty_database, folder, role).migrate(ignore)
    assert tables(empty_database) == ALL


def test_no_server_is_a_sentence_without_the_password(empty_database: str, folder: Path, role: Role) -> None:
    away = make_conninfo(empty_database, host="127.0.0.1", port=1, password="very secret")
    calls: list[Callable[[], object]] = [
        lambda: migrator(away, folder, role).migrate(ignore),
        migrator(away, folder, role).applied,
    ]
    for call in calls:
        with pytest.raises(MigrationFailedError) as caught:
            call()
        assert "very secret" not in str(caught.value)


# Rights


@pytest.fixture
def as_things(empty_database: str, folder: Path, role: Role) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the domain's role, in a database with another domain and a table that is nobody's."""
    migrator(empty_database, folder, role).migrate(ignore)
    others = folder.parent / "others"
    others.mkdir()
    (others / "0001_create.sql").write_text("CREATE TABLE private (id int);")
    migrator(empty_database, others, Role(f"{role.name}_2", PASSWORD), "others").migrate(ignore)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("CREATE TABLE public.stray (id int)")
    assert role.password is not None
    with psycopg.connect(as_role(empty_database, role.name, role.password), autocommit=True) as connection:
        yield connection


def test_the_role_reads_and_writes_its_rows(as_things: psycopg.Connection[Any]) -> None:
    as_things.execute("INSERT INTO things.thing VALUES (1, 'a')")
    as_things.execute("UPDATE things.thing SET name = 'b'")
    as_things.execute("INSERT INTO things.other DEFAULT VALUES")
    assert as_things.execute("SELECT name, things.twice(id) FROM things.thing").fetchone() == ("b", 2)
    as_things.execute("DELETE FROM things.thing")
    assert as_things.execute("SELECT count(*) FROM things.schema_migration").fetchone() == (len(CHAIN),)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM others.private",
        "SELECT * FROM others.schema_migration",
        "SELECT * FROM others.data_key",
        "INSERT INTO others.private VALUES (1)",
        "SELECT * FROM public.stray",
        "CREATE TABLE things.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE SCHEMA mine",
        "ALTER TABLE things.thing ADD COLUMN mine int",
        "DROP TABLE things.thing",
        "TRUNCATE things.thing",
        "CREATE INDEX ON things.thing (name)",
        "CREATE ROLE mine",
        "INSERT INTO things.schema_migration VALUES ('mine', '')",
        "UPDATE things.schema_migration SET checksum = ''",
        "DELETE FROM things.schema_migration",
        "COPY things.thing TO '/stolen'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_authid",
    ],
)
def test_the_role_may_not(as_things: psycopg.Connection[Any], statement: str) -> None:
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.WrongObjectType)):
        as_things.execute(statement)


def test_the_role_has_nothing_to_give_away(as_things: psycopg.Connection[Any]) -> None:
    """A GRANT without the right to it only warns."""
    as_things.execute("GRANT SELECT ON things.thing TO PUBLIC")
    public = "SELECT has_table_privilege('public', 'things.thing', 'SELECT')"
    assert as_things.execute(public).fetchone() == (False,)


def test_the_role_has_its_limits(as_things: psycopg.Connection[Any]) -> None:
    for name, value in (
        ("statement_timeout", "3s"),
        ("idle_in_transaction_session_timeout", "1min"),
        ("search_path", "pg_catalog"),
    ):
        assert as_things.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,)


# Passwords


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that logs every statement, as an operator may have it."""
    settings = {"fsync": "off", "log_statement": "all", "log_min_duration_statement": "0"}
    server = EmbeddedPostgres(tmp_path_factory.mktemp("talkative"), settings)
    server.start()
    yield server
    server.stop("immediate")


def test_no_password_is_in_the_log(talkative: EmbeddedPostgres, folder: Path) -> None:
    role = Role("kronos_things", "Tr0ub4dor-and-3")
    migrator(talkative.dsn, folder, role).migrate(ignore)
    log = talkative.log_file.read_text(encoding="utf-8")
    assert "ALTER ROLE" in log
    assert "Tr0ub4dor" not in log


def test_a_changed_secret_changes_the_password(empty_database: str, folder: Path, role: Role) -> None:
    migrator(empty_database, folder, role).migrate(ignore)
    migrator(empty_database, folder, Role(role.name, "the next")).migrate(ignore)
    psycopg.connect(as_role(empty_database, role.name, "the next")).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(as_role(empty_database, role.name, PASSWORD))


def test_a_role_without_a_password_here_keeps_the_one_it_has(empty_database: str, folder: Path, role: Role) -> None:
    migrator(empty_database, folder, role).migrate(ignore)
    migrator(empty_database, folder, Role(role.name, None)).migrate(ignore)
    psycopg.connect(as_role(empty_database, role.name, PASSWORD)).close()


def test_a_password_that_is_right_is_not_set_again(empty_database: str, folder: Path, role: Role) -> None:
    """A new salt would void what a pgBouncer remembers of its clients' logins."""
    with psycopg.connect(empty_database, autocommit=True) as admin:
        verifiers = []
        for _ in range(2):
            migrator(empty_database, folder, role).migrate(ignore)
            found = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [role.name]).fetchone()
            verifiers.append(found)
    assert verifiers[0] == verifiers[1]
