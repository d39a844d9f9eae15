"""Reads from a streaming standby: never from before what was acknowledged, and no error when it lags, dies or rises."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kronos.admin.v1 import query_pb2 as query_pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.logs.v1 import logs_pb2 as pb
from kronos.logs.v1.logs_pb2_grpc import LogsServiceStub
from kronos.users.v1 import users_pb2 as users_pb

from kronos_db import schemas
from kronos_db.admin.query_store import QueryStore
from kronos_db.runtime.database import standbys as module
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.standbys import Progress
from kronos_db.runtime.database.transaction import Transaction
from tests.faults.conftest import TABLES
from tests.parts.domain import mutation, settings_of
from tests.parts.eventually import eventually
from tests.parts.serving import Serving
from tests.parts.standby import LIMIT, Pair

ADD = Query(
    "add",
    "INSERT INTO users.counter VALUES ('a', 1) ON CONFLICT (name) DO UPDATE SET value = counter.value + 1 "
    "RETURNING value",
    "",
    True,
)
READ = Query("read", "SELECT pg_is_in_recovery(), (SELECT value FROM users.counter WHERE name = 'a')", "", True)
MET = {"served": 1, "behind": 2, "away": 3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def settings(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = settings_of(tmp_path_factory.mktemp("settings"), pair.primary.dsn, replica_dsns=pair.standby.dsn)
    schemas.migrate(found, lambda _domain, _name: None)
    with psycopg.connect(pair.primary.dsn, autocommit=True) as admin:
        admin.execute(TABLES)
    return found


@pytest.fixture
def users(pair: Pair, settings: Any) -> Iterator[Database]:
    eventually(pair.caught_up, LIMIT)
    database = schemas.open_database(settings, "users")
    eventually(lambda: read(database)[0], LIMIT)
    yield database
    database.close()


def write(database: Database) -> int:
    def work(tx: Transaction) -> int:
        return tx.fetch_one(ADD, {}, int) or 0

    return int(database.write(work, mutation()))


def read(database: Database) -> tuple[bool, int]:
    """Return whether a standby answered, and what."""
    standby, value = database.fetch_all_aside(READ, {}, lambda *row: row)[0]
    return standby, value or 0


def counts(database: Database) -> dict[str, int]:
    assert database.standbys is not None
    return dict(database.standbys.counts)


def test_what_was_acknowledged_is_read_and_mostly_from_the_standby(users: Database) -> None:
    served = 0
    for _ in range(30):
        value = write(users)
        standby, found = read(users)
        assert found == value
        served += standby
    assert served > 0
    assert counts(users)["served"] >= served


def test_a_standby_that_lags_is_not_asked_until_it_has_caught_up(pair: Pair, users: Database) -> None:
    pair.pause()
    try:
        value = write(users)
        for _ in range(5):
            assert read(users) == (False, value)
        assert counts(users)["behind"] >= 1
        assert pair.on_standby(READ.text.replace("pg_is_in_recovery(), ", "")) != value, "it does lag"
    finally:
        pair.resume()
    eventually(lambda: read(users) == (True, value), LIMIT)


def hunt(pair: Pair, users: Database, seconds: float) -> list[str]:
    """Write, read and stop the standby again and again; return the answers that were old."""
    acknowledged, old = [write(users)], []
    until = time.monotonic() + seconds

    def writer() -> None:
        while time.monotonic() < until:
            acknowledged.append(write(users))

    def reader() -> None:
        while time.monotonic() < until:
            at_least = acknowledged[-1]
            _, found = read(users)
            if found < at_least:
                old.append(f"{found}, and {at_least} was acknowledged")

    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(writer), *(threads.submit(reader) for _ in range(3))]
        try:
            while time.monotonic() < until:
                pair.pause()
                pair.resume()
        finally:
            pair.resume()
        for job in jobs:
            job.result(LIMIT)
    return old


def test_no_answer_is_old_while_the_standby_stops_and_goes_on(pair: Pair, users: Database) -> None:
    before = counts(users)
    assert hunt(pair, users, 2.0) == []
    assert counts(users)["served"] > before["served"]


def test_the_same_hunt_finds_the_fault_when_nobody_looks_how_far_the_standby_is(
    pair: Pair, users: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "reaches", lambda *_: True)
    found: list[str] = []

    def look() -> bool:
        found.extend(hunt(pair, users, 0.5))
        return bool(found)

    eventually(look, LIMIT)


def test_a_dead_standby_is_not_noticed_and_asked_again_when_it_is_back(pair: Pair, users: Database) -> None:
    value = write(users)
    stop, found = threading.Event(), []

    def reader() -> None:
        while not stop.is_set():
            found.append(read(users)[1])

    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(reader) for _ in range(2)]
        try:
            pair.standby.stop("immediate")
            eventually(lambda: counts(users)["away"] > 0, LIMIT)
            pair.standby.start()
            eventually(pair.caught_up, LIMIT)
        finally:
            stop.set()
        for job in jobs:
            job.result(LIMIT)
    assert set(found) == {value}
    eventually(lambda: read(users) == (True, value), LIMIT)


def test_another_cluster_is_no_standby(pair: Pair, users: Database, database: str) -> None:
    standbys = users.standbys
    assert standbys is not None
    look, position = standbys.progress.look, standbys.progress.position()
    assert position is not None
    with standbys._standbys[0].pool.connection() as connection:
        assert look(connection, position) == (True, True, True)
        assert look(connection, position._replace(cluster=position.cluster + 1))[0] is False
        assert look(connection, position._replace(timeline=position.timeline + 1))[1] is False
        assert look(connection, position._replace(lsn="FFFF/0"))[2] is False


@pytest.fixture(scope="module")
def serving(pair: Pair, settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that reads from the standby."""
    dsn, standby = pair.primary.dsn, pair.standby.dsn
    running = Serving(tmp_path_factory.mktemp("serving"), dsn, replica_dsns=standby, query_dsn=standby)
    running.start()
    yield running
    running.stop()


