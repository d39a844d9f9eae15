"""Remembers for each queue below which place nothing is to be found, so that scans do not walk what is long gone.

While some old snapshot is open, PostgreSQL can remove neither the rows of messages that were acknowledged nor their
entries in indexes: each scan that began at the beginning would pass them all. docs/decisions/0012-messages.md has the
argument why a mark loses nothing. It is a hint all the same: it lives in memory, and is found anew now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from kronos_db.messages.model import RANKS

# Seconds between two looks how far a queue is, and between two that begin at the beginning; such a one may take this
# share of the time.
_INTERVAL = 0.05
_ANEW = 10.0
_SHARE = 0.02
# Seconds that a transaction may take from the time that it sets until it is seen.
_LATEST = 90.0
# Bins come and go; marks are found again.
_MOST_BINS = 10_000
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Marks:
    """Of one bin. Places by rank; times are those of time.monotonic(), but for `due`."""

    places: list[int] = field(default_factory=lambda: [0] * len(RANKS))
    due: datetime = BEGINNING
    # The same for those whose attempts are used up, which are looked for by the background work alone.
    exhausted: datetime = BEGINNING
    # Until when all that was due was found.
    found_until: datetime = BEGINNING
    looked: float = 0.0
    # When the marks are to be found anew.
    anew: float = 0.0
    due_anew: float = 0.0
    # When what is due was last looked for.
    revived: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """A look at how far a bin is, from the places `lows` on."""

    bin: str
    lows: Sequence[int]
    anew: bool
    began: float


class LowWater:
    """The marks of all queues that this process serves; used by all of its threads."""

    def __init__(self) -> None:
        self._bins: dict[str, _Marks] = {}
        self._lock = threading.Lock()

    def places(self, bin_id: str) -> list[int]:
        """Return for each rank from which place on there may be ready messages."""
        return list(self._of(bin_id).places)

    def due(self, bin_id: str) -> datetime:
        """Return from which time on there may be messages that are due."""
        marks = self._of(bin_id)
        now = time.monotonic()
        if now >= marks.due_anew:
            marks.due = marks.exhausted = BEGINNING
            marks.due_anew = now + _LATEST
        return marks.due

    def exhausted(self, bin_id: str) -> datetime:
        """Return from which time on there may be messages whose last lease ran out."""
        return min(self.due(bin_id), self._of(bin_id).exhausted)

    def look(self, bin_id: str) -> Look | None:
        """Return what to look at, when it is time for that; to one caller at a time."""
        now = time.monotonic()
        with self._lock:
            marks = self._of(bin_id)
            if now - marks.looked < _INTERVAL:
                return None
            marks.looked = now
            anew = now >= marks.anew
            if anew:
                marks.anew = now + _ANEW
        return Look(bin_id, [0] * len(RANKS) if anew else list(marks.places), anew, now)

    def looked(self, look: Look, first: Sequence[int | None], finished: int, durable: int) -> None:
        """Take note of a look: the place of the `first` ready message of each rank, if there is one.

        All transactions below the place `finished` were over. `durable` is the place of a transaction that is committed
        and will be after a crash too: numbers above it may be given again.
        """
        ceiling = min(finished, durable)
        found = [ceiling if place is None else min(place, ceiling) for place in first]
        now = time.monotonic()
        with self._lock:
            marks = self._of(look.bin)
            if look.anew:
                marks.anew = now + max(_ANEW, (now - look.began) / _SHARE)
                marks.places = found
            else:
                marks.places = [max(old, new) for old, new in zip(marks.places, found, strict=True)]

    def may_revive(self, bin_id: str) -> bool:
        """Tell whether it is time to look for what is due; to one caller at a time."""
        now = time.monotonic()
        with self._lock:
            marks = self._of(bin_id)
            if now - marks.revived < _INTERVAL:
                return False
            marks.revived = now
            return True

    def revived_until(self, bin_id: str, moment: datetime) -> None:
        """Take note that all that was due at a time, by the clock of the database, was found."""
        marks = self._of(bin_id)
        marks.due, marks.found_until = moment - timedelta(seconds=_LATEST), moment

    def buried(self, bin_id: str) -> None:
        """Take note that all whose attempts are used up were found too, until when all that was due was."""
        marks = self._of(bin_id)
        if marks.found_until > BEGINNING:
            marks.exhausted = marks.found_until - timedelta(seconds=_LATEST)

    def _of(self, bin_id: str) -> _Marks:
        marks = self._bins.get(bin_id)
        if marks is None:
            if len(self._bins) >= _MOST_BINS:
                self._bins.clear()
            marks = self._bins.setdefault(bin_id, _Marks())
        return marks
