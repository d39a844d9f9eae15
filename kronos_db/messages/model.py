"""What queues and messages are, which rules queues have, and what can be wrong with a call."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from kronos_db.runtime.errors import Answer, Code, FieldViolation, KronosError

# The kind of record that a queue is in the log of changes.
KIND = "queue"
HIGHEST_PRIORITY = 9
# A band for each priority; the first is delivered first.
RANKS: Sequence[int] = range(HIGHEST_PRIORITY + 1)
# Seconds for which a deduplication key is remembered that names no time.
DEDUPLICATION_WINDOW = 300.0


class State(enum.IntEnum):
    """State of a message, as it is stored."""

    READY = 0
    DELAYED = 1
    LEASED = 2
    BLOCKED = 3


class Outcome(enum.IntEnum):
    """What became of one receipt."""

    OK = 1
    LEASE_LOST = 2
    NOT_FOUND = 3


class Cancellation(enum.IntEnum):
    """What became of a message that was to be cancelled."""

    CANCELLED = 1
    LEASED = 2
    NOT_FOUND = 3


class Rules(NamedTuple):
    """What may be changed about a queue. Durations are in seconds."""

    lease_duration: float = 30.0
    max_attempts: int = 10
    min_backoff: float = 1.0
    max_backoff: float = 600.0
    dead_letter_queue: str = ""
    message_retention: float = 14 * 86_400.0
    dead_letter_retention: float = 30 * 86_400.0
    max_backlog: int = 10_000_000
    max_payload_bytes: int = 262_144


class Queue(NamedTuple):
    """A queue as stored. `bin` and `dead_bin` are where its messages and its dead letters are."""

    name: str
    id: str
    bin: str
    dead_bin: str
    ordered: bool
    lease_duration: float
    max_attempts: int
    min_backoff: float
    max_backoff: float
    dead_letter_queue: str
    message_retention: float
    dead_letter_retention: float
    max_backlog: int
    max_payload_bytes: int
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def rules(self) -> Rules:
        """What may be changed about it."""
        return Rules(*(getattr(self, field) for field in Rules._fields))


class NewMessage(NamedTuple):
    """A message to be stored. `headers` is JSON; durations are in seconds; None is what was not said."""

    id: str
    payload: bytes
    headers: str | None
    rank: int
    ordering_key: str | None
    delay: float | None
    due_time: datetime | None
    life: float | None
    deduplication_key: str | None
    deduplication_window: float


# What became of a new message: its id, or that of the one that it repeats, and whether it does. A bare tuple: one is
# made for each message.
Stored: TypeAlias = tuple[str, bool]


class Message(NamedTuple):
    """A message as stored; `payload` is sealed. `history` has what `Failure` of the contract has."""

    id: str
    # None where it was not read.
    payload: bytes | None
    headers: Mapping[str, str] | None
    rank: int
    ordering_key: str | None
    enqueue_time: datetime
    expire_time: datetime | None
    attempts: int
    history: Sequence[Mapping[str, Any]] | None


class Leased(NamedTuple):
    """A message under a lease."""

    message: Message
    token: str
    expire_time: datetime


class DeadLetter(NamedTuple):
    """A message that is not delivered any more."""

    message: Message
    cause: int
    dead_time: datetime


class Wish(NamedTuple):
    """How many messages are to be leased, of how many bytes, and for how many seconds."""

    limit: int
    max_bytes: int
    seconds: float


class Receipt(NamedTuple):
    """A message under a lease, named by who holds it."""

    id: str
    token: str


class Return(NamedTuple):
    """A message that its holder gives back; `delay` in seconds, None for the backoff of the queue."""

    id: str
    token: str
    delay: float | None
    reason: str
    rejected: bool


class Extended(NamedTuple):
    """What became of leases that were to last longer, and until when they last now."""

    outcomes: Sequence[int]
    expire_time: datetime


class Stats(NamedTuple):
    """Counts, rates and the oldest ready message of a queue."""

    ready: int
    delayed: int
    leased: int
    blocked: int
    dead: int
    oldest_ready_enqueue_time: datetime | None
    enqueued_total: int
    leased_total: int
    acked_total: int
    enqueue_rate: float
    lease_rate: float
    ack_rate: float


class Astir(NamedTuple):
    """What a look says of a bin; `next_due` in seconds."""

    bin: str
    exists: bool
    ready: bool
    due: bool
    expired: bool
    next_due: float | None


class QueueNotFoundError(KronosError):
    """No such queue."""


class QueueExistsError(KronosError):
    """Another queue has the name."""


class QueueEtagMismatchError(KronosError):
    """The queue changed since the caller read it."""


class DeadLetterQueueError(KronosError):
    """The dead-letter queue cannot be one."""


class BacklogFullError(KronosError):
    """The queue holds as many messages as it may."""


class PayloadTooLargeError(KronosError):
    """A payload is larger than the queue takes."""

    def __init__(self, index: int, limit: int) -> None:
        where = f"messages[{index}].payload"
        violation = FieldViolation(where, "is larger than the queue takes")
        super().__init__(metadata={"field": where, "limit": str(limit)}, violations=[violation])


class MessageExistsError(KronosError):
    """A message of the queue has the id."""

    def __init__(self, index: int) -> None:
        where = f"messages[{index}].id"
        super().__init__(metadata={"field": where}, violations=[FieldViolation(where, "is that of another message")])


ERRORS: Mapping[type[KronosError], Answer] = {
    QueueNotFoundError: Answer(Code.NOT_FOUND, "QUEUE_NOT_FOUND", "There is no queue {queue}."),
    QueueExistsError: Answer(Code.ALREADY_EXISTS, "QUEUE_EXISTS", "There is a queue {queue} already."),
    QueueEtagMismatchError: Answer(
        Code.ABORTED, "QUEUE_ETAG_MISMATCH", "The queue changed since it was read; read it again."
    ),
    DeadLetterQueueError: Answer(
        Code.FAILED_PRECONDITION,
        "DEAD_LETTER_QUEUE_INVALID",
        "The dead-letter queue must be another queue that exists and is not ordered.",
    ),
    BacklogFullError: Answer(
        Code.RESOURCE_EXHAUSTED, "BACKLOG_FULL", "The queue may hold {limit} messages, and is at that limit."
    ),
    PayloadTooLargeError: Answer(
        Code.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE", "The queue takes payloads of {limit} bytes; {field} has more."
    ),
    MessageExistsError: Answer(
        Code.ALREADY_EXISTS, "MESSAGE_EXISTS", "A message of the queue has the id given in {field}."
    ),
}
