"""Streams on which both sides speak: an idle one holds no thread, and who reads slowly is not sent or read for faster.

gRPC gives the handler of such a stream an iterator, whose `next` waits on the condition of the call. Here the condition
is the one that `runtime/reception.py` puts in its place, and it tells when gRPC would have gone on. So a request is
asked for without waiting; when it has come, a worker of the domain takes it up, and then the next one is asked for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc

from kronos_db.runtime import deadline, issuer, tracing
from kronos_db.runtime.errors import ShuttingDownError
from kronos_db.runtime.feed.limits import CallerStreams
from kronos_db.runtime.interceptors.call import Step
from kronos_db.runtime.interceptors.pushed import Arrived, Pushed, Send
from kronos_db.runtime.pusher import Pusher
from kronos_db.runtime.reception import Condition, Lane, SentWithoutWaiting

Service = TypeVar("Service")
# Has a worker of a lane do something.
Post: TypeAlias = Callable[[Lane, Callable[[], None]], None]

# What `grpc/_server.py` says of a caller who may speak on, and of one who has said all.
_OPEN, _CLOSED = "open", "closed"
# Replies that may wait for a caller who does not read; then nothing more is read of what it says.
_MOST_WAITING = 64


class Conversation(Protocol):
    """One stream, as the domain sees it. Each method runs on a worker of the domain, never two of them at a time."""

    def receive(self, message: Any) -> None:
        """Take one message; the next is not read before this returns. What it raises ends the stream."""

    def finish(self) -> None:
        """Take note that the caller has said all it wanted to. It may be told so before it is told that it left."""

    def closed(self) -> None:
        """Let go of everything: the call is over, whoever ended it. Not called when the process ends."""


def converses(
    handler: Callable[[Service, Replies], Conversation],
) -> Callable[[Service, Iterator[Any], grpc.ServicerContext], Iterator[Any]]:
    """Make a handler of a bidirectional method of one that takes the `Replies` and returns a `Conversation`.

    It looks like the generated one that takes and returns iterators; the chain calls it with the replies alone.
    """
    handler.experimental_non_blocking = True  # type: ignore[attr-defined]  # read by the chain, and by grpc._server
    return handler  # type: ignore[return-value]  # see above


class Replies:
    """What goes back to the caller: queued, and sent one after the other as the caller takes them."""

    def __init__(self, pushed: Pushed, pusher: Pusher, drained: Callable[[], None]) -> None:
        self.call = pushed.call
        self._pushed = pushed
        self._pusher = pusher
        self._drained = drained
        self._waiting: deque[Any] = deque()
        self._in_flight = False
        self._sent_at = 0.0
        # What the stream ends with behind what waits: None inside is OK.
        self._last: tuple[Exception | None] | None = None
        # Called when a message was taken; on gRPC's thread, so it must return at once.
        self.on_taken: Callable[[], None] = _nothing

    @property
    def caller(self) -> str:
        """Who calls, as the access policy names it."""
        return self.call.caller

    @property
    def waiting(self) -> int:
        """How many messages were not taken yet."""
        return len(self._waiting) + self._in_flight

    def untaken_seconds(self) -> float:
        """Return for how long the caller has left a message untaken; 0 when there is none."""
        return time.monotonic() - self._sent_at if self._in_flight else 0.0

    def send(self, message: Any) -> None:
        """Queue a message; from any thread, and never waits."""
        self._waiting.append(message)
        self._pusher.wake(self)

    @property
    def ending(self) -> bool:
        """Whether the stream is to end, so that nothing more is to be read."""
        return self._last is not None

    def complete(self) -> None:
        """End the stream with OK, behind what waits."""
        self._last = self._last or (None,)
        self._pusher.wake(self)

    def end(self, error: Exception) -> None:
        """End the stream with the answer of `error`, behind what waits: that may tell what was done for good."""
        self._last = (error,)
        self._pusher.wake(self)

    def push(self) -> None:
        """Send what is next. For the pusher's thread."""
        if self._in_flight:
            return
        if self._waiting:
            self._in_flight, self._sent_at = True, time.monotonic()
            with suppress(SentWithoutWaiting):
                self._pushed.send(self._waiting.popleft())
        elif self._last is not None:
            self._pushed.send(*self._last)

    def taken(self) -> None:
        """Take note that the message in flight was taken. On gRPC's thread, under the lock of the call."""
        if not self._in_flight:
            return
        self._in_flight = False
        if self._waiting or self._last is not None:
            self._pusher.wake(self)
        if len(self._waiting) < _MOST_WAITING:
            self._drained()
        self.on_taken()


def _nothing() -> None:
    """Do nothing."""


