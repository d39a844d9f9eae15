"""Loads a server from a process of its own: so many calls in flight, each answered one replaced at once.

    python -m benchmarks.load < JOB.json

The job is one JSON object, see `Job`. Prints one JSON object, see `Outcome`. Server and generator share the machine,
so the generator is made to cost little (see http2.py), and what both cost is reported.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.http1 import Http1Calls, get
from benchmarks.http2 import Http2Calls, framed
from benchmarks.tally import Tally

# Seconds for connecting, sending, and the last answers.
_PATIENCE = 10.0
_READ = 1 << 18


@dataclass(frozen=True)
class Job:
    """What to call. Times in seconds.

    `grpc`: unary calls of `method`; `requests` are messages in base64, sent with `metadata`. `http`: GET of `method`
    with each of `requests` after it, one in flight on a connection. `per_connection` calls share a connection, few
    enough that there are connections for all processes that share a port. `servers` are the pids whose processor time
    is reported.
    """

    target: str
    method: str
    requests: list[str]
    in_flight: int
    seconds: float
    warm_up: float = 1.0
    metadata: list[tuple[str, str]] = field(default_factory=list)
    protocol: Literal["grpc", "http"] = "grpc"
    per_connection: int = 4
    servers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of it in the measured time: successful calls a second, failed calls, latencies in milliseconds.

    `generator_cpu` and `server_cpu` are processor seconds a second, user and system: cores that were busy.
    """

    calls_per_second: float
    failures: int
    p50_ms: float
    p99_ms: float
    generator_cpu: float
    server_cpu: float


class Calls(Protocol):
    """One connection's calls, as bytes in and bytes out."""

    in_flight: int

    def open(self, now: float) -> bytes:
        """Return what is to be sent first."""

    def receive(self, data: bytes, now: float) -> bytes:
        """Take what was received at `now`; return what is to be sent."""


class Generator:
    """Drives all connections from one thread."""

    def __init__(self, target: str, connections: Sequence[Calls]) -> None:
        host, _, port = target.rpartition(":")
        self._connections = connections
        self._selector = selectors.DefaultSelector()
        for calls in connections:
            connection = socket.create_connection((host, int(port)), _PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, (connection, calls))
            connection.sendall(calls.open(time.perf_counter()))

    def run(self, until: float) -> None:
        """Take answers and replace what they answer, until that time. Raises OSError when a connection is lost."""
        while (left := until - time.perf_counter()) > 0:
            self._take(left)

    def drain(self, patience: float) -> int:
        """Take the last answers; return how many calls got none."""
        give_up = time.perf_counter() + patience
        while self._in_flight() and (left := give_up - time.perf_counter()) > 0:
            self._take(left)
        return self._in_flight()

    def _take(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            connection, calls = key.data
            data = connection.recv(_READ)
            if not data:
                raise ConnectionError("the server closed a connection")
            reply = calls.receive(data, time.perf_counter())
            if reply:
                connection.sendall(reply)

    def _in_flight(self) -> int:
        return sum(calls.in_flight for calls in self._connections)


def run(job: Job) -> Outcome:
    """Do the job."""
    tally, connections = _calls(job)
    # Nothing here makes cycles, and a pause of the collector would be a pause of the load.
    gc.disable()
    generator = Generator(job.target, connections)
    generator.run(time.perf_counter() + job.warm_up)
    tally.latencies.clear()
    generator_before, servers_before, begin = time.process_time(), processor_seconds(job.servers), time.perf_counter()
    generator.run(begin + job.seconds)
    seconds = time.perf_counter() - begin
    servers = processor_seconds(job.servers) - servers_before
    generator_cpu = time.process_time() - generator_before
    latencies = sorted(tally.latencies)
    tally.close()
    unanswered = generator.drain(_PATIENCE)
    return Outcome(
        calls_per_second=len(latencies) / seconds,
        failures=tally.failures + unanswered,
        p50_ms=latencies[len(latencies) // 2] * 1000 if latencies else 0.0,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000 if latencies else 0.0,
        generator_cpu=generator_cpu / seconds,
        server_cpu=servers / seconds,
    )


def _calls(job: Job) -> tuple[Tally, list[Calls]]:
    if job.protocol == "http":
        tally = Tally([get(job.target, job.method + request) for request in job.requests])
        return tally, [Http1Calls(tally) for _ in range(job.in_flight)]
    tally = Tally([framed(base64.b64decode(request)) for request in job.requests])
    headers = [
        (":path", job.method),
        (":authority", job.target),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *job.metadata,
    ]
    shares = [min(job.per_connection, job.in_flight - taken) for taken in range(0, job.in_flight, job.per_connection)]
    return tally, [Http2Calls(tally, headers, share) for share in shares]


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that processes have had so far, user and system. Raises OSError for one that ended."""
    # Fields 14 and 15; the second one, the name, may hold blanks itself.
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(of[11]) + int(of[12]) for of in fields) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Do the job that standard input describes."""
    job = Job(**json.load(sys.stdin))
    try:
        outcome = run(job)
    except OSError as error:
        raise SystemExit(f"{job.method or 'the load'} ended early: {error}") from None
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
