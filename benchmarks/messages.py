"""The rows of the messages domain, beside plain SQL on the same PostgreSQL."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
from google.protobuf.duration_pb2 import Duration
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub

from benchmarks.plain_queue import PlainQueue
from benchmarks.stand import Row, Stand, at_least, echo, run_load, settle, stand

_ROUNDS = 3
_SECONDS = float(os.environ.get("KRONOS_BENCH_SECONDS", "4"))
# A tenth of the rows when rounds are short: to see that all runs through.
_SCALE = 1 if _SECONDS >= 4 else 20
_PAYLOAD = "x" * 100
_BATCH, _LEASED = 100, 50
_CONNECTIONS = 4
_PREFILL = 100_000 // _SCALE
_DELAYED = 500_000 // _SCALE
# As many rows as ten minutes at some thousand messages a second leave behind.
_GONE = 2_000_000 // _SCALE
_ENQUEUE = "/kronos.messages.v1.MessagesService/EnqueueMessages"
# The rows that an enqueue writes, as short as they can be written: no counts, no answer to be remembered.
_RAW = """
INSERT INTO messages.message (bin, id, state, rank, position, enqueue_time, payload)
SELECT %(bin)s::uuid, id, 0, 9, (pg_current_xact_id()::text::bigint << 16) + place, now(), payload
FROM unnest(%(ids)s::uuid[], %(payloads)b::bytea[]) WITH ORDINALITY AS new (id, payload, place)
"""
_DELAY = """
INSERT INTO messages.message (bin, id, state, rank, position, due_time, enqueue_time, payload)
SELECT bin, gen_random_uuid(), 1, 9, 0, now() + interval '1 hour' + n * interval '1 ms', now(), %s
FROM messages.queue, generate_series(1, %s) AS n
WHERE name = %s
"""
_PASS_THROUGH = """
WITH added AS (
    INSERT INTO messages.message (bin, id, state, rank, position, enqueue_time, payload)
    SELECT bin, gen_random_uuid(), 0, 9, (pg_current_xact_id()::text::bigint << 16) + n, now(), %s
    FROM messages.queue, generate_series(1, 50000) AS n
    WHERE name = %s
)
SELECT
"""
_REMOVE = "DELETE FROM messages.message WHERE bin = (SELECT bin FROM messages.queue WHERE name = %s)"


def rows() -> Iterator[Row]:
    """Measure."""
    with stand(processes=2) as on:
        bench = _Bench(on)
        plain = PlainQueue(bench.dsn, _CONNECTIONS, _PAYLOAD)
        yield from _batches(bench, plain)
        yield from _consuming(bench, plain)
        yield from _delayed(bench, plain)
        yield from _old_snapshot(bench, plain)
        yield Row(
            "messages: from an enqueue to a waiting consumer, p50",
            latency := bench.delivery(),
            "ms",
            bar="≤ 10 ms",
            met=latency <= 10,
        )
    with stand() as on:
        yield from _singles(_Bench(on))


class _Bench:
    """A stand with queues, and a superuser beside it."""

    def __init__(self, on: Stand) -> None:
        self.on = on
        self.messages = MessagesServiceStub(on.channel)
        assert on.settings.postgres_dsn is not None
        direct = on.settings.postgres_direct_dsn or on.settings.postgres_dsn
        self.dsn = direct.get_secret_value()
        self.token = dict(on.metadata)["authorization"].removeprefix("Bearer ")

    def queue(self, name: str) -> str:
        """Create a queue and return its name."""
        queue = pb.Queue(name=name, max_backlog=1_000_000_000)
        self.messages.CreateQueue(pb.CreateQueueRequest(queue=queue), metadata=self.on.metadata)
        return name

    def request(self, queue: str, count: int) -> bytes:
        """Return the bytes of an enqueue."""
        items = [pb.Message(payload=_PAYLOAD.encode())] * count
        return pb.EnqueueMessagesRequest(queue=queue, messages=items).SerializeToString()

    def fill(self, queue: str, count: int) -> None:
        """Enqueue messages through the server: their payloads are to be opened."""
        request = pb.EnqueueMessagesRequest.FromString(self.request(queue, 1000))

        def send(_: int) -> None:
            self.messages.EnqueueMessages(request, metadata=self.on.metadata)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(count // 1000)))

    def consume(self, queue: str, seconds: float = _SECONDS) -> float:
        """Return the messages a second that are leased and acknowledged."""
        command = [sys.executable, "-m", "benchmarks.consumer", self.on.settings.grpc_listen, queue]
        arguments = [str(_LEASED), "8", str(seconds)]
        done = subprocess.run([*command, *arguments], input=self.token, capture_output=True, text=True, check=True)
        return float(done.stdout)

    def lease_latency(self, queue: str, rounds: int) -> float:
        """Return the median milliseconds of leasing one message just enqueued."""
        times = []
        for _ in range(rounds):
            one = pb.EnqueueMessagesRequest(queue=queue, messages=[pb.Message(payload=_PAYLOAD.encode())])
            self.messages.EnqueueMessages(one, metadata=self.on.metadata)
            begin = time.perf_counter()
            (leased,) = self._lease(queue)
            times.append((time.perf_counter() - begin) * 1000)
            self._ack(queue, leased)
        return statistics.median(times)

    def delivery(self, rounds: int = 200) -> float:
        """Return the median milliseconds from sending an enqueue until a consumer who waits has the message."""
        queue = self.queue("delivery")
        arrived: list[float] = []
        came = threading.Event()

        def wait() -> None:
            while len(arrived) < rounds:
                for leased in self._lease(queue, wait=Duration(seconds=5)):
                    arrived.append(time.perf_counter())
                    came.set()
                    self._ack(queue, leased)

        consumer = threading.Thread(target=wait)
        consumer.start()
        times = []
        for _ in range(rounds):
            time.sleep(0.01)
            came.clear()
            begin = time.perf_counter()
            one = pb.EnqueueMessagesRequest(queue=queue, messages=[pb.Message(payload=_PAYLOAD.encode())])
            self.messages.EnqueueMessages(one, metadata=self.on.metadata)
            came.wait(10)
            times.append((arrived[-1] - begin) * 1000)
        consumer.join()
        return statistics.median(times)

    def _lease(self, queue: str, **fields: Any) -> Sequence[pb.LeasedMessage]:
        request = pb.LeaseMessagesRequest(queue=queue, **fields)
        return self.messages.LeaseMessages(request, metadata=self.on.metadata).messages

    def _ack(self, queue: str, leased: pb.LeasedMessage) -> None:
        receipt = pb.Receipt(message_id=leased.message.id, lease_token=leased.lease_token)
        self.messages.AckMessages(pb.AckMessagesRequest(queue=queue, receipts=[receipt]), metadata=self.on.metadata)


def _batches(bench: _Bench, plain: PlainQueue) -> Iterator[Row]:
    """Enqueue batches, insert the same rows, and send batches, in turn."""
    queue, raw = bench.queue("batches"), bench.queue("raw")
    request = [bench.request(queue, _BATCH)]
    ours, floors, plains = [], [], []
    for _ in range(_ROUNDS):
        settle()
        ours.append(bench.on.load(_ENQUEUE, request, _SECONDS, 16).calls_per_second * _BATCH)
        settle()
        floors.append(_insert_raw(bench.dsn, raw))
        settle()
        plains.append(plain.send(_BATCH, _SECONDS))
    best, floor, of_plain = map(statistics.median, (ours, floors, plains))
    name = "messages: EnqueueMessages of 100, 2 processes, beside raw INSERT of the same rows"
    yield at_least(name, best, "messages/s", floor, 0.5)
    yield Row("messages: plain SQL, send in batches of 100", of_plain, "messages/s")


def _insert_raw(dsn: str, queue: str) -> float:
    """Insert batches of the same rows over as many connections as plain SQL has; return rows a second."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        (bin_id,) = connection.execute("SELECT bin FROM messages.queue WHERE name = %s", [queue]).fetchone() or ("",)
    # As long as a sealed one.
    payload = os.urandom(58 + len(_PAYLOAD) // 32 * 32 + 32)
    begin = time.perf_counter()

    def loop(_: int) -> int:
        count = 0
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
            while time.perf_counter() < begin + _SECONDS:
                ids = [os.urandom(16).hex() for _ in range(_BATCH)]
                connection.execute(_RAW, {"bin": bin_id, "ids": ids, "payloads": [payload] * _BATCH})
                count += _BATCH
        return count

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        total = sum(pool.map(loop, range(_CONNECTIONS)))
    return total / (time.perf_counter() - begin)


def _consuming(bench: _Bench, plain: PlainQueue) -> Iterator[Row]:
    queue = bench.queue("consumed")
    ours, plains = [], []
    for _ in range(_ROUNDS):
        bench.fill(queue, _PREFILL)
        settle()
        ours.append(bench.consume(queue))
        settle()
        plains.append(plain.consume(_LEASED, _SECONDS))
    value = statistics.median(ours)
    name = "messages: lease 50 and ack, 2 processes"
    yield Row(name, value, "messages/s", bar="≥ 15,000", met=value >= 15_000)
    yield Row("messages: plain SQL, read 50 and delete", statistics.median(plains), "messages/s")


def _delayed(bench: _Bench, plain: PlainQueue) -> Iterator[Row]:
    queue = bench.queue("delayed")
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        connection.execute(_DELAY, [b"x" * 300, _DELAYED, queue])
        connection.execute("VACUUM (ANALYZE) messages.message")
    ours = bench.lease_latency(queue, 200)
    plain.delay(_DELAYED)
    of_plain = plain.read_latency(50)
    name = f"messages: a lease with {_DELAYED:,} delayed messages ahead, p50"
    yield Row(name, ours, "ms", bar="≤ 3 ms", met=ours <= 3)
    yield Row(f"messages: plain SQL, a read with {_DELAYED:,} delayed messages ahead, p50", of_plain, "ms")


def _old_snapshot(bench: _Bench, plain: PlainQueue) -> Iterator[Row]:
    """Consume with and without a snapshot that was open while as many messages went through as in ten minutes."""
    queue = bench.queue("snapshot")
    without = _throughput(bench, queue)
    plain_without = _plain_throughput(plain)
    with _snapshot(bench.dsn), psycopg.connect(bench.dsn, autocommit=True) as connection:
        for _ in range(_GONE // 50_000):
            connection.execute(_PASS_THROUGH, [b"x" * 300, queue])
            connection.execute(_REMOVE, [queue])
        bench.fill(queue, _PREFILL)
        # A short time to get past what is gone, as a server that was there all the time has.
        bench.consume(queue, 0.5)
        beside = _throughput(bench, queue)
        plain_beside = _plain_throughput(plain)
    name = f"messages: lease and ack beside an open snapshot and {_GONE:,} messages gone since, beside none"
    yield at_least(name, beside, "messages/s", without, 0.8)
    yield Row("messages: plain SQL, read and delete beside the snapshot", plain_beside, "messages/s", plain_without)


def _throughput(bench: _Bench, queue: str) -> float:
    """Lease and acknowledge, some times; return the median of the messages a second."""
    rates = []
    for _ in range(_ROUNDS):
        bench.fill(queue, _PREFILL)
        settle()
        rates.append(bench.consume(queue))
    return statistics.median(rates)


def _plain_throughput(plain: PlainQueue) -> float:
    """Send, then read and delete."""
    plain.send(_BATCH, _SECONDS)
    return plain.consume(_LEASED, _SECONDS)


@contextmanager
def _snapshot(dsn: str) -> Iterator[None]:
    """Hold a snapshot open."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT 1 FROM messages.queue")
        yield


def _singles(bench: _Bench) -> Iterator[Row]:
    """Enqueue single messages beside the bare echo."""
    queue = bench.queue("singles")
    request = [bench.request(queue, 1)]
    answer = bench.messages.EnqueueMessages(
        pb.EnqueueMessagesRequest.FromString(request[0]), metadata=bench.on.metadata
    ).ByteSize()
    ours, floors = [], []
    with echo(bench.on.settings.worker_threads, answer) as target:
        for _ in range(_ROUNDS):
            settle()
            floors.append(
                run_load(target, "/bench.Echo/Echo", request, _SECONDS, 64, bench.on.metadata).calls_per_second
            )
            settle()
            ours.append(bench.on.load(_ENQUEUE, request, _SECONDS))
    value = statistics.median(outcome.calls_per_second for outcome in ours)
    name = "messages: EnqueueMessages of 1, 64 in flight, 1 process"
    yield at_least(name, value, "calls/s", statistics.median(floors), 0.45)
    yield Row("messages: EnqueueMessages of 1, p50", statistics.median(each.p50_ms for each in ours), "ms")
    yield Row("messages: EnqueueMessages of 1, p99", statistics.median(each.p99_ms for each in ours), "ms")
