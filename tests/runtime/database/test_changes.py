"""The log of changes: what became visible since a snapshot, neither too much nor too little, in commit order."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.changes import Change, ChangeLog, FoundChanges, Position, moment
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import PositionLostError
from tests.parts.commit_order import Write, assert_in_commit_order, timed
from tests.parts.domain import LIMIT, mutation, new_database, opened, settings_of

Session = psycopg.Connection[tuple[Any, ...]]
LOG = ChangeLog("users")
_FOUND = Query(
    "found",
    "/* users:found */ SELECT n::text, jsonb_build_object('number', n) FROM generate_series(1, %(count)s) AS n",
    "",
    prepared=True,
)


@pytest.fixture(scope="module")
def log_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def database(log_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with opened(settings_of(tmp_path_factory.mktemp("changes"), log_dsn)) as found:
        with psycopg.connect(log_dsn, autocommit=True) as admin:
            admin.execute("CREATE TABLE public.record (id int PRIMARY KEY, version int NOT NULL)")
        yield found


@pytest.fixture
def sessions(log_dsn: str) -> Iterator[list[Session]]:
    """Three sessions of writers, as a superuser: what the order of their commits is, the test says."""
    made = [psycopg.connect(log_dsn) for _ in range(3)]
    yield made
    for session in made:
        session.close()


def append(session: Session, *names: str) -> None:
    """Note changes in the session's transaction."""
    session.execute(LOG.queries["append"].text, LOG.columns([Change("test", name) for name in names]))


def read(database: Database, position: Position, limit: int = 100) -> tuple[list[str], Position]:
    """Read all pages up to now; return the ids and the position behind them."""
    names: list[str] = []
    while True:
        page = database.changes_since(position, limit)
        names += [noted.change.record_id for noted in page.changes]
        position = page.end
        if not page.changes:
            return names, position


def test_nothing_changed_is_an_empty_page(database: Database) -> None:
    page = database.changes_since(database.position(), 10)

    assert page.changes == []
    assert page.end.until is None


def test_a_write_is_read_with_what_it_noted(database: Database) -> None:
    start = database.position()

    def work(tx: Transaction) -> None:
        tx.note(Change("test", "first", {"word": "ä"}))
        tx.note(Change("test", "second"))

    database.write(work, mutation())

    page = database.changes_since(start, 10)
    assert [noted.change for noted in page.changes] == [
        Change("test", "first", {"word": "ä"}),
        Change("test", "second"),
    ]
    assert [noted.part for noted in page.changes] == [1, 2]
    assert page.changes[0].time.tzinfo is not None


@pytest.mark.parametrize("before", [0, 2])
def test_what_a_query_finds_is_noted_behind_the_rest(database: Database, before: int) -> None:
    start = database.position()

    def work(tx: Transaction) -> None:
        for number in range(before):
            tx.note(Change("test", f"noted {number}", copied=False))
        tx.note_found(FoundChanges("test", _FOUND, {"count": 3}))
        assert tx.tells
        assert tx.tags == ["test"]

    database.write(work, mutation())

    changes = database.changes_since(start, 10).changes
    assert [noted.change.record_id for noted in changes] == [*(f"noted {n}" for n in range(before)), "1", "2", "3"]
    assert [noted.part for noted in changes] == list(range(1, before + 4))
    assert len({noted.place for noted in changes}) == 1
    assert changes[-1].change.body == {"number": 3}
    # Once for all of them.
    assert [noted.change.record_id for noted in database.changes_since(start, 10, whole=False).changes] == ["1"]


def test_a_query_may_find_nothing(database: Database) -> None:
    start = database.position()

    database.write(lambda tx: tx.note_found(FoundChanges("test", _FOUND, {"count": 0})), mutation())

    assert read(database, start)[0] == []


def test_a_write_that_is_only_validated_is_not_told(database: Database) -> None:
    start = database.position()

    database.write(lambda tx: tx.note(Change("test", "never")), mutation(validate_only=True))

    assert read(database, start)[0] == []


def test_what_is_open_is_told_when_it_commits(database: Database, sessions: list[Session]) -> None:
    """The long transaction has the lower number, and readers went past it."""
    start = database.position()
    long, short, _ = sessions
    append(long, "long")
    append(short, "short")
    short.commit()

    early, position = read(database, start)
    long.commit()
    late, position = read(database, position)

    assert (early, late) == (["short"], ["long"])
    assert read(database, position)[0] == []


def test_a_transaction_open_over_many_pages(database: Database, sessions: list[Session]) -> None:
    start = database.position()
    long, short, _ = sessions
    append(long, "long")
    told: list[str] = []
    position = start
    for number in range(5):
        append(short, f"{number}a", f"{number}b")
        short.commit()
        found, position = read(database, position, limit=1)
        told += found
        if number == 2:
            long.commit()

    assert told == ["0a", "0b", "1a", "1b", "2a", "2b", "long", "3a", "3b", "4a", "4b"]


def test_what_is_rolled_back_is_not_told(database: Database, sessions: list[Session]) -> None:
    start = database.position()
    append(sessions[0], "gone")
    sessions[0].rollback()

    assert read(database, start)[0] == []


def test_commits_while_pages_are_read_come_after_them(database: Database, sessions: list[Session]) -> None:
    start = database.position()
    append(sessions[0], "open")
    append(sessions[1], "a", "b", "c")
    sessions[1].commit()

    first = database.changes_since(start, 2)
    sessions[0].commit()
    rest, _ = read(database, first.end)

    assert [noted.change.record_id for noted in first.changes] == ["a", "b"]
    # Not "open" before "c", though its number is lower: those who read in one go have "c" first.
    assert rest == ["c", "open"]


