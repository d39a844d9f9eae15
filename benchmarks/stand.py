"""The stand on which all is measured: a server with its own PostgreSQL, a floor beside it, a load from outside."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
from kronos.users.v1 import users_pb2_grpc

from benchmarks.load import Outcome
from kronos_db import dev
from kronos_db.config import Settings, environment_of, load

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

IN_FLIGHT = 64
_START_SECONDS = 30.0


@dataclass(frozen=True)
class Row:
    """One figure. `floor` and `ratio` are None where there is nothing to compare with; `met` tells of `bar`."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None
    bar: str = ""
    met: bool | None = None


def at_least(name: str, value: float, unit: str, floor: float, bar: float) -> Row:
    """Return the row of a figure that should be at least `bar` times its floor."""
    ratio = value / floor
    return Row(name, value, unit, floor, ratio, f"≥ {bar:g} × floor", ratio >= bar)


def at_most(name: str, value: float, unit: str, floor: float, bar: float) -> Row:
    """Return the row of a figure that should be at most `bar` times its floor."""
    ratio = value / floor
    return Row(name, value, unit, floor, ratio, f"≤ {bar:g} × floor", ratio <= bar)


class Stand:
    """One serving process, as `kronos-db serve` runs it, on a database of its own."""

    def __init__(self, settings: Settings, token: str) -> None:
        self.settings = settings
        self.metadata: Metadata = (("authorization", f"Bearer {token}"),)
        self._process = _serve(settings)
        self.pid = self._process.pid
        self.channel = grpc.insecure_channel(settings.grpc_listen)
        grpc.channel_ready_future(self.channel).result(_START_SECONDS)

    @property
    def users(self) -> users_pb2_grpc.UsersServiceStub:
        """A stub; calls need `metadata`."""
        return users_pb2_grpc.UsersServiceStub(self.channel)

    def load(self, method: str, requests: Sequence[bytes], seconds: float = 4.0, in_flight: int = IN_FLIGHT) -> Outcome:
        """Load a method; fail when a call fails."""
        outcome = run_load(self.settings.grpc_listen, method, requests, seconds, in_flight, self.metadata)
        if outcome.failures:
            raise SystemExit(f"{outcome.failures} calls of {method} failed")
        return outcome

    def resident_megabytes(self) -> float:
        """Return the resident memory of the serving process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise SystemExit("the serving process is gone")

    def stop(self) -> None:
        """End the server."""
        self.channel.close()
        self._process.terminate()
        self._process.wait(_START_SECONDS)


@contextmanager
def stand() -> Iterator[Stand]:
    """Start a stand in a fresh data directory."""
    with tempfile.TemporaryDirectory(prefix="kronos-bench-") as folder:
        settings = load(data_dir=Path(folder), grpc_listen=free_address(), ops_listen=free_address())
        with dev.environment(settings, lambda _said: None, threading.Event()) as (complete, token):
            running = Stand(complete, token)
            try:
                yield running
            finally:
                running.stop()


@contextmanager
def echo(threads: int, reply_bytes: int) -> Iterator[str]:
    """Start the bare echo server; yield its address."""
    command = [sys.executable, "-m", "benchmarks.echo", str(threads), str(reply_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.stdin.close()


def run_load(  # noqa: PLR0917  # a job, spelled out
    target: str,
    method: str,
    requests: Sequence[bytes],
    seconds: float,
    in_flight: int,
    metadata: Metadata = (),
) -> Outcome:
    """Run a load in a process of its own."""
    job = {
        "target": target,
        "method": method,
        "requests": [base64.b64encode(request).decode() for request in requests],
        "in_flight": in_flight,
        "seconds": seconds,
        "metadata": list(metadata),
    }
    command = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=True)
    return Outcome(**json.loads(done.stdout))


def free_address() -> str:
    """Return an address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _serve(settings: Settings) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **environment_of(settings)}
    # The access log goes where a service manager would take it, but is not kept.
    return subprocess.Popen([sys.executable, "-m", "kronos_db"], env=environment, stdout=subprocess.DEVNULL)


def settle() -> None:
    """Give the machine a moment between two measurements."""
    time.sleep(0.5)
