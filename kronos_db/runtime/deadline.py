"""The deadline of the call at hand, known to whatever waits on its behalf without being passed from hand to hand."""

from __future__ import annotations

import time
from contextvars import ContextVar

# time.monotonic() at which the caller stops waiting; None when it never does.
current: ContextVar[float | None] = ContextVar("deadline", default=None)


def remaining(limit: float) -> float:
    """Return how many seconds may be waited: what is left of the deadline, `limit` at most, never negative."""
    deadline = current.get()
    return limit if deadline is None else max(0.0, min(limit, deadline - time.monotonic()))
