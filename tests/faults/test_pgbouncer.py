"""What a pgBouncer in transaction mode adds to go wrong: both versions, without and with prepared statements."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kronos_db import schemas
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime import deadline
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import KronosError
from tests.faults.conftest import COUNT, World, effect
from tests.parts.domain import LIMIT, mutation, settings_of
from tests.parts.eventually import eventually
from tests.parts.pgbouncer import PgBouncer

FAIL = Query("fail", "SELECT users.fail(%(times)s, %(code)s)", "", True)
STATE = Query("state", "SELECT current_setting(%(name)s)", "", True)


@pytest.fixture(params=["pgbouncer_118", "pgbouncer_124"])
def way(request: pytest.FixtureRequest, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[PgBouncer]:
    """A pgBouncer of this test's own, for it is stopped."""
    shared: PgBouncer = request.getfixturevalue(request.param)
    own = PgBouncer(
        shared._binary, tmp_path / "pgbouncer", postgres.dsn, 200 if request.param == "pgbouncer_124" else None
    )
    (tmp_path / "pgbouncer").mkdir()
    own.start()
    yield own
    own.stop()


@pytest.fixture
def users(request: pytest.FixtureRequest, world: World, way: PgBouncer, tmp_path: Path) -> Iterator[Database]:
    secret = world.settings.postgres_direct_dsn
    assert secret is not None
    prepared = request.node.callspec.params["way"] == "pgbouncer_124"
    settings = settings_of(tmp_path / "settings", secret.get_secret_value(), way, prepared_statements=prepared)
    database = schemas.open_database(settings, "users")
    for _ in range(3):
        database.write(effect("warm"), mutation())
    world.admin.execute("TRUNCATE users.effect, users.idempotency")
    yield database
    database.pool.close()


def test_a_terminated_server_connection_is_not_noticed(world: World, users: Database) -> None:
    attempts: list[int] = []

    def work(tx: Transaction) -> str:
        written = effect()(tx)
        if not attempts:
            assert world.terminate_all() >= 1
        attempts.append(1)
        return written

    assert users.write(work, mutation()) == "a"
    assert len(attempts) == 2
    assert world.effects() == ["a"]


def test_terminated_between_calls(world: World, users: Database) -> None:
    for number in range(5):
        world.terminate_all()
        assert users.write(effect(str(number)), mutation()) == str(number)
        world.terminate_all()
        assert users.fetch_one(COUNT, {}, int) == number + 1


def test_the_limit_of_a_deadline_goes_with_its_statement(world: World, users: Database) -> None:
    try:
        for _ in range(3):
            deadline.current.set(time.monotonic() + 10)
            assert users.fetch_one(STATE, {"name": "statement_timeout"}, str) != "30s"
            assert users.write(effect(), mutation()) == "a"
            deadline.current.set(None)
            assert users.fetch_one(STATE, {"name": "statement_timeout"}, str) == "30s"
    finally:
        deadline.current.set(None)
    assert world.effects() == ["a"] * 3


def test_failures_leave_nothing_in_the_shared_connections(world: World, users: Database) -> None:
    """Errors in the middle and at the end of pipelines, rollbacks, settings of one transaction: then all goes on."""

    def fail(tx: Transaction) -> str:
        tx.execute(Query("limit", "SET LOCAL statement_timeout = 1234", "", False), {})
        tx.fetch_one(FAIL, {"times": 1_000_000, "code": "22P02"}, int)
        raise AssertionError("it did not fail")

    def fail_late(tx: Transaction) -> None:
        tx.execute(FAIL, {"times": 1_000_000, "code": "22P02"})

    for number in range(4):
        for work in (fail, fail_late):
            with pytest.raises(Exception, match="made to fail"):
                users.write(work, mutation())
        users.write(effect("shown"), mutation(validate_only=True))
        assert users.write(effect(str(number)), mutation()) == str(number)
        assert users.fetch_one(STATE, {"name": "statement_timeout"}, str) == "30s"
        assert users.fetch_one(STATE, {"name": "search_path"}, str) == "pg_catalog"
    assert world.effects() == ["0", "1", "2", "3"]


def test_a_pgbouncer_that_is_killed_under_load_loses_and_doubles_nothing(
    world: World, way: PgBouncer, users: Database
) -> None:
    stop, acknowledged = threading.Event(), []

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            call = mutation()
            while True:
                try:
                    acknowledged.append(users.write(effect(f"{writer}-{number}"), call))
                    break
                except KronosError:
                    stop.wait(0.01)

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, writer) for writer in range(3)]
        for _ in range(2):
            before = len(acknowledged)
            eventually(lambda: len(acknowledged) > before + 30, LIMIT, lambda: "writers do not write")  # noqa: B023
            way.stop()
            way.start()
        before = len(acknowledged)
        eventually(lambda: len(acknowledged) > before + 10, LIMIT, lambda: "the pool does not recover")
        stop.set()
        for writer in writers:
            writer.result(LIMIT)
    assert world.effects() == sorted(acknowledged)


def test_a_migration_under_load_is_not_noticed(world: World, users: Database) -> None:
    """A release migrates while the one before it serves, and pgBouncer opens connections with what it remembers."""
    for number in range(3):
        schemas.migrate(world.settings, lambda _domain, _name: None)
        world.terminate_all()
        assert users.write(effect(str(number)), mutation()) == str(number)
    assert world.effects() == ["0", "1", "2"]
