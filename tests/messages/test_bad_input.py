"""Bad input: each has its status, reason and path, and nothing is stored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.messages.population import (
    ack,
    counts,
    create,
    enqueue,
    lease,
    span,
    stored,
    stub,
    unique,
)
from tests.parts.refusal import Refusal, refused
from tests.parts.serving import Serving


@pytest.fixture
def messages(serving: Serving) -> MessagesServiceStub:
    return stub(serving)


def send(messages: MessagesServiceStub, queue: str, *items: pb.Message) -> Refusal:
    return refused(lambda: messages.EnqueueMessages(pb.EnqueueMessagesRequest(queue=queue, messages=items)))


def test_an_unknown_queue_is_named_by_every_method(messages: MessagesServiceStub) -> None:
    name, an_id = unique(), str(uuid4())
    receipt = pb.Receipt(message_id=an_id, lease_token=an_id)
    calls: list[Callable[[], Any]] = [
        lambda: messages.GetQueue(pb.GetQueueRequest(queue=name)),
        lambda: messages.UpdateQueue(pb.UpdateQueueRequest(queue=pb.Queue(name=name, max_attempts=3))),
        lambda: messages.DeleteQueue(pb.DeleteQueueRequest(queue=name)),
        lambda: messages.PurgeQueue(pb.PurgeQueueRequest(queue=name, messages=True)),
        lambda: messages.EnqueueMessages(pb.EnqueueMessagesRequest(queue=name, messages=[pb.Message()])),
        lambda: messages.LeaseMessages(pb.LeaseMessagesRequest(queue=name)),
        lambda: messages.AckMessages(pb.AckMessagesRequest(queue=name, receipts=[receipt])),
        lambda: messages.NackMessages(
            pb.NackMessagesRequest(queue=name, nacks=[pb.Nack(message_id=an_id, lease_token=an_id)])
        ),
        lambda: messages.ExtendLeases(pb.ExtendLeasesRequest(queue=name, receipts=[receipt])),
        lambda: messages.PeekMessages(pb.PeekMessagesRequest(queue=name)),
        lambda: messages.CancelMessages(pb.CancelMessagesRequest(queue=name, message_ids=[an_id])),
        lambda: messages.ListDeadLetters(pb.ListDeadLettersRequest(queue=name)),
        lambda: messages.ReplayDeadLetters(pb.ReplayDeadLettersRequest(queue=name)),
        lambda: messages.GetQueueStats(pb.GetQueueStatsRequest(queue=name)),
        lambda: next(iter(messages.ConsumeMessages(iter([pb.ConsumeMessagesRequest(queue=name)])))),
    ]
    for call in calls:
        found = refused(call)
        assert (found.code, found.reason, found.metadata.get("queue")) == ("NOT_FOUND", "QUEUE_NOT_FOUND", name)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (pb.Message(payload=b"x" * 262_145), "messages[1].payload"),
        (pb.Message(delay=span(-1)), "messages[1].delay"),
        (pb.Message(delay=span(400 * 86_400)), "messages[1].delay"),
        (pb.Message(time_to_live=span(0.5)), "messages[1].time_to_live"),
        (pb.Message(deduplication_window=span(0)), "messages[1].deduplication_window"),
        (pb.Message(priority=10), "messages[1].priority"),
        (pb.Message(priority=-1), "messages[1].priority"),
        (pb.Message(id="no uuid"), "messages[1].id"),
        (pb.Message(ordering_key="k"), "messages[1].ordering_key"),
        (pb.Message(headers={"": "x"}), 'messages[1].headers[""]'),
        (pb.Message(headers={"k": "x" * 1025}), 'messages[1].headers["k"]'),
        (pb.Message(headers={"k": "x\0"}), 'messages[1].headers["k"]'),
    ],
)
def test_a_batch_with_one_bad_message_stores_nothing_and_names_it(
    serving: Serving, messages: MessagesServiceStub, bad: pb.Message, field: str
) -> None:
    queue = create(messages)

    found = send(messages, queue, pb.Message(payload=b"good"), bad)

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert list(found.fields) == [field]
    assert stored(serving, queue) == 0


def test_a_delay_and_a_due_time_contradict_each_other(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    bad = pb.Message(delay=span(1))
    bad.due_time.FromDatetime(datetime.now(UTC))

    found = send(messages, queue, bad)

    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", ["messages[0].due_time"])
    assert stored(serving, queue) == 0


def test_a_payload_above_the_limit_of_the_queue(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, max_payload_bytes=64)
    enqueue(messages, queue, "x" * 64)

    found = send(messages, queue, pb.Message(payload=b"x"), pb.Message(payload=b"x" * 96))

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "PAYLOAD_TOO_LARGE")
    assert list(found.fields) == ["messages[1].payload"]
    assert stored(serving, queue) == 1


def test_the_backlog_is_limited_and_comes_free_at_once(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, max_backlog=5)
    enqueue(messages, queue, *"abcd")

    found = send(messages, queue, pb.Message(), pb.Message())
    assert (found.code, found.reason, found.retry) == ("RESOURCE_EXHAUSTED", "BACKLOG_FULL", 1.0)
    assert stored(serving, queue) == 4
    enqueue(messages, queue, "e")
    leased = lease(messages, queue)
    assert send(messages, queue, pb.Message()).reason == "BACKLOG_FULL"
    ack(messages, queue, leased[:1])
    enqueue(messages, queue, "f")
    assert counts(messages, queue) == (1, 0, 4, 0, 0)


def test_an_id_that_is_taken_is_named(serving: Serving, messages: MessagesServiceStub) -> None:
    queue, other = create(messages), create(messages)
    taken, twice = str(uuid4()), str(uuid4())
    enqueue(messages, queue, "a", id=taken)

    found = send(messages, queue, pb.Message(), pb.Message(id=taken.upper()))
    assert (found.code, found.reason) == ("ALREADY_EXISTS", "MESSAGE_EXISTS")
    assert list(found.fields) == ["messages[1].id"]
    found = send(messages, queue, pb.Message(id=twice), pb.Message(id=twice))
    assert (found.reason, list(found.fields)) == ("MESSAGE_EXISTS", ["messages[1].id"])
    assert stored(serving, queue) == 1
    enqueue(messages, other, "a", id=taken)


@pytest.mark.parametrize("token", ["", "no token", "01a21492-9629-721a-b1ac"])
def test_a_token_that_is_none(messages: MessagesServiceStub, token: str) -> None:
    queue = create(messages)
    enqueue(messages, queue, "a")
    (leased,) = lease(messages, queue)
    good = pb.Receipt(message_id=leased.message.id, lease_token=leased.lease_token)
    bad = pb.Receipt(message_id=leased.message.id, lease_token=token)
    a_nack = pb.Nack(message_id=leased.message.id, lease_token=token)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("receipts[1]", lambda: messages.AckMessages(pb.AckMessagesRequest(queue=queue, receipts=[good, bad]))),
        ("receipts[0]", lambda: messages.ExtendLeases(pb.ExtendLeasesRequest(queue=queue, receipts=[bad]))),
        ("nacks[0]", lambda: messages.NackMessages(pb.NackMessagesRequest(queue=queue, nacks=[a_nack]))),
    ]
    for field, call in calls:
        found = refused(call)
        assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [f"{field}.lease_token"])
        if token:
            assert token.encode() not in found.everything
    assert counts(messages, queue) == (0, 0, 1, 0, 0)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.LeaseMessagesRequest(max_messages=-1), "max_messages"),
        (pb.LeaseMessagesRequest(max_bytes=-1), "max_bytes"),
        (pb.LeaseMessagesRequest(lease_duration=span(0.1)), "lease_duration"),
        (pb.LeaseMessagesRequest(wait=span(61)), "wait"),
        (pb.LeaseMessagesRequest(wait=span(-1)), "wait"),
    ],
)
def test_wishes_out_of_range(messages: MessagesServiceStub, request_: pb.LeaseMessagesRequest, field: str) -> None:
    request_.queue = create(messages)

    found = refused(lambda: messages.LeaseMessages(request_))

    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [field])


def test_empty_batches_and_too_large_ones(messages: MessagesServiceStub) -> None:
    queue, an_id = create(messages), str(uuid4())
    receipt = pb.Receipt(message_id=an_id, lease_token=an_id)
    for count in (0, 1001):
        assert list(send(messages, queue, *[pb.Message()] * count).fields) == ["messages"]
        ack_request = pb.AckMessagesRequest(queue=queue, receipts=[receipt] * count)
        assert list(refused(lambda: messages.AckMessages(ack_request)).fields) == ["receipts"]  # noqa: B023


@pytest.mark.parametrize(
    ("queue", "field"),
    [
        (pb.Queue(name=""), "queue.name"),
        (pb.Queue(name="Upper"), "queue.name"),
        (pb.Queue(name="x" * 129), "queue.name"),
        (pb.Queue(name="q", lease_duration=span(0)), "queue.lease_duration"),
        (pb.Queue(name="q", max_attempts=-1), "queue.max_attempts"),
        (pb.Queue(name="q", min_backoff=span(20), max_backoff=span(10)), "queue.max_backoff"),
        (pb.Queue(name="q", message_retention=span(1)), "queue.message_retention"),
        (pb.Queue(name="q", max_backlog=-1), "queue.max_backlog"),
        (pb.Queue(name="q", max_payload_bytes=262_145), "queue.max_payload_bytes"),
    ],
)
def test_rules_out_of_range(messages: MessagesServiceStub, queue: pb.Queue, field: str) -> None:
    found = refused(lambda: messages.CreateQueue(pb.CreateQueueRequest(queue=queue)))

    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [field])


def test_a_dead_letter_queue_must_be_another_and_unordered(messages: MessagesServiceStub) -> None:
    ordered, plain = create(messages, ordered=True), create(messages)
    name = unique()
    for target in (ordered, unique(), name):
        queue = pb.Queue(name=name, dead_letter_queue=target)
        found = refused(lambda: messages.CreateQueue(pb.CreateQueueRequest(queue=queue)))  # noqa: B023
        assert (found.code, found.reason) == ("FAILED_PRECONDITION", "DEAD_LETTER_QUEUE_INVALID")
        assert list(found.fields) == ["queue.dead_letter_queue"]
    change = pb.UpdateQueueRequest(queue=pb.Queue(name=plain, dead_letter_queue=plain))
    assert refused(lambda: messages.UpdateQueue(change)).reason == "DEAD_LETTER_QUEUE_INVALID"


def test_page_tokens_of_another_listing(messages: MessagesServiceStub) -> None:
    queue, other = create(messages), create(messages)
    enqueue(messages, queue, "a", "b")
    page = messages.PeekMessages(pb.PeekMessagesRequest(queue=queue, page_size=1))

    for request in (
        pb.PeekMessagesRequest(queue=other, page_token=page.next_page_token),
        pb.PeekMessagesRequest(queue=queue, state=pb.MESSAGE_STATE_LEASED, page_token=page.next_page_token),
    ):
        assert refused(lambda: messages.PeekMessages(request)).reason == "PAGE_TOKEN_INVALID"  # noqa: B023
