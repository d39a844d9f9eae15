"""Queues and messages for the tests: each test has queues of its own on the one server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

import psycopg
from google.protobuf.duration_pb2 import Duration
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.parts.serving import Serving

OK, LOST, MISSING = pb.OUTCOME_OK, pb.OUTCOME_LEASE_LOST, pb.OUTCOME_NOT_FOUND


def stub(serving: Serving, caller: str = "operator") -> MessagesServiceStub:
    """Return a stub whose calls carry the bearer token of `caller`."""
    return MessagesServiceStub(serving.channel_of(caller))


def unique(prefix: str = "queue") -> str:
    """Return a name that no other queue has."""
    return f"{prefix}-{uuid4().hex[:12]}"


def span(seconds: float) -> Duration:
    """Return a Duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def create(messages: MessagesServiceStub, **fields: Any) -> str:
    """Create a queue and return its name; numbers for durations are seconds."""
    durations = {"lease_duration", "min_backoff", "max_backoff", "message_retention", "dead_letter_retention"}
    values = {key: span(value) if key in durations else value for key, value in fields.items()}
    queue = pb.Queue(**{"name": unique(), **values})
    return messages.CreateQueue(pb.CreateQueueRequest(queue=queue)).queue.name


def enqueue(messages: MessagesServiceStub, queue: str, *payloads: str, **fields: Any) -> list[str]:
    """Enqueue messages that share all other fields, and return their ids."""
    items = [pb.Message(payload=payload.encode(), **fields) for payload in payloads]
    request = pb.EnqueueMessagesRequest(queue=queue, messages=items)
    return [result.message_id for result in messages.EnqueueMessages(request).results]


def lease(messages: MessagesServiceStub, queue: str, count: int = 10, **fields: Any) -> list[pb.LeasedMessage]:
    """Lease messages."""
    return list(messages.LeaseMessages(pb.LeaseMessagesRequest(queue=queue, max_messages=count, **fields)).messages)


def payloads(leased: Iterable[pb.LeasedMessage]) -> list[str]:
    """Return what was leased, as text."""
    return [each.message.payload.decode() for each in leased]


def receipts(leased: Iterable[pb.LeasedMessage]) -> list[pb.Receipt]:
    """Return the receipts of what was leased."""
    return [pb.Receipt(message_id=each.message.id, lease_token=each.lease_token) for each in leased]


def ack(messages: MessagesServiceStub, queue: str, leased: Iterable[pb.LeasedMessage]) -> list[int]:
    """Acknowledge what was leased, and return the outcomes."""
    request = pb.AckMessagesRequest(queue=queue, receipts=receipts(leased))
    return list(messages.AckMessages(request).outcomes)


def nack(messages: MessagesServiceStub, queue: str, leased: Iterable[pb.LeasedMessage], **fields: Any) -> list[int]:
    """Give back what was leased, and return the outcomes."""
    nacks = [pb.Nack(message_id=each.message.id, lease_token=each.lease_token, **fields) for each in leased]
    return list(messages.NackMessages(pb.NackMessagesRequest(queue=queue, nacks=nacks)).outcomes)


def extend(
    messages: MessagesServiceStub, queue: str, leased: Iterable[pb.LeasedMessage], seconds: float
) -> pb.ExtendLeasesResponse:
    """Make leases last longer."""
    request = pb.ExtendLeasesRequest(queue=queue, receipts=receipts(leased), lease_duration=span(seconds))
    return messages.ExtendLeases(request)


def stats(messages: MessagesServiceStub, queue: str) -> pb.GetQueueStatsResponse:
    """Return the counts of a queue."""
    return messages.GetQueueStats(pb.GetQueueStatsRequest(queue=queue))


def counts(messages: MessagesServiceStub, queue: str) -> tuple[int, int, int, int, int]:
    """Return how many messages are ready, delayed, leased, blocked and dead."""
    found = stats(messages, queue)
    return found.ready, found.delayed, found.leased, found.blocked, found.dead


def dead_letters(messages: MessagesServiceStub, queue: str) -> list[pb.DeadLetter]:
    """Return the dead letters of a queue."""
    return list(messages.ListDeadLetters(pb.ListDeadLettersRequest(queue=queue)).dead_letters)


def sql(serving: Serving, text: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement as superuser; return its rows, if it has any."""
    assert serving.settings.postgres_dsn is not None
    with psycopg.connect(serving.settings.postgres_dsn.get_secret_value(), autocommit=True) as connection:
        cursor = connection.execute(text, params)
        return cursor.fetchall() if cursor.description else []


def bring_forward(serving: Serving, queue: str) -> None:
    """Let the time come of everything in a queue that waits for it: delays are over, leases have run out."""
    sql(
        serving,
        "UPDATE messages.message SET due_time = now() - interval '1 ms'"
        " WHERE due_time IS NOT NULL AND bin = (SELECT bin FROM messages.queue WHERE name = %s)",
        [queue],
    )


def stored(serving: Serving, queue: str) -> int:
    """Return how many messages a queue has, whatever the counts say."""
    query = "SELECT count(*) FROM messages.message WHERE bin = (SELECT bin FROM messages.queue WHERE name = %s)"
    return int(sql(serving, query, [queue])[0][0])
