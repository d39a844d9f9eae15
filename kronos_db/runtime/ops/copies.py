"""Metrics of copies: what they spare, what they take, whether Redis answers and whether they may be answered from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from kronos_db.runtime.cache.engine import Cache, Kind
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.cache.remote import Remote
from kronos_db.runtime.ops.metrics import Reading, counters, gauges
from kronos_db.runtime.redis import RedisServer


def watch_cache(registry: CollectorRegistry, caches: Mapping[str, Cache]) -> None:
    """Register the metrics of every domain's copies. Gauges may be added up over processes."""
    _watch_kinds(registry, caches)
    _watch_memory(registry, {cache.memory for cache in caches.values()})
    _watch_redis(registry, {domain: cache.remote for domain, cache in caches.items() if cache.remote is not None})
    gauges(
        registry,
        "kronos_db_cache_valid",
        "Processes that may answer from copies: each whose holder gave a sign of life of late.",
        ["domain"],
        lambda: [((domain,), float(cache.board.mark() is not None)) for domain, cache in caches.items()],
    )


def _watch_kinds(registry: CollectorRegistry, caches: Mapping[str, Cache]) -> None:
    def read(value: Callable[[Kind], int]) -> Callable[[], list[Reading]]:
        return lambda: [
            ((domain, kind.rules.name), value(kind)) for domain, cache in caches.items() for kind in cache.kinds
        ]

    for name, meaning, value in (
        ("kronos_db_cache_hits_total", "Values answered from memory.", lambda kind: kind.hits),
        ("kronos_db_cache_misses_total", "Values asked for and not in memory, or old.", lambda kind: kind.misses),
        ("kronos_db_cache_remote_hits_total", "Of the misses, those found in Redis.", lambda kind: kind.remote_hits),
    ):
        counters(registry, name, meaning, ["domain", "kind"], read(value))


def _watch_memory(registry: CollectorRegistry, memories: set[Memory]) -> None:
    def read(value: Callable[[Memory], int]) -> Callable[[], list[Reading]]:
        return lambda: [((), sum(map(value, memories)))]

    gauges(registry, "kronos_db_cache_bytes", "Memory that copies take.", [], read(lambda memory: memory.size))
    gauges(registry, "kronos_db_cache_entries", "Copies in memory, old ones too.", [], read(len))
    counters(
        registry,
        "kronos_db_cache_evictions_total",
        "Copies that gave way to others.",
        [],
        read(lambda memory: memory.evictions),
    )


def _watch_redis(registry: CollectorRegistry, remotes: Mapping[str, Remote]) -> None:
    counters(
        registry,
        "kronos_db_redis_dropped_total",
        "Batches of copies that were not written to Redis: too many waited.",
        ["domain"],
        lambda: [((domain,), remote.dropped) for domain, remote in remotes.items()],
    )


def watch_redis(registry: CollectorRegistry, server: RedisServer) -> None:
    """Register the metrics of the process's Redis."""
    counters(
        registry,
        "kronos_db_redis_failures_total",
        "Requests that Redis did not answer, or refused.",
        [],
        lambda: [((), server.failures)],
    )
    gauges(
        registry,
        "kronos_db_redis_away",
        "Processes that leave Redis, or a node of its cluster, alone for now, because it did not answer.",
        [],
        lambda: [((), float(server.is_partly_away))],
    )
