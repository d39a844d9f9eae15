"""Limits of namespaces, eviction, sweeps, and what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub
from prometheus_client import CollectorRegistry

from kronos_db.cache.counting import MOST_LABELS, Counts
from kronos_db.cache.namespaces import NamespacesStore
from kronos_db.cache.upkeep import Sweep
from kronos_db.runtime.database.background import Held
from tests.cache.population import get, invalidate, lease, new_namespace, put, seconds, stub, value
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving

MEMORY = pb.NAMESPACE_STORAGE_MEMORY
HELD = Held(1, lambda: True)


@pytest.fixture
def cache(serving: Serving) -> CacheServiceStub:
    return stub(serving)


@pytest.fixture
def admin(serving: Serving) -> Iterator[psycopg.Connection[Any]]:
    dsn = serving.settings.postgres_dsn
    assert dsn is not None
    with psycopg.connect(dsn.get_secret_value(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def sweep(serving: Serving) -> Sweep:
    database = serving.server._databases["cache"]
    return Sweep(database, NamespacesStore(database), Counts(database))


def _stats(cache: CacheServiceStub, name: str) -> pb.GetCacheStatsResponse:
    return cache.GetCacheStats(pb.GetCacheStatsRequest(namespace=name))


def _put_many(cache: CacheServiceStub, name: str, keys: list[str], value: bytes = b"x" * 100) -> None:
    for start in range(0, len(keys), 100):
        entries = [pb.EntryWrite(key=key, value=value) for key in keys[start : start + 100]]
        cache.PutEntries(pb.PutEntriesRequest(namespace=name, entries=entries))


def _rows(admin: psycopg.Connection[Any], name: str, table: str = "entry") -> int:
    found = admin.execute(
        f"SELECT count(*) FROM cache.{table} JOIN cache.namespace ON namespace.id = namespace_id WHERE name = %s",
        [name],
    ).fetchone()
    assert found is not None
    return int(found[0])


def test_ten_times_as_much_stays_within_the_limit(cache: CacheServiceStub, admin: psycopg.Connection[Any]) -> None:
    name = new_namespace(cache, storage=MEMORY, max_bytes=100_000)

    _put_many(cache, name, [f"key{number:05}" for number in range(4_500)])

    stats = _stats(cache, name)
    assert stats.entry_count == _rows(admin, name)
    assert 50_000 < stats.entry_bytes <= 100_000
    assert stats.evictions == 4_500 - stats.entry_count
    assert stats.puts == 4_500


def test_what_was_used_stays(cache: CacheServiceStub, admin: psycopg.Connection[Any]) -> None:
    name = new_namespace(cache, storage=MEMORY, max_entries=400)
    _put_many(cache, name, [f"key{number:05}" for number in range(400)])
    # As if all of them had been put long ago.
    admin.execute(
        "UPDATE cache.entry SET used_time = now() - interval '1 hour' FROM cache.namespace"
        " WHERE namespace.id = namespace_id AND name = %s",
        [name],
    )
    used = [f"key{number:05}" for number in range(0, 400, 10)]
    assert len(get(cache, name, *used).entries) == len(used)

    _put_many(cache, name, [f"new{number:05}" for number in range(200)])

    rows = admin.execute(
        "SELECT key FROM cache.entry JOIN cache.namespace ON namespace.id = namespace_id WHERE name = %s", [name]
    )
    assert set(used) <= {key for (key,) in rows}


def test_a_durable_namespace_refuses_what_is_too_much(cache: CacheServiceStub) -> None:
    name = new_namespace(cache, max_entries=10)
    _put_many(cache, name, [f"key{number}" for number in range(10)])

    refusal = refused(lambda: put(cache, name, "one more"))

    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "NAMESPACE_FULL")
    assert refusal.metadata == {"namespace": name, "limit": "10 entries"}
    assert refusal.retry
    held = lease(cache, name, "leased")[0]
    assert held.outcome == pb.LEASE_OUTCOME_LEASED
    assert value(cache, name, "one more") is None
    assert len(get(cache, name, *(f"key{number}" for number in range(10))).entries) == 10


@pytest.mark.parametrize("storage", [MEMORY, pb.NAMESPACE_STORAGE_DURABLE], ids=["memory", "durable"])
def test_a_sweep_removes_what_is_over(
    cache: CacheServiceStub, admin: psycopg.Connection[Any], sweep: Sweep, storage: int
) -> None:
    price = pb.IndexDeclaration(name="price", path="price", type=pb.INDEX_TYPE_NUMBER)
    name = new_namespace(cache, storage=storage, indexes=[price])
    put(cache, name, "ended", b'{"price": 1}', ttl=seconds(0.001))
    put(cache, name, "stale", b'{"price": 1}', ttl=seconds(0.001), stale_time=seconds(100))
    put(cache, name, "invalid", b'{"price": 1}', tags=["t"])
    put(cache, name, "stays", b'{"price": 1}', tags=["u"])
    lease(cache, name, "abandoned", lease_time=seconds(0.1))
    lease(cache, name, "held")
    invalidate(cache, name, "t")
    eventually(lambda: lease(cache, name, "abandoned", validate_only=True)[0].outcome == pb.LEASE_OUTCOME_LEASED)

    sweep.run(HELD)

    rows = admin.execute(
        "SELECT key FROM cache.entry JOIN cache.namespace ON namespace.id = namespace_id WHERE name = %s", [name]
    )
    assert {key for (key,) in rows} == {"stale", "stays", "held"}
    assert _rows(admin, name, "entry_index") == 2
    assert _stats(cache, name).entry_count == 2
    assert _rows(admin, name, "usage") == 1


def test_a_sweep_forgets_invalidations_that_nothing_is_compared_with(
    cache: CacheServiceStub, admin: psycopg.Connection[Any], sweep: Sweep
) -> None:
    name = new_namespace(cache)
    put(cache, name, "a", tags=["locked"])
    invalidate(cache, name, "locked", "gone", "young")
    admin.execute("UPDATE cache.tag SET update_time = now() - interval '1 hour' WHERE tag <> 'young'")
    dsn = admin.info.dsn
    with psycopg.connect(dsn, password=admin.info.password) as other:
        # Somebody has the row in hand: the sweep passes over it, and the entry must stay invalid.
        other.execute("SELECT FROM cache.entry WHERE key = 'a' FOR UPDATE")
        sweep.run(HELD)
        rows = admin.execute(
            "SELECT tag FROM cache.tag JOIN cache.namespace ON namespace.id = namespace_id WHERE name = %s", [name]
        )
        assert {tag for (tag,) in rows} == {"locked", "young"}
    assert value(cache, name, "a") is None


def test_a_sweep_removes_what_is_left_of_a_deleted_namespace(
    cache: CacheServiceStub, admin: psycopg.Connection[Any], sweep: Sweep
) -> None:
    name = new_namespace(cache)
    _put_many(cache, name, [f"key{number}" for number in range(50)])
    invalidate(cache, name, "t")
    (namespace_id,) = admin.execute("SELECT id FROM cache.namespace WHERE name = %s", [name]).fetchone() or (None,)
    cache.DeleteNamespace(pb.DeleteNamespaceRequest(name=name))

    sweep.run(HELD)

    for table in ("entry", "entry_index", "tag", "usage", "stat"):
        left = admin.execute(f"SELECT count(*) FROM cache.{table} WHERE namespace_id = %s", [namespace_id]).fetchone()
        assert left == (0,), table


def test_after_a_crash_what_there_is_is_counted(
    cache: CacheServiceStub, admin: psycopg.Connection[Any], sweep: Sweep
) -> None:
    name = new_namespace(cache)
    _put_many(cache, name, [f"key{number}" for number in range(30)])
    # An unlogged table is empty after a crash.
    admin.execute(
        "DELETE FROM cache.usage USING cache.namespace WHERE namespace.id = namespace_id AND name = %s", [name]
    )
    put(cache, name, "after")

    assert _stats(cache, name).entry_count == 31
    sweep.run(HELD)
    put(cache, name, "and later")
    assert _stats(cache, name).entry_count == 32


def test_what_is_counted(cache: CacheServiceStub) -> None:
    name = new_namespace(cache)
    put(cache, name, "a", b"x" * 72)
    for _ in range(64):
        get(cache, name, "a")
    get(cache, name, "b", "a")

    stats = _stats(cache, name)

    assert (stats.entry_count, stats.entry_bytes) == (1, 1 + 72 + 128)
    assert (stats.hits, stats.misses, stats.puts) == (65, 1, 1)
    assert [each.key for each in stats.top_keys] == ["a"]
    assert stats.top_keys[0].uses == 64


def test_labels_are_bounded(serving: Serving) -> None:
    registry = CollectorRegistry()
    counts = Counts(serving.server._databases["cache"])
    counts.watch(registry)
    for number in range(MOST_LABELS + 20):
        counts.of(f"n{number}").looked_up(["k", "l"], 1, 0.002)

    def metric(what: str, label: str) -> float | None:
        return registry.get_sample_value(f"kronos_db_namespace_{what}", {"namespace": label})

    assert metric("hits_total", "n0") == metric("misses_total", "n0") == 1
    assert metric("hits_total", f"n{MOST_LABELS}") is None
    assert metric("hits_total", "other") == 20
    assert metric("lookup_seconds_count", "other") == 20
    assert metric("lookup_seconds_sum", "n1") == pytest.approx(0.002)


def test_metrics_are_there(serving: Serving, cache: CacheServiceStub) -> None:
    name = new_namespace(cache)
    put(cache, name, "a")
    get(cache, name, "a")

    sample = serving.server.registry.get_sample_value
    assert sample("kronos_db_namespace_hits_total", {"namespace": name}) in {1, None}
    total = sum(
        each.value
        for family in serving.server.registry.collect()
        for each in family.samples
        if each.name == "kronos_db_namespace_puts_total"
    )
    assert total >= 1
