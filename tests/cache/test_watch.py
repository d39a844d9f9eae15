"""WatchInvalidations: everything that callers with copies of their own must drop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.cache.upkeep import CHANGES_KEPT
from tests.cache.population import delete, fill, invalidate, lease, new_namespace, put, seconds, stub
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.parts.watching import LIMIT


@pytest.fixture
def watch(serving: Serving) -> Iterator[Callable[..., Any]]:
    """Begin a stream; it is cancelled after the test."""
    streams: list[Any] = []

    def begin(on: Serving = serving, **values: Any) -> Any:
        streams.append(stub(on).WatchInvalidations(pb.WatchInvalidationsRequest(**values), timeout=LIMIT))
        return streams[-1]

    yield begin
    for stream in streams:
        stream.cancel()


def _told(message: pb.WatchInvalidationsResponse) -> Any:
    kind = message.WhichOneof("change")
    if kind == "entries":
        return list(message.entries.keys)
    return list(message.tags.tags) if kind == "tags" else kind


def test_what_is_told_of_a_namespace(serving: Serving, watch: Callable[..., Any]) -> None:
    cache = stub(serving)
    name, other = new_namespace(cache), new_namespace(cache)
    stream = watch(namespaces=[name])
    assert next(stream).WhichOneof("change") is None

    put(cache, other, "not told")
    entries = [pb.EntryWrite(key="b"), pb.EntryWrite(key="a")]
    cache.PutEntries(pb.PutEntriesRequest(namespace=name, entries=entries))
    put(cache, name, "a", expected_version="1")
    delete(cache, name, "a", "never there")
    invalidate(cache, name, "t", "u")
    fill(cache, name, lease(cache, name, "c")[0], b"1")
    cache.TouchEntries(pb.TouchEntriesRequest(namespace=name, keys=["c", "none"], ttl=seconds(5)))
    cache.DeleteNamespace(pb.DeleteNamespaceRequest(name=name))

    messages = [next(stream) for _ in range(6)]
    assert [_told(each) for each in messages] == [
        ["b", "a"],
        ["a", "never there"],
        ["t", "u"],
        ["c"],
        ["c"],
        "namespace",
    ]
    assert [each.sequence for each in messages] == [2, 3, 4, 5, 6, 7]
    assert all(each.resume_token and each.change_time.seconds for each in messages)
    assert messages[5].namespace.namespace == name


def test_a_stream_goes_on_where_another_ended(serving: Serving, watch: Callable[..., Any]) -> None:
    cache = stub(serving)
    name = new_namespace(cache)
    first = watch(namespaces=[name])
    next(first)
    put(cache, name, "a")
    token = next(first).resume_token
    first.cancel()
    put(cache, name, "b")

    again = watch(namespaces=[name], resume_token=token)

    assert next(again).WhichOneof("change") is None
    assert _told(next(again)) == ["b"]


def test_a_gap_is_told_and_the_stream_goes_on(fresh_serving: Serving, database: str, watch: Callable[..., Any]) -> None:
    cache = stub(fresh_serving)
    name = new_namespace(cache)
    stream = watch(fresh_serving, namespaces=[name])
    token = next(stream).resume_token
    put(cache, name, "missed")
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("UPDATE cache.change SET create_time = now() - interval '1 hour'")
        # The server's own upkeep may come first.
        fresh_serving.server._databases["cache"].purge_changes(CHANGES_KEPT)
        count = admin.execute("SELECT count(*) FROM cache.change WHERE create_time < now() - interval '1 minute'")
        assert count.fetchone() == (0,)
        other = new_namespace(cache)

        def is_behind() -> bool:
            # What is purged is old in truth: no transaction from before it is open any more.
            put(cache, other, "x")
            (purged,) = admin.execute("SELECT purged::text::bigint FROM cache.change_horizon").fetchone() or (0,)
            return int(fresh_serving.server._databases["cache"].position().seen.partition(":")[0]) > int(purged)

        eventually(is_behind)

    for names in ([name], []):
        again = watch(fresh_serving, namespaces=names, resume_token=token)
        gap = next(again)
        assert list(gap.gap.namespaces) == names
        assert (gap.WhichOneof("change"), gap.sequence) == ("gap", 1)
        put(cache, name, "after")
        assert _told(next(again)) == ["after"]
        later = watch(fresh_serving, namespaces=names, resume_token=gap.resume_token)
        assert next(later).WhichOneof("change") is None
        assert _told(next(later)) == ["after"]


def test_no_value_and_no_bundle_is_told(serving: Serving, watch: Callable[..., Any]) -> None:
    cache = stub(serving)
    name = new_namespace(cache)
    stream = watch(namespaces=[name])
    next(stream)
    put(cache, name, "a", b"not for everybody", tags=["nor this"])

    assert b"not" not in next(stream).SerializeToString()


@pytest.mark.parametrize(
    ("values", "reason", "field"),
    [
        ({"resume_token": "made up"}, "RESUME_TOKEN_INVALID", "resume_token"),
        ({"namespaces": ["No Name"]}, "BAD_REQUEST", "namespaces[0]"),
        ({"namespaces": [f"n{number}" for number in range(101)]}, "BAD_REQUEST", "namespaces"),
    ],
)
def test_bad_input(watch: Callable[..., Any], values: dict[str, Any], reason: str, field: str) -> None:
    refusal = refused(lambda: next(watch(**values)))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", reason)
    assert list(refusal.fields) == [field]
