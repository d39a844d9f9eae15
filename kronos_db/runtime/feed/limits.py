"""Bounds how many streams one caller holds in a process."""

from __future__ import annotations

import threading
from collections import Counter

from kronos_db.runtime.errors import TooManyStreamsError

_RETRY_AFTER = 5.0


class CallerStreams:
    """Counts the streams of each caller against `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, caller: str) -> None:
        """Count one more. Raises TooManyStreamsError."""
        with self._lock:
            if self._held[caller] >= self._limit:
                raise TooManyStreamsError(metadata={"limit": str(self._limit)}, retry_after=_RETRY_AFTER)
            self._held[caller] += 1

    def leave(self, caller: str) -> None:
        """Count one less."""
        with self._lock:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]

    def held(self, caller: str) -> int:
        """Return how many streams a caller holds."""
        with self._lock:
            return self._held.get(caller, 0)
