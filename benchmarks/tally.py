"""What a run of load sends next, and what came of what it sent."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence


class Tally:
    """Hands out `requests` in random order, each once before any comes again, until it is closed."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self._requests = itertools.cycle(random.sample(requests, len(requests)))
        self._closed = False
        self.largest = max(map(len, requests))
        self.latencies: list[float] = []
        self.failures = 0

    def request(self) -> bytes | None:
        """Return the next request, None when no more calls are to begin."""
        return None if self._closed else next(self._requests)

    def done(self, seconds: float, succeeded: bool) -> None:
        """Note the end of a call."""
        if succeeded:
            self.latencies.append(seconds)
        else:
            self.failures += 1

    def close(self) -> None:
        """Let no more calls begin."""
        self._closed = True
