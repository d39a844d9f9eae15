"""One caller's stream of changes: what waits for it, and what it was given."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from kronos_db.runtime.database.changes import Noted, Page, Position
from kronos_db.runtime.feed.tokens import ResumeTokens

# Makes the message of a change, or of none: then it tells the resume token alone.
MakeMessage: TypeAlias = Callable[[Noted | None, str], Any]
# Makes the message that changes were missed, with the resume token behind them.
MakeGap: TypeAlias = Callable[[str], Any]

# The position of a stream that is to begin with what comes.
NOW = Position("")


class Outlet(Protocol):
    """The stream of one call, as the interceptors make it."""

    @property
    def caller(self) -> str:
        """Who calls."""

    def send(self, message: Any) -> None:
        """Send a message without waiting for the caller to take it; one at a time, see `on_taken`."""

    def fail(self, error: Exception) -> None:
        """End the stream with the answer of `error`."""

    def complete(self) -> None:
        """End the stream with OK, behind what was sent."""

    def cancel(self) -> None:
        """End the stream at once, whatever the caller still has to take."""

    def on_taken(self, taken: Callable[[], None]) -> bool:
        """Call `taken`, which must return at once, when a message was taken; False when `send` itself waits."""

    def on_closed(self, closed: Callable[[], None]) -> bool:
        """Call `closed` when the call is over, whoever ended it; False when it is already."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which changes a stream is for: of these kinds, and of these records; none named means all."""

    kinds: frozenset[str]
    records: frozenset[str] = frozenset()

    def of(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return those of `deliveries` that are wanted."""
        return [each for each in deliveries if each.change is not None and self._has(each.change)]

    def _has(self, noted: Noted) -> bool:
        change = noted.change
        return change.kind in self.kinds and (not self.records or change.record_id in self.records)


class Delivery:
    """A change, or none, with the position behind it. One object for all streams of a process."""

    __slots__ = ("_token", "change", "gap", "position", "size")

    def __init__(self, change: Noted | None, position: Position, *, gap: bool = False) -> None:
        self.change = change
        # Whether changes before the position were missed.
        self.gap = gap
        self.position = position
        self.size = change.size if change else 0
        self._token: str | None = None

    def token(self, tokens: ResumeTokens) -> str:
        """Return the resume token of the position behind it."""
        if self._token is None:
            self._token = tokens.make(self.position)
        return self._token


def deliveries_of(page: Page) -> list[Delivery]:
    """Return the changes of a page, each with the position behind it."""
    return [Delivery(change, page.at(index)) for index, change in enumerate(page.changes)]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a stream is for, and how it is told.

    With `make_gap`, the message of changes that were missed, the stream goes on behind them; without it ends.
    """

    wanted: Wanted
    make: MakeMessage
    tokens: ResumeTokens
    make_gap: MakeGap | None = None


class Subscription:
    """What one stream waits for. `position` is how far it was read for; it counts while the stream reads by itself.

    The feed's thread offers, the pusher's thread sends, gRPC's thread says when a message was taken: each counter
    below has one writer.
    """

    __slots__ = (
        "_drained",
        "_offered_bytes",
        "_opening",
        "_sent",
        "_sent_at",
        "_sent_bytes",
        "_taken",
        "_tells",
        "_waiting",
        "_wake",
        "behind",
        "ended",
        "gone",
        "greeted",
        "outlet",
        "position",
        "quiet_until",
        "terms",
    )

    def __init__(
        self,
        outlet: Outlet,
        terms: Terms,
        position: Position,
        wake: Callable[[Subscription], None],
        opening: Iterator[Any] | None = None,
    ) -> None:
        self.outlet = outlet
        self.terms = terms
        self.position = position
        # Whether it reads for itself, and not what is read for all.
        self.behind = False
        # Whether it was ended from here, whether the call is over, and whether its first message was offered.
        self.ended = False
        self.gone = False
        self.greeted = False
        # time.monotonic() at which it is to be told its position, if nothing else was offered until then.
        self.quiet_until = 0.0
        self._wake = wake
        self._drained: Callable[[Subscription], None] = wake
        self._waiting: deque[Delivery] = deque()
        # Messages that are sent before all that waits.
        self._opening = opening
        self._offered_bytes = 0
        self._sent_bytes = 0
        self._sent = 0
        self._taken = 0
        self._sent_at = 0.0
        self._tells = True

    @property
    def waiting(self) -> int:
        """How many deliveries wait to be sent."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """Roughly how many bytes these are."""
        return self._offered_bytes - self._sent_bytes

    @property
    def is_idle(self) -> bool:
        """Whether everything offered was sent and taken."""
        return not self._waiting and self._taken >= self._sent

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be sent."""
        return self.ended or self.gone

    def offer(self, deliveries: Sequence[Delivery], quiet: float) -> None:
        """Queue `deliveries`; they are sent as fast as the caller takes them. `quiet` as for `quiet_until`."""
        self.quiet_until = time.monotonic() + quiet * random.uniform(0.7, 1.3)
        self._offered_bytes += sum(each.size for each in deliveries)
        self._waiting.extend(deliveries)
        self._wake(self)

    def stalled(self, seconds: float) -> bool:
        """Return whether the caller has left a message untaken for so long."""
        return self._taken < self._sent and time.monotonic() - self._sent_at > seconds

    def follow(self, drained: Callable[[Subscription], None]) -> None:
        """Be told when a message was taken; tell `drained` when it is behind and has nothing waiting."""
        self._drained = drained
        self._tells = self.outlet.on_taken(self._note_taken)

    def end(self, error: Exception) -> None:
        """End the stream with an error; what still waits is dropped."""
        self.ended = True
        self.outlet.fail(error)

    def push(self) -> None:
        """Send what is next, unless the caller has yet to take what was sent last. For the pusher's thread."""
        if self.is_over or self._taken < self._sent or not self._waiting:
            return
        if self._opening is not None:
            message = next(self._opening, None)
            if message is not None:
                self._send(message)
                return
            self._opening = None
        delivery = self._waiting.popleft()
        self._sent_bytes += delivery.size
        self._send(self._message(delivery))
        if self.behind and not self._waiting:
            self._drained(self)

    def _send(self, message: Any) -> None:
        self._sent += 1
        self._sent_at = time.monotonic()
        self.outlet.send(message)
        if not self._tells:
            self._note_taken()

    def _message(self, delivery: Delivery) -> Any:
        token = delivery.token(self.terms.tokens)
        if delivery.gap and self.terms.make_gap is not None:
            return self.terms.make_gap(token)
        return self.terms.make(delivery.change, token)

    def _note_taken(self) -> None:
        self._taken += 1
        self._wake(self)
