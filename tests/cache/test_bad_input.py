"""Bad input: a status, a reason, the path of the field, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub

from tests.cache.population import get, new_namespace, put, stub, unique
from tests.parts.refusal import refused
from tests.parts.serving import Serving

PRICE = pb.IndexDeclaration(name="price", path="price", type=pb.INDEX_TYPE_NUMBER)
LEASE = "0" * 32 + ".1"


@pytest.fixture(scope="module")
def cache(serving: Serving) -> CacheServiceStub:
    return stub(serving)


@pytest.fixture(scope="module")
def small(cache: CacheServiceStub) -> str:
    return new_namespace(cache, max_value_bytes=10)


@pytest.fixture(scope="module")
def indexed(cache: CacheServiceStub) -> str:
    return new_namespace(cache, indexes=[PRICE])


def _write(**values: Any) -> pb.EntryWrite:
    return pb.EntryWrite(**{"key": "bad", "value": b"1", **values})


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (_write(value=b"x" * 11), "entries[1].value"),
        (_write(key=""), "entries[1].key"),
        (_write(key="k" * 513), "entries[1].key"),
        (_write(key="a\x1fb"), "entries[1].key"),
        (_write(key="a\x00b"), "entries[1].key"),
        (_write(key="good"), "entries[1].key"),
        (_write(tags=["t"] * 10_000), "entries[1].tags"),
        (_write(tags=["t", ""]), "entries[1].tags[1]"),
        (_write(tags=["t", "a\x1eb"]), "entries[1].tags[1]"),
        (_write(ttl=Duration(seconds=-1)), "entries[1].ttl"),
        (_write(ttl=Duration()), "entries[1].ttl"),
        (_write(stale_time=Duration(seconds=10**12)), "entries[1].stale_time"),
        (_write(expected_version="latest"), "entries[1].expected_version"),
    ],
)
def test_a_put_with_one_bad_entry_puts_none(
    cache: CacheServiceStub, small: str, entry: pb.EntryWrite, field: str
) -> None:
    entries = [pb.EntryWrite(key="good", value=b"1"), entry]

    refusal = refused(lambda: cache.PutEntries(pb.PutEntriesRequest(namespace=small, entries=entries)))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert list(refusal.fields) == [field]
    assert not get(cache, small, "good", "bad").entries


@pytest.mark.parametrize(
    "value", [b"no JSON", b"[1]", b'{"price": "1"}', b'{"price": true}', b'{"price": 1e999}', b"\xff"]
)
def test_a_value_that_does_not_fit_its_index(cache: CacheServiceStub, indexed: str, value: bytes) -> None:
    refusal = refused(lambda: put(cache, indexed, "a", value))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert list(refusal.fields) == ["entries[0].value"]
    assert not get(cache, indexed, "a").entries


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda cache, ns: cache.GetEntries(pb.GetEntriesRequest(namespace=ns)), "keys"),
        (lambda cache, ns: cache.GetEntries(pb.GetEntriesRequest(namespace=ns, keys=["k"] * 1001)), "keys"),
        (lambda cache, ns: cache.PutEntries(pb.PutEntriesRequest(namespace=ns)), "entries"),
        (
            lambda cache, ns: cache.InvalidateTags(
                pb.InvalidateTagsRequest(namespace=ns, tags=[f"t{number}" for number in range(10_000)])
            ),
            "tags",
        ),
        (lambda cache, ns: cache.InvalidateTags(pb.InvalidateTagsRequest(namespace=ns, tags=["t", "t"])), "tags"),
        (lambda cache, ns: cache.InvalidateTags(pb.InvalidateTagsRequest(namespace=ns, tags=["t\n"])), "tags[0]"),
        (lambda cache, ns: cache.GetOrLease(pb.GetOrLeaseRequest(namespace=ns, keys=["k", "k"])), "keys"),
        (lambda cache, ns: cache.GetOrLease(pb.GetOrLeaseRequest(namespace=ns, keys=["k", "k\t"])), "keys[1]"),
        (
            lambda cache, ns: cache.GetOrLease(
                pb.GetOrLeaseRequest(namespace=ns, keys=["k"], lease_time=Duration(seconds=301))
            ),
            "lease_time",
        ),
        (
            lambda cache, ns: cache.FillLease(
                pb.FillLeaseRequest(namespace=ns, fills=[pb.LeaseFill(lease="mine", entry=_write())])
            ),
            "fills[0].lease",
        ),
        (
            lambda cache, ns: cache.FillLease(
                pb.FillLeaseRequest(namespace=ns, fills=[pb.LeaseFill(lease=LEASE, entry=_write(value=b"x" * 11))])
            ),
            "fills[0].entry.value",
        ),
        (
            lambda cache, ns: cache.AbandonLease(
                pb.AbandonLeaseRequest(namespace=ns, leases=[pb.LeaseReturn(key="k", lease=LEASE)] * 2)
            ),
            "leases[1].key",
        ),
        (
            lambda cache, ns: cache.DeleteEntries(
                pb.DeleteEntriesRequest(namespace=ns, entries=[pb.EntryDelete(key="k")] * 2)
            ),
            "entries[1].key",
        ),
        (
            lambda cache, ns: cache.UpdateNamespace(
                pb.UpdateNamespaceRequest(
                    namespace=pb.Namespace(name=ns), update_mask=FieldMask(paths=["max_bytes", "storage"])
                )
            ),
            "update_mask.paths[1]",
        ),
        (
            lambda cache, ns: cache.UpdateNamespace(pb.UpdateNamespaceRequest(namespace=pb.Namespace(name=ns))),
            "update_mask",
        ),
        (
            lambda cache, ns: cache.DeleteNamespace(pb.DeleteNamespaceRequest(name=ns, etag="x")),
            "etag",
        ),
    ],
)
def test_the_rules_of_the_calls(
    cache: CacheServiceStub, small: str, call: Callable[[CacheServiceStub, str], Any], field: str
) -> None:
    refusal = refused(lambda: call(cache, small))

    assert refusal.code == "INVALID_ARGUMENT"
    assert list(refusal.fields) == [field]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": "Upper"}, "namespace.name"),
        ({"name": "a/b"}, "namespace.name"),
        ({"max_value_bytes": 1 << 21}, "namespace.max_value_bytes"),
        ({"max_entries": -1}, "namespace.max_entries"),
        ({"indexes": [PRICE, PRICE]}, "namespace.indexes[1].name"),
        ({"indexes": [PRICE], "sensitive": True}, "namespace.indexes"),
        ({"indexes": [pb.IndexDeclaration(name="a", path="a..b", type=1)]}, "namespace.indexes[0].path"),
        ({"indexes": [pb.IndexDeclaration(name="a", path="a")]}, "namespace.indexes[0].type"),
    ],
)
def test_a_namespace_that_cannot_be(cache: CacheServiceStub, values: dict[str, Any], field: str) -> None:
    refusal = refused(lambda: new_namespace(cache, **values))

    assert refusal.code == "INVALID_ARGUMENT"
    assert list(refusal.fields) == [field]


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        ({"equals": pb.IndexValue(string_value="1")}, "equals.number_value"),
        ({"prefix": "1"}, "prefix"),
        ({"range": pb.IndexRange()}, "range"),
        ({"range": pb.IndexRange(until=pb.IndexValue(boolean_value=True))}, "range.until.number_value"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "made up"}, "page_token"),
    ],
)
def test_a_query_that_is_none(cache: CacheServiceStub, indexed: str, condition: dict[str, Any], field: str) -> None:
    request = pb.QueryEntriesRequest(**{"namespace": indexed, "index": "price", **condition})

    refusal = refused(lambda: cache.QueryEntries(request))

    assert refusal.code == "INVALID_ARGUMENT"
    assert list(refusal.fields) == [field]


def test_an_index_that_is_not_declared(cache: CacheServiceStub, indexed: str) -> None:
    refusal = refused(lambda: cache.QueryEntries(pb.QueryEntriesRequest(namespace=indexed, index="weight")))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INDEX_NOT_DECLARED")
    assert list(refusal.fields) == ["index"]
    assert refusal.metadata == {"namespace": indexed, "index": "weight"}


@pytest.mark.parametrize(
    "call",
    [
        lambda cache, ns: get(cache, ns, "k"),
        lambda cache, ns: get(cache, ns, "k", "l"),
        lambda cache, ns: put(cache, ns, "k"),
        lambda cache, ns: cache.DeleteEntries(pb.DeleteEntriesRequest(namespace=ns, entries=[pb.EntryDelete(key="k")])),
        lambda cache, ns: cache.GetOrLease(pb.GetOrLeaseRequest(namespace=ns, keys=["k"])),
        lambda cache, ns: cache.FillLease(
            pb.FillLeaseRequest(namespace=ns, fills=[pb.LeaseFill(lease=LEASE, entry=_write())])
        ),
        lambda cache, ns: cache.InvalidateTags(pb.InvalidateTagsRequest(namespace=ns, tags=["t"])),
        lambda cache, ns: cache.TouchEntries(pb.TouchEntriesRequest(namespace=ns, keys=["k"])),
        lambda cache, ns: cache.QueryEntries(pb.QueryEntriesRequest(namespace=ns, index="i")),
        lambda cache, ns: cache.GetCacheStats(pb.GetCacheStatsRequest(namespace=ns)),
        lambda cache, ns: cache.DeleteNamespace(pb.DeleteNamespaceRequest(name=ns)),
        lambda cache, ns: cache.UpdateNamespace(
            pb.UpdateNamespaceRequest(namespace=pb.Namespace(name=ns, max_entries=1))
        ),
    ],
)
def test_a_namespace_that_is_not_there(cache: CacheServiceStub, call: Callable[[CacheServiceStub, str], Any]) -> None:
    name = unique()

    refusal = refused(lambda: call(cache, name))

    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "NAMESPACE_NOT_FOUND")
    assert refusal.metadata == {"namespace": name}


def test_a_name_with_a_slash_does_not_reach_into_another_namespace(cache: CacheServiceStub) -> None:
    name = new_namespace(cache)
    put(cache, name, "b/c")
    assert get(cache, name, "b/c").entries

    assert refused(lambda: get(cache, f"{name}/b", "c")).reason == "NAMESPACE_NOT_FOUND"
