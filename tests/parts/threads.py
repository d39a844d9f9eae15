"""Counts threads, to show that something holds none."""

from __future__ import annotations

import threading

# Threads that may begin while a test counts, whatever it does: a first call starts those of its domain, background
# work those that it needs, and a server of an earlier test may be ending. What held a thread each would be far more.
FEW = 30


def held() -> int:
    """Return how many threads there are but those that a client has for its streams: these have no name."""
    return sum(not thread.name.startswith("Thread-") for thread in threading.enumerate())
