"""Leases: one holder at a time, judged by the database's clock, given up before it runs out, fenced for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db.runtime import deadline
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.leases import Lease, LeaseGoneError
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.errors import KronosError, UnavailableError
from tests.parts.domain import LIMIT, opened, settings_of
from tests.parts.eventually import eventually

LONG, SHORT = 60.0, 0.2  # seconds


@pytest.fixture(params=["straight", "pgbouncer_118", "pgbouncer_124"])
def users(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Database]:
    way = None if request.param == "straight" else request.getfixturevalue(request.param)
    settings = settings_of(tmp_path, database, way, prepared_statements=request.param != "pgbouncer_118")
    with opened(settings) as users:
        yield users


@pytest.fixture
def straight(database: str, tmp_path: Path) -> Iterator[Database]:
    with opened(settings_of(tmp_path, database)) as users:
        yield users


def test_one_holds_and_renews_while_the_other_waits(users: Database) -> None:
    first, second = Lease(users, "work", LONG), Lease(users, "work", LONG)

    for _ in range(3):
        mine, theirs = first.take(), second.take()
        assert (mine.mine, mine.fence, first.fence) == (True, 1, 1)
        assert (theirs.mine, theirs.fence, second.fence) == (False, 1, None)
        assert LONG - 5 < theirs.remaining <= LONG
    assert Lease(users, "other work", LONG).take().mine


def test_what_is_released_is_free_at_once_and_under_a_new_fence(users: Database) -> None:
    first, second = Lease(users, "work", LONG), Lease(users, "work", LONG)
    first.take()

    first.release()

    assert first.fence is None
    assert second.take().mine
    assert second.fence == 2
    # Who does not hold it has nothing to release.
    first.release()
    assert not first.take().mine
    second.release()
    # Also for one who had it before.
    assert second.take().fence == 3


def test_a_holder_that_died_is_followed_when_its_lease_has_run_out(users: Database) -> None:
    dead, next_one = Lease(users, "work", SHORT), Lease(users, "work", LONG)
    taken = time.monotonic()
    dead.take()

    eventually(lambda: next_one.take().mine)

    assert time.monotonic() - taken >= SHORT
    assert next_one.fence == 2
    assert not dead.take().mine


def test_a_holder_gives_up_before_its_lease_runs_out(straight: Database) -> None:
    lease = Lease(straight, "work", SHORT)
    lease.take()
    held = Query("held", "SELECT expire_time > clock_timestamp() FROM users.lease", "", True)

    eventually(lambda: lease.fence is None)

    assert straight.fetch_one(held, {}, bool) is True


def test_the_time_counts_from_before_the_question(straight: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(straight, "work", LONG)
    execute, clock = straight.execute, time.monotonic

    def slow(query: Query, params: Any) -> int:
        rows = execute(query, params)
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 0.95 * LONG)
        return rows

    monkeypatch.setattr(straight, "execute", slow)
    assert lease.take().mine
    assert lease.fence is None


def test_of_many_that_rush_for_a_lease_one_gets_it(users: Database) -> None:
    leases = [Lease(users, "work", LONG) for _ in range(4)]
    start = threading.Barrier(len(leases))

    def take(lease: Lease) -> bool:
        start.wait(LIMIT)
        return lease.take().mine

    with ThreadPoolExecutor(len(leases)) as threads:
        for fence in range(1, 6):
            assert sum(threads.map(take, leases)) == 1
            (holder,) = [lease for lease in leases if lease.fence is not None]
            assert holder.fence == fence
            holder.release()


def test_whoever_lost_the_lease_cannot_say_that_the_work_is_done(users: Database) -> None:
    first, second = Lease(users, "work", LONG), Lease(users, "work", LONG)
    began_under = first.take().fence
    assert first.take().since_success is None
    first.release()
    second.take()

    assert not first.done(began_under)
    assert second.take().since_success is None
    assert second.done(2)
    look = second.take()
    assert look.since_success is not None
    assert look.success_time is not None
    assert 0 <= look.since_success < 5
    assert abs(look.success_time - time.time()) < 60
    # Nor can a holder of what it began when it held the lease before.
    second.release()
    assert second.take().fence == 3
    assert not second.done(2)


def test_who_waits_leaves_the_row_alone(straight: Database, database: str) -> None:
    """Not even a lock: any number may wait without a write."""
    holder, waiting = Lease(straight, "work", LONG), Lease(straight, "work", LONG)
    holder.take()
    with psycopg.connect(database) as admin:
        before = admin.execute("SELECT ctid, xmin, xmax FROM users.lease").fetchone()
        waiting.take()
        assert admin.execute("SELECT ctid, xmin, xmax FROM users.lease").fetchone() == before


def test_a_lease_that_cannot_be_renewed_is_held_until_its_time(
    straight: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(straight, "work", LONG)
    lease.take()

    def away(_query: Query, _params: Any) -> int:
        assert 0 < deadline.remaining(1000) <= LONG
        raise UnavailableError("away")

    monkeypatch.setattr(straight, "execute", away)
    with pytest.raises(UnavailableError):
        lease.take()
    assert lease.fence == 1
    # Of whoever asked, nothing is bounded any more.
    assert deadline.remaining(1000) == 1000
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + LONG)
    assert lease.fence is None


def test_a_row_that_was_deleted_is_an_error(straight: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straight, "execute", lambda _query, _params: 1)
    lease = Lease(straight, "work", LONG)
    with pytest.raises(LeaseGoneError):
        lease.take()
    assert lease.fence is None
    assert issubclass(LeaseGoneError, KronosError)
