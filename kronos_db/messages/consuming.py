"""Consumers on streams: sends them messages as they become ready, within the credit that they give."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from uuid import uuid4

import structlog
from kronos.messages.v1 import messages_pb2 as pb

from kronos_db.messages import model, wire
from kronos_db.messages.store import MessagesStore
from kronos_db.messages.waiting import Waiting
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError, KronosError

_log = structlog.get_logger(__name__)

_MOST_CREDIT_MESSAGES, _MOST_CREDIT_BYTES = 10_000, 64 << 20
# So much is leased and sent at a time, and so many replies may be on their way to a caller before more is leased.
_MOST_AT_ONCE, _MOST_BYTES_AT_ONCE = 100, 1 << 20
_MOST_ON_THE_WAY = 4
# Leases of what is on its way are renewed when this share of them is over, and looked at so often, in seconds.
_RENEWED_AT = 0.5
_LOOK = 0.25
# Seconds that the server may take to find out what became of a COMMIT.
_ATTEMPTS = 600.0
# Seconds that the thread gets to end.
_PATIENCE = 5.0


class Replies(Protocol):
    """What goes back to the caller, as the interceptors queue it."""

    on_taken: Callable[[], None]

    @property
    def waiting(self) -> int:
        """How many messages were not taken yet."""

    def send(self, message: Any) -> None:
        """Queue a message; never waits."""

    def complete(self) -> None:
        """End the stream with OK, behind what waits."""

    def end(self, error: Exception) -> None:
        """End the stream with the answer of an error."""


class Consumers:
    """All consumers on streams of a process. `post` has a worker of the domain do something."""

    def __init__(self, store: MessagesStore, waiting: Waiting, post: Callable[[Callable[[], None]], None]) -> None:
        self.store = store
        self.waiting = waiting
        self.post = post
        self._lock = threading.Lock()
        self._consumers: set[Consumer] = set()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, consumer: Consumer) -> None:
        """Look after the leases of one more."""
        with self._lock:
            self._consumers.add(consumer)
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="renew leases", daemon=True)
                self._thread.start()

    def leave(self, consumer: Consumer) -> None:
        """Look after it no more."""
        with self._lock:
            self._consumers.discard(consumer)

    def close(self) -> None:
        """Look after none."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK):
            with self._lock:
                consumers = list(self._consumers)
            for consumer in consumers:
                try:
                    consumer.renew()
                except KronosError as error:
                    _log.warning("leases on their way were not renewed", reason=str(error))
                except Exception:  # noqa: BLE001  # the others are to be looked after
                    _log.exception("leases on their way were not renewed")


class _Sent:
    """Messages of one reply that the caller may not have taken yet."""

    __slots__ = ("receipts", "renew_at")

    def __init__(self, leased: Sequence[model.Leased], renew_at: float) -> None:
        self.receipts = [model.Receipt(each.message.id, each.token) for each in leased]
        self.renew_at = renew_at


