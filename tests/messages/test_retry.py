"""Retry is safe: one request_id, one effect, one answer; calls that share a transaction do not share their faults."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.messages.population import (
    LOST,
    OK,
    ack,
    bring_forward,
    counts,
    create,
    dead_letters,
    enqueue,
    lease,
    nack,
    payloads,
    receipts,
    sql,
    stored,
    stub,
    unique,
)
from tests.parts.refusal import read, refused
from tests.parts.serving import Serving

AT_ONCE = 16


@pytest.fixture
def messages(serving: Serving) -> MessagesServiceStub:
    return stub(serving)


def at_once(calls: list[Callable[[], Any]]) -> list[Future[Any]]:
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(run, call) for call in calls]


def new(queue: str, *payloads: bytes, **fields: Any) -> pb.EnqueueMessagesRequest:
    items = [pb.Message(payload=payload, **fields) for payload in payloads]
    return pb.EnqueueMessagesRequest(queue=queue, messages=items, request_id=str(uuid4()))


def test_a_repeated_enqueue_stores_once(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, max_backlog=3)
    request = new(queue, b"a", b"b")
    first = messages.EnqueueMessages(request)

    answers = [future.result() for future in at_once([lambda: messages.EnqueueMessages(request)] * AT_ONCE)]

    assert all(answer == first for answer in answers)
    assert stored(serving, queue) == 2
    # Also when the queue is full now, and when the messages are gone.
    enqueue(messages, queue, "c")
    assert messages.EnqueueMessages(request) == first
    ack(messages, queue, lease(messages, queue))
    assert messages.EnqueueMessages(request) == first
    assert stored(serving, queue) == 0


def test_sixteen_at_once_store_once(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, ordered=True)
    request = new(queue, b"a", b"b", ordering_key="k")

    answers = [future.result() for future in at_once([lambda: messages.EnqueueMessages(request)] * AT_ONCE)]

    assert all(answer == answers[0] for answer in answers)
    assert stored(serving, queue) == 2
    assert counts(messages, queue) == (1, 0, 0, 1, 0)


def test_a_repeated_ack_gets_the_first_answer(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "a")
    request = pb.AckMessagesRequest(queue=queue, receipts=receipts(lease(messages, queue)), request_id=str(uuid4()))

    answers = [future.result() for future in at_once([lambda: messages.AckMessages(request)] * AT_ONCE)]

    assert [list(answer.outcomes) for answer in answers] == [[OK]] * AT_ONCE
    assert counts(messages, queue) == (0, 0, 0, 0, 0)


def test_a_repeated_nack_counts_once(messages: MessagesServiceStub) -> None:
    queue = create(messages, min_backoff=0)
    enqueue(messages, queue, "a")
    (leased,) = lease(messages, queue)
    a_nack = pb.Nack(message_id=leased.message.id, lease_token=leased.lease_token, reason="no")
    request = pb.NackMessagesRequest(queue=queue, nacks=[a_nack], request_id=str(uuid4()))
    first = messages.NackMessages(request)
    (now,) = lease(messages, queue)

    assert messages.NackMessages(request) == first
    assert len(now.message.failures) == 1
    assert ack(messages, queue, [now]) == [OK]


def test_a_repeated_lease_returns_what_is_held_still(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, *"abcd")
    request = pb.LeaseMessagesRequest(queue=queue, max_messages=3, request_id=str(uuid4()))
    first = messages.LeaseMessages(request)
    assert payloads(first.messages) == ["a", "b", "c"]

    assert messages.LeaseMessages(request) == first
    ack(messages, queue, first.messages[:1])
    nack(messages, queue, first.messages[1:2])
    assert payloads(messages.LeaseMessages(request).messages) == ["c"]
    assert payloads(lease(messages, queue)) == ["d"]
    bring_forward(serving, queue)
    taken_over = lease(messages, queue)
    assert payloads(messages.LeaseMessages(request).messages) == []
    assert ack(messages, queue, first.messages[2:]) == [LOST]
    assert ack(messages, queue, taken_over) == [OK] * 3


def test_an_empty_answer_is_not_remembered(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    request = pb.LeaseMessagesRequest(queue=queue, request_id=str(uuid4()))
    assert payloads(messages.LeaseMessages(request).messages) == []

    enqueue(messages, queue, "a")

    assert payloads(messages.LeaseMessages(request).messages) == ["a"]


def test_every_other_mutating_method_is_done_once(messages: MessagesServiceStub) -> None:
    queue = unique()
    create_request = pb.CreateQueueRequest(queue=pb.Queue(name=queue), request_id=str(uuid4()))
    done: list[tuple[Callable[[Any], Any], Any, Any]] = []

    def do(method: Any, request: Any) -> Any:
        if not request.request_id:
            request.request_id = str(uuid4())
        answer = method(request)
        done.append((method, request, answer))
        assert method(request) == answer
        return answer

    do(messages.CreateQueue, create_request)
    do(messages.UpdateQueue, pb.UpdateQueueRequest(queue=pb.Queue(name=queue, max_attempts=3)))
    (message_id,) = enqueue(messages, queue, "a")
    leased = lease(messages, queue)
    do(messages.ExtendLeases, pb.ExtendLeasesRequest(queue=queue, receipts=receipts(leased)))
    nack(messages, queue, leased, dead_letter=True)
    do(messages.ReplayDeadLetters, pb.ReplayDeadLettersRequest(queue=queue))
    cancelled = do(messages.CancelMessages, pb.CancelMessagesRequest(queue=queue, message_ids=[message_id]))
    assert list(cancelled.cancellations) == [pb.CANCELLATION_CANCELLED]
    do(messages.PurgeQueue, pb.PurgeQueueRequest(queue=queue, messages=True))
    enqueue(messages, queue, "after the purge")
    assert messages.PurgeQueue(done[-1][1]) == done[-1][2]
    assert counts(messages, queue)[0] == 1
    do(messages.DeleteQueue, pb.DeleteQueueRequest(queue=queue))


def test_the_same_id_with_another_body_is_refused(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    request = new(queue, b"a")
    messages.EnqueueMessages(request)
    other = new(queue, b"b")
    other.request_id = request.request_id

    found = refused(lambda: messages.EnqueueMessages(other))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert counts(messages, queue)[0] == 1


def test_validate_only_checks_and_changes_nothing(serving: Serving, messages: MessagesServiceStub) -> None:
    queue, missing = create(messages, max_backlog=2), unique()
    messages.CreateQueue(pb.CreateQueueRequest(queue=pb.Queue(name=missing), validate_only=True))
    assert refused(lambda: messages.GetQueue(pb.GetQueueRequest(queue=missing))).code == "NOT_FOUND"
    request = new(queue, b"a", deduplication_key="k")
    request.validate_only = True
    messages.EnqueueMessages(request)
    assert stored(serving, queue) == 0
    too_many = pb.EnqueueMessagesRequest(queue=queue, messages=[pb.Message()] * 3, validate_only=True)
    assert refused(lambda: messages.EnqueueMessages(too_many)).reason == "BACKLOG_FULL"

    enqueue(messages, queue, "a", deduplication_key="k")
    wish = pb.LeaseMessagesRequest(queue=queue, validate_only=True)
    assert payloads(messages.LeaseMessages(wish).messages) == ["a"]
    leased = lease(messages, queue)
    assert leased[0].message.attempts == 1
    done = pb.AckMessagesRequest(queue=queue, receipts=receipts(leased), validate_only=True)
    assert list(messages.AckMessages(done).outcomes) == [OK]
    assert ack(messages, queue, leased) == [OK]
    messages.PurgeQueue(pb.PurgeQueueRequest(queue=queue, messages=True, validate_only=True))
    messages.DeleteQueue(pb.DeleteQueueRequest(queue=queue, validate_only=True))
    assert dead_letters(messages, queue) == []


def transactions(serving: Serving, queue: str) -> int:
    query = "SELECT count(DISTINCT xmin::text) FROM messages.message JOIN messages.queue USING (bin) WHERE name = %s"
    return int(sql(serving, query.replace("xmin", "message.xmin"), [queue])[0][0])


def test_enqueues_that_come_together_share_transactions(serving: Serving, messages: MessagesServiceStub) -> None:
    queue, other = create(messages), create(messages, ordered=True)
    requests = [new(queue if n % 2 else other, f"{n}".encode()) for n in range(48)]

    futures = at_once([partial(messages.EnqueueMessages, request) for request in requests])

    ids = [future.result().results[0].message_id for future in futures]
    assert len(set(ids)) == 48
    assert stored(serving, queue) == stored(serving, other) == 24
    assert transactions(serving, queue) < 24
    by_id = {each.message.id: each.message.payload for name in (queue, other) for each in lease(messages, name, 50)}
    assert [by_id[message_id] for message_id in ids] == [f"{n}".encode() for n in range(48)]


@pytest.mark.parametrize(("count", "size", "shared"), [(100, 100, True), (129, 1, False), (2, 140_000, False)])
def test_large_enqueues_have_transactions_of_their_own(
    serving: Serving, messages: MessagesServiceStub, count: int, size: int, shared: bool
) -> None:
    queue = create(messages)
    batch = [pb.Message(payload=b"x" * size)] * count
    request = pb.EnqueueMessagesRequest(queue=queue, messages=batch)

    for future in at_once([partial(messages.EnqueueMessages, request) for _ in range(16)]):
        assert len(future.result().results) == count

    assert stored(serving, queue) == 16 * count
    assert (transactions(serving, queue) < 16) is shared


def test_what_is_wrong_with_one_is_its_own(serving: Serving, messages: MessagesServiceStub) -> None:
    queue, full = create(messages), create(messages, max_backlog=1)
    taken = str(uuid4())
    enqueue(messages, queue, "taken", id=taken)
    enqueue(messages, full, "full")
    earlier = new(queue, b"earlier")
    first = messages.EnqueueMessages(earlier)
    requests: list[pb.EnqueueMessagesRequest] = []
    for number in range(40):
        kind = number % 8
        if kind == 0:
            requests.append(new(queue, b"x", id=taken))
        elif kind == 1:
            requests.append(new(full, b"x"))
        elif kind == 2:
            requests.append(earlier)
        else:
            requests.append(new(queue, b"fine", deduplication_key="same" if kind == 3 else ""))

    futures = at_once([partial(messages.EnqueueMessages, request) for request in requests])

    duplicates = 0
    for number, future in enumerate(futures):
        kind = number % 8
        if kind < 2:
            assert read(future.exception()).reason == ["MESSAGE_EXISTS", "BACKLOG_FULL"][kind]
        elif kind == 2:
            assert future.result() == first
        else:
            duplicates += future.result().results[0].duplicate
    assert duplicates == 4
    assert stored(serving, queue) == 2 + 20 + 1
    assert stored(serving, full) == 1


def test_acks_that_come_together(messages: MessagesServiceStub) -> None:
    queue, other = create(messages), create(messages, ordered=True)
    enqueue(messages, queue, *map(str, range(20)))
    for key in range(20):
        enqueue(messages, other, "1", "2", ordering_key=f"k{key}")
    leased = [(queue, each) for each in lease(messages, queue, 20)] + [
        (other, each) for each in lease(messages, other, 40)
    ]

    futures = at_once([partial(ack, messages, name, [each]) for name, each in leased])

    assert [future.result() for future in futures] == [[OK]] * 40
    assert counts(messages, queue) == (0, 0, 0, 0, 0)
    assert counts(messages, other) == (20, 0, 0, 0, 0)
