"""Every message is accounted for: producers and consumers that fail, servers and PostgreSQL killed with -9 at random.

Each message has a tag. Whatever a caller does not get to know it asks again, under the same `request_id`. In the end
every message was acknowledged once, none was delivered after that was answered, and those of one key came in order.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.messages.population import receipts, span
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet
from tests.parts.watching import SOAK

PRODUCERS, CONSUMERS = 4, 8
MESSAGES = 200_000 if SOAK else 1_200
KEYS = 400 if SOAK else 40
LIMIT = 3600.0 if SOAK else 90.0
ROUNDS = 1 if SOAK else 5
QUEUE = "ledger"
LEASE = 2.0  # seconds
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))
# What is answered while something is away, or nobody knows.
PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}


@dataclass
class Delivery:
    """When the call for it began, when its answer was there, and until when the lease was surely the consumer's."""

    began: float
    answered: float
    until: float


@dataclass
class Entry:
    """What is known of one message; times by time.monotonic()."""

    enqueued: bool = False
    deliveries: list[Delivery] = field(default_factory=list)
    # Of each acknowledgement that was answered OK: when it was first asked for, and when the answer was there.
    acks: list[tuple[float, float]] = field(default_factory=list)


class Ledger:
    """All messages, by key and number."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, int], Entry] = {}
        self.lock = threading.Lock()
        self.unknown = 0

    def open(self, tags: Sequence[tuple[str, int]]) -> None:
        with self.lock:
            for tag in tags:
                self.entries[tag] = Entry()

    @property
    def acked(self) -> int:
        with self.lock:
            return sum(bool(entry.acks) for entry in self.entries.values())

    def check(self) -> None:
        """Fail where a promise was broken."""
        by_key: dict[str, list[Entry]] = {}
        for (key, number), entry in sorted(self.entries.items()):
            assert entry.enqueued
            assert len(entry.acks) == 1, (key, number, "was acknowledged once")
            _, answered = entry.acks[0]
            late = [delivery for delivery in entry.deliveries if delivery.began > answered]
            assert not late, (key, number, "was delivered after its acknowledgement was answered")
            by_key.setdefault(key, []).append(entry)
        for key, entries in by_key.items():
            for number, (before, after) in enumerate(pairwise(entries)):
                first = min(delivery.answered for delivery in after.deliveries)
                asked, _ = before.acks[0]
                assert asked < first, (key, number + 1, "came before the one before it was acknowledged")
                again = [delivery for delivery in before.deliveries if delivery.began > first]
                assert not again, (key, number, "came again after the one behind it")
                both = [delivery for delivery in before.deliveries if delivery.answered < first < delivery.until]
                assert not both, (key, number, "was in flight together with the one behind it")


class Caller:
    """A caller with a connection of its own, who asks until somebody answers."""

    def __init__(self, fleet: Fleet, ledger: Ledger, seed: int, stop: threading.Event) -> None:
        self.ledger = ledger
        self.chance = random.Random(seed)
        self.stop = stop
        self._bearer = fleet.bearer
        self._channel = grpc.insecure_channel(fleet.settings.grpc_listen, OPTIONS)
        self.messages = MessagesServiceStub(self._channel)

    def ask(self, method: Callable[..., Any], request: Any) -> Any:
        """Return the answer, however long it takes; a write carries the same request_id each time."""
        while True:
            try:
                return method(request, metadata=self._bearer, timeout=10, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() not in PASSING:  # type: ignore[attr-defined]  # not in the stubs
                    raise
                with self.ledger.lock:
                    self.ledger.unknown += 1
                self.stop.wait(0.02)

    def close(self) -> None:
        self._channel.close()


class Producer(Caller):
    """Enqueues the messages of its own keys, each key's in order, some at a time."""

    def run(self, keys: Sequence[str], each: int) -> None:
        sent = dict.fromkeys(keys, 0)
        while open_keys := [key for key in keys if sent[key] < each]:
            tags = []
            for key in self.chance.sample(open_keys, min(len(open_keys), self.chance.randint(1, 5))):
                count = min(each - sent[key], self.chance.randint(1, 20))
                tags += [(key, number) for number in range(sent[key], sent[key] + count)]
                sent[key] += count
            self._send(tags)
        self.close()

    def _send(self, tags: Sequence[tuple[str, int]]) -> None:
        self.ledger.open(tags)
        items = [pb.Message(payload=f"{key} {number}".encode(), ordering_key=key) for key, number in tags]
        request = pb.EnqueueMessagesRequest(queue=QUEUE, messages=items, request_id=str(uuid4()))
        answer = self.ask(self.messages.EnqueueMessages, request)
        assert len(answer.results) == len(tags)
        for tag in tags:
            self.ledger.entries[tag].enqueued = True


