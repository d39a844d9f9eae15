"""The wish to stop, as a signal handler can express it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

# Seconds. Python runs a handler between two of its steps: for a signal that comes after the last step and before the
# thread sleeps, the next step is when the sleep is over.
_LONGEST_SLEEP = 0.5


class Stop(threading.Event):
    """An Event that the signal handlers of the thread that waits for it may set. One thread at a time waits.

    With threading.Event the process hangs when the signal comes while the thread is on its way into `wait`, or out
    of it: the handler then waits for a lock that its own thread holds. SimpleQueue.put is made for handlers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = False
        self._wake_up: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._told

    def set(self) -> None:
        """Wake who waits, and let nobody wait any more."""
        self._told = True
        self._wake_up.put(None)

    def clear(self) -> None:
        """Not for this: a wish to stop is final."""
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most `timeout` seconds; return whether it is."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._told and (left := end - time.monotonic()) > 0:
            with suppress(Empty):
                self._wake_up.get(timeout=min(left, _LONGEST_SLEEP))
        return self._told
