"""Rules of retention, portions of batches, and filters as they are applied to records that a tail is told."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.logs.filters import contains
from kronos_db.logs.model import DEFAULT_KEEP_DAYS, Batch, Retention, Rule
from kronos_db.logs.portions import portions_of


def test_the_rule_that_says_the_most_counts() -> None:
    rules = [Rule("", 0, 90), Rule("", 2, 1), Rule("auth", 0, 365), Rule("auth", 5, 730)]
    retention = Retention(rules)
    assert [retention.days("auth")[severity] for severity in (0, 5, 9, 17, 21)] == [365, 365, 365, 730, 365]
    assert [retention.days("other")[severity] for severity in (0, 5, 8, 9, 17)] == [90, 1, 1, 90, 90]
    assert set(Retention([]).days("auth")) == {DEFAULT_KEEP_DAYS}


def batch(name: str, lengths: list[int], skip: int = 1) -> Batch:
    return Batch(name, ["x" * length for length in lengths], [skip * number for number in range(len(lengths))])


def test_portions_hold_so_many_records() -> None:
    groups = list(portions_of([batch("a", [10] * 1200)]))
    assert groups == [[("a", 0, 499)], [("a", 500, 999)], [("a", 1000, 1199)]]


def test_portions_hold_so_many_characters() -> None:
    half = 1 << 19
    assert list(portions_of([batch("a", [half, half, half])])) == [[("a", 0, 1)], [("a", 2, 2)]]
    assert list(portions_of([batch("a", [3 * half, 1])])) == [[("a", 0, 0)], [("a", 1, 1)]]


def test_small_batches_share_a_portion_and_a_large_one_does_not_tear_another() -> None:
    groups = list(portions_of([batch("a", [1] * 300), batch("b", [1] * 300), batch("c", []), batch("d", [1])]))
    assert groups == [[("a", 0, 299), ("b", 0, 199)], [("b", 200, 299), ("d", 0, 0)]]


def test_what_was_refused_leaves_gaps_that_a_portion_spans() -> None:
    assert list(portions_of([batch("a", [1, 1, 1], skip=3)])) == [[("a", 0, 6)]]
    assert list(portions_of([batch("a", [])])) == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "a", "b"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def postgres_contains(postgres: EmbeddedPostgres) -> Any:
    with psycopg.connect(postgres.dsn) as connection:
        query = "SELECT (%s::text)::jsonb @> (%s::text)::jsonb"
        yield lambda one, other: connection.execute(query, [json.dumps(one), json.dumps(other)]).fetchone()[0]  # type: ignore[index]


@given(st.dictionaries(st.sampled_from("abc"), JSON), st.dictionaries(st.sampled_from("abc"), JSON))
@settings(max_examples=300, deadline=None)
def test_tails_and_queries_agree_on_what_contains_what(postgres_contains: Any, one: Any, other: Any) -> None:
    assert contains(one, other) == postgres_contains(one, other)
