"""Moments order the snapshots of a database as they were taken, across every way to commit, and across a crash."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.changes import Change, moment
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.transaction import Transaction
from tests.parts.domain import mutation, new_database, opened, settings_of
from tests.parts.eventually import eventually

LIMIT = 20.0
NOTE = """INSERT INTO users.change (place, part, kind, record_id, body)
VALUES (nextval('users.change_place'), %s, 'test', 'a', '{}')"""
Session = psycopg.Connection[Any]
# What a session does next. Those that begin something go before those that end it, so that much is open at a time.
STEPS = ("number", "change", "savepoint", "change", "release", "roll back to", "commit", "roll back")


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def database(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with opened(settings_of(tmp_path_factory.mktemp("moments"), dsn)) as found:
        yield found


@pytest.fixture(scope="module")
def sessions(dsn: str, database: Database) -> Iterator[list[Session]]:
    made = [psycopg.connect(dsn) for _ in range(3)]
    yield made
    for session in made:
        session.close()


class Walk:
    """Sessions that do one thing after the other; the moment is told after each."""

    def __init__(self, database: Database, sessions: Sequence[Session]) -> None:
        self._database = database
        self._sessions = sessions
        # Of each session: for each level of savepoints, whether something was noted in it.
        self._noted: list[list[bool]] = [[False] for _ in sessions]
        self._parts = 0

    def moment(self) -> int:
        return moment(self._database.instant().snapshot)

    def do(self, number: int, step: str) -> bool:
        """Do a step; return whether it made a change visible."""
        session, levels = self._sessions[number], self._noted[number]
        if step == "number":
            session.execute("SELECT pg_current_xact_id()")
        elif step == "change":
            self._parts += 1
            session.execute(NOTE, [self._parts])
            levels[-1] = True
        elif step == "savepoint":
            session.execute("SAVEPOINT s")
            levels.append(False)
        elif step == "release" and len(levels) > 1:
            session.execute("RELEASE SAVEPOINT s")
            inner = levels.pop()
            levels[-1] = levels[-1] or inner
        elif step == "roll back to" and len(levels) > 1:
            session.execute("ROLLBACK TO SAVEPOINT s")
            levels[-1] = False
        elif step in {"commit", "roll back"}:
            changed, self._noted[number] = any(levels), [False]
            session.commit() if step == "commit" else session.rollback()
            return changed and step == "commit"
        return False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS)), min_size=5, max_size=60))
def test_a_commit_makes_the_moment_greater_and_nothing_makes_it_smaller(
    database: Database, sessions: list[Session], steps: list[tuple[int, str]]
) -> None:
    walk = Walk(database, sessions)
    before = walk.moment()
    try:
        for number, step in steps:
            visible = walk.do(number, step)
            after = walk.moment()
            assert after >= before, f"{step} made it smaller"
            assert after > before or not visible, "a change became visible and the moment stayed"
            before = after
    finally:
        for session in sessions:
            session.rollback()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_overlapping_commits_each_make_it_greater(
    database: Database, sessions: list[Session], order: tuple[int, int]
) -> None:
    """The one of the lower number ends first, or last, while a third has a lower one still and stays open."""
    walk = Walk(database, sessions)
    walk.do(2, "number")
    for number in (0, 1):
        walk.do(number, "change")
    moments = [walk.moment()]
    for number in order:
        assert walk.do(number, "commit")
        moments.append(walk.moment())
    walk.do(2, "roll back")
    assert moments[0] < moments[1] < moments[2] <= walk.moment()


class Told:
    """Takes the place of who keeps copies: has the snapshots that writes are acknowledged with."""

    holder: UUID = uuid4()

    def __init__(self) -> None:
        self.moments: list[int] = []

    def outdate(self, tags: Sequence[str], snapshot: str, timeline: str, others: bool) -> None:
        self.moments.append(moment(snapshot))


@pytest.fixture
def told(database: Database, monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(database, "copies", told)
    return told


def change(tx: Transaction) -> None:
    tx.note(Change("test", "a"))


def test_the_moment_of_a_write_is_later_than_any_that_does_not_see_it(
    database: Database, told: Told, sessions: list[Session]
) -> None:
    sessions[0].execute("SELECT pg_current_xact_id()")
    inside: list[int] = []

    def work(tx: Transaction) -> None:
        change(tx)
        inside.append(moment(database.instant().snapshot))

    request = mutation()
    for call in (mutation(), request, request):
        database.write(work, call)
    first, second, repeat = told.moments
    assert inside[0] < first <= inside[1] < second <= repeat, "a repeat is told a moment that sees the first"
    assert repeat <= moment(database.instant().snapshot)
    sessions[0].rollback()


def test_concurrent_writes_are_each_told_a_moment_that_sees_them(database: Database, told: Told) -> None:
    failed: list[str] = []
    done = threading.Event()

    def sample() -> None:
        last = 0
        while not done.is_set():
            at = moment(database.instant().snapshot)
            if at < last:
                failed.append("the moment became smaller")
            last = at

    def write() -> None:
        for _ in range(40):
            before = moment(database.instant().snapshot)
            database.write(change, mutation())
            if moment(database.instant().snapshot) <= before:
                failed.append("a commit did not make it greater")

    sampler = threading.Thread(target=sample)
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in (sampler, *writers):
        thread.start()
    for thread in writers:
        thread.join(LIMIT)
    done.set()
    sampler.join(LIMIT)
    assert not failed
    assert len(told.moments) == 80


def test_moments_do_not_go_back_when_a_crash_gives_numbers_anew(tmp_path: Path) -> None:
    """Transactions that were rolled back have used up numbers, of which a crashed PostgreSQL knows nothing."""
    postgres = EmbeddedPostgres(tmp_path / "postgres")
    postgres.start()
    try:
        with opened(settings_of(tmp_path, postgres.dsn)) as database:
            # PostgreSQL notes by itself now and then how far it is: then no number is lost.
            for _ in range(5):
                database.write(change, mutation())
                before, lost = crash(postgres.dsn, database)
                with psycopg.connect(postgres.dsn) as session:
                    given_anew = raw(session) < lost
                database.write(change, mutation())
                assert moment(database.instant().snapshot) > before
                if given_anew:
                    break
            assert given_anew, "PostgreSQL gives numbers anew"
    finally:
        postgres.stop("immediate")


def crash(dsn: str, database: Database) -> tuple[int, int]:
    """Use up numbers and have PostgreSQL crash; return the moment before, and that of the numbers that were lost."""
    with psycopg.connect(dsn) as session, psycopg.connect(dsn, autocommit=True) as witness:
        for _ in range(50):
            session.execute("SELECT pg_current_xact_id()")
            session.rollback()
        lost = raw(session)
        session.rollback()
        before = moment(database.instant().snapshot)
        os.kill(session.info.backend_pid, signal.SIGKILL)
        # All sessions end with the one that was killed.
        eventually(lambda: not answers(witness), LIMIT)
    eventually(lambda: is_up(dsn), LIMIT)
    return before, lost


def raw(session: Session) -> int:
    (snapshot,) = session.execute("SELECT pg_current_snapshot()::text").fetchone() or ("",)
    return moment(snapshot)


def answers(session: Session) -> bool:
    try:
        session.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def is_up(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True
