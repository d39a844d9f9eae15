"""Rows of numbers stay with their key, also for the next process that opens the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kronos_db.runtime.ops.tally import Tallies


def test_rows_begin_at_zero_and_are_their_own() -> None:
    tallies = Tallies(3, rows=2)
    one, other = tallies.row("one"), tallies.row("other")
    one[0] += 1
    one[2] += 0.5
    assert (list(one), list(other)) == ([1.0, 0.0, 0.5], [0.0, 0.0, 0.0])
    assert list(tallies.row("one")) == [1.0, 0.0, 0.5]


def test_the_next_process_goes_on_whatever_the_order(tmp_path: Path) -> None:
    first = Tallies(2, tmp_path / "tally")
    first.row("a")[0] = 7
    first.row("b")[1] = 9
    # The first one is not closed: a kill -9 does not either.
    second = Tallies(2, tmp_path / "tally")
    assert list(second.row("c")) == [0.0, 0.0]
    assert list(second.row("b")) == [0.0, 9.0]
    assert list(second.row("a")) == [7.0, 0.0]


def test_there_is_room_for_so_many() -> None:
    tallies = Tallies(1, rows=1)
    tallies.row("one")
    with pytest.raises(ValueError, match="no room"):
        tallies.row("another")
