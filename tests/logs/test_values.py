"""Values as JSON and back: nothing is lost, nothing can be made up."""

from __future__ import annotations

import json
import math
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kronos.logs.v1 import logs_pb2 as pb

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.logs.keys import Keys
from kronos_db.logs.model import RefusedError
from kronos_db.logs.values import DEEPEST, Reading, Spelling
from tests.logs.records import fill, value_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
KEYS = st.one_of(TEXTS.filter(bool), st.sampled_from(["$bytes", "$double", "$sealed", "$$", "$"]))
VALUES = st.recursive(
    st.one_of(
        TEXTS,
        st.booleans(),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.floats(allow_nan=False),
        st.binary(max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=10,
)
PLAIN = Keys([], [], "enduser.id")


def spelled(item: Any, keys: Keys = PLAIN) -> str:
    value = pb.Value()
    fill(value, item)
    return Spelling(keys, None, "name").value(value, 1)  # type: ignore[arg-type]  # nothing is sealed here


def read(text: str) -> Any:
    value = pb.Value()
    Reading(None).fill(value, json.loads(text), "name")  # type: ignore[arg-type]  # nothing is sealed here
    return value_of(value)


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal kinds: 1, 1.0 and True are not the same here."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


@pytest.fixture(scope="module")
def jsonb(postgres: EmbeddedPostgres) -> Any:
    with psycopg.connect(postgres.dsn) as connection:
        yield lambda text: connection.execute("SELECT (%s::text)::jsonb::text", [text]).fetchone()[0]  # type: ignore[index]


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_a_value_comes_back_as_it_was(jsonb: Any, item: Any) -> None:
    assert same(read(jsonb(spelled(item))), item)


@pytest.mark.parametrize("number", [math.inf, -math.inf, 1e300, -1e300, 1e16, 5e-324, 0.0, -1.5, 1e22])
def test_doubles_stay_doubles(jsonb: Any, number: float) -> None:
    assert same(read(jsonb(spelled(number))), number)


def test_nan_stays_nan(jsonb: Any) -> None:
    assert math.isnan(read(jsonb(spelled(math.nan))))


def test_nothing_is_null(jsonb: Any) -> None:
    assert Spelling(PLAIN, None, "").value(pb.Value(), 1) == "null"  # type: ignore[arg-type]  # nothing is sealed here
    assert read(jsonb("null")) is None


def nested(depth: int) -> Any:
    item: Any = "x"
    for _ in range(depth):
        item = [item]
    return item


def test_depth_is_bounded() -> None:
    assert read(spelled(nested(DEEPEST - 1))) == nested(DEEPEST - 1)
    with pytest.raises(RefusedError) as refused:
        spelled(nested(DEEPEST))
    assert refused.value.reason == "NESTED_TOO_DEEP"


def test_a_name_stands_for_keys_that_end_in_it() -> None:
    keys = Keys(["email"], ["password"], "enduser.id")
    for key, treatment in {
        "password": "redacted",
        "DB.Password": "redacted",
        "a.b.password": "redacted",
        "user.email": "sealed",
        "enduser.id": "subject",
    }.items():
        special = keys.special(key)
        assert special is not None
        assert special.treatments == {treatment}
    for key in ("passwords", "password.hash", "mypassword", "enduser.idx"):
        assert keys.special(key) is None


@pytest.mark.parametrize(
    ("key", "reason"), [("", "ATTRIBUTE_KEY_INVALID"), ("x" * 257, "ATTRIBUTE_KEY_INVALID"), ("a\0", "TEXT_HAS_NUL")]
)
def test_what_is_no_key_is_refused_each_time(key: str, reason: str) -> None:
    keys = Keys([], [], "")
    for _ in range(2):
        with pytest.raises(RefusedError) as refused:
            keys.special(key)
        assert refused.value.reason == reason


def test_many_keys_do_not_fill_the_memory() -> None:
    keys = Keys([], [], "")
    for number in range(20_000):
        assert keys.special(f"key{number}") is None
    assert len(keys.plain) == 10_000
    assert keys.begin("key19999") == '"key19999":'
