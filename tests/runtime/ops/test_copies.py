"""Metrics of copies: what is counted where, and what they say when Redis or the lease is gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.cache.engine import Cache, Kind, Loaded, Rules
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.cache.remote import Remote
from kronos_db.runtime.ops.copies import watch_cache, watch_redis
from kronos_db.runtime.redis import RedisServer
from tests.parts.eventually import eventually
from tests.parts.serving import Serving

HOUR = 3600 * 1_000_000_000


def load(keys: Sequence[str]) -> dict[str, Loaded]:
    return {key: Loaded(b"value", [key]) for key in keys}


@pytest.fixture
def remote() -> Iterator[Remote]:
    """A Redis that is not there."""
    remote = Remote(RedisServer("unix:///nowhere/redis.sock"), b"k" * 32)
    yield remote
    remote.close()


@pytest.fixture
def caches(remote: Remote) -> dict[str, Cache]:
    """Of two domains that share their memory: one with Redis."""
    memory = Memory(1_500)
    made = {"users": Cache(Board(), memory, remote), "logs": Cache(Board(), memory, None)}
    for cache in made.values():
        board = cache.board
        assert board.extend(board.begin(1, 1, 1), now() + HOUR)
    return made


@pytest.fixture
def users(caches: dict[str, Cache]) -> Kind:
    return caches["users"].kind(Rules("users by id", remote=True), load)


@pytest.fixture
def registry(caches: dict[str, Cache], remote: Remote) -> CollectorRegistry:
    registry = CollectorRegistry()
    watch_cache(registry, caches)
    watch_redis(registry, remote.server)
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"kronos_db_{name}", labels)


def test_hits_and_misses_are_told_by_kind(registry: CollectorRegistry, users: Kind) -> None:
    for _ in range(3):
        users.get("a")
    users.remote_hits = 7
    labels = {"domain": "users", "kind": "users by id"}
    assert value(registry, "cache_hits_total", **labels) == 2
    assert value(registry, "cache_misses_total", **labels) == 1
    assert value(registry, "cache_remote_hits_total", **labels) == 7


def test_shared_memory_is_counted_once(registry: CollectorRegistry, caches: dict[str, Cache], users: Kind) -> None:
    logs = caches["logs"].kind(Rules("logs"), load)
    for kind in (users, logs):
        kind.get("a")
    memory = caches["users"].memory
    assert value(registry, "cache_entries") == 2
    assert value(registry, "cache_bytes") == memory.size > 1_000
    assert value(registry, "cache_evictions_total") == 0
    users.get("b")
    assert value(registry, "cache_entries") == 2
    assert value(registry, "cache_evictions_total") == 1


def test_a_redis_that_is_away_shows(registry: CollectorRegistry, users: Kind, remote: Remote) -> None:
    assert value(registry, "redis_away") == 0
    users.get("a")
    eventually(lambda: value(registry, "redis_failures_total") == 1)
    assert value(registry, "redis_away") == 1
    remote.dropped = 5
    assert value(registry, "redis_dropped_total", domain="users") == 5
    assert value(registry, "redis_dropped_total", domain="logs") is None, "it has none"


def test_a_lease_that_is_over_shows(registry: CollectorRegistry, caches: dict[str, Cache]) -> None:
    assert value(registry, "cache_valid", domain="users") == 1
    caches["users"].board.void()
    assert value(registry, "cache_valid", domain="users") == 0
    assert value(registry, "cache_valid", domain="logs") == 1


def test_the_server_tells_them(serving: Serving) -> None:
    registry = serving.server.registry
    eventually(lambda: value(registry, "cache_valid", domain="users") == 1)
    assert value(registry, "cache_hits_total", domain="users", kind="users by id") is not None


def test_what_is_asked_for_adds_no_series(registry: CollectorRegistry, users: Kind) -> None:
    users.get("a")
    before = generate_latest(registry).count(b"\n")
    for number in range(50):
        users.get(f"key {number}")
    assert generate_latest(registry).count(b"\n") == before
