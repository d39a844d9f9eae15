"""The rows of administration: how long GetStatus takes while all is well and while parts are dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
from kronos.admin.v1 import status_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub

from benchmarks import restricted_sql
from benchmarks.stand import Row, Stand, stand

_ANSWERS = 400
_LIMIT = 50.0  # ms, as the contract says
_TOLD = 2000.0  # ms


def rows() -> Iterator[Row]:
    """Measure."""
    with stand(2) as on:
        _ask_until(on, lambda status: status.state == pb.PART_STATE_OK)
        yield _slowest("admin: GetStatus, slowest of 400, all parts well", on)
        yield from restricted_sql.rows(on)
        postgres = _postmaster(on)
        begun = time.perf_counter()
        os.kill(postgres, signal.SIGKILL)
        _ask_until(on, lambda status: status.postgres[0].health.state == pb.PART_STATE_DOWN)
        told = (time.perf_counter() - begun) * 1000
        name = "admin: PostgreSQL killed until GetStatus says so"
        yield Row(name, told, "ms", bar=f"≤ {_TOLD:.0f} ms", met=told <= _TOLD)
        yield _slowest("admin: GetStatus, slowest of 400, PostgreSQL dead", on)


def _slowest(name: str, on: Stand) -> Row:
    slowest = max(_timed(on) for _ in range(_ANSWERS))
    return Row(name, slowest, "ms", bar=f"≤ {_LIMIT:.0f} ms", met=slowest <= _LIMIT)


def _timed(on: Stand) -> float:
    begun = time.perf_counter()
    _ask(on)
    return (time.perf_counter() - begun) * 1000


def _ask(on: Stand) -> pb.GetStatusResponse:
    return AdminServiceStub(on.channel).GetStatus(pb.GetStatusRequest(), metadata=on.metadata)


def _ask_until(on: Stand, holds: Callable[[pb.GetStatusResponse], bool]) -> None:
    give_up = time.monotonic() + 30
    while not holds(_ask(on)):
        if time.monotonic() > give_up:
            raise SystemExit("GetStatus does not come to say what it should")


def _postmaster(on: Stand) -> int:
    dsn = on.settings.postgres_dsn
    assert dsn is not None
    with psycopg.connect(dsn.get_secret_value()) as connection:
        [folder] = connection.execute("SHOW data_directory").fetchone() or ("",)
    return int((Path(folder) / "postmaster.pid").read_text().splitlines()[0])
