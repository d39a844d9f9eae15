"""Reception: a worker gets a call when its request is there, and gRPC is still as it is taken to be."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from kronos_db.runtime.reception import Completion, Lane, Reception, _is_as_expected
from kronos_db.runtime.workers import Workers

LIMIT = 10.0


class Recording(Workers):
    """Workers that note what gRPC hands them."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.as_expected: list[bool] = []

    def submit(self, function: Any, *arguments: Any) -> Completion:
        self.as_expected.append(_is_as_expected(arguments))
        return super().submit(function, *arguments)


@pytest.fixture
def workers() -> Iterator[Recording]:
    made = Recording(1)
    yield made
    made.shutdown()


@pytest.fixture
def channel(workers: Recording) -> Iterator[grpc.Channel]:
    server = grpc.server(workers.as_executor())
    echo = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
    server.add_registered_method_handlers("test.Echo", {"Echo": echo})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(0).wait(LIMIT)


def test_grpc_hands_over_what_reception_leans_on(workers: Recording, channel: grpc.Channel) -> None:
    assert channel.unary_unary("/test.Echo/Echo")(b"hello", timeout=LIMIT) == b"hello"

    # After a change of grpcio this may fail: calls then work as before, but slower. See runtime/reception.py.
    assert workers.as_expected == [True]


def test_a_request_that_does_not_come_holds_no_worker(channel: grpc.Channel) -> None:
    queues: list[queue.SimpleQueue[bytes | None]] = [queue.SimpleQueue() for _ in range(3)]
    # On the wire, unary calls whose message is late. There is one worker.
    late = [channel.stream_unary("/test.Echo/Echo").future(iter(slow.get, None), timeout=LIMIT) for slow in queues]

    for _ in range(20):
        assert channel.unary_unary("/test.Echo/Echo")(b"quick", timeout=LIMIT) == b"quick"

    assert not any(call.done() for call in late)
    for slow in queues:
        slow.put(b"late")
        slow.put(None)
    assert [call.result() for call in late] == [b"late"] * 3


def test_a_caller_who_leaves_before_its_request_came_is_forgotten(channel: grpc.Channel) -> None:
    slow: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = channel.stream_unary("/test.Echo/Echo").future(iter(slow.get, None), timeout=LIMIT)
    call.cancel()
    slow.put(None)

    assert channel.unary_unary("/test.Echo/Echo")(b"next", timeout=LIMIT) == b"next"


def test_what_is_not_as_expected_is_queued_as_it_is() -> None:
    ready: list[Any] = []
    reception = Reception(lambda *given: ready.append(given))
    behavior = SimpleNamespace(lane=Lane("probe", "stream"))
    jobs = [(len, ("unlike",), Completion()), (len, ("unlike", behavior), Completion())]

    for job in jobs:
        reception.receive(job)

    assert ready == [(Lane("", "call"), jobs[0]), (Lane("probe", "stream"), jobs[1])]


class TestCompletion:
    """The part of a Future that gRPC uses."""

    def test_callbacks_run_once_whenever_they_are_added(self) -> None:
        completion = Completion()
        calls: list[str] = []
        completion.add_done_callback(lambda given: calls.append("before" if given is completion else "?"))
        assert calls == []

        completion.finish()
        completion.add_done_callback(lambda given: calls.append("after" if given is completion else "?"))

        assert calls == ["before", "after"]

    def test_in_a_race_with_the_end_too(self) -> None:
        for _ in range(200):
            completion = Completion()
            calls: list[int] = []
            barrier = threading.Barrier(3)

            def add(completion: Completion = completion, calls: list[int] = calls, barrier: Any = barrier) -> None:
                barrier.wait(LIMIT)
                completion.add_done_callback(lambda _: calls.append(1))

            threads = [threading.Thread(target=add) for _ in range(2)]
            for thread in threads:
                thread.start()
            barrier.wait(LIMIT)
            completion.finish()
            for thread in threads:
                thread.join(LIMIT)
            assert calls == [1, 1]
