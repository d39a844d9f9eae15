"""What statements cost, across resets, restarts and crashes of PostgreSQL: never negative, never twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db import schemas
from kronos_db.admin.statement_store import Sources, StatementStore
from kronos_db.admin.statements import (
    ActiveQueryGoneError,
    Cost,
    Period,
    Reading,
    Session,
    SourceState,
    Target,
    UnknownDomainError,
    fingerprint,
    numbered,
)
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from tests.parts.domain import LIMIT, mutation, opened, settings_of
from tests.parts.eventually import eventually

_ROOT = Path(schemas.__file__).parent
_PROBE = "SELECT count(*) FROM users.users WHERE username = %s"


class World:
    """A migrated PostgreSQL, its sources, and the store of what they tell."""

    def __init__(self, server: EmbeddedPostgres, folder: Path) -> None:
        self.server = server
        self.dsn = server.dsn_for("kronos")
        self.settings = settings_of(folder, self.dsn)
        self.dsns = {domain: schemas.ways(self.settings, domain)[1] for domain in schemas.SERVED}
        self.sources = Sources(self.dsns)
        self._opening = opened(self.settings, "admin")
        self.store = StatementStore(self._opening.__enter__())

    def close(self) -> None:
        self._opening.__exit__(None, None, None)

    def snapshot(self) -> None:
        self.store.absorb(self.sources.read())

    def probe(self, times: int) -> None:
        """Run one statement of the users domain so often."""
        with self.connect("users") as connection:
            for _ in range(times):
                connection.execute(_PROBE, ["nobody"], prepare=True)

    @contextmanager
    def connect(self, domain: str) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.dsns[domain], autocommit=True) as connection:
            yield connection

    def costs(self, **changes: Any) -> list[Cost]:
        period = Period(datetime(2000, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1))
        return self.store.costs(replace(period, **changes))

    def counted(self) -> int:
        return sum(
            cost.calls
            for cost in self.costs(domain="users")
            if fingerprint(cost.text) == fingerprint(numbered(_PROBE.replace("%s", "$1")))
        )

    def reset_postgres(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("SELECT public.pg_stat_statements_reset()")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("statements"), {"fsync": "off"})
    server.start()
    yield server
    server.stop("immediate")


@pytest.fixture(scope="module")
def made(own_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(own_server, tmp_path_factory.mktemp("settings"))
    yield world
    world.close()


@pytest.fixture
def world(made: World) -> World:
    made.store.reset(made.sources.read(), None, mutation())
    made.reset_postgres()
    return made


def test_counts_go_on_across_reset_restart_and_crash(world: World) -> None:
    expected = 0

    def counted_after(calls: int, lost: int = 0) -> None:
        nonlocal expected
        world.probe(calls)
        expected += calls
        world.snapshot()
        # Read twice, it is counted once.
        world.snapshot()
        assert world.counted() == expected - lost

    counted_after(5)
    counted_after(3)
    world.reset_postgres()
    # Fewer than before the reset, then as many, then more.
    counted_after(2)
    world.reset_postgres()
    counted_after(2)
    counted_after(7)
    world.server.stop("fast")
    world.server.start()
    # PostgreSQL has kept its counters: they are the same series.
    counted_after(0)
    counted_after(4)
    world.server.stop("immediate")
    world.server.start()
    # It has lost them all, and begins again.
    counted_after(1)
    counted_after(30)
    assert all(min(cost.calls, cost.total_us, cost.rows, cost.blocks_hit) >= 0 for cost in world.costs())


def test_an_older_reading_that_comes_late_changes_nothing(world: World) -> None:
    world.probe(3)
    old = world.sources.read()
    world.probe(4)
    world.snapshot()
    world.store.absorb(old)
    world.snapshot()
    assert world.counted() == 7


def test_readings_of_several_processes_at_once_are_counted_once(world: World) -> None:
    world.probe(6)
    readings = [world.sources.read() for _ in range(4)]
    threads = [threading.Thread(target=world.store.absorb, args=[reading]) for reading in readings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert world.counted() == 6


def test_counters_that_were_purged_are_not_counted_again_while_postgres_shows_them(world: World) -> None:
    world.probe(5)
    world.snapshot()
    database = world.store.database
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        connection.execute("UPDATE admin.statement_series SET seen_at = now() - interval '2 days'")
        world.snapshot()
        assert not world.store.purge(86_400.0)
        world.snapshot()
        assert world.counted() == 5
        connection.execute("UPDATE admin.statement_deltas SET taken_at = taken_at - interval '2 days'")
    while world.store.purge(86_400.0):
        pass
    assert world.counted() == 0
    assert database.domain == "admin"


def test_what_is_forgotten_begins_at_zero(world: World) -> None:
    world.probe(5)
    world.snapshot()
    world.probe(2)
    request = mutation()
    world.store.reset(world.sources.read(), "users", request)
    assert world.counted() == 0
    world.probe(3)
    world.snapshot()
    # A repeat of the same request forgets nothing more.
    world.store.reset(world.sources.read(), "users", request)
    assert world.counted() == 3


def test_pages_are_stable_and_name_every_statement_once(world: World) -> None:
    for domain in ("users", "logs", "cache"):
        with world.connect(domain) as connection:
            for number in range(4):
                columns = ", ".join(["name"] * (number + 1))
                connection.execute(
                    f"SELECT {columns} FROM {domain}.schema_migration WHERE name = %s", ["x"], prepare=True
                )
    world.snapshot()
    until = world.store.last_taken()
    for order in (1, 2, 5):
        whole = world.costs(order=order, until=until)
        last, found = None, []
        while page := world.costs(order=order, until=until, last=last, limit=5):
            found += page
            last = (page[-1].weight, page[-1].domain, page[-1].query_id)
            # What comes meanwhile is of no concern.
            world.probe(1)
            world.snapshot()
        assert found == whole
        assert len(whole) >= 12
        weights = [float(cost.weight) for cost in whole]
        assert weights == sorted(weights, reverse=True)


def test_without_the_extension_the_state_says_so_and_the_rest_goes_on(world: World) -> None:
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        connection.execute("DROP EXTENSION pg_stat_statements")
        try:
            assert {reading.state for reading in world.sources.read()} == {SourceState.EXTENSION_MISSING}
            world.snapshot()
            assert {source.state for source in world.store.sources()} == {SourceState.EXTENSION_MISSING}
            connection.execute('CREATE SCHEMA "Odd place"')
            connection.execute('GRANT USAGE ON SCHEMA "Odd place" TO PUBLIC')
            connection.execute('CREATE EXTENSION pg_stat_statements SCHEMA "Odd place"')
            assert {reading.state for reading in world.sources.read()} == {SourceState.COUNTED}
            connection.execute("DROP EXTENSION pg_stat_statements")
            connection.execute("CREATE EXTENSION pg_stat_statements SCHEMA public VERSION '1.10'")
            assert {reading.state for reading in world.sources.read()} == {SourceState.TOO_OLD}
        finally:
            connection.execute("DROP EXTENSION IF EXISTS pg_stat_statements")
            connection.execute("CREATE EXTENSION pg_stat_statements SCHEMA public")
    assert {reading.state for reading in world.sources.read()} == {SourceState.COUNTED}


def test_a_domain_that_is_away_does_not_hide_the_others(world: World) -> None:
    sources = Sources({**world.dsns, "logs": world.dsns["logs"].replace("port=5432", "port=1")})
    states = {reading.domain: reading.state for reading in sources.read()}
    assert states.pop("logs") is SourceState.UNREACHABLE
    assert set(states.values()) == {SourceState.COUNTED}


def test_named_queries_are_found_by_what_postgres_kept_of_them(world: World) -> None:
    files = [path for path in _ROOT.glob("*/*.sql") if path.parent.name in world.dsns and path.name != "readable.sql"]
    named = {query.text for path in files for query in load_queries(path, path.parent.name).values()}
    world.store.add_origins([("Service/Method", text) for text in named])
    database = schemas.open_database(world.settings, "users")
    try:
        _run_some(database)
    finally:
        database.pool.close()
    world.snapshot()
    costs = {cost.queries[0]: cost for cost in world.costs(domain="users") if cost.queries}
    assert "users:get_by_id" in costs
    assert costs["users:get_by_id"].methods == ["Service/Method"]
    assert costs["users:get_by_id"].source.startswith("SELECT")
    assert world.store.methods_of(["users:get_by_id", "users:none"]) == {"users:get_by_id": ["Service/Method"]}
    assert len({fingerprint(numbered(text)) for text in named}) > 0.9 * len(named)


def _run_some(database: Database) -> None:
    query = load_queries(_ROOT / "users" / "queries.sql", "users")["get_by_id"]
    database.fetch_all(query, {"keys": []}, lambda *row: row)


def test_only_its_own_statements_are_read_of_a_role(world: World) -> None:
    world.probe(1)
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        connection.execute("SELECT count(*) FROM users.users WHERE username = 'secret of the owner' AND true")
    found = {reading.domain: [counter.text for counter in reading.counters] for reading in world.sources.read()}
    assert not any("users.users" in text for domain, texts in found.items() if domain != "users" for text in texts)
    assert not any("insufficient privilege" in text for texts in found.values() for text in texts)
    assert not any("AND true" in text for texts in found.values() for text in texts)


@contextmanager
def _sleeping(world: World, domain: str = "users") -> Iterator[tuple[psycopg.Connection[Any], list[BaseException]]]:
    """A session of a domain's role that runs a statement until it is cancelled."""
    ends: list[BaseException] = []
    with psycopg.connect(world.dsns[domain], autocommit=True) as connection:

        def run() -> None:
            try:
                connection.execute("/* users:sleep */ SELECT pg_sleep(60)")
            except psycopg.Error as error:
                ends.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            eventually(lambda: _session(world, connection, domain))
            yield connection, ends
        finally:
            with psycopg.connect(world.dsn, autocommit=True) as owner:
                owner.execute("SELECT pg_cancel_backend(%s)", [connection.info.backend_pid])
            thread.join(LIMIT)


