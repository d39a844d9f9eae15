"""The pool: bounded, quick to refuse, quick to recover, and clear about whether PostgreSQL or the load is at fault."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from kronos_db.runtime import deadline
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.pool import Connection, Pool, PoolLimits
from kronos_db.runtime.errors import DeadlineTooShortError, OverloadedError, UnavailableError
from kronos_db.runtime.ops.saturation import watch_pools
from kronos_db.schemas import _access
from tests.faults.conftest import COUNT, World, effect
from tests.faults.wire import Wire
from tests.parts.domain import LIMIT, mutation, redirected
from tests.parts.eventually import eventually


@pytest.fixture
def users(world: World, wire: Wire) -> Iterator[Database]:
    """A database with two connections, two that may wait for them, and little patience."""
    dsn, _role = _access(world.settings, "users")
    pool = Pool("users", redirected(dsn, wire.address), PoolLimits(2, 2, timeout=0.4))
    yield Database("users", pool)
    pool.close()


def occupy_both(users: Database) -> None:
    """Make the pool grow to its size."""
    with users.pool.connection(), users.pool.connection():
        pass


def test_an_exhausted_pool_refuses_after_its_timeout(users: Database) -> None:
    with users.pool.connection(), users.pool.connection():
        started = time.monotonic()
        with pytest.raises(OverloadedError, match="no connection came free in time") as caught:
            users.fetch_one(COUNT, {}, int)
        assert 0.4 <= time.monotonic() - started < LIMIT
        assert caught.value.retry_after
    assert users.fetch_one(COUNT, {}, int) == 0


def test_a_full_queue_refuses_at_once(users: Database) -> None:
    with users.pool.connection(), users.pool.connection(), ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(users.fetch_one, COUNT, {}, int) for _ in range(2)]
        eventually(lambda: users.pool.stats().get("requests_waiting") == 2, LIMIT, lambda: "nobody waits")
        started = time.monotonic()
        with pytest.raises(OverloadedError, match="queue is full") as caught:
            users.fetch_one(COUNT, {}, int)
        assert time.monotonic() - started < 0.3
        assert caught.value.retry_after
        for call in waiting:
            with pytest.raises(OverloadedError, match="no connection came free in time"):
                call.result(LIMIT)
    assert users.fetch_one(COUNT, {}, int) == 0


def test_those_that_wait_get_the_connections_that_come_free(users: Database) -> None:
    occupy_both(users)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: users.write(effect(str(n)), mutation()), range(4))) == list("0123")


def test_a_short_deadline_shortens_the_wait(users: Database) -> None:
    with users.pool.connection(), users.pool.connection():
        token = deadline.current.set(time.monotonic() + 0.05)
        try:
            started = time.monotonic()
            with pytest.raises(DeadlineTooShortError):
                users.fetch_one(COUNT, {}, int)
            assert time.monotonic() - started < 0.4
        finally:
            deadline.current.reset(token)


def test_an_outage_is_no_overload(users: Database, wire: Wire) -> None:
    assert users.fetch_one(COUNT, {}, int) == 0
    wire.close()
    for _ in range(2):
        with pytest.raises(UnavailableError, match="PostgreSQL gives no connection") as caught:
            users.fetch_one(COUNT, {}, int)
        assert caught.value.retry_after


def test_an_outage_with_a_full_queue_is_no_overload(users: Database, wire: Wire) -> None:
    assert users.fetch_one(COUNT, {}, int) == 0
    wire.close()
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(users.fetch_one, COUNT, {}, int) for _ in range(8)]
        for call in calls:
            with pytest.raises(UnavailableError):
                call.result(LIMIT)


def test_an_outage_that_outlasts_all_who_wait_has_an_end(
    world: World, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kronos_db.runtime.database.pool._RECONNECT", 0.1)
    dsn, _role = _access(world.settings, "users")
    pool = Pool("users", redirected(dsn, wire.address), PoolLimits(2, 2, timeout=0.2))
    users = Database("users", pool)
    try:
        occupy_both(users)
        wire.away.set()
        wire.cut_all()
        # Both places of the queue are taken by who gave up long ago, and the pool has given up too.
        for _ in range(8):
            with pytest.raises(UnavailableError):
                users.fetch_one(COUNT, {}, int)
        eventually(lambda: pool.stats().get("requests_waiting") == 2, LIMIT, lambda: "the queue is not full")
        wire.away.clear()
        eventually(lambda: answers(users), LIMIT, lambda: "it does not connect again")
    finally:
        pool.close()


def answers(users: Database) -> bool:
    try:
        return users.fetch_one(COUNT, {}, int) == 0
    except UnavailableError:
        return False


def test_a_closed_pool_is_unavailable(users: Database) -> None:
    users.pool.close()
    with pytest.raises(UnavailableError):
        users.fetch_one(COUNT, {}, int)


def test_connections_that_died_in_the_pool_cost_no_attempt(world: World, users: Database) -> None:
    with users.pool.connection() as first, users.pool.connection() as second:
        sockets = [first.fileno(), second.fileno()]
    assert world.terminate_all() == 2
    # They leave pg_stat_activity before they say farewell.
    eventually(lambda: len(select.select(sockets, [], [], 0)[0]) == 2, LIMIT)
    with capture_logs() as logs:
        assert users.write(effect(), mutation()) == "a"
    assert logs == [], "no attempt failed"
    registry = CollectorRegistry()
    watch_pools(registry, {"users": users.pool})
    lost = registry.get_sample_value("kronos_db_pool_connections_lost_total", {"domain": "users"})
    assert lost, "and yet they are counted"


def test_a_bug_in_a_write_leaves_the_connection_as_it_was(world: World, users: Database) -> None:
    class Bug(Exception):  # noqa: N818 # no error of ours
        pass

    def broken(tx: object) -> str:
        effect()(tx)  # type: ignore[arg-type] # a transaction
        raise Bug

    for _ in range(3):
        with pytest.raises(Bug):
            users.write(broken, mutation())
        assert users.fetch_one(COUNT, {}, int) == 0
    assert users.pool.stats().get("returns_bad", 0) == 0, "and it went back in order"


def test_the_statements_of_a_pipeline_are_sent_together(world: World, wire: Wire) -> None:
    """Each by itself would cost a poll, a write and a switch between processes."""
    secret = world.settings.postgres_direct_dsn
    assert secret is not None
    dsn = redirected(secret.get_secret_value(), wire.address)
    with Connection.connect(dsn, autocommit=True) as connection, Connection.connect(dsn, autocommit=True) as other:
        with connection.pipeline():
            results = [connection.execute(f"SELECT {number} AS together", binary=True) for number in range(3)]
            # What had been sent before would have been seen before this.
            other.execute("SELECT 'marker'")
            assert not [statement for statement in wire.statements if "together" in statement]
            assert [cursor.fetchone() for cursor in results] == [(0,), (1,), (2,)]
            connection.execute("SELECT 'at the end'", binary=True)
        assert any("at the end" in statement for statement in wire.statements)