def test_a_server_reads_logs_from_the_standby(serving: Serving) -> None:
    logs = LogsServiceStub(serving.channel_of("operator"))
    origin = pb.Origin(service="standby-test")
    for number in range(1, 21):
        record = pb.LogRecord(body=pb.Value(string_value=f"line {number}"))
        record.time.GetCurrentTime()
        logs.WriteLogs(pb.WriteLogsRequest(origin=origin, records=[record]), timeout=LIMIT)
        request = pb.QueryLogsRequest(filter=pb.LogFilter(service="standby-test"), page_size=100)
        assert len(logs.QueryLogs(request, timeout=LIMIT).records) == number
        assert logs.GetLogStats(pb.GetLogStatsRequest(), timeout=LIMIT).records >= number
    served = serving.server.registry.get_sample_value(
        "kronos_db_standby_reads_total", {"domain": "logs", "outcome": "served"}
    )
    assert served


def test_operators_statements_run_on_the_standby_and_are_never_old(
    pair: Pair, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, on_standby = QueryStore._current, []

    def current(*arguments: Any) -> Any:
        found = original(*arguments)
        on_standby.append(found is not None)
        return found

    monkeypatch.setattr(QueryStore, "_current", staticmethod(current))
    users, admin = serving.users(), AdminServiceStub(serving.channel_of("operator"))
    question = query_pb.QueryRequest(sql="SELECT count(*) FROM users.users")

    def ask() -> tuple[bool, int]:
        answer = admin.Query(question, timeout=LIMIT)
        values = [value for message in answer for row in message.rows.rows for value in row.values]
        return on_standby[-1], values[0].int64_value

    def create(name: str) -> None:
        users.CreateUser(users_pb.CreateUserRequest(user=users_pb.User(username=name)), timeout=LIMIT)

    eventually(lambda: ask()[0], LIMIT)
    before = ask()[1]
    create("first")
    assert ask()[1] == before + 1
    eventually(lambda: ask() == (True, before + 1), LIMIT)
    pair.pause()
    try:
        create("second")
        assert ask() == (False, before + 2)
    finally:
        pair.resume()


def test_a_standby_that_is_promoted_takes_over_without_a_restart(tmp_path: Path) -> None:
    own = Pair(tmp_path / "own")
    own.primary.directory.parent.mkdir()
    own.start()
    found = settings_of(tmp_path / "settings", own.primary.dsn)
    schemas.migrate(found, lambda _domain, _name: None)
    with psycopg.connect(own.primary.dsn, autocommit=True) as admin:
        admin.execute(TABLES)
    settings = settings_of(tmp_path / "either", own.either, replica_dsns=own.standby.dsn)
    users = schemas.open_database(settings, "users")
    try:
        eventually(lambda: write(users) and read(users)[0], LIMIT)
        value = write(users)
        eventually(own.caught_up, LIMIT)
        own.primary.stop("immediate")
        own.on_standby("SELECT pg_promote()")
        answered: list[int] = []

        def written() -> bool:
            try:
                answered.append(write(users))
            except module.KronosError:
                return False
            return True

        eventually(written, LIMIT)
        assert answered == [value + 1]
        # What was a standby is the primary: nobody asks it as a standby any more.
        assert read(users) == (False, value + 1)
        assert read(users) == (False, value + 1)
    finally:
        users.close()
        own.stop()
