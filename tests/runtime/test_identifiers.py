"""Ids are well-formed, rise, and are brought to one spelling."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_db.runtime.identifiers import Uuid7Source, canonical_uuid, uuid7


def milliseconds_of(value: UUID) -> int:
    return value.int >> 80


def test_uuid7_is_well_formed_and_carries_the_time() -> None:
    before = time.time_ns() // 1_000_000
    value = Uuid7Source()()
    after = time.time_ns() // 1_000_000
    assert value.version == 7
    assert value.variant == RFC_4122
    assert before <= milliseconds_of(value) <= after


def test_uuid7_lays_out_the_time_as_the_rfc_does() -> None:
    # RFC 9562, appendix A.6: its timestamp and the fields that are not random.
    text = str(Uuid7Source(clock=lambda: 1_645_557_742_000_000_000)())
    assert text.startswith("017f22e2-79b0-7")
    assert text[19] in "89ab"


@given(st.lists(st.integers(min_value=0, max_value=2**41), min_size=2, max_size=50))
def test_uuid7_rises_whatever_the_clock_does(readings: list[int]) -> None:
    clock = iter([reading * 1_000_000 for reading in readings])
    source = Uuid7Source(clock=lambda: next(clock))
    made = [source() for _ in readings]
    assert made == sorted(set(made))
    assert all(value.version == 7 and value.variant == RFC_4122 for value in made)


def test_uuid7_as_text_is_the_next_one() -> None:
    source = Uuid7Source(clock=lambda: 5_000_000)
    before, text, after = source(), source.text(), source()
    assert str(UUID(text)) == text
    assert before < UUID(text) < after
    assert UUID(text).version == 7


def test_uuid7_of_a_forked_process_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([bytes([number]) * 2560 for number in (1, 2)])
    monkeypatch.setattr("os.urandom", lambda _size: next(drawn))
    source = Uuid7Source(clock=lambda: 5_000_000)
    assert source.text().endswith("01010101")
    source.forget()
    assert source.text().endswith("02020202")


def test_uuid7_goes_on_when_the_counter_runs_out() -> None:
    source = Uuid7Source(clock=lambda: 5_000_000)
    first = source()
    source._counter = (1 << 42) - 2
    last, beyond = source(), source()
    assert first < last < beyond
    assert [milliseconds_of(value) for value in (first, last, beyond)] == [5, 5, 6]


def test_uuid7_leaves_room_below_the_end_of_the_counter() -> None:
    for reading in range(200):
        source = Uuid7Source(clock=lambda now=reading: now * 1_000_000)  # type: ignore[misc]  # binds the loop's value
        source()
        assert source._counter < 1 << 41


def test_uuid7_is_unique_and_rises_within_each_of_several_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: [uuid7() for _ in range(500)], range(8), timeout=30))
    for batch in made:
        assert batch == sorted(batch)
    assert len({value for batch in made for value in batch}) == 8 * 500


@given(st.uuids())
def test_canonical_is_what_python_prints(value: UUID) -> None:
    assert canonical_uuid(str(value).upper()) == str(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "01890a5d-ac96-774b-bcce-b302099a8057\n",
        "{01890a5d-ac96-774b-bcce-b302099a8057}",
        "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057",
        "01890a5dac96774bbcceb302099a8057",
        "０1890a5d-ac96-774b-bcce-b302099a8057",  # noqa: RUF001 - a full-width digit
    ],
)
def test_canonical_refuses_what_is_no_hyphenated_uuid(text: str) -> None:
    assert canonical_uuid(text) is None
