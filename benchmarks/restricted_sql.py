"""The rows of restricted SQL: what statements that take all they can get cost the server and other callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc
from google.protobuf.duration_pb2 import Duration
from kronos.admin.v1 import query_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.users.v1 import users_pb2

from benchmarks.stand import Row, Stand, at_most

_TIMEOUT = 1.0
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
    _ask(on, "SELECT 1")
    quiet = _p99_during(on, lambda: time.sleep(len(_STATEMENTS) * _TIMEOUT / 2))
    before = on.resident_megabytes()
    slowest = 0.0

    def run_all() -> None:
        nonlocal slowest
        slowest = max(_ask(on, sql) for sql in _STATEMENTS)

    busy = _p99_during(on, run_all)
    grown = on.resident_megabytes() - before
    beyond = max(0.0, slowest - _TIMEOUT) * 1000
    yield Row(
        "admin: Query beyond its time, slowest of 8", beyond, "ms", bar=f"≤ {_BEYOND:g} ms", met=beyond <= _BEYOND
    )
    yield Row("admin: Query, memory of the server", grown, "MiB", bar=f"≤ {_ROOM:g} MiB", met=grown <= _ROOM)
    yield at_most("admin: p99 of other callers meanwhile", busy, "ms", quiet, 1.1)


def _ask(on: Stand, sql: str) -> float:
    """Return the seconds until a statement was answered or refused."""
    begun = time.perf_counter()
    try:
        request = pb.QueryRequest(sql=sql, timeout=Duration(seconds=int(_TIMEOUT)))
        for _ in AdminServiceStub(on.channel).Query(request, metadata=on.metadata):
            pass
    except grpc.RpcError as error:
        if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}:
            raise
    return time.perf_counter() - begun


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
