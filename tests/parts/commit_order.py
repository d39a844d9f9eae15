"""Judges whether changes were told once each and in the order of their commits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Write:
    """A write that was acknowledged: what it made (a record and its version), and when it began and ended."""

    record: Hashable
    version: int
    began: float
    ended: float


def timed(write: Callable[[], Result]) -> tuple[Result, float, float]:
    """Run `write`; return its result, when it began and when it was acknowledged."""
    began = time.perf_counter()
    result = write()
    return result, began, time.perf_counter()


def assert_in_commit_order(told: Sequence[tuple[Hashable, int]], writes: Sequence[Write]) -> None:
    """Fail unless each of `writes` was told once, and none before one that was acknowledged before it began."""
    counts = Counter(told)
    assert [item for item, count in counts.items() if count > 1] == [], "told twice"
    by_item = {(write.record, write.version): write for write in writes}
    assert set(by_item) == set(counts), "skipped, or told though never written"
    latest: dict[Hashable, int] = {}
    for record, version in told:
        assert version > latest.get(record, 0), f"{record} went back to {version}"
        latest[record] = version
    earliest_end = float("inf")
    for item in reversed(told):
        write = by_item[item]
        assert write.began <= earliest_end, f"{item} was told before what was acknowledged before it began"
        earliest_end = min(earliest_end, write.ended)
