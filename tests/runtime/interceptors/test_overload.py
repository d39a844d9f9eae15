"""Overload: what is refused before it begins, and that every ending makes room again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kronos_db.runtime import deadline
from kronos_db.runtime.interceptors.call import Call
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.runtime.interceptors.probe import ALL_KINDS, Probe, ProbeServer


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[ProbeServer]:
    """A service with room for two calls and three streams, for callers with half a second."""
    server = ProbeServer(tmp_path, domain_limit=2, stream_limit=3, minimum=0.5)
    yield server
    server.stop()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_call_whose_deadline_is_too_short_does_not_begin(narrow: ProbeServer, kind: str) -> None:
    found = refused(lambda: narrow.call(kind, timeout=0.3))

    assert (found.code, found.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT")
    assert narrow.calls == []
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


def test_a_domain_at_its_limit_refuses_and_recovers(narrow: ProbeServer) -> None:
    go = threading.Event()

    def wait(request: Any, _call: Call) -> Any:
        assert go.wait(10)
        return request

    narrow.on["Unary"] = wait
    held = [narrow.start("Unary", Probe()) for _ in range(2)]
    eventually(lambda: narrow.overload.running()["probe"] == 2)

    # In a pool of its own, so that the two workers being busy does not hide the refusal.
    found = refused(lambda: narrow.call("Burn"))

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert found.retry is not None
    assert found.retry > 0
    # Streams have room of their own.
    assert len(narrow.call("BidiStream", Probe())) == 1
    go.set()
    for call in held:
        call.result()
    narrow.call("Burn")
    assert narrow.overload.running() == {"probe": 0}


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
