"""What the tests of copies share: a database of values with its moments, a clock, and kinds as processes have them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kronos_db.runtime.cache import engine as module
from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.cache.engine import Cache, Kind, Loaded, Rules
from kronos_db.runtime.cache.memory import Memory
from tests.parts.eventually import eventually

LIMIT = 20.0
NANO = 1_000_000_000
LATER = 24 * 3600 * NANO
IDENTITY = 7


class Source:
    """A database of values by key, and its moments. What its loads do on the way is set by the test."""

    def __init__(self) -> None:
        self.moment = 100
        self.values: dict[str, bytes] = {}
        self.valid_for: float | None = None
        self.loads: list[list[str]] = []
        self.before: Callable[[], object] = int
        self.after: Callable[[], object] = int

    def load(self, keys: Sequence[str]) -> dict[str, Loaded]:
        self.loads.append(list(keys))
        self.before()
        read = {key: Loaded(self.values[key], [key], self.valid_for) for key in keys if key in self.values}
        self.after()
        return read

    def write(self, key: str, value: bytes, *boards: Board) -> None:
        """Commit a value, and acknowledge it when `boards`, all of those in use, know of it."""
        self.values[key] = value
        self.moment += 1
        for board in boards:
            board.change([key], self.moment, 1)


def begun(source: Source, board: Board, timeline: int = 1) -> Board:
    assert board.extend(board.begin(source.moment, IDENTITY, timeline), now() + LATER)
    return board


class Clock:
    """Stands in for `now` and for the wall clock: real time, and as far ahead as the test says."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.wall_ahead = 0.0
        self._real = now
        self._wall = time.time

    def now(self) -> int:
        return self._real() + int(self.ahead * NANO)

    def time(self) -> float:
        return self._wall() + self.ahead + self.wall_ahead


Process = Callable[..., Kind]


def kind_of(source: Source, board: Board, **rules: Any) -> Kind:
    return Cache(board, Memory(1 << 20), None).kind(Rules("kind", **rules), source.load)


def in_redis(raw: Any, count: int = 1) -> None:
    """Wait until Redis has as many copies."""
    eventually(lambda: raw.dbsize() == count, why=raw.dbsize)


def chance(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(module.random, "random", lambda: value)
