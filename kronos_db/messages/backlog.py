"""Knows when a queue comes near its limit, so that only then every enqueue has to ask how many messages there are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from kronos_db.messages.model import Queue

# Seconds for which a count is taken for recent; other processes add to it meanwhile.
_RECENT = 1.0
# So many messages below its limit a queue is near it, or a tenth of the limit when that is more.
_NEAR = 200_000
_NEAR_SHARE = 0.1
# Bins come and go; counts are asked for again.
_MOST_BINS = 10_000


class Backlogs:
    """What this process knows of the counts of queues; used by all of its threads."""

    def __init__(self) -> None:
        # By bin: the count, what this process added since, and when that is too old.
        self._known: dict[str, tuple[int, float]] = {}

    def to_ask(self, wanted: Mapping[Queue, int]) -> list[str]:
        """Return the bins of those queues that may come near their limit with so many messages more."""
        now = time.monotonic()
        return [queue.bin for queue, count in wanted.items() if self._is_near(queue, count, now)]

    def learn(self, counts: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Take note of counts just read, and return them by bin."""
        until = time.monotonic() + _RECENT
        found = dict(counts)
        if len(self._known) > _MOST_BINS:
            self._known.clear()
        for bin_id, count in found.items():
            self._known[bin_id] = (count, until)
        return found

    def added(self, queue: Queue, count: int) -> None:
        """Take note that messages were stored."""
        known = self._known.get(queue.bin)
        if known is not None:
            self._known[queue.bin] = (known[0] + count, known[1])

    def _is_near(self, queue: Queue, count: int, now: float) -> bool:
        known, until = self._known.get(queue.bin, (0, 0.0))
        return now >= until or known + count + max(_NEAR, queue.max_backlog * _NEAR_SHARE) > queue.max_backlog
