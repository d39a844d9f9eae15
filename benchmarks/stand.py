"""The stand on which all is measured: a server with its own PostgreSQL, a floor beside it, a load from outside."""

from __future__ import annotations

import base64
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from kronos.users.v1 import users_pb2_grpc

from benchmarks.load import Job, Outcome
from benchmarks.ports import free_address
from kronos_db import dev
from kronos_db.config import Settings, environment_of, load
from kronos_db.runtime.processes import SharedPort

Metadata: TypeAlias = tuple[tuple[str, str], ...]
# A method and its requests.
Asked: TypeAlias = tuple[Callable[[Any], object], Sequence[Any]]

IN_FLIGHT = 64
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Row:
    """One figure; `value` is None where it could not be measured.

    `floor` and `ratio` are None where there is nothing to compare with; `met` tells of `bar`.
    """

    name: str
    value: float | None
    unit: str
    floor: float | None = None
    ratio: float | None = None
    bar: str = ""
    met: bool | None = None


def at_least(name: str, value: float, unit: str, floor: float, bar: float) -> Row:
    """Return the row of a figure that should be at least `bar` times its floor."""
    ratio = value / floor
    return Row(name, value, unit, floor, ratio, f"≥ {bar:g} × floor", ratio >= bar)


def pair(values: Sequence[Outcome], floors: Sequence[Outcome]) -> tuple[Outcome, Outcome]:
    """Return a value and the floor of its own round: of all rounds, those whose ratio is the one in the middle.

    The weather of a shared machine changes within seconds, and what one round saw another one did not.
    """
    rounds = sorted(
        zip(values, floors, strict=True), key=lambda each: each[0].calls_per_second / each[1].calls_per_second
    )
    return rounds[len(rounds) // 2]


def at_most(name: str, value: float, unit: str, floor: float, bar: float) -> Row:
    """Return the row of a figure that should be at most `bar` times its floor."""
    ratio = value / floor
    return Row(name, value, unit, floor, ratio, f"≤ {bar:g} × floor", ratio <= bar)


def beside(name: str, value: float, unit: str, floor: float) -> Row:
    """Return the row of a figure that is compared and has no bar."""
    return Row(name, value, unit, floor, value / floor)


class Stand:
    """A server as `kronos-db serve` runs it, with `settings.processes` processes; it answers when this returns."""

    def __init__(self, settings: Settings, token: str) -> None:
        self.settings = settings
        self.metadata: Metadata = (("authorization", f"Bearer {token}"),)
        self._token = token
        self._process = _serve(settings)
        self.channel = grpc.insecure_channel(settings.grpc_listen)
        try:
            self._wait_until_ready()
            # One process serves by itself; several are the children of a supervisor, which serves nothing.
            self.pids = children(self._process.pid) if settings.processes > 1 else [self._process.pid]
        except BaseException:
            self.stop()
            raise

    @property
    def users(self) -> users_pb2_grpc.UsersServiceStub:
        """A stub; calls need `metadata`."""
        return users_pb2_grpc.UsersServiceStub(self.channel)

    def load(self, method: str, requests: Sequence[bytes], seconds: float = 4.0, in_flight: int = IN_FLIGHT) -> Outcome:
        """Load a method; fail when a call fails."""
        target = self.settings.grpc_listen
        outcome = run_load(target, method, requests, seconds, in_flight, self.metadata, servers=self.pids)
        return all_succeeded(outcome, method)

    def resident_megabytes(self) -> float:
        """Return the resident memory of all serving processes."""
        return sum(_resident_megabytes(pid) for pid in self.pids)

    @contextmanager
    def joined_by(self, processes: int) -> Iterator[Stand]:
        """Start another server, with so many processes, on the same database."""
        other = Stand(self.settings.model_copy(update=_listen() | {"processes": processes}), self._token)
        try:
            yield other
        finally:
            other.stop()

    def stop(self) -> None:
        """End the server."""
        self.channel.close()
        self._process.terminate()
        self._process.wait(_START_SECONDS)

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + _START_SECONDS
        while not _is_ready(self.settings.ops_listen):
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit("the server does not serve")
            time.sleep(0.1)


@contextmanager
def stand(processes: int = 1, **changes: Any) -> Iterator[Stand]:
    """Start a stand in a fresh data directory; `changes` are settings."""
    with tempfile.TemporaryDirectory(prefix="kronos-bench-") as folder:
        # What is measured is what calls cost: no backup is made meanwhile, unless that is what is asked for.
        asked = {"backup_destination": None, **changes}
        settings = load(data_dir=Path(folder), processes=processes, **_listen(), **asked)
        with dev.environment(settings, lambda _said: None, threading.Event()) as (complete, token):
            running = Stand(complete, token)
            try:
                yield running
            finally:
                running.stop()


@contextmanager
def echo(threads: int, reply_bytes: int, processes: int = 1) -> Iterator[str]:
    """Start the bare echo server, so many processes of it on one port; yield its address."""
    port = SharedPort("127.0.0.1:0")
    command = [sys.executable, "-m", "benchmarks.echo", port.address, str(threads), str(reply_bytes)]
    with ExitStack() as stack:
        stack.callback(port.close)
        for _ in range(processes):
            stack.enter_context(program(command))
        yield port.address


@contextmanager
def program(
    command: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a program that says so in a line when it serves, and ends when its input closes; yield its pid."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
            if not ready or not process.stdout.readline():
                raise SystemExit(f"{' '.join(command)} does not serve")
            yield process.pid
            process.stdin.close()
            process.wait(_START_SECONDS)
        finally:
            process.kill()


def run_load(  # noqa: PLR0917  # a job, spelled out
    target: str,
    method: str,
    requests: Sequence[bytes],
    seconds: float,
    in_flight: int,
    metadata: Metadata = (),
    *,
    servers: Sequence[int] = (),
) -> Outcome:
    """Load a gRPC method from a process of its own; `servers` are the pids whose processor time is wanted."""
    encoded = [base64.b64encode(request).decode() for request in requests]
    return _do(Job(target, method, encoded, in_flight, seconds, metadata=list(metadata), servers=list(servers)))


def run_http_load(target: str, path: str, names: Sequence[str], seconds: float, in_flight: int) -> Outcome:
    """Load an HTTP server with GET of `path` and each of `names` after it, from a process of its own."""
    return _do(Job(target, path, list(names), in_flight, seconds, protocol="http"))


def _do(job: Job) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(command, input=json.dumps(asdict(job)), stdout=subprocess.PIPE, text=True, check=True)
    return Outcome(**json.loads(done.stdout))


def all_succeeded(outcome: Outcome, what: str) -> Outcome:
    """Return `outcome`; fail when a call failed."""
    if outcome.failures:
        raise SystemExit(f"{outcome.failures} calls of {what} failed")
    return outcome


def children(parent: int) -> list[int]:
    """Return the pids of the processes that `parent` started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            of = entry.read_text().rpartition(")")[2].split()
        except OSError:
            # It ended while we looked.
            continue
        if int(of[1]) == parent:
            found.append(int(entry.parent.name))
    return found


def p50s_in_turn(*asked: Asked) -> list[float]:
    """Return for each of `asked` the median milliseconds of its calls, made one at a time.

    The methods are called in turn, so that all see the same weather.
    """
    times: list[list[float]] = [[] for _ in asked]
    for number in range(min(len(requests) for _, requests in asked)):
        for (method, requests), taken in zip(asked, times, strict=True):
            begin = time.perf_counter()
            method(requests[number])
            taken.append((time.perf_counter() - begin) * 1000)
    return [statistics.median(taken) for taken in times]


def settle() -> None:
    """Give the machine a moment between two measurements."""
    time.sleep(0.5)


def _listen() -> dict[str, str]:
    return {"grpc_listen": free_address(), "ops_listen": free_address()}


def _serve(settings: Settings) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **environment_of(settings)}
    # The access log goes where a service manager would take it, but is not kept.
    return subprocess.Popen([sys.executable, "-m", "kronos_db"], env=environment, stdout=subprocess.DEVNULL)


def _is_ready(ops_address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{ops_address}/readyz", timeout=5) as answer:
            # 200 comes already when one process of several serves.
            return bool(json.load(answer)["status"] == "ok")
    except (urllib.error.URLError, OSError):
        return False


def _resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("a serving process is gone")
