"""An outlet sends without waiting for the reader, tells when a message was taken, and ends with any answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from kronos_db.runtime.errors import OverloadedError, WatchTooSlowError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.outlet import CallOutlet
from tests.parts.eventually import eventually
from tests.parts.refusal import read, refused
from tests.runtime.interceptors.probe import Probe, ProbeServer

# More than a window of flow control may ever hold.
_LARGE = "x" * 3_000_000


class Reader:
    """The server's side of one stream: sends a message whenever the one before was taken."""

    def __init__(self, probe: ProbeServer) -> None:
        self.outlet: CallOutlet | None = None
        self.sent = 0
        self.taken = 0
        self.closed = threading.Event()
        probe.on["Push"] = self.begin

    def begin(self, _request: Any, call: Call, send: Callable[[Any], None]) -> None:
        outlet = CallOutlet(call, send)
        assert outlet.on_taken(self.take)
        assert outlet.on_closed(self.closed.set)
        self.outlet = outlet

    def take(self) -> None:
        self.taken += 1

    def send(self, message: Any) -> None:
        """Send, once there is a stream."""
        eventually(lambda: self.outlet is not None)
        assert self.outlet is not None
        self.sent += 1
        self.outlet.send(message)


@pytest.fixture
def reader(probe: ProbeServer) -> Reader:
    return Reader(probe)


def ended(probe: ProbeServer) -> int:
    """How many streams ended with RESOURCE_EXHAUSTED."""
    return probe.counts("Push")["handled RESOURCE_EXHAUSTED"]


def test_messages_come_in_order(probe: ProbeServer, reader: Reader) -> None:
    stream = probe.start("Push", Probe())
    for number in range(50):
        reader.send(Probe(name=str(number)))
        eventually(lambda: reader.taken == reader.sent)

    assert [next(stream).name for _ in range(50)] == [str(number) for number in range(50)]
    stream.cancel()


def test_a_reader_that_does_not_read_holds_up_nobody(probe: ProbeServer, reader: Reader) -> None:
    stream = probe.start("Push", Probe())
    while reader.sent < 100 and reader.taken == reader.sent:
        # Returns at once, though nobody reads; soon no message is taken any more.
        reader.send(Probe(name=_LARGE))
        _wait_a_little(reader)
    assert reader.sent < 100
    assert reader.taken == reader.sent - 1

    for _ in range(reader.sent):
        assert len(next(stream).name) == len(_LARGE)
    eventually(lambda: reader.taken == reader.sent)
    stream.cancel()


def _wait_a_little(reader: Reader) -> None:
    """Wait until the message is taken, or seems not to be."""
    try:
        eventually(lambda: reader.taken == reader.sent, 0.3)
    except AssertionError:
        return


def test_it_ends_with_an_answer_behind_what_was_sent(probe: ProbeServer, reader: Reader) -> None:
    before = ended(probe)
    stream = probe.start("Push", Probe())
    reader.send(Probe(name="last"))
    eventually(lambda: reader.taken == 1)
    assert reader.outlet is not None

    reader.outlet.fail(WatchTooSlowError())

    assert next(stream).name == "last"
    refusal = refused(lambda: next(stream))
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "WATCH_TOO_SLOW")
    assert refusal.request_id
    assert reader.closed.wait(5)
    assert ended(probe) == before + 1


def test_a_message_in_flight_and_an_end(probe: ProbeServer, reader: Reader) -> None:
    """The end waits behind what the reader has not taken, and is told when he reads on."""
    stream = probe.start("Push", Probe())
    reader.send(Probe(name=_LARGE))
    assert reader.outlet is not None

    reader.outlet.fail(OverloadedError(retry_after=1.0))

    assert len(next(stream).name) == len(_LARGE)
    refusal = refused(lambda: next(stream))
    assert (refusal.reason, refusal.retry) == ("OVERLOADED", 1.0)


def test_what_comes_after_the_end_is_nothing(probe: ProbeServer, reader: Reader) -> None:
    before = ended(probe)
    stream = probe.start("Push", Probe())
    reader.send(Probe(name="one"))
    assert reader.outlet is not None
    for _ in range(2):
        reader.outlet.fail(OverloadedError())
    assert reader.closed.wait(5)

    reader.outlet.send(Probe(name="late"))
    reader.outlet.fail(OverloadedError())

    assert next(stream).name == "one"
    assert refused(lambda: next(stream)).reason == "OVERLOADED"
    assert ended(probe) == before + 1


def test_a_caller_that_leaves_is_noticed(probe: ProbeServer, reader: Reader) -> None:
    stream = probe.start("Push", Probe())
    reader.send(Probe(name="one"))
    next(stream)

    stream.cancel()

    assert reader.closed.wait(5)


def test_a_stream_that_is_reset(probe: ProbeServer, reader: Reader) -> None:
    stream = probe.start("Push", Probe())
    reader.send(Probe(name=_LARGE))
    assert reader.outlet is not None

    reader.outlet.cancel()

    assert reader.closed.wait(5)
    with pytest.raises(grpc.RpcError) as reset:
        list(stream)
    assert read(reset.value).code == "CANCELLED"
