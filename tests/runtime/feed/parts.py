"""A log in memory, and streams whose callers take messages when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kronos_db.runtime.database.changes import Change, Noted, Page, Position
from kronos_db.runtime.errors import KronosError, PositionLostError

_THEN = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryLog:
    """A log whose transactions have one change each and commit in the order of their numbers."""

    domain = "test"

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.history = "here.1"
        self.purged = 0
        self.reads = 0
        self.away: KronosError | None = None
        # Called before each read, on the reader's thread.
        self.before_read: Callable[[Position], None] = lambda _position: None

    def append(self, *record_ids: str, kind: str = "test", size: int = 0) -> None:
        """Commit changes."""
        self.changes.extend(Change(kind, record_id, {"filler": "x" * size}) for record_id in record_ids)

    def position(self) -> Position:
        """Return the position of now."""
        self._read(Position(""))
        return Position(_snapshot(len(self.changes)), history=self.history)

    def changes_since(self, position: Position, limit: int) -> Page:
        """Return the next changes after `position`, until the end of a page that was begun."""
        self._read(position)
        if position.history not in {"", self.history} or _seen(position.seen) < self.purged:
            raise PositionLostError
        until = _seen(position.until) if position.until else len(self.changes)
        first = max(_seen(position.seen), position.place)
        found = [Noted(self.changes[index], index + 1, 1, _THEN) for index in range(first, until)][:limit]
        snapshot = _snapshot(until)
        end = Position(snapshot, history=self.history)
        if len(found) == limit:
            end = Position(position.seen, snapshot, found[-1].place, 1, self.history)
        return Page(found, position, snapshot, end)

    def _read(self, position: Position) -> None:
        self.reads += 1
        self.before_read(position)
        if self.away is not None:
            raise self.away


def _snapshot(count: int) -> str:
    return f"{count + 1}:{count + 1}:"


def _seen(snapshot: str) -> int:
    return int(snapshot.partition(":")[0]) - 1


@dataclass
class MemoryOutlet:
    """A stream. With `takes` the caller takes each message at once; else `take` does for it."""

    takes: bool = True
    caller: str = "friend"
    messages: list[tuple[str | None, str]] = field(default_factory=list)
    error: Exception | None = None
    cancelled: bool = False
    is_closed: bool = False

    def __post_init__(self) -> None:
        self._taken: Callable[[], None] = lambda: None
        self._closed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._untaken = 0

    @property
    def told(self) -> list[str]:
        """The changes that were sent, by record."""
        return [record for record, _token in list(self.messages) if record is not None]

    @property
    def token(self) -> str:
        """The last resume token."""
        return self.messages[-1][1]

    def send(self, message: Any) -> None:
        with self._lock:
            assert self._untaken == 0, "sent before the last one was taken"
            self.messages.append(message)
            self._untaken += 1
        if self.takes:
            self.take()

    def take(self) -> None:
        """Have the caller take what was sent."""
        with self._lock:
            self._untaken = 0
        self._taken()

    def take_all(self) -> None:
        """Have the caller take all from now on."""
        self.takes = True
        if self._untaken:
            self.take()

    def fail(self, error: Exception) -> None:
        self.error = error
        if self.takes:
            self.close()

    def cancel(self) -> None:
        self.cancelled = True
        self.close()

    def close(self) -> None:
        """Have the call be over."""
        if not self.is_closed:
            self.is_closed = True
            self._closed()

    def on_taken(self, taken: Callable[[], None]) -> bool:
        self._taken = taken
        return True

    def on_closed(self, closed: Callable[[], None]) -> bool:
        self._closed = closed
        return not self.is_closed


def message(noted: Noted | None, token: str) -> tuple[str | None, str]:
    """Make what a memory outlet is sent."""
    return (noted.change.record_id if noted else None), token
