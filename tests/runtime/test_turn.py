"""Whose turn it is to write: what comes meanwhile is written together, and nobody is held up for long."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest

from kronos_db.runtime.reception import Lane
from kronos_db.runtime.workers import Gatherer, Workers, about_to_block

_LIMIT = 10.0


class Writing:
    """Writes what it is asked for, the first time not before `go`, and notes what was written at once."""

    def __init__(self) -> None:
        self.written: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.gatherer: Gatherer[int, int] = Gatherer(self)

    def __call__(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.written.append(list(keys))
        if len(self.written) == 1:
            self.begun.set()
            assert self.go.wait(_LIMIT)
        return {key: 2 * key for key in keys}


def _written_behind_the_first(writing: Writing, count: int) -> list[threading.Event]:
    """Begin a write that waits for `go`, and ask for so many others; return what tells when each is done."""
    workers, lane = Workers(1, writes=4), Lane("orders", "write")
    done = [threading.Event() for _ in range(count + 1)]

    def write(number: int) -> None:
        assert writing.gatherer.get(number) == 2 * number
        done[number].set()

    workers.post(lane, lambda: write(0))
    assert writing.begun.wait(_LIMIT)
    for number in range(1, count + 1):
        workers.post(lane, lambda number=number: write(number))  # type: ignore[misc]
    return done


def test_what_comes_while_a_thread_writes_is_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kronos_db.runtime.turn._PATIENCE", _LIMIT)
    writing = Writing()
    done = _written_behind_the_first(writing, 40)
    writing.go.set()

    assert all(each.wait(_LIMIT) for each in done)
    assert writing.written == [[0], list(range(1, 41))]


def test_what_comes_while_answers_go_out_is_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kronos_db.runtime.turn._PATIENCE", _LIMIT)
    workers, lane, writing = Workers(1, writes=4), Lane("orders", "write"), Writing()
    answering, begun, go = threading.Event(), threading.Event(), threading.Event()
    done = threading.Barrier(11)
    writing.go.set()

    def write(number: int) -> None:
        if number:
            begun.set()
        writing.gatherer.get(number)
        if number == 0:
            answering.set()
            assert go.wait(_LIMIT)
        else:
            threading.Thread(target=done.wait).start()

    workers.post(lane, lambda: write(0))
    assert answering.wait(_LIMIT)
    for number in range(1, 11):
        workers.post(lane, lambda number=number: write(number))  # type: ignore[misc]
    assert not begun.wait(0.1)
    go.set()
    done.wait(_LIMIT)

    assert writing.written == [[0], list(range(1, 11))]


def test_a_call_that_blocks_leaves_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kronos_db.runtime.turn._PATIENCE", _LIMIT)
    workers, lane = Workers(1, writes=2), Lane("orders", "write")
    go, done, other = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        about_to_block()
        assert go.wait(_LIMIT)
        done.set()

    workers.post(lane, block)
    workers.post(lane, other.set)

    assert other.wait(_LIMIT / 2)
    go.set()
    assert done.wait(_LIMIT)


def test_a_write_that_hangs_holds_up_nobody() -> None:
    writing = Writing()
    first, *others = _written_behind_the_first(writing, 40)

    assert all(each.wait(_LIMIT) for each in others)
    assert not first.is_set()
    writing.go.set()
    assert first.wait(_LIMIT)
