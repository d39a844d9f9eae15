"""Messages through the whole server: enqueued, leased, acknowledged, given back, extended, cancelled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.messages.population import (
    LOST,
    MISSING,
    OK,
    ack,
    bring_forward,
    counts,
    create,
    dead_letters,
    enqueue,
    extend,
    lease,
    nack,
    payloads,
    span,
    sql,
    stats,
    stored,
    stub,
)
from tests.parts.serving import Serving


@pytest.fixture
def messages(serving: Serving) -> MessagesServiceStub:
    return stub(serving)


def test_a_message_comes_back_as_it_was(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    (message_id,) = enqueue(messages, queue, "hello", headers={"kind": "greeting", "to": "Ann ☃"}, priority=3)

    (leased,) = lease(messages, queue)

    assert leased.message.id == message_id
    assert leased.message.payload == b"hello"
    assert dict(leased.message.headers) == {"kind": "greeting", "to": "Ann ☃"}
    assert (leased.message.priority, leased.message.attempts) == (3, 1)
    assert not leased.message.HasField("expire_time")
    assert leased.message.enqueue_time.ToDatetime(UTC) < leased.lease_expire_time.ToDatetime(UTC)
    assert ack(messages, queue, [leased]) == [OK]
    assert counts(messages, queue) == (0, 0, 0, 0, 0)
    assert lease(messages, queue) == []


def test_payloads_are_sealed_in_the_database(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "needle in a haystack")

    ((payload,),) = sql(
        serving,
        "SELECT payload FROM messages.message WHERE bin = (SELECT bin FROM messages.queue WHERE name = %s)",
        [queue],
    )

    assert b"needle" not in payload
    assert payloads(lease(messages, queue)) == ["needle in a haystack"]


def test_in_the_order_of_the_enqueue_and_higher_priority_first(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "a", "b")
    enqueue(messages, queue, "c")
    enqueue(messages, queue, "high", priority=9)
    enqueue(messages, queue, "middle", "middle2", priority=5)

    assert payloads(lease(messages, queue, 4)) == ["high", "middle", "middle2", "a"]
    assert payloads(lease(messages, queue, 4)) == ["b", "c"]


def test_a_leased_message_is_nobody_elses(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, *"abcdef")

    first, second = lease(messages, queue, 4), lease(messages, queue, 4)

    assert payloads(first) == list("abcd")
    assert payloads(second) == list("ef")
    assert lease(messages, queue) == []


def test_a_late_ack_changes_nothing_when_another_took_over(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "job")
    (late,) = lease(messages, queue)
    bring_forward(serving, queue)
    (now,) = lease(messages, queue)
    assert now.message.id == late.message.id
    assert now.lease_token != late.lease_token

    assert ack(messages, queue, [late]) == [LOST]
    assert nack(messages, queue, [late]) == [LOST]
    assert list(extend(messages, queue, [late], 60).outcomes) == [LOST]

    assert counts(messages, queue) == (0, 0, 1, 0, 0)
    assert list(extend(messages, queue, [now], 60).outcomes) == [OK]
    assert ack(messages, queue, [now]) == [OK]
    assert ack(messages, queue, [late]) == [MISSING]
    assert stored(serving, queue) == 0


def test_a_lost_lease_of_a_message_that_is_ready_again(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "job")
    (late,) = lease(messages, queue)
    assert nack(messages, queue, [late], delay=span(0)) == [OK]

    assert ack(messages, queue, [late]) == [LOST]
    assert counts(messages, queue) == (1, 0, 0, 0, 0)


def test_a_lease_that_ran_out_unnoticed_still_holds(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "job")
    (late,) = lease(messages, queue)
    sql(serving, "UPDATE messages.message SET due_time = now() WHERE id = %s", [late.message.id])

    # Either it was noticed in the background meanwhile, or the work counts.
    assert ack(messages, queue, [late]) in ([OK], [LOST])


def test_extending_moves_the_end_of_a_lease(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, lease_duration=5)
    enqueue(messages, queue, "job")
    (leased,) = lease(messages, queue)

    answer = extend(messages, queue, [leased], 3600)

    until = answer.lease_expire_time.ToDatetime(UTC) - leased.lease_expire_time.ToDatetime(UTC)
    assert timedelta(minutes=59) < until < timedelta(minutes=61)
    ((due,),) = sql(serving, "SELECT due_time FROM messages.message WHERE id = %s", [leased.message.id])
    assert due == answer.lease_expire_time.ToDatetime(UTC)


def test_each_receipt_has_an_outcome_of_its_own(messages: MessagesServiceStub) -> None:
    queue, other = create(messages), create(messages)
    enqueue(messages, queue, "a", "b")
    enqueue(messages, other, "c")
    first, second = lease(messages, queue)
    (foreign,) = lease(messages, other)
    wrong = pb.LeasedMessage(message=second.message, lease_token=foreign.lease_token)

    assert ack(messages, queue, [first, wrong, foreign, first]) == [OK, LOST, MISSING, OK]
    assert counts(messages, queue) == (0, 0, 1, 0, 0)
    assert counts(messages, other) == (0, 0, 1, 0, 0)


def test_nack_waits_by_the_backoff_and_keeps_history(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, min_backoff=100, max_backoff=250)
    enqueue(messages, queue, "job")
    waits = []
    for attempt in range(1, 5):
        (leased,) = lease(messages, queue)
        assert leased.message.attempts == attempt
        assert [failure.attempt for failure in leased.message.failures] == list(range(1, attempt))
        assert nack(messages, queue, [leased], reason=f"no {attempt}") == [OK]
        ((wait,),) = sql(
            serving,
            "SELECT round(extract(epoch FROM due_time - now())) FROM messages.message WHERE id = %s",
            [leased.message.id],
        )
        waits.append(int(wait))
        bring_forward(serving, queue)

    assert [round(wait, -1) for wait in waits] == [100, 200, 250, 250]
    (leased,) = lease(messages, queue)
    assert [failure.reason for failure in leased.message.failures] == ["no 1", "no 2", "no 3", "no 4"]
    assert {failure.kind for failure in leased.message.failures} == {pb.FAILURE_KIND_NACKED}


def test_the_last_attempt_makes_a_dead_letter_with_its_history(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, max_attempts=2, min_backoff=0)
    (message_id,) = enqueue(messages, queue, "job", headers={"a": "b"}, priority=2)
    lease(messages, queue)
    bring_forward(serving, queue)
    (leased,) = lease(messages, queue)

    assert nack(messages, queue, [leased], reason="broken") == [OK]

    assert counts(messages, queue) == (0, 0, 0, 0, 1)
    (dead,) = dead_letters(messages, queue)
    assert (dead.message.id, dead.message.payload, dict(dead.message.headers)) == (message_id, b"job", {"a": "b"})
    assert dead.cause == pb.DEATH_CAUSE_ATTEMPTS_USED_UP
    assert [(failure.kind, failure.reason) for failure in dead.message.failures] == [
        (pb.FAILURE_KIND_LEASE_EXPIRED, ""),
        (pb.FAILURE_KIND_NACKED, "broken"),
    ]
    assert ack(messages, queue, [leased]) == [LOST]


def test_a_rejected_message_is_dead_at_once_and_may_be_replayed(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    ids = enqueue(messages, queue, "a", "b", "c")
    nack(messages, queue, lease(messages, queue), reason="bad", dead_letter=True)
    assert counts(messages, queue) == (0, 0, 0, 0, 3)
    assert {dead.cause for dead in dead_letters(messages, queue)} == {pb.DEATH_CAUSE_REJECTED}

    request = pb.ReplayDeadLettersRequest(queue=queue, message_ids=[ids[1]])
    assert list(messages.ReplayDeadLetters(request).message_ids) == [ids[1]]
    assert list(messages.ReplayDeadLetters(request).message_ids) == []
    rest = messages.ReplayDeadLetters(pb.ReplayDeadLettersRequest(queue=queue)).message_ids
    assert sorted(rest) == sorted([ids[0], ids[2]])

    assert counts(messages, queue) == (3, 0, 0, 0, 0)
    leased = lease(messages, queue)
    assert payloads(leased)[0] == "b"
    assert [(each.message.attempts, each.message.failures[0].reason) for each in leased] == [(1, "bad")] * 3


def test_messages_go_to_the_dead_letter_queue(messages: MessagesServiceStub) -> None:
    graves = create(messages)
    queue = create(messages, dead_letter_queue=graves, max_attempts=1)
    (message_id,) = enqueue(messages, queue, "job")

    nack(messages, queue, lease(messages, queue), reason="broken")

    assert counts(messages, queue) == (0, 0, 0, 0, 0)
    (found,) = lease(messages, graves)
    assert (found.message.id, found.message.payload, found.message.attempts) == (message_id, b"job", 1)
    assert [failure.reason for failure in found.message.failures] == ["broken"]


def test_a_dead_letter_queue_that_was_deleted_loses_nothing(messages: MessagesServiceStub) -> None:
    graves = create(messages)
    queue = create(messages, dead_letter_queue=graves, max_attempts=1)
    enqueue(messages, queue, "job")
    messages.DeleteQueue(pb.DeleteQueueRequest(queue=graves))

    nack(messages, queue, lease(messages, queue))

    assert counts(messages, queue) == (0, 0, 0, 0, 1)


def test_delayed_messages_come_when_they_are_due(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    later = datetime.now(UTC) + timedelta(hours=1)
    enqueue(messages, queue, "delay", delay=span(1800))
    enqueue(messages, queue, "due", due_time=later)
    enqueue(messages, queue, "past", due_time=later - timedelta(days=1))
    enqueue(messages, queue, "now", delay=span(0))
    assert payloads(lease(messages, queue)) == ["past", "now"]
    assert counts(messages, queue) == (0, 2, 2, 0, 0)
    assert lease(messages, queue) == []

    bring_forward(serving, queue)

    assert sorted(payloads(lease(messages, queue))) == ["delay", "due", "now", "past"]


def test_duplicates_within_the_window_are_not_stored(serving: Serving, messages: MessagesServiceStub) -> None:
    queue, other = create(messages), create(messages)

    def send(name: str, *keys: str) -> list[tuple[str, bool]]:
        items = [pb.Message(payload=b"x", deduplication_key=key) for key in keys]
        results = messages.EnqueueMessages(pb.EnqueueMessagesRequest(queue=name, messages=items)).results
        return [(result.message_id, result.duplicate) for result in results]

    first = send(queue, "one", "two", "one", "")
    assert [duplicate for _, duplicate in first] == [False, False, True, False]
    assert first[2][0] == first[0][0]
    again = send(queue, "two", "three")
    assert again[0] == (first[1][0], True)
    assert not again[1][1]
    assert send(other, "one")[0][1] is False
    assert counts(messages, queue)[0] == 4
    # Also when the message is gone, but not when the window is over.
    ack(messages, queue, lease(messages, queue))
    assert send(queue, "one") == [(first[0][0], True)]
    sql(serving, "UPDATE messages.deduplication SET expire_time = now() WHERE key = 'one'")
    assert send(queue, "one")[0][1] is False


def test_what_is_past_its_time_to_live_is_not_delivered(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    ids = enqueue(messages, queue, "short", time_to_live=span(60))
    enqueue(messages, queue, "long")
    sql(serving, "UPDATE messages.message SET expire_time = now() WHERE id = %s", ids)

    assert payloads(lease(messages, queue)) == ["long"]


def test_as_many_bytes_as_asked_for_and_one_message_at_least(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, *["x" * 1000] * 5)

    assert len(lease(messages, queue, 5, max_bytes=1)) == 1
    assert len(lease(messages, queue, 5, max_bytes=2000)) == 2
    assert len(lease(messages, queue, 5)) == 2


def test_cancelling_leaves_leased_messages_alone(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    (leased,) = enqueue(messages, queue, "leased")
    lease(messages, queue)
    (ready,) = enqueue(messages, queue, "ready")
    (delayed,) = enqueue(messages, queue, "delayed", delay=span(60))
    missing = "01a21492-9629-721a-b1ac-538593b3c714"
    request = pb.CancelMessagesRequest(queue=queue, message_ids=[leased, ready, missing, delayed])

    assert list(messages.CancelMessages(request).cancellations) == [
        pb.CANCELLATION_LEASED,
        pb.CANCELLATION_CANCELLED,
        pb.CANCELLATION_NOT_FOUND,
        pb.CANCELLATION_CANCELLED,
    ]
    assert counts(messages, queue) == (0, 0, 1, 0, 0)


def test_peeking_leases_nothing_and_has_pages(messages: MessagesServiceStub) -> None:
    queue = create(messages, ordered=True)
    enqueue(messages, queue, "a", "b", "c")
    enqueue(messages, queue, "d", priority=9)
    enqueue(messages, queue, "e", "f", delay=span(60))
    enqueue(messages, queue, "k1", "k2", "k3", ordering_key="k")

    def peek(state: pb.MessageState.ValueType) -> list[str]:
        found, token = [], ""
        while True:
            request = pb.PeekMessagesRequest(queue=queue, state=state, page_size=2, page_token=token)
            page = messages.PeekMessages(request)
            found += [message.payload.decode() for message in page.messages]
            token = page.next_page_token
            if not token:
                return found

    assert peek(pb.MESSAGE_STATE_UNSPECIFIED) == ["d", "a", "b", "c", "k1"]
    assert sorted(peek(pb.MESSAGE_STATE_DELAYED)) == ["e", "f"]
    assert peek(pb.MESSAGE_STATE_BLOCKED) == ["k2", "k3"]
    assert peek(pb.MESSAGE_STATE_LEASED) == []
    lease(messages, queue, 1)
    assert peek(pb.MESSAGE_STATE_LEASED) == ["d"]
    assert counts(messages, queue) == (4, 2, 1, 2, 0)


def test_counts_are_those_of_the_rows(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, *"abcdefgh")
    leased = lease(messages, queue, 5)
    ack(messages, queue, leased[:2])
    nack(messages, queue, leased[2:4])

    found = stats(messages, queue)

    assert (found.ready, found.delayed, found.leased) == (3, 2, 1)
    assert (found.enqueued_total, found.leased_total, found.acked_total) == (8, 5, 2)
    assert found.HasField("oldest_ready_enqueue_time")


def test_pages_have_a_bound_in_bytes(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    numbers = [str(number) for number in range(12)]
    for number in numbers:
        enqueue(messages, queue, "x" * 250_000, headers={"n": number})

    def pages(call: Callable[[str], Any], field: str) -> list[list[str]]:
        found: list[list[str]] = []
        token = ""
        while True:
            page = call(token)
            items = [getattr(item, "message", item) for item in getattr(page, field)]
            assert all(len(item.payload) == 250_000 for item in items)
            found.append([item.headers["n"] for item in items])
            token = page.next_page_token
            if not token:
                return found

    peeked = pages(
        lambda token: messages.PeekMessages(pb.PeekMessagesRequest(queue=queue, page_token=token)), "messages"
    )
    assert [number for page in peeked for number in page] == numbers
    assert max(map(len, peeked)) == 5
    while leased := lease(messages, queue, 12, max_bytes=1 << 21):
        nack(messages, queue, leased, dead_letter=True)
    dead = pages(
        lambda token: messages.ListDeadLetters(pb.ListDeadLettersRequest(queue=queue, page_token=token)),
        "dead_letters",
    )
    assert sorted((number for page in dead for number in page), key=int) == numbers
    assert max(map(len, dead)) == 5


def test_a_stale_token_beside_the_right_one_is_lost(serving: Serving, messages: MessagesServiceStub) -> None:
    """In one statement, as when calls that come together share one."""
    for ordered in (False, True):
        queue = create(messages, ordered=ordered, min_backoff=0)
        enqueue(messages, queue, "job")
        (late,) = lease(messages, queue)
        bring_forward(serving, queue)
        (now,) = lease(messages, queue)

        assert list(extend(messages, queue, [late, now, late], 60).outcomes) == [LOST, OK, LOST]
        assert nack(messages, queue, [late, now, late]) == [LOST, OK, LOST]
        (again,) = lease(messages, queue)
        assert nack(messages, queue, [now, again, late], dead_letter=True) == [LOST, OK, LOST]
        messages.ReplayDeadLetters(pb.ReplayDeadLettersRequest(queue=queue))
        (last,) = lease(messages, queue)
        assert ack(messages, queue, [late, last, again]) == [LOST, OK, LOST]
