"""Background work: once in the fleet, again after its interval, taken over from whoever stops or dies."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs

from kronos_db.runtime.database.background import OUTCOMES, BackgroundWork, Held, stop_all
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.upkeep import upkeep
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.ops.background import watch_background
from tests.parts.domain import LIMIT, mutation, opened, settings_of
from tests.parts.eventually import eventually

# Seconds: where the lease is to run out, and where it must not on a machine that is busy.
LEASE = 0.3
SAFE = 1.5
EXPIRED = Query("expired", "SELECT expire_time < clock_timestamp() FROM users.lease", "", True)
NEVER = 1e9
Make = Callable[..., BackgroundWork]


@pytest.fixture
def users(database: str, tmp_path: Path) -> Iterator[Database]:
    with opened(settings_of(tmp_path, database)) as users:
        yield users


@pytest.fixture
def make(users: Database) -> Iterator[Make]:
    """Start work as a serving process does."""
    made: list[BackgroundWork] = []

    def make(work: Callable[[Held], None], *, interval: float = NEVER, lease_seconds: float = LEASE) -> BackgroundWork:
        made.append(BackgroundWork(users, "work", interval, work, lease_seconds=lease_seconds))
        made[-1].start()
        return made[-1]

    yield make
    for work in made:
        work.stop()


def test_one_of_several_does_it_and_again_after_the_interval(make: Make) -> None:
    ran: Counter[int] = Counter()
    at_once = threading.Semaphore(1)

    def work(number: int) -> Callable[[Held], None]:
        def run(_held: Held) -> None:
            assert at_once.acquire(blocking=False)
            ran[number] += 1
            at_once.release()

        return run

    works = [make(work(number), interval=0.01, lease_seconds=SAFE) for number in range(3)]

    eventually(lambda: ran.total() >= 3)

    assert len(ran) == 1
    assert [work.holds for work in works] == [number in ran for number in range(3)]


def test_a_successor_knows_when_it_was_last_done(make: Make) -> None:
    ran: list[int] = []
    first = make(lambda _held: ran.append(1))
    eventually(lambda: first.success_time)
    first.stop()

    second = make(lambda _held: ran.append(2))

    eventually(lambda: second.holds)
    # It has looked once more since, and found nothing to do.
    eventually(lambda: second.success_time == first.success_time)
    assert ran == [1]


def test_who_stops_lets_the_next_one_take_over_at_once(make: Make) -> None:
    begun, broken_off = threading.Event(), threading.Event()

    def work(held: Held) -> None:
        begun.set()
        eventually(lambda: not held())
        broken_off.set()

    first = make(work, lease_seconds=3.0)
    assert begun.wait(LIMIT)
    outcomes: list[str] = []
    first.on_end(outcomes.append)
    successor = threading.Event()
    second = make(lambda _held: successor.set(), lease_seconds=3.0)

    first.stop()

    assert broken_off.is_set()
    assert outcomes == ["LOST"]
    assert not first.holds
    # Not after the lease: after its next look.
    assert successor.wait(2.0)
    eventually(lambda: second.success_time)


def test_who_dies_is_followed_within_the_lease(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(lambda _held: None, lease_seconds=SAFE)
    eventually(lambda: first.success_time)
    second = make(lambda _held: None, lease_seconds=SAFE)
    eventually(lambda: second.success_time)
    assert not second.holds

    over = threading.Event()

    def killed() -> Any:
        over.wait(LIMIT)
        raise UnavailableError("killed")

    # What the process would have done next, it does not do.
    monkeypatch.setattr(first._lease, "take", killed)
    eventually(lambda: not first.holds)
    eventually(lambda: second.holds)
    over.set()


def test_work_that_lasts_longer_than_its_lease_keeps_it(make: Make) -> None:
    done = threading.Event()
    kept: list[bool] = []

    def work(held: Held) -> None:
        # More than a lease, counted in renewals.
        renewals = set()
        while len(renewals) < 5 and held():
            renewals.add(first._lease._hold)
            threading.Event().wait(0.01)
        kept.append(held())
        done.set()

    ready = threading.Event()

    def begin(held: Held) -> None:
        ready.wait(LIMIT)
        work(held)

    first = make(begin, lease_seconds=SAFE)
    other = make(lambda _held: kept.append(False), lease_seconds=SAFE)
    ready.set()

    assert done.wait(LIMIT)
    eventually(lambda: first.success_time)
    assert kept == [True]
    assert first.holds != other.holds


def test_work_that_lost_its_lease_is_told(make: Make, users: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, told = threading.Event(), threading.Event()
    fences: list[int] = []

    def work(held: Held) -> None:
        fences.append(held.fence)
        if len(fences) == 1:
            begun.set()
            eventually(lambda: not held())
            told.set()

    first = make(work, interval=0.01)
    assert begun.wait(LIMIT)
    outcomes: list[str] = []
    first.on_end(outcomes.append)
    execute = users.execute

    def away(*_: Any) -> int:
        raise UnavailableError("away")

    with capture_logs() as logs:
        monkeypatch.setattr(users, "execute", away)
        assert told.wait(LIMIT)
        eventually(lambda: outcomes == ["LOST"])
        eventually(lambda: users.fetch_one(EXPIRED, {}, bool))
        monkeypatch.setattr(users, "execute", execute)
        eventually(lambda: len(fences) > 1)
    # The same process again, and yet not the same holding.
    assert fences[:2] == [1, 2]
    # Once, however often it was tried.
    assert [line["event"] for line in logs] == ["lease not renewed"]


def test_work_of_an_earlier_holding_is_over_though_the_same_process_holds_it_again(
    make: Make, users: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, look = threading.Event(), threading.Event()
    told: list[bool] = []

    def work(held: Held) -> None:
        begun.set()
        look.wait(LIMIT)
        told.append(held())

    first = make(work)
    assert begun.wait(LIMIT)
    execute = users.execute

    def away(*_: Any) -> int:
        raise UnavailableError("away")

    monkeypatch.setattr(users, "execute", away)
    eventually(lambda: users.fetch_one(EXPIRED, {}, bool))
    monkeypatch.setattr(users, "execute", execute)
    eventually(lambda: (first._lease.fence or 0) >= 2)
    look.set()

    eventually(lambda: told == [False])


def test_work_that_fails_is_logged_counted_and_tried_again(make: Make, users: Database) -> None:
    attempts: list[int] = []

    def work(_held: Held) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise RuntimeError("out of order")

    registry = CollectorRegistry()
    failing = BackgroundWork(users, "work", 0.01, work, lease_seconds=LEASE)
    watch_background(registry, [failing], OUTCOMES)

    def runs(outcome: str) -> float | None:
        labels = {"domain": "users", "work": "work", "outcome": outcome}
        return registry.get_sample_value("kronos_db_background_runs_total", labels)

    of_work = {"domain": "users", "work": "work"}
    last = "kronos_db_background_last_success_timestamp_seconds"
    assert [runs(outcome) for outcome in OUTCOMES] == [0, 0, 0]
    assert registry.get_sample_value("kronos_db_background_holder", of_work) == 0
    assert registry.get_sample_value(last, of_work) is None
    with capture_logs() as logs:
        failing.start()
        eventually(lambda: (runs("OK") or 0) >= 1)
        eventually(lambda: registry.get_sample_value(last, of_work))
        assert registry.get_sample_value("kronos_db_background_holder", of_work) == 1
        failing.stop()
    assert runs("FAILED") == 2
    assert [line["event"] for line in logs] == ["background work failed"] * 2


def test_one_that_was_never_started_can_be_stopped(users: Database) -> None:
    BackgroundWork(users, "work", 1.0, lambda _held: None).stop()


def test_all_are_stopped_in_the_time_of_one_when_postgres_is_away(database: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, database, pool_timeout=1.0)
    name = conninfo_to_dict(database)["dbname"]
    with opened(settings) as users, psycopg.connect(database, dbname="postgres", autocommit=True) as admin:
        works = [BackgroundWork(users, f"work {number}", NEVER, lambda _held: None) for number in range(25)]
        for work in works:
            work.start()
        eventually(lambda: all(work.holds for work in works))
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            began = time.monotonic()
            stop_all(works)
            # Each alone waits a second for a connection.
            assert time.monotonic() - began < 15
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_old_changes_go(users: Database, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO users.change (place, part, kind, record_id, body, create_time)"
            " SELECT 1, n, 'thing', n::text, '{}', now() - make_interval(days => 6 + n % 2 * 2)"
            " FROM generate_series(1, 2400) AS n"
        )
        works = upkeep(users)
        try:
            for work in works:
                work.start()
            count = "SELECT count(*)::int FROM users.change"
            eventually(lambda: admin.execute(count).fetchone() == (1200,))
        finally:
            for work in works:
                work.stop()


def test_expired_answers_go_without_any_write(users: Database, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO users.idempotency SELECT 'test', gen_random_uuid(), '', '', now() - interval '1 second'"
            " FROM generate_series(1, 200)"
        )
        users.write(lambda _tx: "kept", mutation())
        works = upkeep(users)
        try:
            for work in works:
                work.start()
            count = "SELECT count(*)::int FROM users.idempotency"
            eventually(lambda: admin.execute(count).fetchone() == (1,))
        finally:
            for work in works:
                work.stop()