class Consumer:
    """One stream: a conversation, and a waiter in the line of its queue."""

    def __init__(self, all_of: Consumers, replies: Replies, find_queue: Callable[[str], model.Queue]) -> None:
        self._all = all_of
        self._replies = replies
        self._find_queue = find_queue
        self._name = ""
        self._seconds: float | None = None
        self._lock = threading.Lock()
        self._credit_messages = 0
        self._credit_bytes = 0
        self._over = False
        # One worker sends at a time; whoever comes meanwhile has it look again.
        self._sending = False
        self._again = False
        self._full = False
        # Replies that were not known to be taken when last looked at; None for one without messages.
        self._on_the_way: deque[_Sent | None] = deque()
        self._line: model.Queue | None = None
        replies.on_taken = self._taken

    def receive(self, message: pb.ConsumeMessagesRequest) -> None:
        """Take acknowledgements and credit."""
        queue = self._queue_of(message)
        self._settle(queue, message)
        with self._lock:
            self._credit_messages = min(self._credit_messages + message.credit_messages, _MOST_CREDIT_MESSAGES)
            self._credit_bytes = min(self._credit_bytes + message.credit_bytes, _MOST_CREDIT_BYTES)
        self.pump()

    def finish(self) -> None:
        """End the stream: the caller wants nothing more."""
        self._stop()
        self._replies.complete()

    def closed(self) -> None:
        """Give back what was not sent; what was sent is the caller's until its lease runs out."""
        self._stop()
        self._all.leave(self)
        unsent = [receipt for sent in self._unsent() for receipt in sent.receipts]
        if unsent:
            self._all.store.release(self._find_queue(self._name), unsent)

    def wake(self) -> None:
        """Have a worker look for messages."""
        self._all.post(self._pump_or_end)

    def pump(self) -> None:
        """Send what there is credit for, unless another worker does; then that one looks again."""
        with self._lock:
            self._again = True
            if self._sending:
                return
            self._sending = True
        try:
            while self._goes_on():
                self._send_some()
        except BaseException:
            with self._lock:
                self._sending = False
            raise

    def renew(self) -> None:
        """Renew the leases of messages that are on their way."""
        if not self._name or self._over:
            return
        now = time.monotonic()
        with self._lock:
            self._forget_taken()
            due = [sent for sent in self._on_the_way if sent is not None and now >= sent.renew_at]
        if due:
            queue = self._find_queue(self._name)
            seconds = self._seconds or queue.lease_duration
            self._all.store.renew(queue, [receipt for sent in due for receipt in sent.receipts], seconds)
            for sent in due:
                sent.renew_at = now + seconds * _RENEWED_AT

    def _queue_of(self, message: pb.ConsumeMessagesRequest) -> model.Queue:
        if not self._name:
            if not message.queue:
                raise BadRequestError.of("queue", "must be named in the first message of a stream")
            queue = self._find_queue(message.queue)
            self._name = message.queue
            self._seconds = wire.seconds(message.lease_duration) if message.HasField("lease_duration") else None
            self._all.enter(self)
            return queue
        if message.queue not in {"", self._name}:
            raise BadRequestError.of("queue", "must stay that of the first message")
        return self._find_queue(self._name)

    def _settle(self, queue: model.Queue, message: pb.ConsumeMessagesRequest) -> None:
        outcomes: list[int] = []
        if message.acks:
            acked: list[int] = self._all.store.ack(queue, wire.receipts(message.acks), _unnamed())
            outcomes += acked
        if message.nacks:
            nacked: list[int] = self._all.store.nack(queue, wire.returns(message.nacks), _unnamed())
            outcomes += nacked
        if outcomes:
            response = pb.ConsumeMessagesResponse()
            response.outcomes.extend(outcomes)  # type: ignore[arg-type]  # the numbers are those of the contract
            self._send(response, None)

    def _pump_or_end(self) -> None:
        try:
            self.pump()
        except Exception as error:  # noqa: BLE001  # answered and logged by the errors interceptor
            self._replies.end(error)

    def _goes_on(self) -> bool:
        with self._lock:
            wanted = self._credit_messages > 0 and self._credit_bytes > 0 and not self._over
            self._full = self._replies.waiting >= _MOST_ON_THE_WAY
            if self._again and wanted and not self._full:
                self._again = False
                return True
            self._sending = False
            return False

    def _send_some(self) -> None:
        """Lease and send; with nothing to lease, wait in the line."""
        queue = self._find_queue(self._name)
        wish = model.Wish(
            min(self._credit_messages, _MOST_AT_ONCE),
            min(self._credit_bytes, _MOST_BYTES_AT_ONCE),
            self._seconds or queue.lease_duration,
        )
        # In the line first: what becomes ready from here on wakes.
        self._stand_in_line(queue)
        leased = self._all.store.lease(queue, wish)
        if not leased:
            return
        self._leave_line()
        self._send_messages(queue, leased, wish.seconds)
        # There may be more, for this one and for others.
        self._all.waiting.wake(queue)
        with self._lock:
            self._again = True

    def _send_messages(self, queue: model.Queue, leased: Sequence[model.Leased], seconds: float) -> None:
        response = pb.ConsumeMessagesResponse()
        add = response.messages.add
        for each in leased:
            wire.fill_leased(add(), each)
        with self._lock:
            self._credit_messages -= len(leased)
            self._credit_bytes -= sum(len(each.message.payload or b"") for each in leased)
            over = self._over
        if over:
            self._all.store.release(queue, [model.Receipt(each.message.id, each.token) for each in leased])
            return
        self._send(response, _Sent(leased, time.monotonic() + seconds * _RENEWED_AT))

    def _send(self, response: pb.ConsumeMessagesResponse, sent: _Sent | None) -> None:
        with self._lock:
            self._forget_taken()
            self._on_the_way.append(sent)
            self._replies.send(response)

    def _forget_taken(self) -> None:
        while len(self._on_the_way) > self._replies.waiting:
            self._on_the_way.popleft()

    def _taken(self) -> None:
        # Under the lock of the call: whoever sends may hold ours and ask for that one.
        if self._full:
            self.wake()

    def _unsent(self) -> Iterable[_Sent]:
        with self._lock:
            self._forget_taken()
            # The first may be with the caller already.
            return [sent for sent in list(self._on_the_way)[1:] if sent is not None]

    def _stop(self) -> None:
        with self._lock:
            self._over = True
        self._leave_line()

    def _stand_in_line(self, queue: model.Queue) -> None:
        self._line = queue
        self._all.waiting.enter(queue, self)

    def _leave_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            self._all.waiting.leave(line, self)


def _unnamed() -> Mutation[list[int], list[int]]:
    """Return what makes a change that nobody repeats but the server itself, when a connection is lost at COMMIT."""
    return Mutation("", uuid4(), b"", _same, _encode, _decode, _ATTEMPTS)


def _encode(outcomes: list[int]) -> bytes:
    return bytes(outcomes)


def _decode(kept: bytes) -> list[int]:
    return list(kept)


def _same(outcomes: list[int]) -> list[int]:
    return outcomes
