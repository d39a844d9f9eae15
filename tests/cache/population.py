"""Namespaces and entries of the tests, and short ways to call."""

from __future__ import annotations

import uuid
from typing import Any

from google.protobuf.duration_pb2 import Duration
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub

from tests.parts.serving import Serving


def stub(serving: Serving, caller: str = "operator") -> CacheServiceStub:
    return CacheServiceStub(serving.channel_of(caller))


def unique(prefix: str = "ns") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=round(value % 1 * 1e9))


def new_namespace(cache: CacheServiceStub, **values: Any) -> str:
    """Create a namespace, durable unless `values` say otherwise; return its name."""
    namespace = pb.Namespace(**{"name": unique(), "storage": pb.NAMESPACE_STORAGE_DURABLE, **values})
    return cache.CreateNamespace(pb.CreateNamespaceRequest(namespace=namespace)).namespace.name


def put(cache: CacheServiceStub, namespace: str, key: str, value: bytes = b"value", **values: Any) -> pb.PutResult:
    entry = pb.EntryWrite(key=key, value=value, **values)
    return cache.PutEntries(pb.PutEntriesRequest(namespace=namespace, entries=[entry])).results[0]


def get(cache: CacheServiceStub, namespace: str, *keys: str) -> pb.GetEntriesResponse:
    return cache.GetEntries(pb.GetEntriesRequest(namespace=namespace, keys=keys))


def value(cache: CacheServiceStub, namespace: str, key: str) -> bytes | None:
    found = get(cache, namespace, key).entries
    return found[0].value if found else None


def delete(cache: CacheServiceStub, namespace: str, *keys: str) -> list[int]:
    entries = [pb.EntryDelete(key=key) for key in keys]
    return list(cache.DeleteEntries(pb.DeleteEntriesRequest(namespace=namespace, entries=entries)).outcomes)


def lease(cache: CacheServiceStub, namespace: str, *keys: str, **values: Any) -> list[pb.LeaseResult]:
    return list(cache.GetOrLease(pb.GetOrLeaseRequest(namespace=namespace, keys=keys, **values)).results)


def fill(cache: CacheServiceStub, namespace: str, leased: pb.LeaseResult, value: bytes, **values: Any) -> pb.FillResult:
    entry = pb.EntryWrite(key=leased.key, value=value, **values)
    request = pb.FillLeaseRequest(namespace=namespace, fills=[pb.LeaseFill(lease=leased.lease, entry=entry)])
    return cache.FillLease(request).results[0]


def invalidate(cache: CacheServiceStub, namespace: str, *tags: str) -> None:
    cache.InvalidateTags(pb.InvalidateTagsRequest(namespace=namespace, tags=tags))
