"""Metrics of what can fill up or go away: pools, calls in the server, the parts it stands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry

from kronos_db.runtime.database.standbys import Outcome
from kronos_db.runtime.ops.metrics import counters, gauges
from kronos_db.runtime.ops.readiness import OK
from kronos_db.runtime.reception import Lane


class Pooled(Protocol):
    """A pool that tells how it is, under the names of psycopg_pool."""

    def stats(self) -> dict[str, int]:
        """Return its gauges and counters."""


def watch_pools(registry: CollectorRegistry, pools: Mapping[str, Pooled]) -> None:
    """Register the metrics of every domain's pool."""

    def read(*keys: str) -> Callable[[], list[tuple[tuple[str], float]]]:
        def reading(pool: Pooled) -> float:
            stats = pool.stats()
            return sum(stats.get(key, 0) for key in keys)

        return lambda: [((domain,), reading(pool)) for domain, pool in pools.items()]

    for name, key, meaning in (
        ("kronos_db_pool_size", "pool_size", "Connections of the pool."),
        ("kronos_db_pool_max_size", "pool_max", "Connections that the pool may have."),
        ("kronos_db_pool_available", "pool_available", "Idle connections of the pool."),
        ("kronos_db_pool_requests_waiting", "requests_waiting", "Calls that wait for a connection."),
    ):
        gauges(registry, name, meaning, ["domain"], read(key))
    # Of those found broken, what the pool found by itself, and what came back to it so.
    lost = ("connections_lost", "returns_bad")
    for name, keys, meaning in (
        ("kronos_db_pool_requests_total", ("requests_num",), "Connections asked for."),
        ("kronos_db_pool_requests_errors_total", ("requests_errors",), "Connections asked for and not had in time."),
        ("kronos_db_pool_connections_lost_total", lost, "Connections found broken."),
    ):
        counters(registry, name, meaning, ["domain"], read(*keys))


def watch_standbys(registry: CollectorRegistry, counts: Mapping[str, Mapping[Outcome, int]]) -> None:
    """Register what became of reads that a standby may answer; `counts` by domain and outcome."""
    counters(
        registry,
        "kronos_db_standby_reads_total",
        "Reads that a standby may answer: served by it, or by the primary since it was behind or away.",
        ["domain", "outcome"],
        lambda: [((domain, outcome), count) for domain, found in counts.items() for outcome, count in found.items()],
    )


def watch_calls(
    registry: CollectorRegistry, running: Callable[[], Mapping[str, int]], queued: Callable[[], Mapping[Lane, int]]
) -> None:
    """Register how many calls of each domain are in the server, and how many of them wait for a thread."""
    gauges(
        registry,
        "kronos_db_calls_running",
        "Calls and streams in the server.",
        ["domain"],
        lambda: [((domain,), count) for domain, count in running().items()],
    )
    gauges(
        registry,
        "kronos_db_calls_queued",
        "Calls that wait for a thread; kind is `call` for reads, `write`, or `compute` for password hashing.",
        ["domain", "kind"],
        lambda: [(lane, count) for lane, count in queued().items() if lane.kind != "stream"],
    )


def watch_streams(
    registry: CollectorRegistry, watched: Callable[[], Mapping[str, int]], failures: Callable[[], int]
) -> None:
    """Register how many streams of changes there are, and how often others could not be woken for them."""
    gauges(
        registry,
        "kronos_db_watch_streams",
        "Streams of changes that are open.",
        ["domain"],
        lambda: [((domain,), count) for domain, count in watched().items()],
    )
    counters(
        registry,
        "kronos_db_notifications_failed_total",
        "Notifications of changes that failed; streams then see the changes up to a second late.",
        [],
        lambda: [((), failures())],
    )


def watch_parts(registry: CollectorRegistry, report: Callable[[], Mapping[str, str]]) -> None:
    """Register which parts are ready."""
    gauges(
        registry,
        "kronos_db_part_ready",
        "Whether a part is ready (1) or not (0); /readyz says why.",
        ["part"],
        lambda: [((part,), float(state == OK)) for part, state in report().items()],
    )
