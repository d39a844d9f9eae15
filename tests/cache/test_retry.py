"""Retry is safe: one request_id, one effect, one answer; and calls that come together are their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub

from tests.cache.population import delete, fill, get, lease, new_namespace, put, stub, value
from tests.parts.refusal import refused
from tests.parts.serving import Serving

_AT_ONCE = 16


@pytest.fixture
def cache(serving: Serving) -> CacheServiceStub:
    return stub(serving)


@pytest.fixture
def namespace(cache: CacheServiceStub) -> str:
    return new_namespace(cache)


def _put(namespace: str, *values: bytes) -> pb.PutEntriesRequest:
    entries = [pb.EntryWrite(key=f"k{place}", value=value) for place, value in enumerate(values)]
    return pb.PutEntriesRequest(namespace=namespace, entries=entries, request_id=str(uuid4()))


@pytest.mark.parametrize("values", [(b"1",), (b"1", b"2")], ids=["one", "many"])
def test_a_repeated_put_gets_the_first_answer(
    cache: CacheServiceStub, namespace: str, values: tuple[bytes, ...]
) -> None:
    request = _put(namespace, *values)
    first = cache.PutEntries(request)
    put(cache, namespace, "k0", b"later")

    assert cache.PutEntries(request) == first
    assert value(cache, namespace, "k0") == b"later"
    request.entries[0].value = b"other"
    assert refused(lambda: cache.PutEntries(request)).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("values", [(b"1",), (b"1", b"2")], ids=["one", "many"])
def test_sixteen_at_once_put_once(cache: CacheServiceStub, namespace: str, values: tuple[bytes, ...]) -> None:
    request = _put(namespace, *values)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        answers = list(threads.map(lambda _: cache.PutEntries(request), range(_AT_ONCE)))

    assert all(answer == answers[0] for answer in answers)
    assert get(cache, namespace, "k0").entries[0].version == answers[0].results[0].version


def test_a_repeated_fill_is_not_lost(cache: CacheServiceStub, namespace: str) -> None:
    leased = lease(cache, namespace, "a")[0]
    entry = pb.EntryWrite(key="a", value=b"1")
    fills = [pb.LeaseFill(lease=leased.lease, entry=entry)]
    request = pb.FillLeaseRequest(namespace=namespace, fills=fills, request_id=str(uuid4()))
    first = cache.FillLease(request)

    assert cache.FillLease(request) == first
    assert first.results[0].outcome == pb.FILL_OUTCOME_STORED
    assert fill(cache, namespace, leased, b"2").outcome == pb.FILL_OUTCOME_LEASE_LOST


def test_a_repeated_delete_does_not_delete_what_was_put_since(cache: CacheServiceStub, namespace: str) -> None:
    put(cache, namespace, "a")
    entries = [pb.EntryDelete(key="a")]
    request = pb.DeleteEntriesRequest(namespace=namespace, entries=entries, request_id=str(uuid4()))
    first = cache.DeleteEntries(request)
    put(cache, namespace, "a", b"since")

    assert cache.DeleteEntries(request) == first
    assert value(cache, namespace, "a") == b"since"
    assert delete(cache, namespace, "a") == [pb.DELETE_OUTCOME_DELETED]


def test_puts_that_come_together_are_their_own(cache: CacheServiceStub, namespace: str) -> None:
    def one(number: int) -> bool:
        key = f"key{number % 5}"
        result = put(cache, namespace, key, b"%d" % number)
        entry = get(cache, namespace, key).entries[0]
        # Another may have put it since.
        return int(entry.value) % 5 == number % 5 and (entry.version != result.version or entry.value == b"%d" % number)

    with ThreadPoolExecutor(32) as threads:
        assert all(threads.map(one, range(600)))


def test_batches_of_the_same_keys_do_not_deadlock(cache: CacheServiceStub, namespace: str) -> None:
    keys = [f"key{number}" for number in range(20)]

    def one(number: int) -> int:
        order = keys if number % 2 else keys[::-1]
        entries = [pb.EntryWrite(key=key, value=b"%d" % number) for key in order]
        answer = cache.PutEntries(pb.PutEntriesRequest(namespace=namespace, entries=entries), timeout=20)
        return len({result.version for result in answer.results})

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(one, range(200))) == {1}
    # All of one put.
    assert len({entry.value for entry in get(cache, namespace, *keys).entries}) == 1
