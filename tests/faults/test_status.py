"""Parts are killed, frozen and brought back: GetStatus tells it within two seconds, and is held up by none of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import grpc
import psycopg
import pytest
from kronos.admin.v1 import status_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from psycopg.conninfo import conninfo_to_dict

from kronos_db.admin.status_store import DomainLooks
from kronos_db.admin.watching import PATIENCE
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime import deadline
from kronos_db.runtime.cache.board import Board
from kronos_db.runtime.cache.engine import Cache
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.migrations import applied_as_seen_by
from kronos_db.runtime.errors import KronosError
from kronos_db.schemas import SERVED
from tests.conftest import lacking
from tests.faults.conftest import World
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet
from tests.parts.pgbouncer import PgBouncer
from tests.parts.serving import Serving
from tests.parts.watching import SOAK

# Seconds in which what happened to a part is to be told, and in which an answer is to be there: what the contract says,
# and what a machine that is busy with other tests may add. `make soak` runs one test at a time.
_TOLD, _ANSWER = 2.0, 0.05
_BUSY = 0.2 if SOAK else 3.0

OK, DEGRADED, DOWN = pb.PART_STATE_OK, pb.PART_STATE_DEGRADED, pb.PART_STATE_DOWN


@dataclass
class Stand:
    """A server on parts of its own."""

    postgres: EmbeddedPostgres
    pgbouncer: PgBouncer
    redis: EmbeddedRedis
    serving: Serving
    times: list[float] = field(default_factory=list)

    def status(self) -> pb.GetStatusResponse:
        stub = AdminServiceStub(self.serving.channel_of("operator"))
        begun = time.perf_counter()
        answer = stub.GetStatus(pb.GetStatusRequest())
        self.times.append(time.perf_counter() - begun)
        return answer

    def seen(self) -> dict[str, Any]:
        """What GetStatus says of each part."""
        status = self.status()
        domains = {domain.health.state for domain in status.domains}
        return {
            "postgres": status.postgres[0].health.state,
            "pooler": status.poolers[0].health.state,
            "behind": status.poolers[0].reaches_postgres,
            "redis": status.redis.health.state,
            "domains": domains.pop() if len(domains) == 1 else domains,
            "process": status.processes[0].health.state,
            "state": status.state,
        }

    def tells(self, **expected: Any) -> None:
        """Wait until GetStatus says so, and no longer than it may take."""
        wanted = {**WELL, **expected}
        eventually(
            lambda: self.seen() == wanted, _TOLD + _BUSY, lambda: f"{self.seen()} is not {wanted}: {self.status()}"
        )


WELL: Mapping[str, Any] = {
    "postgres": OK,
    "pooler": OK,
    "behind": True,
    "redis": OK,
    "domains": OK,
    "process": OK,
    "state": OK,
}


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stand]:
    if not EmbeddedRedis.available():
        lacking("There is no redis-server.")
    template: PgBouncer = request.getfixturevalue("pgbouncer_124")
    folder: Path = tmp_path_factory.mktemp("status")
    postgres = EmbeddedPostgres(folder / "postgres", {"fsync": "off"})
    postgres.start()
    redis = EmbeddedRedis(folder / "redis")
    redis.start()
    (folder / "pgbouncer").mkdir()
    pgbouncer = PgBouncer(template._binary, folder / "pgbouncer", postgres.dsn, 200)
    pgbouncer.start()
    through = pgbouncer.dsn(*_login(postgres.dsn))
    serving = Serving(
        folder,
        postgres.dsn,
        postgres_dsn=through,
        postgres_direct_dsn=postgres.dsn,
        redis_url=redis.url,
        statement_timeout=5.0,
    )
    serving.start()
    made = Stand(postgres, pgbouncer, redis, serving)
    eventually(lambda: made.seen() == WELL, 10, lambda: str(made.seen()))
    yield made
    serving.stop()
    pgbouncer.stop()
    redis.stop()
    postgres.stop("immediate")


def _login(dsn: str) -> tuple[str, str, str]:
    parts = conninfo_to_dict(dsn)
    return str(parts["user"]), str(parts["password"]), str(parts["dbname"])


def test_everything_is_told(stand: Stand) -> None:
    # Sizes take longer than the rest.
    eventually(lambda: all(domain.tables for domain in stand.status().domains))
    status = stand.status()
    [postgres] = status.postgres
    assert list(postgres.domains) == list(status.poolers[0].domains) == list(SERVED)
    assert (postgres.version[:3], postgres.role) == ("18.", pb.POSTGRES_ROLE_PRIMARY)
    assert postgres.max_connections == 200
    assert postgres.connections > len(SERVED)
    assert postgres.bytes > 5_000_000
    assert postgres.wraparound_age > 0
    assert 0 < postgres.cache_hit_ratio <= 1
    assert status.poolers[0].pools
    assert status.redis.version
    assert status.redis.used_bytes > 0
    for domain in status.domains:
        assert domain.migrations_applied >= 4
        assert domain.migrations_pending == 0
        assert domain.newest_migration.startswith(f"{domain.domain}/")
        assert "purge-idempotency" in {work.work for work in domain.works if work.holder}
        assert sum(table.bytes for table in domain.tables) <= domain.bytes
        assert "schema_migration" in {table.table for table in domain.tables} or len(domain.tables) == 10
    [process] = status.processes
    assert process.pid == os.getpid()
    assert process.resident_bytes > 10_000_000
    assert [load.domain for load in process.loads] == list(SERVED)
    assert {load.pool_limit for load in process.loads} == {stand.serving.settings.pool_max_size}
    # This very call is in the server.
    assert next(load for load in process.loads if load.domain == "admin").calls_limit == 256
    assert status.backup.health.state == pb.PART_STATE_UNKNOWN


def test_a_domain_answers_while_its_sizes_cannot_be_read(world: World, users: Database) -> None:
    looks = DomainLooks({"users": users}, {"users": ()}, Cache(Board(), Memory(1 << 20), None))
    token = deadline.current.set(time.monotonic() + PATIENCE)
    with world.admin.transaction():
        # Its size is not told before the lock is gone.
        world.admin.execute("LOCK TABLE users.effect IN ACCESS EXCLUSIVE MODE")
        assert looks.look("users").applied
        assert deadline.remaining(PATIENCE) > 0, "it waited for them"
        assert looks.sizes("users") is None
    deadline.current.reset(token)
    assert looks.sizes("users") is not None


def test_pending_migrations_are_told(stand: Stand) -> None:
    with psycopg.connect(stand.postgres.dsn, autocommit=True) as connection:
        rows = connection.execute("DELETE FROM users.schema_migration WHERE name LIKE 'users/%' RETURNING *").fetchall()
        eventually(lambda: stand.status().domains[0].health.state == DEGRADED, _TOLD + _BUSY)
        domain = stand.status().domains[0]
        assert domain.migrations_pending == len(rows)
        assert "pending" in domain.health.detail
        assert stand.status().state == DEGRADED
        connection.cursor().executemany("INSERT INTO users.schema_migration VALUES (%s, %s, %s)", rows)
    stand.tells()


def _answers(database: Database) -> bool:
    try:
        return bool(applied_as_seen_by(database))
    except KronosError:
        return False


def _freeze(pid: int) -> Callable[[], None]:
    os.kill(pid, signal.SIGSTOP)
    # Its threads stop one after the other, and until then one of them may still answer.
    eventually(lambda: _stopped(pid), 20)
    return lambda: os.kill(pid, signal.SIGCONT)


def _stopped(pid: int) -> bool:
    """Tell whether all threads of a process stand still."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def _stop_postgres(stand: Stand) -> Callable[[], None]:
    stand.postgres.stop("immediate")
    return stand.postgres.start


