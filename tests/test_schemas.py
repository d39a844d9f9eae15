"""Each domain's place in PostgreSQL: what is pending is said, told to /readyz, and ends with the migration."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psycopg
import pytest

from kronos_db import schemas
from kronos_db.config import Settings, SettingsError
from kronos_db.runtime.database.migrations import MigrationChangedError, Role, SchemaTooNewError, chain
from kronos_db.server import Server
from tests.parts.domain import LIMIT, redirected, settings_of

ROLE_DSN = "postgresql://someone:secret@127.0.0.1:1/somewhere"

# A server of a test leaves the core and the policy of its process alone.
IN_THIS_PROCESS = {"grpc_listen": "127.0.0.1:0", "ops_listen": "127.0.0.1:0", "cpu_affinity": "off"}


def ignore(_domain: str, _name: str) -> None:
    pass


def shortfall(settings: Settings) -> str | None:
    database = schemas.open_database(settings, "users")
    try:
        return schemas.shortfall("users", database)
    finally:
        database.pool.close()


CHAIN = [migration.name for migration in chain("users", Path(schemas.__file__).parent / "users" / "migrations")]
PENDING = f"{len(CHAIN)} migrations are pending; run `kronos-db migrate`"


@pytest.fixture
def settings(database: str, tmp_path: Path) -> Settings:
    # The role of the tests' servers exists from here on, whatever test comes first.
    made = settings_of(tmp_path, database, pool_timeout=5)
    schemas.migrate(made, ignore)
    return made


def unmigrate(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA users CASCADE")


def test_nothing_is_missing_after_migrate(settings: Settings) -> None:
    assert shortfall(settings) is None
    plan = schemas.migration_plan(settings)
    assert {row.state for row in plan} == {"applied"}
    assert [row.name for row in plan if row.domain == "users"] == CHAIN
    assert {row.domain for row in plan} == set(schemas.SERVED)
    assert all(row.path.is_file() and row.applied_at for row in plan)


def test_pending_migrations_are_said(settings: Settings, database: str) -> None:
    unmigrate(database)
    assert shortfall(settings) == PENDING
    plan = [row for row in schemas.migration_plan(settings) if row.domain == "users"]
    assert {(row.state, row.applied_at) for row in plan} == {("pending", None)}


def test_a_schema_that_is_being_made_counts_as_pending(settings: Settings, database: str) -> None:
    """The table is there before the rights to read it are."""
    unmigrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA users; CREATE TABLE users.schema_migration (name text)")
    assert shortfall(settings) == PENDING


def test_no_postgresql_is_said(database: str, tmp_path: Path) -> None:
    away = settings_of(tmp_path, redirected(database, ("127.0.0.1", 1)), pool_timeout=0.1)
    assert shortfall(away) == "PostgreSQL does not answer"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("INSERT INTO users.schema_migration VALUES ('users/0999_later', '')", SchemaTooNewError),
        ("UPDATE users.schema_migration SET checksum = 'another'", MigrationChangedError),
    ],
)
def test_what_waiting_does_not_mend_is_raised(
    settings: Settings, database: str, change: str, error: type[Exception]
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(change)
    with pytest.raises(error):
        shortfall(settings)
    with pytest.raises(error):
        schemas.migration_plan(settings)
    server = Server(settings.model_copy(update=IN_THIS_PROCESS))
    try:
        with pytest.raises(error):
            server.start(threading.Event())
    finally:
        server.stop()


def readyz(server: Server) -> tuple[int, str]:
    give_up = time.monotonic() + LIMIT
    while server.ops_address.endswith(":0"):
        assert time.monotonic() < give_up, "the ops port does not open"
        time.sleep(0.005)
    address = server.ops_address
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=LIMIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_readyz_waits_for_the_migrations(settings: Settings, database: str) -> None:
    unmigrate(database)
    server = Server(settings.model_copy(update=IN_THIS_PROCESS))
    stopped = threading.Event()
    starting = threading.Thread(target=server.start, args=(stopped,))
    starting.start()
    try:
        status, text = readyz(server)
        assert status == 503
        assert PENDING in text
        schemas.migrate(settings, ignore)
        starting.join(LIMIT)
        assert not starting.is_alive()
        assert readyz(server)[0] == 200
    finally:
        stopped.set()
        starting.join(LIMIT)
        server.stop()


# Who logs in where


def test_a_dsn_of_the_domain_names_its_role(tmp_path: Path) -> None:
    settings = Settings.model_validate({"users_dsn": ROLE_DSN})
    assert schemas._access(settings, "users") == (ROLE_DSN, Role("someone", "secret"))
    with pytest.raises(SettingsError, match="KRONOS_DB_USERS_DSN: must name a role"):
        schemas.open_database(Settings.model_validate({"users_dsn": "host=127.0.0.1"}), "users")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "KRONOS_DB_POSTGRES_DSN or KRONOS_DB_USERS_DSN is required"),
        ({"postgres_dsn": ROLE_DSN}, "KRONOS_DB_POSTGRES_ROLE_SECRET_FILE is required"),
        ({"postgres_dsn": ROLE_DSN, "postgres_role_secret_file": "missing"}, "No such file or directory: .*missing"),
        ({"postgres_dsn": ROLE_DSN, "postgres_role_secret_file": "short"}, "at least 32 characters"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    (tmp_path / "short").write_text("short")
    if "postgres_role_secret_file" in changes:
        changes = {**changes, "postgres_role_secret_file": str(tmp_path / changes["postgres_role_secret_file"])}
    with pytest.raises(SettingsError, match=message):
        schemas.open_database(Settings.model_validate(changes), "users")


def test_the_derived_password_depends_on_secret_and_role(tmp_path: Path) -> None:
    passwords = set()
    for secret in ("one secret of at least 32 characters", "another secret of at least 32 characters"):
        file = tmp_path / "secret"
        file.write_text(secret)
        settings = Settings.model_validate({"postgres_dsn": ROLE_DSN, "postgres_role_secret_file": str(file)})
        for role in ("kronos_users", "kronos_logs"):
            password = schemas._derived_password(settings, role)
            assert password == schemas._derived_password(settings, role)
            assert len(password) == 43
            passwords.add(password)
    assert len(passwords) == 4
