"""GetOrLease, FillLease, AbandonLease: one filler, and never an old value after what made it old."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub

from tests.cache.population import delete, fill, get, invalidate, lease, new_namespace, put, seconds, stub, value
from tests.parts.eventually import eventually
from tests.parts.serving import Serving

LEASED, WAIT = pb.LEASE_OUTCOME_LEASED, pb.LEASE_OUTCOME_WAIT
STALE, HIT = pb.LEASE_OUTCOME_STALE, pb.LEASE_OUTCOME_HIT
STORED, LOST = pb.FILL_OUTCOME_STORED, pb.FILL_OUTCOME_LEASE_LOST


@pytest.fixture
def cache(serving: Serving) -> CacheServiceStub:
    return stub(serving)


@pytest.fixture(params=[pb.NAMESPACE_STORAGE_MEMORY, pb.NAMESPACE_STORAGE_DURABLE], ids=["memory", "durable"])
def namespace(request: pytest.FixtureRequest, cache: CacheServiceStub) -> str:
    return new_namespace(cache, storage=request.param)


def test_one_fills_the_others_wait_and_then_hit(cache: CacheServiceStub, namespace: str) -> None:
    first = lease(cache, namespace, "a")[0]
    second = lease(cache, namespace, "a")[0]

    assert (first.outcome, second.outcome) == (LEASED, WAIT)
    assert second.retry_after.ToMilliseconds() == 100
    assert not second.lease
    filled = fill(cache, namespace, first, b"new", tags=["t"], ttl=seconds(100))
    assert filled.outcome == STORED
    hit = lease(cache, namespace, "a")[0]
    assert (hit.outcome, hit.entry.value, hit.entry.version) == (HIT, b"new", filled.version)
    assert value(cache, namespace, "a") == b"new"
    assert fill(cache, namespace, first, b"again").outcome == LOST


def test_a_batch_has_all_kinds(cache: CacheServiceStub, namespace: str) -> None:
    put(cache, namespace, "hit", b"1")
    put(cache, namespace, "old", b"2", ttl=seconds(0.001), stale_time=seconds(100))
    put(cache, namespace, "refreshed", b"3", ttl=seconds(0.001), stale_time=seconds(100))
    eventually(lambda: not get(cache, namespace, "old", "refreshed").entries)
    lease(cache, namespace, "refreshed", "taken")

    results = lease(cache, namespace, "hit", "old", "refreshed", "taken", "free")

    assert [each.outcome for each in results] == [HIT, LEASED, STALE, WAIT, LEASED]
    assert [each.entry.value for each in results] == [b"1", b"2", b"3", b"", b""]
    assert [bool(each.lease) for each in results] == [False, True, False, False, True]


@pytest.mark.parametrize("how", ["delete", "put", "tag of the value", "tag of the old value", "namespace"])
def test_what_voids_a_lease(cache: CacheServiceStub, namespace: str, how: str) -> None:
    put(cache, namespace, "a", b"old", tags=["before"], ttl=seconds(0.001), stale_time=seconds(100))
    eventually(lambda: value(cache, namespace, "a") is None)
    held = lease(cache, namespace, "a")[0]
    assert (held.outcome, held.entry.value) == (LEASED, b"old")

    if how == "delete":
        delete(cache, namespace, "a")
    elif how == "put":
        put(cache, namespace, "a", b"newer")
    elif how == "namespace":
        cache.DeleteNamespace(pb.DeleteNamespaceRequest(name=namespace))
        new_namespace(cache, name=namespace)
    else:
        invalidate(cache, namespace, "after" if how == "tag of the value" else "before")

    assert fill(cache, namespace, held, b"read before", tags=["after"]).outcome == LOST
    assert value(cache, namespace, "a") == (b"newer" if how == "put" else None)


def test_a_delete_voids_the_lease_of_a_key_without_an_entry(cache: CacheServiceStub, namespace: str) -> None:
    held = lease(cache, namespace, "a")[0]

    assert delete(cache, namespace, "a") == [pb.DELETE_OUTCOME_ABSENT]

    assert fill(cache, namespace, held, b"read before").outcome == LOST
    assert lease(cache, namespace, "a")[0].outcome == LEASED


def test_an_invalidated_entry_is_never_a_stale_value(cache: CacheServiceStub, namespace: str) -> None:
    put(cache, namespace, "a", b"old", tags=["t"], ttl=seconds(100), stale_time=seconds(100))
    invalidate(cache, namespace, "t")

    first, second = lease(cache, namespace, "a")[0], lease(cache, namespace, "a")[0]

    assert (first.outcome, second.outcome) == (LEASED, WAIT)
    assert not first.HasField("entry")


def test_another_takes_over_when_the_lease_is_over(cache: CacheServiceStub, namespace: str) -> None:
    dead = lease(cache, namespace, "a", lease_time=seconds(0.2))[0]
    assert lease(cache, namespace, "a")[0].outcome == WAIT

    taken: list[pb.LeaseResult] = []
    eventually(lambda: taken or taken.extend(r for r in lease(cache, namespace, "a") if r.outcome == LEASED) or taken)

    assert fill(cache, namespace, dead, b"late").outcome == LOST
    assert fill(cache, namespace, taken[0], b"in time").outcome == STORED
    assert value(cache, namespace, "a") == b"in time"


def test_an_abandoned_lease_is_free_at_once(cache: CacheServiceStub, namespace: str) -> None:
    held = lease(cache, namespace, "a")[0]
    give_back = pb.AbandonLeaseRequest(namespace=namespace, leases=[pb.LeaseReturn(key="a", lease=held.lease)])

    assert cache.AbandonLease(give_back).abandoned_count == 1
    assert cache.AbandonLease(give_back).abandoned_count == 0
    assert lease(cache, namespace, "a")[0].outcome == LEASED
    assert fill(cache, namespace, held, b"late").outcome == LOST


def test_a_repeat_gets_the_same_lease_and_after_a_void_another(cache: CacheServiceStub, namespace: str) -> None:
    request = pb.GetOrLeaseRequest(namespace=namespace, keys=["a"], request_id=str(uuid4()))
    first = cache.GetOrLease(request).results[0]
    assert cache.GetOrLease(request).results[0] == first

    delete(cache, namespace, "a")
    late = cache.GetOrLease(request).results[0]

    # As a call that was held up on its way: its lease is not the one that the delete voided.
    assert late.outcome == LEASED
    assert late.lease != first.lease
    assert fill(cache, namespace, first, b"read before").outcome == LOST
    assert fill(cache, namespace, late, b"read after").outcome == STORED


def test_validate_only_takes_no_lease(cache: CacheServiceStub, namespace: str) -> None:
    checked = lease(cache, namespace, "a", validate_only=True)[0]
    assert (checked.outcome, checked.lease) == (LEASED, "")
    held = lease(cache, namespace, "a")[0]
    assert held.outcome == LEASED
    assert lease(cache, namespace, "a", validate_only=True)[0].outcome == WAIT


def test_500_concurrent_misses_have_one_filler(cache: CacheServiceStub, namespace: str) -> None:
    put(cache, namespace, "old", b"old", ttl=seconds(0.001), stale_time=seconds(100))
    eventually(lambda: value(cache, namespace, "old") is None)
    # As many at once as a domain takes in: more are refused with a reason, whatever they ask for.
    at_once = 200
    barrier = threading.Barrier(at_once)

    def ask(key: str) -> int:
        return lease(cache, namespace, key)[0].outcome

    def begin(number: int) -> list[int]:
        barrier.wait(30)
        return [ask("new"), ask("new"), ask("new"), ask("old"), ask("old")]

    with ThreadPoolExecutor(at_once) as threads:
        rows = list(threads.map(begin, range(at_once)))

    assert Counter(outcome for row in rows for outcome in row[:3]) == {LEASED: 1, WAIT: 3 * at_once - 1}
    assert Counter(outcome for row in rows for outcome in row[3:]) == {LEASED: 1, STALE: 2 * at_once - 1}
