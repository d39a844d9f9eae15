"""What is left of a call's deadline limits its statements, in the round trip that they need anyway, but not COMMIT."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime import deadline
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import StatementTimeoutError
from kronos_db.runtime.workers import Gatherer, Workers
from tests.faults.conftest import World, effect, make_world
from tests.faults.wire import Wire
from tests.parts.domain import LIMIT, mutation, opened
from tests.parts.eventually import eventually

LIMIT_NOW = Query(
    "limit", "/* users:limit */ SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'", "", True
)
SLEEP = Query("sleep", "/* users:sleep */ SELECT 1 FROM pg_sleep(20)", "", True)
_ROLES_OWN = 30_000


@pytest.fixture(autouse=True)
def _no_deadline_is_left() -> Iterator[None]:
    yield
    deadline.current.set(None)


def within(seconds: float) -> None:
    deadline.current.set(time.monotonic() + seconds)


def limit(users: Database) -> int | None:
    return users.fetch_one(LIMIT_NOW, {}, int)


def test_a_read_has_what_is_left_and_leaves_nothing_behind(users: Database) -> None:
    assert limit(users) == _ROLES_OWN
    within(10)
    assert 8_000 < (limit(users) or 0) <= 10_000
    assert users.fetch_all(LIMIT_NOW, {}, int)[0] <= 10_000
    within(60)
    assert limit(users) == _ROLES_OWN, "never longer than the role's"
    deadline.current.set(None)
    assert limit(users) == _ROLES_OWN


def test_a_statement_that_is_begun_at_all_has_five_milliseconds(users: Database) -> None:
    assert users.limit() is None
    within(0.001)
    assert users.limit() == "5"
    within(-1)
    assert users.limit() == "5"


def test_a_limit_is_sent_only_where_it_is_shorter_and_without_a_transaction(users: Database, wire: Wire) -> None:
    before = len(wire.statements)
    limit(users)
    plain = wire.statements[before:]
    within(10)
    limit(users)

    assert not any("set_config" in statement for statement in plain)
    sent = wire.statements[before + len(plain) :]
    assert any("set_config" in statement for statement in sent)
    assert "BEGIN" not in sent


def test_a_read_that_takes_longer_is_cancelled_and_the_connection_goes_on(users: Database) -> None:
    within(0.1)
    begun = time.monotonic()

    with pytest.raises(StatementTimeoutError):
        users.fetch_one(SLEEP, {}, int)

    assert time.monotonic() - begun < 5
    deadline.current.set(None)
    assert limit(users) == _ROLES_OWN


def test_a_write_has_what_is_left_too(world: World, users: Database) -> None:
    seen: list[int | None] = []

    def work(tx: Transaction) -> str:
        seen.append(tx.fetch_one(LIMIT_NOW, {}, int))
        return effect()(tx)

    users.write(work, mutation())
    within(10)
    users.write(work, mutation())
    users.write_together(lambda tx: [work(tx)], [mutation()])
    deadline.current.set(None)

    assert seen[0] == _ROLES_OWN
    assert all(8_000 < (found or 0) <= 10_000 for found in seen[1:])
    assert limit(users) == _ROLES_OWN
    assert world.effects() == ["a"] * 3


def test_a_write_that_takes_longer_is_rolled_back(world: World, users: Database) -> None:
    def work(tx: Transaction) -> str:
        effect()(tx)
        tx.fetch_one(SLEEP, {}, int)
        raise AssertionError("it slept")

    within(0.1)
    with pytest.raises(StatementTimeoutError):
        users.write(work, mutation())

    assert (world.effects(), world.answers()) == ([], 0)


@pytest.mark.parametrize(("left", "expected"), [((3.0, 9.0), 9_000), ((3.0, None), _ROLES_OWN)])
def test_gathered_reads_have_the_latest_deadline_of_all(
    users: Database, left: tuple[float | None, ...], expected: int
) -> None:
    found: list[int | None] = []
    gatherer: Gatherer[int, int] = Gatherer(lambda keys: dict.fromkeys(keys, limit(users) or 0))
    workers, go, done = Workers(1), threading.Event(), threading.Barrier(len(left) + 1)

    def ask(seconds: float | None, key: int) -> None:
        if seconds is not None:
            within(seconds)
        found.append(gatherer.get(key))

    workers.submit(lambda: go.wait(LIMIT))
    for key, seconds in enumerate(left):
        workers.submit(ask, seconds, key).add_done_callback(lambda _: threading.Thread(target=done.wait).start())
    go.set()
    done.wait(LIMIT)
    workers.shutdown()

    assert len(found) == len(left)
    assert all(expected - 2_000 < (number or 0) <= expected for number in found)


def test_a_commit_that_waits_for_a_standby_outlasts_the_deadline(tmp_path: Path) -> None:
    """Were it cancelled, PostgreSQL would warn and commit without the standby."""
    postgres = EmbeddedPostgres(tmp_path / "postgres", {"fsync": "off"})
    postgres.start()
    try:
        for world in make_world(postgres.dsn, tmp_path / "world"):
            with opened(world.settings) as users, ThreadPoolExecutor(1) as pool:
                users.write(effect("warm"), mutation())
                _require_standby(world.admin, "nobody")
                writing, over = _write_that_waits(world, users, pool)
                eventually(lambda over=over: time.monotonic() > over + 0.2)  # type: ignore[misc]

                assert world.backends("wait_event = 'SyncRep'")
                assert not writing.done()
                _require_standby(world.admin, "")
                written = writing.result(LIMIT)
                assert world.effects().count(written) == 1
    finally:
        postgres.stop("immediate")


def _write_that_waits(world: World, users: Database, pool: ThreadPoolExecutor) -> tuple[Future[str], float]:
    """Return a write whose COMMIT waits, and its deadline.

    One that is refused before its COMMIT is tried again, and so is one that commits before PostgreSQL has told itself
    what it was told: its checkpointer does, later than the session that shows the setting.
    """
    for seconds in (0.2, 1.0, 5.0):
        over = time.monotonic() + seconds
        writing = pool.submit(_write_until, users, over, f"late {seconds}")
        eventually(lambda writing=writing: writing.done() or world.backends("wait_event = 'SyncRep'"))  # type: ignore[misc]
        if not writing.done():
            return writing, over
    raise AssertionError("no write comes to its COMMIT within five seconds and waits there")


def _write_until(users: Database, over: float, what: str) -> str:
    deadline.current.set(over)
    return users.write(effect(what), mutation())


def _require_standby(admin: psycopg.Connection[object], name: str) -> None:
    admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    admin.execute("SELECT pg_reload_conf()")
    eventually(lambda: admin.execute("SHOW synchronous_standby_names").fetchone() == (name,))
