"""The handlers of the state of all parts: part of AdminService."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kronos.admin.v1 import status_pb2 as pb

import kronos_db
from kronos_db.admin.status import Parts, PoolerParts, ServerParts
from kronos_db.admin.status_store import Domain, Sizes
from kronos_db.admin.watching import Health, State, Watched
from kronos_db.runtime.ops.vitals import Load, Vitals
from kronos_db.runtime.redis import RedisFigures
from kronos_db.runtime.timestamps import set_timestamp

_STATES = {state: pb.PartState.Value(f"PART_STATE_{state.name}") for state in State}


class StatusHandlers:
    """How everything is."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def GetStatus(self, request: pb.GetStatusRequest, context: object) -> pb.GetStatusResponse:
        """Return what was seen last of all parts."""
        parts = self._parts
        parts.ask()
        answer = pb.GetStatusResponse(state=_STATES[parts.state()], version=kronos_db.__version__)
        set_timestamp(answer.check_time, datetime.now(UTC))
        for address, server in parts.postgres.items():
            _fill_postgres(answer.postgres.add(address=address), server, parts)
        for address, pooler in parts.poolers.items():
            _fill_pooler(answer.poolers.add(address=address), pooler)
        if parts.redis is not None:
            _fill_redis(answer.redis, parts.redis)
        for name, domain in parts.domains.items():
            _fill_domain(answer.domains.add(domain=name), domain, parts.sizes[name].value)
        for slot, process in enumerate(parts.processes):
            _fill_process(answer.processes.add(slot=slot), process)
        _fill_backup(answer.backup, parts)
        return answer


def _fill_postgres(message: pb.PostgresStatus, server: ServerParts, parts: Parts) -> None:
    _fill_health(message.health, server.at.health)
    message.domains.extend(server.domains)
    found = server.at.value
    if found is None:
        return
    message.version = found.version
    message.role = pb.POSTGRES_ROLE_STANDBY if found.is_standby else pb.POSTGRES_ROLE_PRIMARY
    _set_seconds(message.replication_lag, found.replication_lag)
    message.standbys = found.standbys
    message.connections = found.connections
    message.max_connections = found.max_connections
    _set_seconds(message.oldest_transaction, found.oldest_transaction)
    message.wraparound_age = found.wraparound_age
    message.cache_hit_ratio = found.cache_hit_ratio or 0.0
    sizes = [parts.sizes[domain].value for domain in server.domains]
    message.bytes = max((found.database for found in sizes if found is not None), default=0)


def _fill_pooler(message: pb.PoolerStatus, pooler: PoolerParts) -> None:
    _fill_health(message.health, pooler.at.health)
    message.domains.extend(pooler.domains)
    message.pools = bool(pooler.behind.value)
    message.reaches_postgres = pooler.behind.health.state is State.OK


def _fill_redis(message: pb.RedisStatus, redis: Watched[RedisFigures]) -> None:
    _fill_health(message.health, redis.health)
    found = redis.value
    if found is None:
        return
    message.version = found.version
    message.used_bytes = found.used_bytes
    message.max_bytes = found.max_bytes
    message.connections = found.connections
    message.hit_ratio = _ratio(found.hits, found.hits + found.misses)


def _fill_domain(message: pb.DomainStatus, domain: Watched[Domain], sizes: Sizes | None) -> None:
    _fill_health(message.health, domain.health)
    if sizes is not None:
        message.bytes = sizes.domain
        for table in sizes.tables:
            message.tables.add(table=table.name, bytes=table.bytes, rows=table.rows)
    found = domain.value
    if found is None:
        return
    message.migrations_applied = len(found.applied)
    message.migrations_pending = found.pending
    message.newest_migration = found.applied[-1] if found.applied else ""
    for work in found.works:
        told = message.works.add(work=work.name, holder=str(work.holder or ""))
        _set_seconds(told.lag, work.lag)


def _fill_process(message: pb.ProcessStatus, process: Watched[Vitals]) -> None:
    _fill_health(message.health, process.health)
    found = process.value
    if found is None:
        return
    message.pid = found.pid
    message.version = found.version
    set_timestamp(message.start_time, datetime.fromtimestamp(found.started, UTC))
    message.resident_bytes = found.resident_bytes
    message.copy_bytes = found.copy_bytes
    for domain, load in found.loads.items():
        _fill_load(message.loads.add(domain=domain), load)


def _fill_load(message: pb.LoadStatus, load: Load) -> None:
    message.calls_running = load.running
    message.calls_queued = load.queued
    message.calls_limit = load.limit
    message.pool_size = load.pool_size
    message.pool_limit = load.pool_limit
    message.pool_idle = load.pool_idle
    message.pool_waiting = load.pool_waiting
    message.copy_hit_ratio = _ratio(load.hits, load.asked)
    message.remote_hit_ratio = _ratio(load.remote_hits, load.asked)


def _fill_backup(message: pb.BackupStatus, parts: Parts) -> None:
    found = parts.backups.status()
    _fill_health(message.health, found.health)
    _set_moment(message.last_backup_time, found.last_backup_time)
    _set_moment(message.restorable_from, found.restorable_from)
    _set_moment(message.restorable_until, found.restorable_until)
    _set_seconds(message.expected_recovery_time, found.recovery_seconds)
    message.archive_gaps = found.gaps


def _fill_health(message: pb.PartHealth, health: Health) -> None:
    message.state = _STATES[health.state]
    message.detail = health.detail
    _set_seconds(message.latency, health.latency)
    _set_moment(message.answer_time, health.answer_time)


def _set_seconds(message: Duration, seconds: float | None) -> None:
    if seconds is not None:
        message.FromMicroseconds(int(seconds * 1_000_000))


def _set_moment(message: Timestamp, moment: datetime | None) -> None:
    if moment is not None:
        set_timestamp(message, moment)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
