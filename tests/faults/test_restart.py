"""PostgreSQL crashes under load, and a synchronous standby is missed: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from kronos_db import schemas
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.errors import KronosError, OverloadedError, UnavailableError
from tests.faults.conftest import COUNT, World, effect, make_world
from tests.parts.domain import LIMIT, mutation
from tests.parts.eventually import eventually

ADD = Query("add", "/* users:add */ INSERT INTO users.effect VALUES (%(note)s)", "", True)


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that forgets nothing when its processes are killed."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("own_postgres"), {"fsync": "off"})
    server.start()
    yield server
    server.stop("immediate")


@pytest.fixture(scope="module")
def own_world(own_postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from make_world(own_postgres.dsn, tmp_path_factory.mktemp("own_world"))


@pytest.fixture
def users(own_postgres: EmbeddedPostgres, own_world: World) -> Iterator[Database]:
    own_world.admin = psycopg.connect(own_postgres.dsn, autocommit=True)
    own_world.admin.execute("TRUNCATE users.effect, users.idempotency")
    database = schemas.open_database(own_world.settings, "users")
    yield database
    database.pool.close()
    own_world.admin.close()


def persistently(call: Callable[[], str]) -> str:
    """Repeat a call as its caller would, with the same request_id."""
    give_up = time.monotonic() + LIMIT
    while True:
        try:
            return call()
        except (UnavailableError, OverloadedError):
            assert time.monotonic() < give_up, "PostgreSQL does not come back"
            time.sleep(0.01)


def test_a_crash_loses_and_doubles_nothing(own_postgres: EmbeddedPostgres, own_world: World, users: Database) -> None:
    """Half of the writers repeat what failed, the other half do not."""
    stop = threading.Event()
    patient: list[str] = []
    impatient: list[str] = []
    failed: list[str] = []

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            note, call = f"{writer}-{number}", mutation()
            if writer % 2:
                patient.append(persistently(lambda: users.write(effect(note), call)))  # noqa: B023 # called at once
                continue
            try:
                impatient.append(users.write(effect(note), call))
            except KronosError:
                failed.append(note)

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, writer) for writer in range(4)]
        for _crash in range(2):
            acknowledged = len(patient)
            eventually(lambda: len(patient) >= acknowledged + 50, LIMIT, lambda: "writers do not write")  # noqa: B023
            own_postgres.stop("immediate")
            own_postgres.start()
            started = time.monotonic()
            acknowledged = len(patient)
            eventually(lambda: len(patient) > acknowledged, LIMIT, lambda: "the pool does not recover")  # noqa: B023
            assert time.monotonic() - started < 5
        stop.set()
        for writer in writers:
            writer.result(LIMIT)
    own_world.admin.close()
    own_world.admin = psycopg.connect(own_postgres.dsn, autocommit=True)
    stored = Counter(own_world.effects())
    assert {note for note, count in stored.items() if count > 1} == set(), "doubled"
    assert set(patient) | set(impatient) <= set(stored), "lost"
    assert set(stored) <= {*patient, *impatient, *failed}


def test_idle_connections_of_before_a_crash_are_not_noticed(
    own_postgres: EmbeddedPostgres, own_world: World, users: Database
) -> None:
    meeting = threading.Barrier(4)

    def occupy(_number: int) -> None:
        with users.pool.connection():
            meeting.wait(LIMIT)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(occupy, range(4)))
    own_postgres.stop("immediate")
    own_postgres.start()
    assert users.write(effect(), mutation()) == "a"
    assert users.fetch_one(COUNT, {}, int) == 1


# A synchronous standby that is not there: COMMIT waits for it, until somebody ends the wait


WAITS = "wait_event = 'SyncRep'"


def waits_for_standby(world: World, probe: psycopg.Connection[Any], threads: ThreadPoolExecutor) -> bool:
    """Tell whether a commit waits, and end that wait."""
    commit = threads.submit(probe.execute, "CREATE TEMP TABLE probe (); DROP TABLE probe; SELECT pg_current_xact_id()")
    look = f"SELECT count(*)::int FROM pg_stat_activity WHERE pid = %s AND {WAITS}"

    def waiting() -> bool:
        return world.admin.execute(look, [probe.info.backend_pid]).fetchone() == (1,)

    eventually(lambda: commit.done() or waiting(), LIMIT, lambda: "the probe hangs")
    waited = not commit.done()
    if waited:
        world.admin.execute("SELECT pg_cancel_backend(%s)", [probe.info.backend_pid])
    commit.result(LIMIT)
    return waited


@pytest.fixture
def no_standby(own_postgres: EmbeddedPostgres, own_world: World, users: Database) -> Iterator[Callable[[], None]]:
    """Yield what makes commits go through again."""
    assert users.fetch_one(COUNT, {}, int) == 0

    def want(standby: str) -> None:
        own_world.admin.execute("SET synchronous_commit = local")
        own_world.admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        own_world.admin.execute("SELECT pg_reload_conf()")

    want("missing")
    with psycopg.connect(own_postgres.dsn, autocommit=True) as probe, ThreadPoolExecutor(1) as threads:
        # The setting reaches the processes one by one: it holds when a commit waits.
        while not waits_for_standby(own_world, probe, threads):
            pass
    yield lambda: want("")
    want("")


@pytest.mark.parametrize("ended_by", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_commit_whose_replication_was_ended_is_acknowledged_only_once_replicated(
    own_world: World, users: Database, no_standby: Callable[[], None], ended_by: str
) -> None:
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(users.write, effect(), mutation())
        first = own_world.wait_for(WAITS)
        own_world.admin.execute(f"SELECT {ended_by}(%s)", [first])
        # The answer is there, committed on this server alone: whoever tells of it waits as well.
        eventually(lambda: own_world.effects() == ["a"], LIMIT, lambda: "not committed")
        eventually(lambda: own_world.answers() == 1, LIMIT, lambda: "not committed")
        own_world.wait_for(f"{WAITS} AND query LIKE '%users:recall%'")
        assert not answer.done()
        no_standby()
        assert answer.result(LIMIT) == "a"
    assert own_world.effects() == ["a"]


@pytest.mark.parametrize("ended_by", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.usefixtures("no_standby")
def test_a_commit_whose_replication_is_ended_again_and_again_is_unavailable(
    own_world: World, users: Database, ended_by: str
) -> None:
    calls = (
        lambda: users.write(effect(), mutation()),
        lambda: users.execute(ADD, {"note": "b"}),
    )
    for call in calls:
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(call)

            def end_all() -> bool:
                for pid in own_world.backends(WAITS):
                    own_world.admin.execute(f"SELECT {ended_by}(%s)", [pid])
                return answer.done()  # noqa: B023 # of this round

            eventually(end_all, LIMIT, lambda: "no end of it")
            with pytest.raises(UnavailableError):
                answer.result()
    assert own_world.effects().count("a") == 1
