"""What `kronos-db status` does: shows the state of all parts as a table, once or again and again, or as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import typer
from google.protobuf import descriptor_pool
from kronos.admin.v1 import admin_pb2, status_pb2
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kronos_db.call_command import refusal
from kronos_db.client import CallError, Client, Method

_DEADLINE = 10.0
# Seconds between two looks.
PACE = 1.0
# Seconds in which all parts have been looked at that answer, and between two questions whether they have.
_FIRST_LOOKS, _AGAIN = 2.0, 0.1
_COLORS = {"OK": "green", "DEGRADED": "yellow", "DOWN": "red", "UNKNOWN": "dim"}
# Not by reflection, which operators need not be allowed.
_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_METHOD = Method(_SERVICE.methods_by_name["GetStatus"], descriptor_pool.Default())
_SCALE = 1024.0


class Line(NamedTuple):
    """One part, for people."""

    part: str
    state: str
    latency: str
    facts: str


def show(client: Client, console: Console, *, watch: bool, as_json: bool) -> None:
    """Print the state of all parts, with `watch` until Ctrl-C. Exit code 1 when the whole is DOWN."""
    status = _known(client)
    if as_json:
        print(_METHOD.text(status, indent=2))
    elif not watch:
        console.print(table(status))
    else:
        with Live(table(status), console=console, auto_refresh=False) as live:
            try:
                while True:
                    time.sleep(PACE)
                    live.update(_seen(client), refresh=True)
            except KeyboardInterrupt:
                return
    if status.state == status_pb2.PART_STATE_DOWN:
        raise typer.Exit(1)


def _known(client: Client) -> Any:
    """Return the state of all parts; asks again while some were not looked at, because nobody had asked of late."""
    give_up = time.monotonic() + _FIRST_LOOKS
    status = _ask(client)
    while status.state == status_pb2.PART_STATE_UNKNOWN and time.monotonic() < give_up:
        time.sleep(_AGAIN)
        status = _ask(client)
    return status


def _seen(client: Client) -> Table | str:
    try:
        return table(_ask(client))
    except CallError as error:
        # It may come back.
        return refusal(error)


def _ask(client: Client) -> Any:
    [answer] = client.call(_METHOD, [status_pb2.GetStatusRequest()], deadline=_DEADLINE)
    return answer


def table(status: status_pb2.GetStatusResponse) -> Table:
    """Return the parts of an answer, each with what is to be known of it first."""
    made = Table("part", "state", "latency", "", title=f"kronos-db {status.version}: {_state(status.state)}")
    for line in lines(status):
        made.add_row(line.part, line.state, line.latency, line.facts, style=_COLORS.get(line.state, ""))
    return made


def lines(status: status_pb2.GetStatusResponse) -> Iterator[Line]:
    """Yield a line for each part."""
    for postgres in status.postgres:
        yield _line(f"postgres {postgres.address}", postgres.health, _of_postgres(postgres))
    for pooler in status.poolers:
        behind = "reaches PostgreSQL" if pooler.reaches_postgres else "does not reach PostgreSQL"
        kind = "pools sessions" if pooler.pools else "passes sessions on"
        yield _line(f"pooler {pooler.address}", pooler.health, [kind, behind])
    if status.HasField("redis"):
        yield _line("redis", status.redis.health, _of_redis(status.redis))
    for domain in status.domains:
        yield _line(f"domain {domain.domain}", domain.health, _of_domain(domain))
    for process in status.processes:
        yield _line(f"process {process.slot}", process.health, _of_process(process))
    yield _line("backup", status.backup.health, _of_backup(status.backup))


def _line(part: str, health: status_pb2.PartHealth, facts: list[str]) -> Line:
    latency = f"{health.latency.ToMicroseconds() / 1000:.1f} ms" if health.HasField("latency") else ""
    told = [health.detail, *facts] if health.detail else facts
    return Line(part, _state(health.state), latency, ", ".join(told))


def _of_postgres(postgres: status_pb2.PostgresStatus) -> list[str]:
    if not postgres.version:
        return []
    role = status_pb2.PostgresRole.Name(postgres.role).removeprefix("POSTGRES_ROLE_").lower()
    facts = [
        f"{postgres.version} {role}",
        f"{postgres.connections} of {postgres.max_connections} connections",
        _bytes(postgres.bytes),
        f"{postgres.cache_hit_ratio:.1%} from memory",
        f"wraparound age {postgres.wraparound_age:,}",
    ]
    if postgres.HasField("replication_lag"):
        facts.append(f"replay {_span(postgres.replication_lag.ToTimedelta())} behind")
    if postgres.HasField("oldest_transaction"):
        facts.append(f"oldest transaction {_span(postgres.oldest_transaction.ToTimedelta())}")
    return facts


def _of_redis(redis: status_pb2.RedisStatus) -> list[str]:
    limit = f" of {_bytes(redis.max_bytes)}" if redis.max_bytes else ""
    return [redis.version, f"{_bytes(redis.used_bytes)}{limit}", f"{redis.hit_ratio:.1%} hits"] if redis.version else []


def _of_domain(domain: status_pb2.DomainStatus) -> list[str]:
    if not domain.migrations_applied:
        return []
    pending = f", {domain.migrations_pending} pending" if domain.migrations_pending else ""
    idle = [work.work for work in domain.works if not work.holder]
    return [
        f"{domain.migrations_applied} migrations{pending}",
        _bytes(domain.bytes),
        *([f"nobody does {', '.join(idle)}"] if idle else []),
    ]


def _of_process(process: status_pb2.ProcessStatus) -> list[str]:
    if not process.pid:
        return []
    running = sum(load.calls_running for load in process.loads)
    queued = sum(load.calls_queued for load in process.loads)
    waiting = sum(load.pool_waiting for load in process.loads)
    return [
        f"pid {process.pid}",
        _bytes(process.resident_bytes),
        f"{running} calls, {queued} queued",
        f"{waiting} wait for a connection",
    ]


def _of_backup(backup: status_pb2.BackupStatus) -> list[str]:
    if not backup.HasField("last_backup_time"):
        return []
    facts = [f"last {backup.last_backup_time.ToJsonString()}"]
    if backup.HasField("restorable_until"):
        facts.append(f"restorable until {backup.restorable_until.ToJsonString()}")
    return facts


def _state(state: status_pb2.PartState.ValueType) -> str:
    return status_pb2.PartState.Name(state).removeprefix("PART_STATE_")


def _span(span: timedelta) -> str:
    return f"{span.total_seconds():.1f} s"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _SCALE:
            return f"{size:.0f} {unit}"
        size /= _SCALE
    return f"{size:.1f} TiB"
