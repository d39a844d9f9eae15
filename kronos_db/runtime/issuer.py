"""Which methods issue which statements: noted when a statement is sent, so that its cost can be told by method."""

from __future__ import annotations

from contextvars import ContextVar

# `<service>/<name>` of the method whose call this thread or greenlet works for; empty for background work.
current: ContextVar[str] = ContextVar("issuer", default="")

# More pairs than the server has: only texts that are made anew each time could reach it.
MOST = 20_000


class Issued:
    """The pairs of method and statement text that this process has sent."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()
        self._new: list[tuple[str, str]] = []

    def note(self, text: str) -> None:
        """Take note that the method at hand sends `text`. On the way of every statement: 0.15 µs when it is known."""
        pair = current.get(), text
        if pair not in self._known and len(self._known) < MOST:
            self._known.add(pair)
            self._new.append(pair)

    def take(self) -> list[tuple[str, str]]:
        """Return the pairs that were not taken yet. From any thread: each is taken once."""
        taken = []
        while self._new:
            taken.append(self._new.pop())
        return taken

    def give_back(self, pairs: list[tuple[str, str]]) -> None:
        """Have `pairs`, with which nothing could be done, taken again."""
        self._new.extend(pairs)


# Of this process: statements are sent by many parts, and who tells of them asks here.
ISSUED = Issued()