class Consumer(Caller):
    """Leases and acknowledges; now and then it crashes, stalls beyond its leases, or gives back."""

    def run(self) -> None:
        while not self.stop.is_set():
            request = pb.LeaseMessagesRequest(
                queue=QUEUE, max_messages=self.chance.randint(1, 40), wait=span(1), lease_duration=span(LEASE)
            )
            began = time.monotonic()
            leased = self.ask(self.messages.LeaseMessages, request).messages
            answered = time.monotonic()
            deliveries = [Delivery(began, answered, began + LEASE) for _ in leased]
            for each, delivery in zip(leased, deliveries, strict=True):
                self._entry(each).deliveries.append(delivery)
            if leased:
                self._treat(leased, deliveries)
        self.close()

    def _treat(self, leased: Sequence[pb.LeasedMessage], deliveries: Sequence[Delivery]) -> None:
        fate = self.chance.random()
        if fate < 0.05:
            return
        if fate < 0.08:
            self.stop.wait(LEASE * 1.2)
        elif fate > 0.8:
            self.stop.wait(LEASE * 0.2)
        asked = time.monotonic()
        for delivery in deliveries:
            delivery.until = min(delivery.until, asked)
        if 0.08 <= fate < 0.18:
            nacks = [
                pb.Nack(message_id=each.message.id, lease_token=each.lease_token, delay=span(0)) for each in leased
            ]
            self.ask(
                self.messages.NackMessages,
                pb.NackMessagesRequest(queue=QUEUE, nacks=nacks, request_id=str(uuid4())),
            )
            return
        request = pb.AckMessagesRequest(queue=QUEUE, receipts=receipts(leased), request_id=str(uuid4()))
        outcomes = self.ask(self.messages.AckMessages, request).outcomes
        answered = time.monotonic()
        for each, outcome in zip(leased, outcomes, strict=True):
            if outcome == pb.OUTCOME_OK:
                self._entry(each).acks.append((asked, answered))

    def _entry(self, leased: pb.LeasedMessage) -> Entry:
        key, _, number = leased.message.payload.decode().partition(" ")
        return self.ledger.entries[key, int(number)]


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """One whose commits survive the death of its processes."""
    server = EmbeddedPostgres(tmp_path / "postgres", {"fsync": "off", "max_connections": "60"})
    server.start()
    yield server
    server.stop("immediate")


@pytest.fixture
def own_fleet(own_postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Fleet]:
    running = Fleet(tmp_path, own_postgres.dsn)
    running.start()
    try:
        running.await_ready()
        yield running
    finally:
        running.stop()


@pytest.mark.soak
@pytest.mark.timeout(LIMIT * ROUNDS + 120)
def test_every_message_is_accounted_for(own_fleet: Fleet, own_postgres: EmbeddedPostgres) -> None:
    ledger = Ledger()
    setup = Caller(own_fleet, ledger, 0, threading.Event())
    queue = pb.Queue(name=QUEUE, ordered=True, max_attempts=1000)
    setup.ask(setup.messages.CreateQueue, pb.CreateQueueRequest(queue=queue, request_id=str(uuid4())))
    setup.close()
    # A round in which each kill came between two calls shows nothing.
    for _ in range(ROUNDS):
        ledger = Ledger()
        _play(own_fleet, own_postgres, ledger)
        ledger.check()
        with psycopg.connect(own_postgres.dsn) as admin:
            assert admin.execute("SELECT count(*) FROM messages.message").fetchone() == (0,)
            assert admin.execute("SELECT count(*) FROM messages.dead_letter").fetchone() == (0,)
        if ledger.unknown:
            return
    raise AssertionError("nobody was in doubt: this test shows nothing")


def _play(fleet: Fleet, postgres: EmbeddedPostgres, ledger: Ledger) -> None:
    """Send all messages through the queue while processes are killed."""
    stop = threading.Event()
    keys = [f"k{number}" for number in range(KEYS)]
    with ThreadPoolExecutor(PRODUCERS + CONSUMERS) as threads:
        producers = [
            threads.submit(Producer(fleet, ledger, seed, stop).run, keys[seed::PRODUCERS], MESSAGES // KEYS)
            for seed in range(PRODUCERS)
        ]
        consumers = [threads.submit(Consumer(fleet, ledger, 100 + seed, stop).run) for seed in range(CONSUMERS)]
        try:
            _kill_until_done(fleet, postgres, ledger, [*producers, *consumers])
        finally:
            stop.set()
        for job in (*producers, *consumers):
            job.result(60)
    assert len(ledger.entries) == MESSAGES


def _kill_until_done(fleet: Fleet, postgres: EmbeddedPostgres, ledger: Ledger, jobs: Sequence[Future[None]]) -> None:
    """Kill a serving process or PostgreSQL again and again, as the messages go through."""
    kills = 60 if SOAK else 2
    chance = random.Random(7)
    give_up = time.monotonic() + LIMIT
    for kill in range(kills):
        _until(lambda: ledger.acked >= MESSAGES * (kill + 1) // (kills + 2), jobs, give_up, ledger)  # noqa: B023
        if kill % 2:
            assert postgres.pid is not None
            os.kill(postgres.pid, signal.SIGKILL)
            postgres.stop("immediate")
            postgres.start()
        else:
            eventually(lambda: len(fleet.children()) == 2, 30)
            chance.choice(fleet.children()).kill()
    _until(lambda: ledger.acked == MESSAGES, jobs, give_up, ledger)


def _until(condition: Callable[[], bool], jobs: Sequence[Future[None]], give_up: float, ledger: Ledger) -> None:
    def over() -> bool:
        return condition() or any(job.done() and job.exception() for job in jobs)

    eventually(over, give_up - time.monotonic(), lambda: f"{ledger.acked} of {len(ledger.entries)} acknowledged")
    for job in jobs:
        if job.done():
            job.result()
