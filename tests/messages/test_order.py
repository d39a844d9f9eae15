"""Messages of one key: one in flight at a time, in the order of their enqueues, whatever becomes of the one before."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from tests.messages.population import (
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
    span,
    sql,
    stub,
)
from tests.parts.eventually import eventually
from tests.parts.serving import Serving


@pytest.fixture
def messages(serving: Serving) -> MessagesServiceStub:
    return stub(serving)


@pytest.fixture
def queue(messages: MessagesServiceStub) -> str:
    return create(messages, ordered=True, min_backoff=0, max_backoff=0)


def test_one_of_each_key_is_in_flight(messages: MessagesServiceStub, queue: str) -> None:
    enqueue(messages, queue, "a1", "a2", ordering_key="a")
    enqueue(messages, queue, "b1", "b2", ordering_key="b")
    enqueue(messages, queue, "free1", "free2")
    assert counts(messages, queue) == (4, 0, 0, 2, 0)

    first = lease(messages, queue)
    assert payloads(first) == ["a1", "b1", "free1", "free2"]
    assert lease(messages, queue) == []
    ack(messages, queue, first[:1])
    assert payloads(lease(messages, queue)) == ["a2"]
    ack(messages, queue, first[1:])
    assert payloads(lease(messages, queue)) == ["b2"]


def test_a_nack_keeps_the_place(messages: MessagesServiceStub, queue: str) -> None:
    enqueue(messages, queue, "1", "2", "3", ordering_key="k")
    for _ in range(3):
        leased = lease(messages, queue)
        assert payloads(leased) == ["1"]
        nack(messages, queue, leased)
    # Also while it waits.
    nack(messages, queue, lease(messages, queue), delay=span(60))
    assert lease(messages, queue) == []
    assert counts(messages, queue) == (0, 1, 0, 2, 0)


def test_a_lease_that_runs_out_keeps_the_place(serving: Serving, messages: MessagesServiceStub, queue: str) -> None:
    enqueue(messages, queue, "1", "2", ordering_key="k")
    (late,) = lease(messages, queue)
    bring_forward(serving, queue)
    (now,) = lease(messages, queue)
    assert payloads([now]) == ["1"]

    ack(messages, queue, [late])
    assert lease(messages, queue) == []
    assert ack(messages, queue, [now]) == [OK]
    assert payloads(lease(messages, queue)) == ["2"]


def test_the_next_follows_a_dead_letter_and_a_replay_goes_to_the_end(messages: MessagesServiceStub, queue: str) -> None:
    enqueue(messages, queue, "1", "2", "3", ordering_key="k")
    nack(messages, queue, lease(messages, queue), dead_letter=True)
    second = lease(messages, queue)
    assert payloads(second) == ["2"]

    (dead,) = dead_letters(messages, queue)
    assert dead.message.ordering_key == "k"
    messages.ReplayDeadLetters(pb.ReplayDeadLettersRequest(queue=queue))

    seen = []
    while second:
        seen += payloads(second)
        ack(messages, queue, second)
        second = lease(messages, queue)
    assert seen == ["2", "3", "1"]


def test_the_next_follows_a_death_by_expired_leases(serving: Serving, messages: MessagesServiceStub) -> None:
    queue = create(messages, ordered=True, max_attempts=1)
    enqueue(messages, queue, "1", "2", ordering_key="k")
    lease(messages, queue)
    bring_forward(serving, queue)

    # In the background, within some seconds.
    eventually(lambda: counts(messages, queue) == (1, 0, 0, 0, 1), 15, lambda: counts(messages, queue))
    assert payloads(lease(messages, queue)) == ["2"]


def test_the_next_follows_one_past_its_time_to_live(
    serving: Serving, messages: MessagesServiceStub, queue: str
) -> None:
    ids = enqueue(messages, queue, "1", ordering_key="k", time_to_live=span(60))
    enqueue(messages, queue, "2", ordering_key="k")
    sql(serving, "UPDATE messages.message SET expire_time = now() WHERE id = %s", ids)

    eventually(lambda: counts(messages, queue) == (1, 0, 0, 0, 0), 15, lambda: counts(messages, queue))
    assert payloads(lease(messages, queue)) == ["2"]


def test_the_next_follows_one_that_was_cancelled(messages: MessagesServiceStub, queue: str) -> None:
    ids = enqueue(messages, queue, "1", "2", "3", "4", "5", ordering_key="k")

    def cancel(*which: str) -> None:
        messages.CancelMessages(pb.CancelMessagesRequest(queue=queue, message_ids=which))

    cancel(ids[2])
    assert counts(messages, queue) == (1, 0, 0, 3, 0)
    cancel(ids[0], ids[3])
    assert payloads(lease(messages, queue)) == ["2"]
    assert counts(messages, queue) == (0, 0, 1, 1, 0)


def test_a_delay_holds_up_those_behind(serving: Serving, messages: MessagesServiceStub, queue: str) -> None:
    enqueue(messages, queue, "1", ordering_key="k")
    enqueue(messages, queue, "2", ordering_key="k", delay=span(60))
    enqueue(messages, queue, "3", ordering_key="k")
    ack(messages, queue, lease(messages, queue))
    assert counts(messages, queue) == (0, 1, 0, 1, 0)
    assert lease(messages, queue) == []

    bring_forward(serving, queue)

    assert payloads(lease(messages, queue)) == ["2"]


def test_two_producers_and_several_consumers_keep_the_order(messages: MessagesServiceStub, queue: str) -> None:
    """Each enqueue begins when the one before it was answered, by whichever producer; consumers also give back."""
    keys, each = 4, 40
    seen: dict[str, list[int]] = {f"k{number}": [] for number in range(keys)}
    turns = {key: threading.Lock() for key in seen}
    next_number = dict.fromkeys(seen, 0)
    done = threading.Event()
    flights: set[str] = set()

    def produce(seed: int) -> None:
        chance = random.Random(seed)
        while open_keys := [key for key in seen if next_number[key] < each]:
            key = chance.choice(open_keys)
            with turns[key]:
                if next_number[key] < each:
                    count = min(chance.randint(1, 3), each - next_number[key])
                    numbers = range(next_number[key], next_number[key] + count)
                    enqueue(messages, queue, *map(str, numbers), ordering_key=key)
                    next_number[key] += count

    def consume(seed: int) -> None:
        chance = random.Random(seed)
        while not done.is_set():
            for leased in lease(messages, queue, 3, wait=span(0.2)):
                key = leased.message.ordering_key
                assert key not in flights
                flights.add(key)
                number = int(leased.message.payload)
                flights.discard(key)
                if chance.random() < 0.2:
                    nack(messages, queue, [leased])
                    continue
                seen[key].append(number)
                assert ack(messages, queue, [leased]) == [OK]
            if sum(map(len, seen.values())) == keys * each:
                done.set()

    with ThreadPoolExecutor(5) as threads:
        jobs = [threads.submit(produce, seed) for seed in range(2)]
        jobs += [threads.submit(consume, seed) for seed in range(3)]
        for job in jobs:
            job.result(60)

    assert seen == {key: list(range(each)) for key in seen}
    assert counts(messages, queue) == (0, 0, 0, 0, 0)
