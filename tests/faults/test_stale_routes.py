"""No route is resolved from before an acknowledged change: two processes, every step delayed at random."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub
from psycopg.conninfo import conninfo_to_dict

from tests.faults.test_stale import Pair
from tests.routes.population import new_route

_LIMIT = 30.0
_THREADS = 12
_ROUTES = 8
_NOWHERE = "unix:///nowhere.sock"


class Ledger:
    """The newest etag of each route that was acknowledged, and the answers that were older."""

    def __init__(self, ids: list[str]) -> None:
        self._etags = dict.fromkeys(ids, 1)
        self._lock = threading.Lock()
        self.stale: list[str] = []
        self.reads = self.writes = 0

    def acknowledged(self, route: pb.Route) -> None:
        with self._lock:
            self.writes += 1
            self._etags[route.id] = max(self._etags[route.id], int(route.etag))

    def of(self, route_id: str) -> int:
        return self._etags[route_id]

    def answered(self, route: pb.Route, at_least: int) -> None:
        with self._lock:
            self.reads += 1
            if int(route.etag) < at_least:
                self.stale.append(f"{route.name} at {route.etag}, {at_least} was acknowledged")


@contextmanager
def _cut_off(dsn: str) -> Iterator[None]:
    """Let nobody connect to the database any more, and end the connections that there are."""
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, dbname="postgres", autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def interleave(on: Pair, calls: int, enough: int | None = None) -> Ledger:
    """Change and resolve routes from many threads on both processes; no more after `enough` stale answers."""
    stubs = [RoutesServiceStub(channel) for channel in on.channels]
    named: dict[str, Any] = {"metadata": on.credential, "timeout": _LIMIT}
    made = [stubs[0].CreateRoute(pb.CreateRouteRequest(route=new_route()), **named).route for _ in range(_ROUTES)]
    ledger = Ledger([route.id for route in made])

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(calls // _THREADS):
            if enough is not None and len(ledger.stale) >= enough:
                return
            stub, route = chance.choice(stubs), chance.choice(made)
            if chance.randrange(12) == 0:
                changed = pb.Route(id=route.id, priority=chance.randrange(1, 1000))
                ledger.acknowledged(stub.UpdateRoute(pb.UpdateRouteRequest(route=changed), **named).route)
                continue
            before = ledger.of(route.id)
            if chance.randrange(3) == 0:
                request = pb.AuthorizeRequestRequest(method="GET", path=route.path)
                ledger.answered(stub.AuthorizeRequest(request, **named).route, before)
            else:
                resolve = pb.ResolveRouteRequest(method="GET", path=route.path)
                ledger.answered(stub.ResolveRoute(resolve, **named).route, before)

    with ThreadPoolExecutor(_THREADS) as threads:
        for outcome in [threads.submit(work, seed) for seed in range(_THREADS)]:
            outcome.result()
    return ledger


def test_no_route_is_from_before_an_acknowledged_change(database: str, tmp_path: Path) -> None:
    on = Pair(tmp_path, database, _NOWHERE, None)
    try:
        ledger = interleave(on, 1_000)
    finally:
        on.stop()
    assert ledger.stale == []
    assert ledger.reads > 750
    assert ledger.writes > 50


def test_a_fault_is_seen(database: str, tmp_path: Path) -> None:
    """The test above can fail: when the board is not looked at."""
    on = Pair(tmp_path, database, _NOWHERE, "unchecked")
    try:
        assert interleave(on, 6_000, enough=1).stale
    finally:
        on.stop()


def test_a_route_is_not_resolved_while_postgres_may_have_another(database: str, tmp_path: Path) -> None:
    """A process that can no longer know what changed answers nothing from its table."""
    on = Pair(tmp_path, database, _NOWHERE, None, plain=True)
    try:
        stub = RoutesServiceStub(on.channels[0])
        named: dict[str, Any] = {"metadata": on.credential, "timeout": _LIMIT}
        route = stub.CreateRoute(pb.CreateRouteRequest(route=new_route()), **named).route
        request = pb.ResolveRouteRequest(method="GET", path=route.path)
        assert stub.ResolveRoute(request, **named).route == route
        with _cut_off(database):
            codes = set()
            for _ in range(400):
                try:
                    stub.ResolveRoute(request, metadata=on.credential, timeout=1.0)
                except grpc.RpcError as error:
                    codes.add(error.code().name)  # type: ignore[attr-defined]  # not in the stubs
                    break
                threading.Event().wait(0.02)
            assert codes <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
            assert codes
    finally:
        on.stop()
