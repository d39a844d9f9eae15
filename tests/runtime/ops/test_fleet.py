"""Several processes as one: sums of metrics, counters that never go back, and requests that one of them answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from kronos_db.runtime.ops.fleet import FleetMetrics, Forwarding
from kronos_db.runtime.ops.http import OpsServer, ProblemError, Request, Response, Route

Process = Callable[[str], str]


@pytest.fixture
def process() -> Iterator[Process]:
    """Start a process that answers /metrics with a text; return its ops address."""
    started: list[OpsServer] = []

    def start(text: str) -> str:
        def metrics(_request: Request) -> Response:
            return Response(body=text.encode())

        started.append(OpsServer("127.0.0.1:0", [Route("GET", "/metrics", metrics)]))
        started[-1].start()
        return started[-1].address

    yield start
    for server in started:
        server.stop()


def counter(name: str, value: float) -> str:
    return f"# HELP {name} What is counted.\n# TYPE {name} counter\n{name} {value}\n"


def gauge(name: str, value: float) -> str:
    return f"# HELP {name} What is measured.\n# TYPE {name} gauge\n{name} {value}\n"


def scraped(metrics: FleetMetrics) -> list[str]:
    registry = CollectorRegistry()
    registry.register(metrics)
    return [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]


def test_counters_go_on_over_processes_that_begin_at_zero_and_those_that_do_not(process: Process) -> None:
    there: dict[int, str] = {}
    metrics = FleetMetrics(lambda: there)
    there.update({0: process(counter("calls_total", 5)), 1: process(counter("calls_total", 7))})
    assert scraped(metrics) == ["calls_total 12.0"]
    del there[0]
    assert scraped(metrics) == ["calls_total 12.0"]
    # It goes on from a file, and its successor begins at zero.
    there[0] = process(counter("calls_total", 6))
    assert scraped(metrics) == ["calls_total 13.0"]
    there[0] = process(counter("calls_total", 2))
    assert scraped(metrics) == ["calls_total 15.0"]
    assert scraped(metrics) == ["calls_total 15.0"]


def test_what_a_process_is_asked_for_itself_is_labelled_and_does_not_go_back(process: Process) -> None:
    there = {0: process(counter("process_cpu_seconds_total", 5)), 1: process(counter("process_cpu_seconds_total", 3))}
    metrics = FleetMetrics(lambda: there)
    scraped(metrics)
    there[0] = process(counter("process_cpu_seconds_total", 1))
    assert scraped(metrics) == [
        'process_cpu_seconds_total{process="0"} 6.0',
        'process_cpu_seconds_total{process="1"} 3.0',
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("kronos_db_pool_size", 7.0), ("kronos_db_part_ready", 3.0), ("kronos_db_build_info", 4.0)],
)
def test_gauges_are_added_up_unless_one_of_them_is_meant(process: Process, name: str, value: float) -> None:
    there = {0: process(gauge(name, 4)), 1: process(gauge(name, 3))}
    assert scraped(FleetMetrics(lambda: there)) == [f"{name} {value}"]


def test_a_process_that_does_not_answer_is_left_out(process: Process) -> None:
    there = {0: process(counter("calls_total", 5)), 1: "127.0.0.1:1"}
    assert scraped(FleetMetrics(lambda: there)) == ["calls_total 5.0"]


def test_a_process_that_does_not_answer_is_missing(process: Process) -> None:
    there = {0: process(counter("calls_total", 5)), 1: "127.0.0.1:1"}
    told = scraped(FleetMetrics(lambda: there, wanted=2))
    assert told == ["kronos_db_processes_wanted 2.0", "kronos_db_processes_answering 1.0", "calls_total 5.0"]


class _Dying:
    """Takes a request and ends without an answer, as a process that is killed."""

    def __init__(self) -> None:
        self.taken = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        host, port = self._socket.getsockname()
        self.address = f"{host}:{port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    self.taken += 1

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


def test_a_request_is_handed_to_a_process_that_answers() -> None:
    routes = [Route(verb, "/db/x", lambda _request: Response(body=b"x")) for verb in ("GET", "POST")]
    living = OpsServer("127.0.0.1:0", routes)
    living.start()
    dying = _Dying()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = "{}:{}".format(*closed.getsockname())
    try:
        both = Forwarding(lambda: {0: dying.address, 1: gone, 2: living.address})
        # The turn of each: what only reads is handed on also when a process ended over it.
        for _ in range(3):
            assert both(Request("GET", "/db/x", {}, {})).body == b"x"
            assert dying.taken == 1
        # What writes may have been done: nobody else gets it.
        with pytest.raises(ProblemError, match="ended") as refused:
            both(Request("POST", "/db/x", {}, {}))
        assert refused.value.status == HTTPStatus.BAD_GATEWAY
        assert dying.taken == 2
        with pytest.raises(ProblemError, match="No process") as refused:
            Forwarding(dict)(Request("GET", "/db/x", {}, {}))
        assert refused.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    finally:
        dying.stop()
        living.stop()