class Conversations:
    """All conversations of a process; `streams` bounds those of each caller."""

    def __init__(
        self, post: Callable[[Lane, Callable[[], None]], None], pusher: Pusher, streams: CallerStreams
    ) -> None:
        self.post = post
        self.pusher = pusher
        self.streams = streams
        self._lines: set[_Line] = set()
        self._lock = threading.Lock()
        self._closing = False

    def close(self) -> None:
        """End all conversations with SHUTTING_DOWN, behind the replies to what came before; refuse new ones so, too."""
        with self._lock:
            self._closing = True
            lines = list(self._lines)
        for line in lines:
            line.end(ShuttingDownError(retry_after=1.0))

    def run(self, handler: Callable[[Replies], Conversation], receive: Step, emit: Step) -> Callable[..., None]:
        """Compose a handler made by `converses`; `receive` and `emit` are the filters."""

        def run(arrived: Arrived, requests: Any, send: Send) -> None:
            pushed = Pushed(arrived, emit, send)
            try:
                line = _Line(self, pushed, requests, receive)
                self._enter(line)
                try:
                    line.begin(handler(line.replies))
                except BaseException:
                    self.leave(line)
                    raise
            except BaseException as error:  # noqa: BLE001  # the errors interceptor decides
                raise pushed.end(error) or error from None
            if not arrived.call.context.add_callback(line.closed):
                line.closed()

        return run

    def leave(self, line: _Line) -> None:
        """Take note that a conversation is over."""
        with self._lock:
            self._lines.discard(line)
        self.streams.leave(line.replies.caller)

    def _enter(self, line: _Line) -> None:
        with self._lock:
            if self._closing:
                raise ShuttingDownError(retry_after=1.0)
            self.streams.enter(line.replies.caller)
            self._lines.add(line)


class _Line:
    """Between gRPC and one conversation: what happens is queued here, and done by one worker at a time."""

    def __init__(self, all_of: Conversations, pushed: Pushed, requests: Any, receive: Step) -> None:
        self.replies = Replies(pushed, all_of.pusher, self._drained)
        self._all = all_of
        self._pushed = pushed
        self._call = pushed.call
        self._requests = requests
        # gRPC's own record of the call: what came, and whether more may come.
        self._state: Any = requests._state  # noqa: SLF001
        self._step = receive
        self._conversation: Conversation | None = None
        self._events: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._busy = False
        # Whether a request was asked for, and whether the next is not before replies were taken.
        self._reading = False
        self._held_back = False

    def begin(self, conversation: Conversation) -> None:
        """Ask for the first request."""
        self._conversation = conversation
        condition = self._state.condition
        if not isinstance(condition, Condition):
            raise TypeError("this grpcio has no place for a condition that tells")
        with condition:
            condition.on_notify = self._noticed
            self._read()

    def end(self, error: Exception) -> None:
        """End the conversation behind what is being done."""
        self._post(partial(self.replies.end, error))

    def closed(self) -> None:
        """Take note that gRPC is done with the call. On gRPC's thread."""
        self._pushed.closed()
        self._all.leave(self)
        if self._conversation is not None:
            self._post(self._conversation.closed)

    def _read(self) -> None:
        """Ask for the next request. Nothing is asked of a call that is over, or about to be."""
        if self.replies.ending:
            return
        with self._state.condition, suppress(grpc.RpcError, StopIteration):
            self._reading = True
            self._requests._raise_or_start_receive_message()  # noqa: SLF001
            return
        self._reading = False

    def _noticed(self) -> None:
        """See what has changed: a request, the end of requests, or a reply that was taken. Under the call's lock."""
        state = self._state
        if self._reading and state.request is not None:
            request, state.request = state.request, None
            self._reading = False
            self._post(partial(self._receive, request))
        elif self._reading and state.client != _OPEN:
            self._reading = False
            if state.client == _CLOSED and not state.statused:
                self._post(self._finish)
        else:
            self.replies.taken()

    def _receive(self, request: Any) -> None:
        if self._conversation is not None:
            self._conversation.receive(self._step(request, self._call))
        with self._lock:
            self._held_back = self.replies.waiting >= _MOST_WAITING
        if not self._held_back:
            self._read()

    def _finish(self) -> None:
        # It may have left meanwhile: see `Conversation.finish`.
        if self._conversation is not None and self._state.client == _CLOSED:
            self._conversation.finish()

    def _drained(self) -> None:
        with self._lock:
            held_back, self._held_back = self._held_back, False
        if held_back:
            self._post(self._read)

    def _post(self, event: Callable[[], None]) -> None:
        with self._lock:
            self._events.append(event)
            if self._busy:
                return
            self._busy = True
        self._all.post(self._call.method.lane, self._run)

    def _run(self) -> None:
        """Do what is next; on a worker."""
        deadline.current.set(self._call.deadline)
        issuer.current.set(self._call.method.path)
        tracing.current.set(self._call)
        try:
            self._events.popleft()()
        except Exception as error:  # noqa: BLE001  # answered and logged by the errors interceptor
            self.replies.end(error)
        finally:
            deadline.current.set(None)
            issuer.current.set("")
            tracing.current.set(None)
        with self._lock:
            self._busy = bool(self._events)
        if self._busy:
            self._all.post(self._call.method.lane, self._run)
