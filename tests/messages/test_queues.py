"""Queues: created with defaults, changed by mask and etag, emptied and deleted with all that is in them."""

from __future__ import annotations

import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.messages.population import (
    ack,
    counts,
    create,
    dead_letters,
    enqueue,
    lease,
    nack,
    payloads,
    span,
    stats,
    stub,
    unique,
)
from tests.parts.refusal import refused
from tests.parts.serving import Serving


@pytest.fixture
def messages(serving: Serving) -> MessagesServiceStub:
    return stub(serving)


def get(messages: MessagesServiceStub, name: str) -> pb.Queue:
    return messages.GetQueue(pb.GetQueueRequest(queue=name)).queue


def test_defaults_are_filled_in(messages: MessagesServiceStub) -> None:
    queue = messages.CreateQueue(pb.CreateQueueRequest(queue=pb.Queue(name=unique()))).queue

    assert queue == get(messages, queue.name)
    assert (queue.ordered, queue.max_attempts, queue.max_backlog, queue.max_payload_bytes) == (
        False,
        10,
        10_000_000,
        262_144,
    )
    assert queue.lease_duration == span(30)
    assert (queue.min_backoff, queue.max_backoff) == (span(1), span(600))
    assert (queue.message_retention, queue.dead_letter_retention) == (span(14 * 86_400), span(30 * 86_400))
    assert (queue.etag, queue.create_time) == ("1", queue.update_time)


def test_names_are_taken_once(messages: MessagesServiceStub) -> None:
    name = create(messages)

    found = refused(lambda: messages.CreateQueue(pb.CreateQueueRequest(queue=pb.Queue(name=name, ordered=True))))

    assert (found.code, found.reason, list(found.fields)) == ("ALREADY_EXISTS", "QUEUE_EXISTS", ["queue.name"])


def test_the_mask_says_what_changes(messages: MessagesServiceStub) -> None:
    name = create(messages, max_attempts=3, lease_duration=7.5, min_backoff=2)

    changed = messages.UpdateQueue(pb.UpdateQueueRequest(queue=pb.Queue(name=name, max_attempts=5, etag="1"))).queue
    assert (changed.max_attempts, changed.lease_duration, changed.etag) == (5, span(7.5), "2")
    request = pb.UpdateQueueRequest(queue=pb.Queue(name=name))
    request.update_mask.paths.append("lease_duration")
    assert messages.UpdateQueue(request).queue.lease_duration == span(30)
    assert get(messages, name).min_backoff == span(2)

    stale = pb.UpdateQueueRequest(queue=pb.Queue(name=name, max_attempts=9, etag="2"))
    found = refused(lambda: messages.UpdateQueue(stale))
    assert (found.code, found.reason) == ("ABORTED", "QUEUE_ETAG_MISMATCH")
    for path in ("ordered", "name", "nothing"):
        bad = pb.UpdateQueueRequest(queue=pb.Queue(name=name))
        bad.update_mask.paths.append(path)
        assert list(refused(lambda: messages.UpdateQueue(bad)).fields) == ["update_mask.paths[0]"]  # noqa: B023
    assert get(messages, name).max_attempts == 5


def test_changed_rules_hold_at_once(messages: MessagesServiceStub) -> None:
    name = create(messages)
    enqueue(messages, name, "a")
    (leased,) = lease(messages, name)

    messages.UpdateQueue(pb.UpdateQueueRequest(queue=pb.Queue(name=name, max_attempts=1)))

    nack(messages, name, [leased])
    assert counts(messages, name) == (0, 0, 0, 0, 1)


def test_listing_has_pages(messages: MessagesServiceStub) -> None:
    prefix = unique("listed")
    names = sorted(create(messages, name=f"{prefix}.{number}") for number in range(5))
    found, token = [], ""
    while True:
        request = pb.ListQueuesRequest(name_prefix=prefix, page_size=2, page_token=token)
        page = messages.ListQueues(request)
        found += [queue.name for queue in page.queues]
        token = page.next_page_token
        if not token:
            break
    assert found == names


def test_a_purge_empties_at_once(messages: MessagesServiceStub) -> None:
    name = create(messages)
    enqueue(messages, name, "dead")
    nack(messages, name, lease(messages, name), dead_letter=True)
    enqueue(messages, name, "leased")
    leased = lease(messages, name)
    enqueue(messages, name, "ready", deduplication_key="once")

    messages.PurgeQueue(pb.PurgeQueueRequest(queue=name, messages=True))
    assert counts(messages, name) == (0, 0, 0, 0, 1)
    assert stats(messages, name).enqueued_total == 0
    assert lease(messages, name) == []
    assert ack(messages, name, leased) == [pb.OUTCOME_NOT_FOUND]
    enqueue(messages, name, "again", deduplication_key="once")
    assert payloads(lease(messages, name)) == ["again"]

    messages.PurgeQueue(pb.PurgeQueueRequest(queue=name, dead_letters=True))
    assert dead_letters(messages, name) == []
    assert counts(messages, name) == (0, 0, 1, 0, 0)
    nothing = refused(lambda: messages.PurgeQueue(pb.PurgeQueueRequest(queue=name)))
    assert (nothing.code, list(nothing.fields)) == ("INVALID_ARGUMENT", ["messages"])


def test_a_deleted_queue_is_gone_with_its_messages(messages: MessagesServiceStub) -> None:
    name = create(messages)
    enqueue(messages, name, "a", "b")
    stale = refused(lambda: messages.DeleteQueue(pb.DeleteQueueRequest(queue=name, etag="7")))
    assert stale.reason == "QUEUE_ETAG_MISMATCH"

    messages.DeleteQueue(pb.DeleteQueueRequest(queue=name, etag="1"))

    assert refused(lambda: get(messages, name)).reason == "QUEUE_NOT_FOUND"
    create(messages, name=name)
    assert lease(messages, name) == []
    assert counts(messages, name) == (0, 0, 0, 0, 0)
