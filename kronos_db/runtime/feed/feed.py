"""Follows the log of changes of one domain for all streams of a process that watch it.

Streams that have everything up to now are read for together: one read for all, when somebody is woken or once a second.
A stream that starts further back, or that cannot keep up, reads page by page for itself, as fast as its caller takes
them, until it has reached the common position; then it joins the others. Both are done by one thread, so nothing moves
while a stream joins: its own reading ends at the very snapshot at which the common one begins.
docs/decisions/0008-watch.md has the reasons.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import structlog

from kronos_db.runtime.database.changes import Page, Position, moment
from kronos_db.runtime.errors import KronosError, PositionLostError, ShuttingDownError, WatchTooSlowError
from kronos_db.runtime.feed.limits import CallerStreams
from kronos_db.runtime.feed.subscription import (
    NOW,
    Delivery,
    MakeGap,
    MakeMessage,
    Outlet,
    Subscription,
    Terms,
    Wanted,
    deliveries_of,
)
from kronos_db.runtime.feed.tokens import ResumeTokens
from kronos_db.runtime.pusher import Pusher

_log = structlog.get_logger(__name__)

# Seconds that the thread sleeps while nobody watches.
_IDLE = 60.0
# Seconds that callers get to take the end of their streams when the process is about to end.
_FAREWELL = 1.0
_RETRY_AFTER = 1.0


class Log(Protocol):
    """The log of changes, as `runtime/database/database.py` reads it."""

    domain: str

    def position(self) -> Position:
        """Return the position of now."""

    def changes_since(self, position: Position, limit: int) -> Page:
        """Return the next changes after `position`. Raises PositionLostError."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is read at a time, and how long is waited for what; times in seconds.

    `poll` between two looks when nobody wakes the feed, `interval` at least between any two. `most` deliveries or
    `most_bytes` wait for one stream at most. `stall` is how long a caller may leave a message untaken. `quiet` is after
    how long a stream without changes is told its position. A stream that was ended is reset after `linger` if its
    caller has not taken even that.
    """

    page: int = 200
    poll: float = 1.0
    interval: float = 0.005
    most: int = 1000
    most_bytes: int = 1 << 20
    stall: float = 30.0
    quiet: float = 30.0
    linger: float = 300.0


class Feed:
    """The streams of one process that watch one log. Its thread begins with the first one."""

    def __init__(
        self, log: Log, tokens: ResumeTokens, pusher: Pusher, streams: CallerStreams, pace: Pace | None = None
    ) -> None:
        self._log = log
        self._tokens = tokens
        self._pusher = pusher
        self._streams = streams
        self._pace = pace or Pace()
        self._lock = threading.Lock()
        self._closed = False
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        # From other threads: who wants to watch, and whose caller has taken all that it was given.
        self._arrived: SimpleQueue[Subscription] = SimpleQueue()
        self._drained: SimpleQueue[Subscription] = SimpleQueue()
        self._grown = False
        # Of the feed's own thread: the common position, and the streams by what is done for them.
        self._common = NOW
        self._joined: set[Subscription] = set()
        self._behind: set[Subscription] = set()
        self._hungry: dict[Subscription, None] = {}
        self._ended: list[tuple[float, Subscription]] = []
        self._next_read = 0.0
        self._next_poll = 0.0
        self._next_look = 0.0

    @property
    def watched(self) -> int:
        """How many streams watch."""
        return len(self._joined) + len(self._behind)

    def watch(
        self,
        outlet: Outlet,
        resume_token: str,
        wanted: Wanted,
        make: MakeMessage,
        *,
        opening: Callable[[], Iterator[Any]] | None = None,
        make_gap: MakeGap | None = None,
    ) -> None:
        """Push to `outlet` what is `wanted` of the changes since `resume_token`, or since now without one.

        The first message has no change and tells the position. Before it come, without a token, the messages of
        `opening`: it is called after the position was taken, and what it reads sees all before that; its messages are
        made one by one, on the thread that sends. Where changes are lost, a stream with `make_gap` is told so and goes
        on; one without ends. Returns at once. Raises ResumeTokenError, TooManyStreamsError or ShuttingDownError, with
        `opening` also what it and asking for the position raise; whatever comes later ends the stream.
        """
        position, messages = self._tokens.read(resume_token) if resume_token else NOW, None
        self._streams.enter(outlet.caller)
        if opening is not None and not resume_token:
            try:
                position = self._log.position()
                messages = opening()
            except BaseException:
                self._streams.leave(outlet.caller)
                raise
        terms = Terms(wanted, make, self._tokens, make_gap)
        subscription = Subscription(outlet, terms, position, self._pusher.wake, messages)
        subscription.follow(self._note_drained)
        closed = partial(self._left, subscription)
        if not outlet.on_closed(closed):
            closed()
            return
        with self._lock:
            if self._closed:
                raise ShuttingDownError(retry_after=_RETRY_AFTER)
            self._arrived.put(subscription)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"feed-{self._log.domain}", daemon=True)
                self._thread.start()
        self._woken.set()

    def wake(self) -> None:
        """Take note that the log may have grown; returns at once."""
        self._grown = True
        self._woken.set()

    def close(self, patience: float = 10.0) -> None:
        """End all streams with SHUTTING_DOWN and take no more; wait `patience` seconds at most until they are told."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._woken.set()
        if thread is not None:
            thread.join(patience)

    def _left(self, subscription: Subscription) -> None:
        subscription.gone = True
        self._streams.leave(subscription.outlet.caller)

    def _note_drained(self, subscription: Subscription) -> None:
        self._drained.put(subscription)
        self._woken.set()

    # What follows runs on the feed's own thread.

    def _run(self) -> None:
        while not self._closed:
            self._woken.wait(self._rest())
            self._woken.clear()
            try:
                self._turn()
            except Exception:  # noqa: BLE001  # logged, and tried again
                _log.exception("changes were not read", domain=self._log.domain)
        self._end_all()

    def _end_all(self) -> None:
        """End all streams; those whose callers do not take even that are reset after a moment."""
        for subscription in (*_all_of(self._arrived), *self._joined, *self._behind):
            self._end(subscription, ShuttingDownError(retry_after=_RETRY_AFTER))
        patience = time.monotonic() + _FAREWELL
        while (left := [each for _, each in self._ended if not each.gone]) and time.monotonic() < patience:
            self._woken.wait(_FAREWELL / 20)
            self._woken.clear()
        for subscription in left:
            subscription.outlet.cancel()

    def _rest(self) -> float:
        """Return for how many seconds there is nothing to do, if nobody wakes the feed."""
        if self.watched:
            due = self._next_read if self._grown or self._hungry else min(self._next_poll, self._next_look)
        elif self._ended:
            due = self._next_look
        else:
            return _IDLE
        return max(0.0, due - time.monotonic())

    def _turn(self) -> None:
        arrived = _all_of(self._arrived)
        self._hungry.update(dict.fromkeys(_all_of(self._drained)))
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + self._pace.poll
            self._look_after()
        try:
            due = self.watched and (self._grown or now >= self._next_poll) and now >= self._next_read
            if arrived or due:
                self._advance()
            for subscription in arrived:
                self._begin(subscription)
            if self._hungry:
                self._read_for(next(iter(self._hungry)))
        except Exception as error:
            # The database is away: who watches waits, who has only come can go elsewhere.
            self._hold_off()
            for subscription in arrived:
                if not subscription.greeted:
                    self._end(subscription, error)
            if not isinstance(error, KronosError):
                raise

    def _hold_off(self) -> None:
        self._next_read = self._next_poll = time.monotonic() + self._pace.poll

    def _advance(self) -> None:
        """Move the common position to now, and give those at it what they want of what lies between."""
        self._grown = False
        started = time.monotonic()
        if self._joined:
            self._read_common(self._common)
        else:
            self._common = self._log.position()
        self._next_read = started + self._pace.interval
        self._next_poll = started + self._pace.poll

    def _read_common(self, position: Position) -> None:
        try:
            while True:
                page = self._log.changes_since(position, self._pace.page)
                self._share(page)
                position = page.end
                if position.until is None:
                    break
            self._common = position
        except PositionLostError as error:
            lost = list(self._joined)
            for subscription in lost:
                # Until the common position is known again.
                self._fall_behind(subscription, position)
            self._common = self._log.position()
            for subscription in lost:
                self._lose(subscription, error)
        except Exception:
            # Half a read was shared: those who have it go on from there by themselves.
            for subscription in list(self._joined) if position.until else ():
                self._fall_behind(subscription, position)
            raise

    def _share(self, page: Page) -> None:
        deliveries = deliveries_of(page)
        shares: dict[Wanted, Sequence[Delivery]] = {}
        for subscription in list(self._joined) if deliveries else ():
            wanted = subscription.terms.wanted
            if wanted not in shares:
                shares[wanted] = wanted.of(deliveries)
            if shares[wanted] and not self._offer(subscription, shares[wanted]):
                self._fall_behind(subscription, page.start)

    def _offer(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> bool:
        """Offer all or nothing: False when there is no room."""
        size = subscription.waiting_bytes + sum(each.size for each in deliveries)
        if subscription.waiting and (
            subscription.waiting + len(deliveries) > self._pace.most or size > self._pace.most_bytes
        ):
            return False
        subscription.offer(deliveries, self._pace.quiet)
        return True

    def _begin(self, subscription: Subscription) -> None:
        if subscription.position is NOW:
            self._join(subscription)
            self._greet(subscription, self._common)
        else:
            self._fall_behind(subscription, subscription.position)

    def _greet(self, subscription: Subscription, position: Position) -> None:
        subscription.greeted = True
        subscription.offer([Delivery(None, position)], self._pace.quiet)

    def _join(self, subscription: Subscription) -> None:
        subscription.behind = False
        self._behind.discard(subscription)
        self._joined.add(subscription)

    def _fall_behind(self, subscription: Subscription, position: Position) -> None:
        """Let a stream read for itself from `position` on."""
        subscription.position = position
        subscription.behind = True
        self._joined.discard(subscription)
        self._behind.add(subscription)
        if not subscription.waiting:
            self._hungry[subscription] = None

    def _read_for(self, subscription: Subscription) -> None:
        """Read the next page of a stream that is behind; it joins the others when that was the last one."""
        del self._hungry[subscription]
        if subscription.is_over or subscription not in self._behind or subscription.waiting:
            return
        try:
            self._read_page_for(subscription)
        except PositionLostError as error:
            self._lose(subscription, error)
        except KronosError as error:
            if not subscription.greeted:
                self._end(subscription, error)
            raise

    def _read_page_for(self, subscription: Subscription) -> None:
        position = self._below_common(subscription)
        page = self._log.changes_since(position, self._pace.page)
        if not subscription.greeted:
            self._greet(subscription, subscription.position)
        wanted = subscription.terms.wanted.of(deliveries_of(page))
        portion = _within(wanted, self._pace.most_bytes)
        subscription.position = page.end if len(portion) == len(wanted) else portion[-1].position
        if portion:
            subscription.offer(portion, self._pace.quiet)
        if self._common == subscription.position:
            self._join(subscription)
        elif not subscription.waiting:
            self._hungry[subscription] = None

    def _lose(self, subscription: Subscription, error: PositionLostError) -> None:
        """End a stream that missed changes; one that can be told of it goes on from the common position."""
        if subscription.terms.make_gap is None:
            self._end(subscription, error)
            return
        self._join(subscription)
        subscription.greeted = True
        subscription.offer([Delivery(None, self._common, gap=True)], self._pace.quiet)

    def _below_common(self, subscription: Subscription) -> Position:
        """Return where a stream goes on, up to the common position at most.

        The common position lies below it when its own reading failed halfway: then it is moved first. Raises
        PositionLostError for a position from the future.
        """
        position = subscription.position
        reached = moment(position.until or position.seen)
        if reached > moment(self._common.seen):
            self._advance()
            if position.history == self._common.history and reached > moment(self._common.seen):
                raise PositionLostError(f"the position {position.seen} lies ahead of {self._common.seen}")
        return position if position.until else replace(position, until=self._common.seen)

    def _look_after(self) -> None:
        """Once a second: forget who left, end who takes nothing, tell the others where they are."""
        now = time.monotonic()
        for subscription in (*self._joined, *self._behind):
            if subscription.is_over:
                self._forget(subscription)
                self._ended.append((now, subscription))
            elif subscription.stalled(self._pace.stall):
                self._end(subscription, WatchTooSlowError())
            elif subscription in self._behind and not subscription.waiting:
                self._hungry[subscription] = None
            elif now >= subscription.quiet_until and subscription.is_idle and subscription.greeted:
                subscription.offer([Delivery(None, self._common)], self._pace.quiet)
        for ended, subscription in self._ended:
            if not subscription.gone and now - ended > self._pace.linger:
                subscription.outlet.cancel()
        self._ended = [(ended, each) for ended, each in self._ended if not each.gone]

    def _forget(self, subscription: Subscription) -> None:
        self._joined.discard(subscription)
        self._behind.discard(subscription)

    def _end(self, subscription: Subscription, error: Exception) -> None:
        """End a stream with an error. Its call is over when the caller has taken that, or is reset after a while."""
        self._forget(subscription)
        self._ended.append((time.monotonic(), subscription))
        subscription.end(error)


def _within(deliveries: Sequence[Delivery], most_bytes: int) -> Sequence[Delivery]:
    """Return as many of `deliveries` as fit, one at least."""
    size = 0
    for index, each in enumerate(deliveries):
        size += each.size
        if size > most_bytes and index:
            return deliveries[:index]
    return deliveries


def _all_of(queue: SimpleQueue[Subscription]) -> list[Subscription]:
    found: list[Subscription] = []
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found
