"""The rows of restricted SQL: what statements that take all they can get cost the server and other callers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
from google.protobuf.duration_pb2 import Duration
from kronos.admin.v1 import query_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.users.v1 import users_pb2

from benchmarks.stand import Row, Stand, at_most, beside

_TIMEOUT = 1.0
_ROUNDS = 3
# Seconds that the statements take together, about.
_COUNTED = 5.0
_BEYOND = 200.0  # ms
# KRONOS_DB_QUERY_MAX_BYTES.
_ROOM = 16.0  # MiB
_STATEMENTS = (
    "SELECT generate_series(1, 1000000000000)",
    "SELECT count(*) FROM generate_series(1, (SELECT 1000000000000))",
    "SELECT count(*) FROM pg_attribute a, pg_attribute b, pg_attribute c",
    "SELECT count(*) FROM generate_series(1, 15000) a, generate_series(1, 20000) b",
    "SELECT repeat('x', 1000000000)",
    "SELECT repeat('x', 10000) FROM generate_series(1, 100000)",
    "SELECT string_agg(repeat('x', 10000), '') FROM generate_series(1, 100000)",
    "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT 1 FROM t) SELECT count(*) FROM t",
)


def rows(on: Stand) -> Iterator[Row]:
    """Measure."""
    with _asking(on) as ask:
        ask("SELECT 1")
        before = on.resident_megabytes()
        slowest = 0.0

        def run_all() -> None:
            nonlocal slowest
            slowest = max(slowest, *(ask(sql) for sql in _STATEMENTS))

        rounds = [
            (_p99_during(on, lambda: time.sleep(_COUNTED)), _p99_during(on, _count), _p99_during(on, run_all))
            for _ in range(_ROUNDS)
        ]
        grown = on.resident_megabytes() - before
    quiet, counting, busy = (statistics.median(each) for each in zip(*rounds, strict=True))
    beyond = max(0.0, slowest - _TIMEOUT) * 1000
    yield Row(
        "admin: Query beyond its time, slowest of 24", beyond, "ms", bar=f"≤ {_BEYOND:g} ms", met=beyond <= _BEYOND
    )
    yield Row("admin: Query, memory of the server", grown, "MiB", bar=f"≤ {_ROOM:g} MiB", met=grown <= _ROOM)
    yield at_most("admin: p99 of other callers meanwhile", busy, "ms", quiet, 1.1)
    yield beside("admin: p99 of other callers meanwhile, beside a process that counts", busy, "ms", counting)


@contextmanager
def _asking(on: Stand) -> Iterator[Callable[[str], float]]:
    """Give what asks, from a process of its own, and returns the seconds until a statement was answered or refused."""
    environment = {**os.environ, "KRONOS_BENCH_METADATA": json.dumps(on.metadata)}
    command = [sys.executable, "-m", "benchmarks.restricted_sql", on.settings.grpc_listen]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, asked = process.stdout, process.stdin

        def ask(sql: str) -> float:
            asked.write(f"{sql}\n")
            return float(told.readline())

        yield ask
        asked.close()


def _ask_on(target: str, metadata: Sequence[tuple[str, str]]) -> None:
    """Ask each statement of the standard input."""
    stub = AdminServiceStub(grpc.insecure_channel(target))
    for sql in sys.stdin:
        begun = time.perf_counter()
        try:
            for _ in stub.Query(pb.QueryRequest(sql=sql, timeout=Duration(seconds=int(_TIMEOUT))), metadata=metadata):
                pass
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}:
                raise
        print(time.perf_counter() - begun, flush=True)


def _count() -> None:
    """Keep one core busy as a statement does, in a process that yields to all others."""
    text = f"import os, time; os.nice(19); end = time.time() + {_COUNTED}\nwhile time.time() < end: pass"
    subprocess.run([sys.executable, "-c", text], check=True)


def _p99_during(on: Stand, work: Callable[[], None]) -> float:
    """Return the 99th percentile in ms of another caller's calls while `work` runs."""
    times: list[float] = []
    done = threading.Event()

    def call() -> None:
        stub = on.users
        while not done.is_set():
            begun = time.perf_counter()
            stub.ListUsers(users_pb2.ListUsersRequest(page_size=1), metadata=on.metadata)
            times.append((time.perf_counter() - begun) * 1000)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return sorted(times)[int(len(times) * 0.99)]


if __name__ == "__main__":
    _ask_on(sys.argv[1], [(name, value) for name, value in json.loads(os.environ["KRONOS_BENCH_METADATA"])])
