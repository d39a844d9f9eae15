"""Calls that wait for messages: woken at once, answered in time, and without a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.messages.population import (
    bring_forward,
    counts,
    create,
    enqueue,
    lease,
    nack,
    payloads,
    span,
    sql,
    stub,
)
from tests.parts import threads
from tests.parts.eventually import eventually
from tests.parts.refusal import read
from tests.parts.serving import Serving


@pytest.fixture
def messages(serving: Serving) -> MessagesServiceStub:
    return stub(serving)


def waits(messages: MessagesServiceStub, queue: str, seconds: float = 30, **fields: Any) -> Any:
    request = pb.LeaseMessagesRequest(queue=queue, wait=span(seconds), **fields)
    return messages.LeaseMessages.future(request, timeout=60)


def waiting(serving: Serving) -> int:
    """How many calls of this server wait for messages."""
    occupied = serving.server._overload._occupied.get(("messages", "push"))
    return occupied.count if occupied else 0


def test_whoever_waits_gets_what_comes(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    call = waits(messages, queue, max_messages=10)
    eventually(lambda: waiting(serving) == 1)

    enqueue(messages, queue, "a")

    assert payloads(call.result().messages) == ["a"]
    assert waiting(serving) == 0


def test_an_empty_answer_when_nothing_comes(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    began = time.monotonic()

    assert list(waits(messages, queue, 0.3).result().messages) == []

    assert 0.25 < time.monotonic() - began < 5
    # And in time for the deadline of the call, whatever it would have waited.
    request = pb.LeaseMessagesRequest(queue=queue, wait=span(30))
    assert list(messages.LeaseMessages(request, timeout=0.5).messages) == []


def test_what_becomes_ready_otherwise_wakes_too(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    ordered = create(messages, ordered=True)
    enqueue(messages, queue, "back")
    leased = lease(messages, queue)
    call = waits(messages, queue)
    eventually(lambda: waiting(serving) == 1)
    nack(messages, queue, leased, delay=span(0))
    assert payloads(call.result().messages) == ["back"]

    enqueue(messages, ordered, "1", "2", ordering_key="k")
    first = lease(messages, ordered)
    call = waits(messages, ordered)
    eventually(lambda: waiting(serving) == 1)
    nack(messages, ordered, first, dead_letter=True)
    assert payloads(call.result().messages) == ["2"]


def test_a_delay_that_is_over_wakes(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "soon", delay=span(0.3))
    began = time.monotonic()

    assert payloads(waits(messages, queue).result().messages) == ["soon"]

    assert time.monotonic() - began < 3
    enqueue(messages, queue, "later", delay=span(3600))
    call = waits(messages, queue)
    eventually(lambda: waiting(serving) == 1)
    bring_forward(serving, queue)
    assert sorted(payloads(call.result().messages))


def test_what_another_process_enqueues_is_noticed(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, "a")
    (leased,) = lease(messages, queue)
    call = waits(messages, queue)
    eventually(lambda: waiting(serving) == 1)

    # As another server would: behind this one's back, with a notification or without.
    sql(
        serving,
        "UPDATE messages.message SET state = 0, due_time = NULL, lease_token = NULL,"
        " position = pg_current_xact_id()::text::bigint << 16 WHERE id = %s",
        [leased.message.id],
    )

    assert payloads(call.result().messages) == ["a"]


def test_waiting_callers_share_what_comes(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    calls = [waits(messages, queue, max_messages=2) for _ in range(5)]
    eventually(lambda: waiting(serving) == 5)

    enqueue(messages, queue, *map(str, range(10)))

    got = [payloads(call.result().messages) for call in calls]
    assert sorted(int(each) for part in got for each in part) == list(range(10))
    assert [len(part) for part in got] == [2] * 5


def test_a_caller_who_leaves_is_forgotten(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    first, second = waits(messages, queue), waits(messages, queue)
    eventually(lambda: waiting(serving) == 2)

    first.cancel()
    eventually(lambda: waiting(serving) == 1)
    enqueue(messages, queue, "a")

    assert payloads(second.result().messages) == ["a"]
    eventually(lambda: serving.server._overload.running()["messages"] == 0)


def test_a_purge_and_a_deletion_reach_who_waits(serving: Serving, messages: MessagesServiceStub) -> None:
    queue, deleted = create(messages), create(messages)
    call, lost = waits(messages, queue), waits(messages, deleted)
    eventually(lambda: waiting(serving) == 2)
    messages.PurgeQueue(pb.PurgeQueueRequest(queue=queue, messages=True))
    messages.DeleteQueue(pb.DeleteQueueRequest(queue=deleted))

    enqueue(messages, queue, "after")

    assert payloads(call.result().messages) == ["after"]
    assert read(lost.exception()).reason == "QUEUE_NOT_FOUND"


@pytest.fixture
def crowd(serving: Serving) -> Iterator[list[MessagesServiceStub]]:
    """Stubs on connections of their own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.insecure_channel(serving.server.grpc_address, options) for _ in range(4)]
    bearer = (("authorization", f"Bearer {serving.tokens['operator']}"),)
    yield [MessagesServiceStub(grpc.intercept_channel(channel, _Bearer(bearer))) for channel in channels]
    for channel in channels:
        channel.close()


class _Bearer(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, bearer: Any) -> None:
        self._bearer = bearer

    def intercept_unary_unary(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(client_call_details._replace(metadata=self._bearer), request)


def test_a_thousand_who_wait_hold_no_thread(
    serving: Serving, messages: MessagesServiceStub, crowd: list[MessagesServiceStub]
) -> None:
    queue, other = create(messages), create(messages)
    # The clients' own threads are there.
    calls = [waits(each, queue, 60) for each in crowd]
    eventually(lambda: waiting(serving) == 4)
    before = threads.held()

    # Not all at once: a call takes up room of the domain until it has found that there is nothing.
    while len(calls) < 1000:
        calls += [waits(crowd[number % 4], queue, 60) for number in range(min(100, 1000 - len(calls)))]
        eventually(lambda: waiting(serving) == len(calls), 30, lambda: waiting(serving))  # noqa: B023
    assert threads.held() < before + threads.FEW
    # Nor the room of calls that run.
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda n: enqueue(messages, other, str(n)), range(100)))) == 100
    enqueue(messages, queue, *map(str, range(1000)))
    assert sorted(int(call.result().messages[0].message.payload) for call in calls) == list(range(1000))
    assert counts(messages, queue) == (0, 0, 1000, 0, 0)


def test_a_stop_answers_who_waits(fresh_serving: Serving) -> None:
    messages = stub(fresh_serving)
    queue = create(messages)
    call = waits(messages, queue)
    eventually(lambda: waiting(fresh_serving) == 1)
    server = fresh_serving.server
    stopping = threading.Thread(target=server.stop)
    began = time.monotonic()
    stopping.start()

    assert list(call.result().messages) == []

    stopping.join(20)
    assert time.monotonic() - began < 8
