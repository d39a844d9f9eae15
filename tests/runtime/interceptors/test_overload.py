"""Overload: what is refused before it begins, and that every ending makes room again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool

from kronos_db.runtime import deadline
from kronos_db.runtime.errors import DeadlineTooShortError, OverloadedError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.overload import Limits, Overload
from kronos_db.runtime.interceptors.pace import Pace
from kronos_db.runtime.reception import Lane
from tests.parts.eventually import eventually
from tests.parts.refusal import Refusal, refused
from tests.runtime.interceptors.probe import ALL_KINDS, Probe, ProbeServer


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[ProbeServer]:
    """A service with room for two calls, one that computes and three streams, for callers with half a second."""
    server = ProbeServer(tmp_path, Limits(2, 1, 3, 3, 0.5))
    yield server
    server.stop()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_call_whose_deadline_is_too_short_does_not_begin(narrow: ProbeServer, kind: str) -> None:
    found = refused(lambda: narrow.call(kind, timeout=0.3))

    assert (found.code, found.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT")
    assert (found.retry or 0) > 0
    assert narrow.calls == []
    assert narrow.refusals() == {"deadline": 1}
    assert narrow.counts(kind)["handled DEADLINE_EXCEEDED"] == 1
    assert narrow.overload.running() == {"probe": 0}


def test_a_handler_knows_its_deadline(probe: ProbeServer) -> None:
    left: list[float] = []

    def note(request: Any, call: Call) -> Any:
        left.append(deadline.remaining(1000))
        assert call.deadline is None or call.deadline > time.monotonic()
        return request

    probe.on["Unary"] = note
    probe.call("Unary", timeout=30)
    probe.call("Unary", timeout=None)

    # gRPC rounds a deadline up on its way.
    assert 20 < left[0] <= 31
    assert left[1] == 1000
    assert probe.calls[1].deadline is None


class Held:
    """Calls of a method that wait until they are told to go on."""

    def __init__(self, server: ProbeServer, name: str, calls: int) -> None:
        self._go = threading.Event()
        server.on[name] = self._wait
        before = len(server.calls)
        self._calls = [server.start(name, Probe()) for _ in range(calls)]
        eventually(lambda: len(server.calls) == before + calls)

    def _wait(self, request: Any, _call: Call) -> Any:
        assert self._go.wait(10)
        return request

    def let_go(self) -> None:
        self._go.set()
        for call in self._calls:
            call.result()


def _overloaded(found: Refusal) -> bool:
    return (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED") and (found.retry or 0) > 0


def test_a_domain_at_its_limit_refuses_though_all_its_threads_are_busy(narrow: ProbeServer) -> None:
    held = Held(narrow, "Unary", 2)

    assert _overloaded(refused(lambda: narrow.call("Unary")))

    assert narrow.counts("Unary")["handled RESOURCE_EXHAUSTED"] == 1
    assert [line["code"] for line in narrow.lines] == ["RESOURCE_EXHAUSTED"]
    assert narrow.refusals() == {"limit": 1}
    # What computes and streams has room of its own.
    narrow.call("Burn")
    assert len(narrow.call("BidiStream", Probe())) == 1
    held.let_go()
    narrow.on.clear()
    narrow.call("Unary")
    eventually(lambda: narrow.overload.running() == {"probe": 0})


def test_computing_is_bounded_apart(narrow: ProbeServer) -> None:
    held = Held(narrow, "Burn", 1)

    assert _overloaded(refused(lambda: narrow.call("Burn")))
    assert narrow.call("Unary", Probe(name="fine"))[0].name == "fine"

    held.let_go()
    narrow.call("Burn")


@pytest.mark.parametrize(("caller", "reason"), [(None, "CREDENTIAL_INVALID"), ("stranger", "METHOD_NOT_ALLOWED")])
def test_who_may_not_call_learns_nothing_of_the_load_and_takes_no_room(
    narrow: ProbeServer, caller: str | None, reason: str
) -> None:
    held = Held(narrow, "Unary", 1)
    # Without their messages, so that each would last if it were let in.
    late: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    strangers = [narrow.start_late("Unary", late, caller) for _ in range(5)]
    assert [refused(call.result).reason for call in strangers] == [reason] * 5

    other = Held(narrow, "Unary", 1)
    assert refused(lambda: narrow.call("Unary", caller=caller)).reason == reason

    assert narrow.refusals() == {}
    held.let_go()
    other.let_go()


def test_a_call_whose_message_is_late_takes_room_until_its_caller_leaves(narrow: ProbeServer) -> None:
    late: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    calls = [narrow.start_late("Unary", late) for _ in range(2)]
    eventually(lambda: narrow.overload.running()["probe"] == 2)
    assert _overloaded(refused(lambda: narrow.call("Unary")))

    for call in calls:
        call.cancel()

    eventually(lambda: narrow.overload.running()["probe"] == 0)
    assert sorted(line["code"] for line in narrow.lines) == ["CANCELLED", "CANCELLED", "RESOURCE_EXHAUSTED"]
    assert narrow.calls == []
    late.put(None)
    late.put(None)


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[ProbeServer]:
    """A service that begins a call however little time it has."""
    server = ProbeServer(tmp_path)
    yield server
    server.stop()


def test_a_call_whose_deadline_passes_in_the_queue_is_dropped(patient: ProbeServer) -> None:
    held = Held(patient, "Unary", 2)
    call = patient.start("Unary", Probe(), timeout=0.4)
    eventually(lambda: patient.workers.queued() == {Lane("probe", "call"): 1})
    # The server's deadline is at most this, with what gRPC adds when it rounds.
    over = time.monotonic() + 0.45

    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: time.monotonic() > over)
    held.let_go()

    eventually(lambda: patient.refusals() == {"expired": 1})
    assert len(patient.calls) == 2
    eventually(lambda: sorted(line["code"] for line in patient.lines) == ["DEADLINE_EXCEEDED", "OK", "OK"])
    eventually(lambda: patient.overload.running() == {"probe": 0})


def test_a_call_whose_caller_leaves_the_queue_is_dropped(patient: ProbeServer) -> None:
    held = Held(patient, "Unary", 2)
    call = patient.start("Unary", Probe())
    eventually(lambda: patient.workers.queued() == {Lane("probe", "call"): 1})

    call.cancel()
    # What comes after it on the same connection has been answered: so the server knows.
    patient.call("Burn")
    patient.call("Burn")
    held.let_go()

    eventually(lambda: sorted(line["code"] for line in patient.lines) == ["CANCELLED", *["OK"] * 4])
    assert len(patient.calls) == 4
    assert patient.refusals() == {}


def test_streams_are_bounded_apart_and_leave_room_for_calls(narrow: ProbeServer) -> None:
    narrow.on["Push"] = lambda _request, _call, send: send(Probe(name="one"))
    held = [narrow.start("Push", Probe()) for _ in range(3)]
    for stream in held:
        next(stream)

    found = refused(lambda: narrow.call("Push"))

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert narrow.call("Unary", Probe(name="fine"))[0].name == "fine"
    assert narrow.overload.running() == {"probe": 3}
    for stream in held:
        stream.cancel()
    eventually(lambda: narrow.overload.running() == {"probe": 0})


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_refusal_leaves_the_counts_as_they_were(probe: ProbeServer, kind: str) -> None:
    refused(lambda: probe.call(kind, caller=None))
    refused(lambda: probe.call(kind, caller="stranger"))
    refused(lambda: probe.call(kind, Probe(name="longer than ten")))
    refused(lambda: probe.call(kind, b"\xff"))
    refused(lambda: probe.call(kind, Probe(id="no uuid", secret="x")))
    probe.call(kind)

    eventually(lambda: len(probe.lines) == 6)
    assert [line["code"] for line in probe.lines] == [
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        *["INVALID_ARGUMENT"] * 3,
        "OK",
    ]
    eventually(lambda: probe.overload.running()["probe"] == 0)
    counted = probe.counts(kind)
    assert counted["started"] == sum(count for name, count in counted.items() if name.startswith("handled "))


class TestDeadline:
    """What is refused because of what is known of queue and method."""

    @pytest.fixture(autouse=True)
    def _no_deadline_is_left(self) -> Iterator[None]:
        yield
        deadline.current.set(None)

    method = Method(descriptor_pool.Default().FindMethodByName("kronos.probe.v1.ProbeService.Unary"))

    def _begin(self, overload: Overload, left: float) -> Call:
        call = Call(self.method, _Context(left))  # type: ignore[arg-type]  # all that is asked of it
        overload.begin(self.method)(call)
        return call

    def _serve(self, overload: Overload, seconds: float) -> None:
        call = self._begin(overload, 1e12)
        step = overload.request(self.method)
        assert step is not None
        step(Probe(), call)
        call.taken -= seconds
        overload.end(self.method)(call, None)

    def test_less_than_the_queue_will_take(self) -> None:
        overload = Overload(Limits(), lambda lane: 0.4 if lane == Lane("probe", "call") else 9.0, _unseen)

        with pytest.raises(DeadlineTooShortError) as caught:
            self._begin(overload, 0.39)

        assert caught.value.retry_after == 0.4
        assert overload.running() == {"probe": 0}
        self._begin(overload, 0.41)
        self._begin(overload, 1e12)
        assert overload.running() == {"probe": 2}

    def test_less_than_the_fastest_call_took(self) -> None:
        overload = Overload(Limits(), lambda _lane: 0.0, _unseen)
        for seconds in (0.2, 0.3, 0.2, 0.5, 0.2, 0.2, 0.2, 0.2):
            self._serve(overload, seconds)

        with pytest.raises(DeadlineTooShortError):
            self._begin(overload, 0.19)
        self._begin(overload, 0.25)
        self._serve(overload, 0.001)
        self._begin(overload, 0.19)

    def test_one_slow_call_on_a_quiet_server_refuses_nobody(self) -> None:
        overload = Overload(Limits(), lambda _lane: 0.0, _unseen)
        self._serve(overload, 30)

        self._begin(overload, 0.01)

    def test_who_finds_no_room_is_told_to_come_back_when_the_queue_is_shorter(self) -> None:
        overload = Overload(Limits(calls=0), lambda _lane: 0.7, _unseen)

        with pytest.raises(OverloadedError) as caught:
            self._begin(overload, 1e12)

        assert caught.value.retry_after == 0.7


class _Context:
    """All that is asked of gRPC's."""

    def __init__(self, left: float) -> None:
        self._left = left

    def time_remaining(self) -> float:
        return self._left

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def is_active(self) -> bool:
        return True


def _unseen(_domain: str, _reason: str) -> None: ...


class TestPace:
    """The shortest time of late."""

    def test_it_takes_eight_calls_to_know(self) -> None:
        pace = Pace()
        for number in range(7):
            pace.note(0.2, 100 + number / 10)
        assert pace.shortest(100.7) == 0
        pace.note(0.1, 100.7)
        assert pace.shortest(100.7) == 0.1

    def test_a_method_that_was_slow_is_tried_again(self) -> None:
        pace = Pace()
        for _ in range(8):
            pace.note(5.0, 100)
        assert pace.shortest(101.9) == 5.0
        assert pace.shortest(102.1) == 0

    def test_the_fast_ones_of_the_window_before_count(self) -> None:
        pace = Pace()
        for _ in range(8):
            pace.note(0.1, 100)
        for _ in range(8):
            pace.note(5.0, 101.5)
        assert pace.shortest(101.6) == 0.1
        for _ in range(8):
            pace.note(5.0, 102.6)
        assert pace.shortest(102.7) == 5.0