def _session(world: World, connection: psycopg.Connection[Any], domain: str = "users") -> Session | None:
    pid = connection.info.backend_pid
    return next((each for each in world.sources.sessions(domain) if each.pid == pid and "sleep" in each.text), None)


def _target(session: Session, **changes: Any) -> Target:
    return replace(Target("users", session.pid, session.backend_start, session.query_start, end=False), **changes)


def test_a_statement_is_cancelled_and_its_session_stays(world: World) -> None:
    with _sleeping(world) as (connection, ends):
        session = _session(world, connection)
        assert session is not None
        assert session.state == "active"
        assert session.wait == "PgSleep"
        world.sources.cancel(_target(session))
        eventually(lambda: ends)
        assert isinstance(ends[0], psycopg.errors.QueryCanceled)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_another_session_of_the_same_pid_is_not_hit(world: World) -> None:
    with _sleeping(world) as (connection, ends):
        session = _session(world, connection)
        assert session is not None
        # What an operator saw before the pid was used again: the session of the same pid that had begun earlier.
        before = _target(session, backend_start=session.backend_start - timedelta(microseconds=1), query_start=None)
        for target in (before, replace(before, end=True)):
            with pytest.raises(ActiveQueryGoneError):
                world.sources.cancel(target)
        # And the next statement of the same session.
        assert session.query_start is not None
        with pytest.raises(ActiveQueryGoneError):
            world.sources.cancel(_target(session, query_start=session.query_start - timedelta(microseconds=1)))
        # Nor that of another domain, by the name of the wrong one.
        with pytest.raises(ActiveQueryGoneError):
            world.sources.cancel(_target(session, domain="logs"))
        assert not ends
        assert _session(world, connection) == session
        world.sources.cancel(_target(session, query_start=None, end=True))
        eventually(lambda: ends)
        assert isinstance(ends[0], psycopg.errors.AdminShutdown | psycopg.OperationalError)


