"""Declared indexes: what stands in them, and QueryEntries."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub

from kronos_db.cache.indexing import after_prefix, encoded
from kronos_db.cache.model import IndexType
from tests.cache.population import delete, invalidate, new_namespace, put, seconds, stub
from tests.parts.eventually import eventually
from tests.parts.serving import Serving

INDEXES = [
    pb.IndexDeclaration(name="owner", path="owner.id", type=pb.INDEX_TYPE_STRING),
    pb.IndexDeclaration(name="price", path="price", type=pb.INDEX_TYPE_NUMBER),
    pb.IndexDeclaration(name="open", path="open", type=pb.INDEX_TYPE_BOOLEAN),
    pb.IndexDeclaration(name="made", path="made", type=pb.INDEX_TYPE_TIME),
]
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture
def cache(serving: Serving) -> CacheServiceStub:
    return stub(serving)


@pytest.fixture(params=[pb.NAMESPACE_STORAGE_MEMORY, pb.NAMESPACE_STORAGE_DURABLE], ids=["memory", "durable"])
def namespace(request: pytest.FixtureRequest, cache: CacheServiceStub) -> str:
    return new_namespace(cache, storage=request.param, indexes=INDEXES)


def put_json(cache: CacheServiceStub, namespace: str, key: str, value: Any, **values: Any) -> None:
    result = put(cache, namespace, key, json.dumps(value).encode(), **values)
    assert result.outcome == pb.PUT_OUTCOME_STORED


def query(cache: CacheServiceStub, namespace: str, index: str, **condition: Any) -> list[str]:
    """Return the keys found, in order, over all pages."""
    keys, token = [], ""
    while True:
        request = pb.QueryEntriesRequest(
            **{"namespace": namespace, "index": index, "page_size": 3, "page_token": token, **condition}
        )
        page = cache.QueryEntries(request)
        keys += [entry.key for entry in page.entries]
        token = page.next_page_token
        if not token:
            return keys


def text(value: str) -> pb.IndexValue:
    return pb.IndexValue(string_value=value)


def number(value: float) -> pb.IndexValue:
    return pb.IndexValue(number_value=value)


def test_strings_by_equality_prefix_and_range(cache: CacheServiceStub, namespace: str) -> None:
    for owner in ("ann", "anna", "bob", 'b"\\{}', "z😀", "z\uffff"):
        put_json(cache, namespace, f"of {owner}", {"owner": {"id": owner}})
    put_json(cache, namespace, "second of ann", {"owner": {"id": "ann"}})
    put_json(cache, namespace, "of nobody", {"owner": None})

    assert query(cache, namespace, "owner", equals=text("ann")) == ["of ann", "second of ann"]
    assert query(cache, namespace, "owner", prefix="ann") == ["of ann", "second of ann", "of anna"]
    assert query(cache, namespace, "owner", prefix="z") == ["of z\uffff", "of z😀"]
    wanted = {"from": text("anna"), "until": text("c")}
    assert query(cache, namespace, "owner", range=pb.IndexRange(**wanted)) == ["of anna", 'of b"\\{}', "of bob"]
    everything = query(cache, namespace, "owner")
    assert len(everything) == 7
    assert query(cache, namespace, "owner", descending=True) == everything[::-1]


def test_the_other_types(cache: CacheServiceStub, namespace: str) -> None:
    prices = [-1e300, -2.5, -0.0, 1e-300, 3, 10, 1e20]
    for place, price in enumerate(prices):
        made = f"2026-01-0{place + 1}T00:00:00.5+02:00"
        put_json(cache, namespace, str(place), {"price": price, "open": place % 2 == 0, "made": made})

    assert query(cache, namespace, "price") == list("0123456")
    assert query(cache, namespace, "price", equals=number(0)) == ["2"]
    wanted = {"from": number(-2.5), "until": number(10)}
    assert query(cache, namespace, "price", range=pb.IndexRange(**wanted)) == list("1234")
    assert query(cache, namespace, "open", equals=pb.IndexValue(boolean_value=False)) == ["1", "3", "5"]
    third = Timestamp()
    third.FromJsonString("2026-01-02T22:00:00.500Z")
    wanted = {"from": pb.IndexValue(time_value=third)}
    assert query(cache, namespace, "made", range=pb.IndexRange(**wanted)) == list("23456")
    assert query(cache, namespace, "made", equals=pb.IndexValue(time_value=third)) == ["2"]


def test_it_follows_every_change(cache: CacheServiceStub, namespace: str) -> None:
    put_json(cache, namespace, "a", {"price": 1, "owner": {"id": "x"}}, tags=["t"])
    put_json(cache, namespace, "b", {"price": 1})
    put_json(cache, namespace, "c", {"price": 1}, ttl=seconds(0.001))
    eventually(lambda: query(cache, namespace, "price", equals=number(1)) == ["a", "b"])

    put_json(cache, namespace, "a", {"price": 2, "owner": {"id": "x"}}, tags=["t"])
    assert query(cache, namespace, "price", equals=number(1)) == ["b"]
    assert query(cache, namespace, "price", equals=number(2)) == ["a"]
    assert query(cache, namespace, "owner", equals=text("x")) == ["a"]
    delete(cache, namespace, "b")
    assert query(cache, namespace, "price", equals=number(1)) == []
    invalidate(cache, namespace, "t")
    assert query(cache, namespace, "price") == []


def test_a_page_token_is_of_its_query(cache: CacheServiceStub, namespace: str) -> None:
    for key in "abcd":
        put_json(cache, namespace, key, {"price": 1})
    request = pb.QueryEntriesRequest(namespace=namespace, index="price", page_size=2)
    request.page_token = cache.QueryEntries(request).next_page_token
    put_json(cache, namespace, "aa", {"price": 1})

    assert [entry.key for entry in cache.QueryEntries(request).entries] == ["c", "d"]


@given(NUMBERS, NUMBERS)
def test_numbers_are_in_order(one: float, other: float) -> None:
    texts = encoded(one, IndexType.NUMBER), encoded(other, IndexType.NUMBER)

    assert None not in texts
    assert (texts[0] < texts[1]) == (one < other)  # type: ignore[operator]
    assert (texts[0] == texts[1]) == (one == other)


@given(st.text(min_size=1), st.text())
def test_what_begins_with_a_prefix_lies_below_its_end(prefix: str, text_: str) -> None:
    end = after_prefix(prefix)

    in_range = prefix.encode() <= text_.encode() and (end is None or text_.encode() < end.encode())
    assert in_range == text_.startswith(prefix)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1", IndexType.NUMBER),
        (True, IndexType.NUMBER),
        (10**400, IndexType.NUMBER),
        (1, IndexType.BOOLEAN),
        (1, IndexType.STRING),
        ("x" * 513, IndexType.STRING),
        ("\0", IndexType.STRING),
        ("\ud800", IndexType.STRING),
        ("2026-01-01", IndexType.TIME),
        ("2026-01-01T00:00:00", IndexType.TIME),
        ("yesterday", IndexType.TIME),
        ("0001-01-01T00:00:00+14:00", IndexType.TIME),
    ],
)
def test_what_an_index_cannot_hold(value: object, kind: IndexType) -> None:
    assert encoded(value, kind) is None
