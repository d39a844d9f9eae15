"""The rows of the cache domain."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub

from benchmarks.stand import Row, Stand, at_least, echo, run_load, settle, stand

_VALUE = b"x" * 100
_HOT = 8_000
_BATCH = 100
_ROUNDS = 3
_PUT_REQUESTS = 500
_INDEXED = 1_000_000
_OWNERS = 20_000
_QUERIES = 500
_BOUND = 4 << 20
_GET = "/kronos.cache.v1.CacheService/GetEntries"
_PUT = "/kronos.cache.v1.CacheService/PutEntries"


def rows() -> Iterator[Row]:
    """Measure."""
    with stand() as on:
        yield from _one_key(on)
    with stand(processes=2) as on:
        yield from _hundred_keys(on)
        yield from _puts(on)
        yield from _queries(on)
        yield from _bound(on)


def _one_key(on: Stand) -> Iterator[Row]:
    """Load GetEntries of one key and the floor in turn, so that both see the same weather."""
    _create(on, "one")
    _put(on, "one", ["hot"], _VALUE)
    request = pb.GetEntriesRequest(namespace="one", keys=["hot"])
    answer = _stub(on).GetEntries(request, metadata=on.metadata).ByteSize()
    requests = [request.SerializeToString()]
    gets, floors = [], []
    with echo(on.settings.worker_threads, answer) as target:
        for _ in range(_ROUNDS):
            settle()
            floors.append(run_load(target, "/bench.Echo/Echo", requests, 4.0, 64, on.metadata).calls_per_second)
            settle()
            gets.append(on.load(_GET, requests))
    best = statistics.median(outcome.calls_per_second for outcome in gets)
    floor = statistics.median(floors)
    yield at_least("cache: GetEntries of one hot key, 64 in flight, 1 process", best, "calls/s", floor, 0.75)
    yield Row("cache: GetEntries of one hot key, p50", statistics.median(outcome.p50_ms for outcome in gets), "ms")


def _hundred_keys(on: Stand) -> Iterator[Row]:
    _create(on, "hundred")
    keys = [f"user:{number:08}:profile" for number in range(_HOT)]
    for start in range(0, _HOT, 1000):
        _put(on, "hundred", keys[start : start + 1000], _VALUE)
    chosen = random.Random(1).sample(keys, len(keys))
    requests = [
        pb.GetEntriesRequest(namespace="hundred", keys=chosen[start : start + _BATCH]).SerializeToString()
        for start in range(0, _HOT, _BATCH)
    ]
    entries = statistics.median(on.load(_GET, requests, in_flight=16).calls_per_second for _ in range(_ROUNDS)) * _BATCH
    name = "cache: GetEntries of 100 keys, 16 in flight, 2 processes"
    yield Row(name, entries, "entries/s", bar="≥ 100,000", met=entries >= 100_000)


def _puts(on: Stand) -> Iterator[Row]:
    """Load PutEntries of 100 in both kinds of namespaces, beside raw pipelined SETs of as many bytes."""
    url = on.settings.redis_url
    floors, puts = [], {"memory": [], "durable": []}  # type: dict[str, Any]
    requests = {}
    for kind, storage in (("memory", pb.NAMESPACE_STORAGE_MEMORY), ("durable", pb.NAMESPACE_STORAGE_DURABLE)):
        _create(on, kind, storage=storage)
        requests[kind] = [_request(kind, _keys(number), _VALUE).SerializeToString() for number in range(_PUT_REQUESTS)]
    for _ in range(_ROUNDS):
        if url is not None:
            settle()
            floors.append(_pipelined_sets(url.get_secret_value()))
        for kind, made in requests.items():
            settle()
            puts[kind].append(on.load(_PUT, made, in_flight=16).calls_per_second * _BATCH)
    for kind, measured in puts.items():
        name = f"cache: PutEntries of 100, {kind}, 2 processes, beside pipelined SETs of redis-py"
        value = statistics.median(measured)
        if not floors:
            yield Row(f"{name}: no Redis", value, "entries/s")
        else:
            yield at_least(name, value, "entries/s", statistics.median(floors), 0.4)


def _pipelined_sets(url: str) -> float:
    """Return how many SETs a second redis-py does in pipelines of 100."""
    with redis.Redis.from_url(url) as client:
        done, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < 4.0:
            pipeline = client.pipeline(transaction=False)
            for key in _keys(done % _PUT_REQUESTS):
                pipeline.set(key, _VALUE)
            pipeline.execute()
            done += 1
        return done * _BATCH / elapsed


def _queries(on: Stand) -> Iterator[Row]:
    """Fill a durable namespace of a million indexed entries; ask for pages of 50 by equality, range and prefix."""
    indexes = [
        pb.IndexDeclaration(name="owner", path="owner", type=pb.INDEX_TYPE_STRING),
        pb.IndexDeclaration(name="price", path="price", type=pb.INDEX_TYPE_NUMBER),
    ]
    _create(on, "indexed", storage=pb.NAMESPACE_STORAGE_DURABLE, indexes=indexes)
    begin = time.perf_counter()
    for start in range(0, _INDEXED, 1000):
        entries = [
            pb.EntryWrite(
                key=f"item:{number:08}",
                value=json.dumps({"owner": f"owner{number % _OWNERS:06}", "price": number % 9_973}).encode(),
            )
            for number in range(start, start + 1000)
        ]
        _stub(on).PutEntries(pb.PutEntriesRequest(namespace="indexed", entries=entries), metadata=on.metadata)
        print(f"\rputting indexed entries: {start + 1000:,} of {_INDEXED:,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    yield Row(
        "cache: PutEntries of 1,000 with two indexes, one caller", _INDEXED / (time.perf_counter() - begin), "entries/s"
    )
    for kind in ("equality", "range", "prefix"):
        p50 = statistics.median(_query_times(on, kind))
        name = f"cache: QueryEntries by {kind} among {_INDEXED:,}, pages of 50, p50"
        yield Row(name, p50, "ms", bar="≤ 3 ms", met=p50 <= 3)


def _query_times(on: Stand, kind: str) -> list[float]:
    chance, times = random.Random(1), []
    for _ in range(_QUERIES):
        request = pb.QueryEntriesRequest(namespace="indexed", page_size=50)
        if kind == "range":
            low = float(chance.randrange(9_000))
            until = pb.IndexValue(number_value=low + 100)
            request.index = "price"
            request.range.CopyFrom(pb.IndexRange(**{"from": pb.IndexValue(number_value=low), "until": until}))
        else:
            request.index = "owner"
            owner = f"owner{chance.randrange(_OWNERS):06}"
            if kind == "prefix":
                request.prefix = owner[:-2]
            else:
                request.equals.string_value = owner
        begin = time.perf_counter()
        found = _stub(on).QueryEntries(request, metadata=on.metadata).entries
        times.append((time.perf_counter() - begin) * 1000)
        if not found:
            raise SystemExit(f"{kind}: nothing was found")
    return times


def _bound(on: Stand) -> Iterator[Row]:
    """Put ten times as much as a namespace may hold."""
    _create(on, "bounded", max_bytes=_BOUND)
    before = on.resident_megabytes()
    put, number = 0, 0
    while put < 10 * _BOUND:
        _put(on, "bounded", _keys(number), _VALUE * 10)
        put += _BATCH * len(_VALUE) * 10
        number += 1
    request = pb.GetCacheStatsRequest(namespace="bounded")
    stats = _stub(on).GetCacheStats(request, metadata=on.metadata)
    megabytes = stats.entry_bytes / (1 << 20)
    bar = f"≤ {_BOUND >> 20} MB"
    yield Row(
        "cache: bytes of a namespace after ten times its bound was put", megabytes, "MB", bar=bar, met=megabytes <= 4
    )
    grown = on.resident_megabytes() - before
    yield Row("cache: resident memory that this added, 2 processes", grown, "MB", bar="≤ 16 MB", met=grown <= 16)


def _stub(on: Stand) -> CacheServiceStub:
    return CacheServiceStub(on.channel)


def _create(on: Stand, name: str, **values: Any) -> None:
    namespace = pb.Namespace(**{"name": name, "storage": pb.NAMESPACE_STORAGE_MEMORY, **values})
    _stub(on).CreateNamespace(pb.CreateNamespaceRequest(namespace=namespace), metadata=on.metadata)


def _keys(number: int) -> list[str]:
    return [f"user:{number * _BATCH + place:08}:profile" for place in range(_BATCH)]


def _request(namespace: str, keys: Sequence[str], value: bytes) -> pb.PutEntriesRequest:
    entries = [pb.EntryWrite(key=key, value=value) for key in keys]
    return pb.PutEntriesRequest(namespace=namespace, entries=entries)


def _put(on: Stand, namespace: str, keys: Sequence[str], value: bytes) -> None:
    _stub(on).PutEntries(_request(namespace, keys, value), metadata=on.metadata)
