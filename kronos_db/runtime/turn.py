"""Whose turn it is, among the threads that run the writes of a domain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds that a thread waits at most for the one of its lane that writes for others: if that hangs, nobody else does.
_PATIENCE = 0.02


class Turn:
    """Has one thread of a lane at a time run calls that gather; what comes until their answers are out waits for it.

    Several at a time would each have fewer to fetch for, and pass the interpreter lock to and fro. Who is about to
    block leaves the turn, and nobody waits long for one who does not.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._held = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Hold the block back until nobody has the turn, if that does not take long; one thread at a time is in it."""
        with self._next:
            if self._held.acquire(timeout=_PATIENCE):
                self._held.release()
            yield

    def take(self, *, wait: bool) -> bool:
        """Take the turn if nobody has it, or wait for it if that does not take long; return whether we have it."""
        patience = _PATIENCE if wait else 0.0
        if self._holder != threading.get_ident() and self._held.acquire(timeout=patience):
            self._holder = threading.get_ident()
        return self._holder == threading.get_ident()

    def leave(self) -> None:
        """Leave the turn, if this thread has it."""
        if self._holder == threading.get_ident():
            self._holder = None
            self._held.release()
