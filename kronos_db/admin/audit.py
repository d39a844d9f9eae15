"""What an event of the audit log is, and the chain of hashes that holds events together."""

from __future__ import annotations

import enum
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

# What the first event of the log holds in place of the hash of the one before.
BEGINNING = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Phase(enum.IntEnum):
    """What happened to a call; the numbers are those of the contract."""

    BEGUN = 1
    ENDED = 2
    REFUSED = 3


class Fault(enum.IntEnum):
    """What can be wrong with an event; the numbers are those of the contract."""

    MISSING = 1
    UNCHAINED = 2
    ALTERED = 3
    REPLACED = 4


class Event(NamedTuple):
    """An event as stored; `call_count` is for how many calls it stands."""

    sequence: int
    id: UUID
    call_id: UUID
    phase: int
    event_time: datetime
    caller: str
    method: str
    request: str
    detail: str
    code: str
    reason: str
    request_id: str
    call_count: int
    previous_hash: bytes
    hash: bytes


class Link(NamedTuple):
    """Place and hash of an event."""

    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Break:
    """Where a log is not as it was written."""

    sequence: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class Listing:
    """Which events are wanted; None is any. `after` is the sequence of the last one of the page before."""

    limit: int
    after: int | None = None
    time_from: datetime | None = None
    time_until: datetime | None = None
    caller: str | None = None
    method: str | None = None
    phase: int | None = None
    code: str | None = None
    call_id: UUID | None = None


class HashChain:
    """Makes and checks the hashes of events with a key of 32 bytes; usable from any thread."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def chained(self, events: Iterable[Event], last: Link) -> list[Event]:
        """Return `events` with the places and hashes that they have behind `last`."""
        chained = []
        for event in events:
            placed = event._replace(sequence=last.sequence + 1, previous_hash=last.hash)
            last = Link(placed.sequence, self._hash(placed))
            chained.append(placed._replace(hash=last.hash))
        return chained

    def first_break(self, events: Sequence[Event], last: Link | None) -> Break | None:
        """Return where `events`, in the order of the log, do not follow on `last`; None when they do.

        Without `last` the first event is taken to follow on whatever was before it.
        """
        for event in events:
            if last is not None and event.sequence != last.sequence + 1:
                return Break(last.sequence + 1, Fault.MISSING)
            if not hmac.compare_digest(event.hash, self._hash(event)):
                return Break(event.sequence, Fault.ALTERED)
            if last is not None and event.previous_hash != last.hash:
                return Break(event.sequence, Fault.UNCHAINED)
            last = Link(event.sequence, event.hash)
        return None

    def _hash(self, event: Event) -> bytes:
        microseconds = (event.event_time - _EPOCH) // timedelta(microseconds=1)
        numbers = (event.sequence, event.phase, microseconds, event.call_count)
        texts = (event.caller, event.method, event.request, event.detail, event.code, event.reason, event.request_id)
        parts = [event.previous_hash, event.id.bytes, event.call_id.bytes]
        parts += [str(number).encode() for number in numbers] + [text.encode() for text in texts]
        # With the length of each part: no two events have the same bytes.
        return hmac.digest(self._key, b"".join(b"%d:%b" % (len(part), part) for part in parts), "sha256")