def _kill_pgbouncer(stand: Stand) -> Callable[[], None]:
    stand.pgbouncer.stop()
    return stand.pgbouncer.start


def _freeze_pgbouncer(stand: Stand) -> Callable[[], None]:
    assert stand.pgbouncer._process is not None
    return _freeze(stand.pgbouncer._process.pid)


def _kill_redis(stand: Stand) -> Callable[[], None]:
    stand.redis.kill()
    return stand.redis.start


def _freeze_redis(stand: Stand) -> Callable[[], None]:
    assert stand.redis.pid is not None
    return _freeze(stand.redis.pid)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (_stop_postgres, {"postgres": DOWN, "behind": False, "domains": DOWN, "state": DOWN}),
        (_kill_pgbouncer, {"pooler": DOWN, "behind": False, "domains": DOWN, "state": DOWN}),
        (_freeze_pgbouncer, {"pooler": DOWN, "behind": False, "domains": DOWN, "state": DOWN}),
        (_kill_redis, {"redis": DOWN, "state": DEGRADED}),
        (_freeze_redis, {"redis": DOWN, "state": DEGRADED}),
    ],
)
def test_what_happens_to_a_part_is_told_within_two_seconds(
    stand: Stand, break_it: Callable[[Stand], Callable[[], None]], expected: Mapping[str, Any]
) -> None:
    stand.times.clear()
    mend = break_it(stand)
    try:
        stand.tells(**expected)
    finally:
        mend()
    stand.tells(domains=ANY, state=ANY)
    # Pools come back with pauses of their own: from then on the domains are told to be well.
    for database in stand.serving.server._databases.values():
        eventually(partial(_answers, database), 10)
    stand.tells()
    times = sorted(stand.times)
    assert times[len(times) // 2] < _ANSWER
    assert times[-1] < _ANSWER + _BUSY


@pytest.mark.soak
def test_a_process_that_is_killed_or_frozen_is_told(fleet: Fleet) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(fleet.settings.grpc_listen, options) for _ in range(16)]

    def ask(channel: grpc.Channel, timeout: float = 10.0) -> list[pb.ProcessStatus]:
        call = AdminServiceStub(channel).GetStatus
        return list(call(pb.GetStatusRequest(), metadata=fleet.bearer, timeout=timeout).processes)

    def states() -> list[int]:
        return [process.health.state for process in ask(channels[0])]

    eventually(lambda: states() == [OK, OK], 10)
    victim = ask(channels[0])[1].pid
    # Whichever process the kernel gave a connection to: one of the other is wanted.
    for channel in channels:
        ask(channel)
    mend = _freeze(victim)
    while True:
        with suppress(grpc.RpcError):
            ask(channels[0], 0.2)
            break
        channels.pop(0).close()
    eventually(lambda: states() == [OK, DOWN], _TOLD + _BUSY)
    mend()
    eventually(lambda: states() == [OK, OK], _TOLD + _BUSY)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: states() == [OK, DOWN], _TOLD + _BUSY)
    # The supervisor starts another.
    eventually(lambda: states() == [OK, OK], 20)
    assert ask(channels[0])[1].pid != victim
    for channel in channels:
        channel.close()