def test_sessions_that_are_not_ours_are_not_hit(world: World) -> None:
    with psycopg.connect(world.dsn) as owner:
        found = owner.execute("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
        assert found is not None
        for domain in world.dsns:
            with pytest.raises(ActiveQueryGoneError):
                world.sources.cancel(Target(domain, *found, query_start=None, end=True))
        assert owner.execute("SELECT 1").fetchone() == (1,)


def test_who_waits_for_a_lock_tells_for_whom(world: World) -> None:
    with psycopg.connect(world.dsns["users"]) as holder, world.connect("users") as waiter:
        holder.execute("LOCK TABLE users.users IN ROW EXCLUSIVE MODE")
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        thread = threading.Thread(target=waiter.execute, args=["SELECT pg_advisory_xact_lock(7)"])
        thread.start()
        try:
            eventually(lambda: holder.info.backend_pid in _blocked_by(world, waiter))
        finally:
            holder.rollback()
            thread.join(LIMIT)


def _blocked_by(world: World, connection: psycopg.Connection[Any]) -> list[int]:
    sessions = {each.pid: each for each in world.sources.sessions("users")}
    found = sessions.get(connection.info.backend_pid)
    return list(found.blocked_by) if found is not None else []


def test_a_domain_that_there_is_not_is_refused(world: World) -> None:
    with pytest.raises(UnknownDomainError):
        world.sources.sessions("nobody")


def test_a_reading_without_counters_is_taken_in(world: World) -> None:
    world.store.absorb([Reading("users", SourceState.UNREACHABLE)])
    assert [source.state for source in world.store.sources() if source.domain == "users"] == [SourceState.UNREACHABLE]