def test_every_change_has_its_position(database: Database, sessions: list[Session]) -> None:
    start = database.position()
    for name in "abcde":
        append(sessions[0], name, name.upper())
        sessions[0].commit()
    page = database.changes_since(start, 100)
    told = [noted.change.record_id for noted in page.changes]

    for index in range(len(told)):
        assert read(database, page.at(index))[0] == told[index + 1 :]


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_of_any_size_make_the_same_whole(database: Database, sessions: list[Session], limit: int) -> None:
    start = database.position()
    names = [f"{number}" for number in range(12)]
    for number in range(0, 12, 3):
        append(sessions[number % 2], *names[number : number + 3])
        sessions[number % 2].commit()

    assert read(database, start, limit)[0] == names


def test_who_keeps_copies_reads_what_they_depend_on_alone(database: Database, sessions: list[Session]) -> None:
    start = database.position()
    noted = [Change("test", "first"), Change("test", "second", copied=False), Change("test", "third", {"a": 1})]
    sessions[0].execute(LOG.queries["append"].text, LOG.columns(noted))
    sessions[0].commit()

    assert read(database, start)[0] == ["first", "second", "third"]
    page = database.changes_since(start, 10, whole=False)
    assert [(each.change.record_id, each.change.body) for each in page.changes] == [("first", {}), ("third", {})]
    assert read(database, page.end)[0] == []


def test_a_position_of_another_history_is_lost(database: Database) -> None:
    here = database.position()
    assert here.history

    with pytest.raises(PositionLostError):
        database.changes_since(replace(here, history="another.00000001"), 10)


def test_what_was_removed_is_missed_by_those_behind_it_alone(
    log_dsn: str, database: Database, sessions: list[Session]
) -> None:
    start = database.position()
    append(sessions[0], "old")
    sessions[0].commit()
    after = database.position()
    append(sessions[0], "new")
    sessions[0].commit()
    with psycopg.connect(log_dsn, autocommit=True) as admin:
        admin.execute("UPDATE users.change SET create_time = now() - interval '8 days' WHERE record_id <> 'new'")

    while database.purge_changes(7 * 86_400.0, limit=3):
        pass

    with pytest.raises(PositionLostError):
        database.changes_since(start, 10)
    assert read(database, after)[0] == ["new"]


def test_moments_order_snapshots_as_they_were_taken(log_dsn: str, database: Database, sessions: list[Session]) -> None:
    with psycopg.connect(log_dsn, autocommit=True) as admin:
        last = ""
        open_ones: list[Session] = []
        for number in range(60):
            session = random.Random(number).choice(sessions)
            if session in open_ones:
                session.rollback() if number % 3 else session.commit()
                open_ones.remove(session)
            else:
                session.execute("SELECT pg_current_xact_id()")
                open_ones.append(session)
            row = admin.execute("SELECT pg_current_snapshot()::text").fetchone()
            assert row is not None
            if last:
                assert moment(row[0]) >= moment(last)
                assert (moment(row[0]) == moment(last)) == (row[0] == last)
            last = row[0]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("5:5:", "5:6:"), ("5:8:5,6", "6:8:6"), ("6:8:6", "8:8:"), ("8:8:", "8:9:"), ("5:8:5,6,7", "9:9:")],
)
def test_moments(earlier: str, later: str) -> None:
    assert moment(earlier) < moment(later)
    assert moment(earlier) == moment(earlier)


def test_concurrent_writers_are_told_once_and_in_commit_order(log_dsn: str, database: Database) -> None:
    """Transactions overlap and wait for each other's rows; a reader follows in pages smaller than a transaction."""
    start = database.position()
    writes: list[Write] = []
    done = threading.Event()
    told: list[tuple[str, int]] = []

    def write(writer: int) -> None:
        with psycopg.connect(log_dsn) as session:
            chance = random.Random(writer)
            for _ in range(40):
                # In order, so that they do not deadlock.
                ids = sorted(chance.sample(range(6), 3))
                versions, began, ended = timed(lambda: change(session, ids))  # noqa: B023  # called at once
                writes.extend(Write(str(i), version, began, ended) for i, version in zip(ids, versions, strict=True))

    def change(session: Session, ids: list[int]) -> list[int]:
        versions = []
        for record in ids:
            sql = "UPDATE public.record SET version = version + 1 WHERE id = %s RETURNING version"
            row = session.execute(sql, [record]).fetchone()
            assert row is not None
            versions.append(row[0])
        changes = [Change("test", str(i), {"version": version}) for i, version in zip(ids, versions, strict=True)]
        session.execute(LOG.queries["append"].text, LOG.columns(changes))
        session.commit()
        return versions

    def follow() -> None:
        position = start
        last = False
        while True:
            page = database.changes_since(position, 2)
            told.extend((noted.change.record_id, noted.change.body["version"]) for noted in page.changes)
            position = page.end
            if position.until is None:
                if last:
                    return
                last = done.is_set()

    with psycopg.connect(log_dsn, autocommit=True) as admin:
        admin.execute("INSERT INTO public.record SELECT id, 0 FROM generate_series(0, 5) AS id")
    with ThreadPoolExecutor(9) as threads:
        reader = threads.submit(follow)
        for writer in [threads.submit(write, number) for number in range(8)]:
            writer.result(LIMIT)
        done.set()
        reader.result(LIMIT)

    assert len(writes) == 8 * 40 * 3
    assert_in_commit_order(told, writes)
