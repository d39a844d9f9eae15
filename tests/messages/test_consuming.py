"""Consumers on streams: sent what they have credit for, their leases renewed on the way, and no thread while idle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.messages.population import (
    LOST,
    MISSING,
    OK,
    bring_forward,
    counts,
    create,
    enqueue,
    payloads,
    receipts,
    span,
    sql,
    stub,
    unique,
)
from tests.parts import threads
from tests.parts.eventually import eventually
from tests.parts.refusal import read, refused
from tests.parts.serving import Serving

PLENTY = 1 << 20


@pytest.fixture
def messages(serving: Serving) -> MessagesServiceStub:
    return stub(serving)


class Stream:
    """A consumer of the tests: what it says is queued, what it is told is read by whoever asks."""

    def __init__(self, messages: MessagesServiceStub, queue: str, credit: int = 0, **fields: Any) -> None:
        self._said: SimpleQueue[pb.ConsumeMessagesRequest | None] = SimpleQueue()
        self.say(queue=queue, credit_messages=credit, **{"credit_bytes": PLENTY, **fields})
        self.call: Any = messages.ConsumeMessages(iter(self._said.get, None), timeout=60)

    def say(self, **fields: Any) -> None:
        self._said.put(pb.ConsumeMessagesRequest(**fields))

    def finish(self) -> None:
        self._said.put(None)

    def messages(self, count: int) -> list[pb.LeasedMessage]:
        """Return the next messages, at least so many."""
        found: list[pb.LeasedMessage] = []
        while len(found) < count:
            found += next(self.call).messages
        return found

    def outcomes(self) -> list[int]:
        response = next(self.call)
        assert not response.messages
        return list(response.outcomes)


def test_messages_come_as_far_as_the_credit_goes(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, *"abcdef")
    stream = Stream(messages, queue, credit=2)
    assert payloads(stream.messages(2)) == ["a", "b"]
    assert counts(messages, queue) == (4, 0, 2, 0, 0)

    stream.say(credit_messages=3)
    assert payloads(stream.messages(3)) == ["c", "d", "e"]
    assert counts(messages, queue) == (1, 0, 5, 0, 0)
    stream.call.cancel()


def test_credit_in_bytes(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    enqueue(messages, queue, *["x" * 1000] * 5)
    stream = Stream(messages, queue, credit=5, credit_bytes=2000)
    assert len(stream.messages(2)) == 2
    assert counts(messages, queue) == (3, 0, 2, 0, 0)
    stream.say(credit_bytes=PLENTY)
    assert len(stream.messages(3)) == 3
    stream.call.cancel()


def test_what_is_enqueued_later_is_sent_at_once(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    stream = Stream(messages, queue, credit=100)
    for text in ("a", "b", "c"):
        enqueue(messages, queue, text)
        assert payloads(stream.messages(1)) == [text]
    stream.call.cancel()


def test_acks_and_nacks_on_the_stream(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, min_backoff=0)
    enqueue(messages, queue, "a", "b", "c")
    stream = Stream(messages, queue, credit=3)
    a, b, c = stream.messages(3)

    a_nack = pb.Nack(message_id=b.message.id, lease_token=b.lease_token, reason="no")
    wrong = pb.Receipt(message_id=c.message.id, lease_token=a.lease_token.replace(a.lease_token[0], "0", 1))
    if wrong.lease_token == c.lease_token:
        wrong.lease_token = "00000000-0000-4000-8000-000000000000"
    stream.say(acks=[*receipts([a, a]), wrong], nacks=[a_nack])
    assert stream.outcomes() == [OK, OK, LOST, OK]
    stream.say(acks=receipts([a]), credit_messages=1)
    assert stream.outcomes() == [MISSING]
    (again,) = stream.messages(1)
    assert (payloads([again]), again.message.attempts) == (["b"], 2)
    stream.say(acks=receipts([again, c]))
    assert stream.outcomes() == [OK, OK]
    assert counts(messages, queue) == (0, 0, 0, 0, 0)
    stream.finish()
    assert list(stream.call) == []
    assert stream.call.code() == grpc.StatusCode.OK


def test_order_by_key_on_streams(messages: MessagesServiceStub) -> None:
    queue = create(messages, ordered=True)
    numbers = [str(number) for number in range(20)]
    enqueue(messages, queue, *numbers, ordering_key="k")
    streams = [Stream(messages, queue, credit=100) for _ in range(2)]
    seen: list[str] = []
    lock = threading.Lock()

    def consume(stream: Stream) -> None:
        try:
            for response in stream.call:
                with lock:
                    seen.extend(payloads(response.messages))
                if response.messages:
                    stream.say(acks=receipts(response.messages))
        except grpc.RpcError:
            pass

    threads = [threading.Thread(target=consume, args=[stream]) for stream in streams]
    for thread in threads:
        thread.start()
    eventually(lambda: counts(messages, queue) == (0, 0, 0, 0, 0), 20, lambda: seen)
    for stream in streams:
        stream.call.cancel()
    for thread in threads:
        thread.join(10)
    assert seen == numbers


def test_leases_of_what_is_on_its_way_are_renewed(serving: Serving, messages: MessagesServiceStub) -> None:
    """A reader who does not read: what waits for it in the server keeps its lease, and comes back when it leaves."""
    queue = create(messages)
    for _ in range(8):
        enqueue(messages, queue, *["x" * 250_000] * 12)
    stream = Stream(messages, queue, credit=100, credit_bytes=64 << 20, lease_duration=span(1))
    eventually(lambda: counts(messages, queue)[2] > 1, 10)

    query = "SELECT max(due_time), now() FROM messages.message JOIN messages.queue USING (bin) WHERE name = %s"
    ((first, _),) = sql(serving, query, [queue])

    def renewed() -> bool:
        ((due, now),) = sql(serving, query, [queue])
        return bool((due - first).total_seconds() > 2 and due > now)

    eventually(renewed, 20)
    stream.call.cancel()
    # What was with the caller comes back when its lease has run out, what was not sent at once.
    eventually(lambda: counts(messages, queue)[0] > 0, 10)
    bring_forward(serving, queue)


def test_an_idle_stream_holds_no_thread(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages)
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(serving.server.grpc_address, options) as channel:
        bearer = (("authorization", f"Bearer {serving.tokens['operator']}"),)
        consume = MessagesServiceStub(channel).ConsumeMessages
        before = threads.held()
        calls = []
        for _ in range(100):
            request = pb.ConsumeMessagesRequest(queue=queue, credit_messages=1, credit_bytes=PLENTY)
            calls.append(consume(_endless(request), metadata=bearer))
        line = serving.server._overload._occupied["messages", "push"]
        eventually(lambda: line.count >= 100, 20, lambda: line.count)
        enqueue(messages, queue, *map(str, range(100)))
        assert sorted(int(next(call).messages[0].message.payload) for call in calls) == list(range(100))
        assert threads.held() < before + threads.FEW
        for call in calls:
            call.cancel()


def _endless(request: pb.ConsumeMessagesRequest) -> Iterator[pb.ConsumeMessagesRequest]:
    yield request
    threading.Event().wait(30)


@pytest.mark.parametrize(
    ("first", "second", "field"),
    [
        (pb.ConsumeMessagesRequest(credit_messages=1), None, "queue"),
        (pb.ConsumeMessagesRequest(credit_messages=-1), None, "credit_messages"),
        (pb.ConsumeMessagesRequest(credit_bytes=1 << 30), None, "credit_bytes"),
        (pb.ConsumeMessagesRequest(lease_duration=span(0)), None, "lease_duration"),
        (pb.ConsumeMessagesRequest(), pb.ConsumeMessagesRequest(queue="another"), "queue"),
        (
            pb.ConsumeMessagesRequest(),
            pb.ConsumeMessagesRequest(acks=[pb.Receipt(message_id="x", lease_token="y")]),
            "acks[0].message_id",
        ),
    ],
)
def test_bad_input_ends_the_stream_with_its_path(
    messages: MessagesServiceStub,
    first: pb.ConsumeMessagesRequest,
    second: pb.ConsumeMessagesRequest | None,
    field: str,
) -> None:
    queue = create(messages)
    said = [first]
    if field != "queue" or second is not None:
        first.queue = queue
    if second is not None:
        said.append(second)

    found = refused(lambda: list(messages.ConsumeMessages(iter(said), timeout=20)))

    assert found.code == "INVALID_ARGUMENT"
    assert field in found.fields


def test_a_deleted_queue_ends_the_stream(messages: MessagesServiceStub) -> None:
    queue = create(messages)
    stream = Stream(messages, queue, credit=1)
    enqueue(messages, queue, "a")
    stream.messages(1)

    messages.DeleteQueue(pb.DeleteQueueRequest(queue=queue))
    stream.say(credit_messages=1)

    with pytest.raises(grpc.RpcError) as caught:
        next(stream.call)
    assert read(caught.value).reason == "QUEUE_NOT_FOUND"
    assert refused(lambda: next(Stream(messages, unique()).call)).reason == "QUEUE_NOT_FOUND"


def test_a_stop_tells_consumers(fresh_serving: Serving) -> None:
    messages = stub(fresh_serving)
    queue = create(messages)
    stream = Stream(messages, queue, credit=1)
    enqueue(messages, queue, "a")
    stream.messages(1)
    stopping = threading.Thread(target=fresh_serving.server.stop)
    stopping.start()

    with pytest.raises(grpc.RpcError) as caught:
        next(stream.call)
    assert read(caught.value).reason == "SHUTTING_DOWN"
    stopping.join(20)
