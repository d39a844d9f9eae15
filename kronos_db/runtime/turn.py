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
        """Hold the block back until nobody has the turn, if that does not take long, and take it at its end."""
        with self._next:
            if self._held.acquire(timeout=_PATIENCE):
                self._held.release()
            yield
            self._take(0.0)

    def take(self) -> None:
        """Wait for the turn, if that does not take long."""
        if self._holder != threading.get_ident():
            self._take(_PATIENCE)

    def leave(self) -> None:
        """Leave the turn, if this thread has it."""
        if self._holder == threading.get_ident():
            self._holder = None
            self._held.release()

    def _take(self, patience: float) -> None:
        if self._held.acquire(timeout=patience):
            self._holder = threading.get_ident()
