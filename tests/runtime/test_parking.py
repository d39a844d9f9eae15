"""Calls that wait without a thread: woken once for each wait, in time, and also when the waking came first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import _server as grpc_server

from kronos_db.runtime.parking import Parked, Parking, StepAside
from kronos_db.runtime.workers import Workers
from tests.parts.eventually import eventually

FOREVER = 1e9


class Tally:
    """Counts what a parked call is told."""

    def __init__(self) -> None:
        self.resumed = 0
        self.ended = 0

    def hold(self, parked: Parked) -> None:
        parked.hold(self._resume, self._end)

    def _resume(self) -> None:
        self.resumed += 1

    def _end(self) -> None:
        self.ended += 1


@pytest.fixture
def parking() -> Iterator[Parking]:
    made = Parking()
    yield made
    made.close()


def test_a_call_goes_on_once_when_it_is_woken() -> None:
    parked, tally = Parked(FOREVER), Tally()
    tally.hold(parked)
    assert tally.resumed == 0
    for _ in range(3):
        parked.wake()
    assert (tally.resumed, tally.ended) == (1, 0)


def test_a_wake_before_it_stepped_aside_is_not_lost() -> None:
    parked, tally = Parked(FOREVER), Tally()
    parked.expect()
    parked.wake()
    tally.hold(parked)
    assert tally.resumed == 1
    # But one of an earlier wait is.
    parked.wake()
    parked.expect()
    tally.hold(parked)
    assert tally.resumed == 1


def test_who_left_is_ended_and_not_resumed() -> None:
    parked, tally = Parked(FOREVER), Tally()
    tally.hold(parked)
    parked.leave()
    parked.wake()
    assert (tally.resumed, tally.ended) == (0, 1)
    # Also when that was known first.
    tally.hold(parked)
    assert (tally.resumed, tally.ended) == (0, 2)


def test_the_time_of_each_is_over_in_turn(parking: Parking) -> None:
    now = time.monotonic()
    late, soon = (Parked(now + 0.2), Tally()), (Parked(now + 0.05), Tally())
    for parked, tally in (late, soon):
        tally.hold(parked)
        parking.watch(parked)

    eventually(lambda: soon[1].resumed == 1)
    assert late[1].resumed == 0
    eventually(lambda: late[1].resumed == 1)
    assert time.monotonic() - now >= 0.2
    assert late[0].is_over


def test_a_close_wakes_all_and_keeps_nobody(parking: Parking) -> None:
    first, later = (Parked(FOREVER), Tally()), (Parked(FOREVER), Tally())
    first[1].hold(first[0])
    parking.watch(first[0])
    parking.close()
    assert first[1].resumed == 1
    later[1].hold(later[0])
    parking.watch(later[0])
    assert later[1].resumed == 1


def test_those_who_were_answered_are_forgotten(parking: Parking) -> None:
    for _ in range(5000):
        parked = Parked(FOREVER)
        parking.watch(parked)
        parked.leave()
    assert len(parking._due) <= 1000


class Service:
    """Answers a call when it runs the second time."""

    def __init__(self) -> None:
        self.parked: list[Parked] = []
        self.runs = 0
        self.lock = threading.Lock()

    def answer(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        with self.lock:
            self.runs += 1
            parked = next((each for each in self.parked if each.name == request), None)  # type: ignore[attr-defined]
            if parked is None:
                parked = Parked(FOREVER)
                parked.name = request  # type: ignore[attr-defined]
                self.parked.append(parked)
                raise StepAside(parked)
        return request.upper()


@pytest.fixture
def called() -> Iterator[tuple[Service, Any, Workers]]:
    service, workers = Service(), Workers(calls=1)
    server = grpc.server(workers.as_executor())
    handler = grpc.unary_unary_rpc_method_handler(service.answer)
    server.add_registered_method_handlers("test.Waits", {"Answer": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service, channel.unary_unary("/test.Waits/Answer"), workers
    server.stop(0).wait()
    workers.shutdown()


def test_grpc_takes_a_parked_call_for_one_that_goes_on(called: tuple[Service, Any, Workers]) -> None:
    """What this leans on in grpc/_server.py: many calls wait, one thread goes on serving, each gets its own answer."""
    service, method, _ = called
    assert hasattr(grpc_server, "_unary_response_in_pool")
    futures = [method.future(f"call {number}".encode(), timeout=20) for number in range(50)]
    eventually(lambda: len(service.parked) == 50)
    assert not any(future.done() for future in futures)

    for parked in reversed(service.parked):
        parked.wake()

    assert [future.result() for future in futures] == [f"CALL {number}".encode() for number in range(50)]
    assert service.runs == 100


def test_a_parked_call_whose_deadline_passes_is_over(called: tuple[Service, Any, Workers]) -> None:
    service, method, _ = called
    with pytest.raises(grpc.RpcError) as caught:
        method(b"late", timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]  # not in the stubs
    service.parked[0].wake()
    assert method.future(b"late", timeout=20).result() == b"LATE"
