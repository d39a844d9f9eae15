"""The rows of the routes domain: matching alone, resolving, deciding, consuming, and a change of the whole table."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub
from kronos.users.v1 import roles_pb2, users_pb2

from benchmarks.load import Outcome
from benchmarks.stand import IN_FLIGHT, Row, Stand, at_least, at_most, beside, echo, run_load, settle, stand
from kronos_db.routes.matcher import Matcher
from kronos_db.routes.model import Route

_ROUNDS = 5
# Of loads with and without a change of the table.
_CHANGES = 7
_SECONDS = 4.0
_ROUTES = 1_000
_MANY_ROUTES = 10_000
# Requests that are asked for again and again; more than a process keeps answers for would be another measurement.
_PATHS = 2_000
_BATCH = 100
_SERVICE = "/kronos.routes.v1.RoutesService"


def rows() -> Iterator[Row]:
    """Measure."""
    yield from _matching()
    with stand(1) as one:
        _fill(one, _ROUTES)
        yield from _beside_echo(one)
    with stand(2) as two:
        _fill(two, _ROUTES)
        yield from _batches(two)
        yield from _change(two)


def _matching() -> Iterator[Row]:
    """Match in this thread alone, each table in turn; of all rounds the one in the middle counts."""
    matchers = {count: Matcher().changed(_stored(count)) for count in (_ROUTES, _MANY_ROUTES)}
    rounds = [[_paths_a_second(matcher, _paths(count, 5_000)) for count, matcher in matchers.items()] for _ in range(9)]
    few, many = sorted(rounds, key=lambda speeds: speeds[0] / speeds[1])[len(rounds) // 2]
    name = "routes: matching alone, 1,000 routes"
    yield Row(name, few, "paths/s", bar="≥ 200,000", met=few >= 200_000)
    yield at_most("routes: matching alone, time with 10,000 routes beside 1,000", 1e6 / many, "µs", 1e6 / few, 1.5)


def _paths_a_second(matcher: Matcher, paths: Sequence[str]) -> float:
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.4:
        for path in paths:
            matcher.find("GET", "api.example.org", path)
        done += len(paths)
    return done / (time.perf_counter() - begin)


def _beside_echo(on: Stand) -> Iterator[Row]:
    """Load each method and a floor with answers of its size in turn."""
    resolve = [
        pb.ResolveRouteRequest(method="GET", host="api.example.org", path=path) for path in _paths(_ROUTES, _PATHS)
    ]
    yield at_least(
        "routes: ResolveRoute, 1,000 routes, 1 process",
        *_in_turn(on, "ResolveRoute", [each.SerializeToString() for each in resolve]),
        0.75,
    )
    user_id = _reader(on)
    for name, first in (("a rate and a day", "calendar"), ("two rates", "rate")):
        decide = [
            pb.AuthorizeRequestRequest(
                method="GET", path=f"/decide/{first}/{number}", user_id=user_id
            ).SerializeToString()
            for number in range(_PATHS)
        ]
        figures = _in_turn(on, "AuthorizeRequest", decide)
        yield at_least(f"routes: AuthorizeRequest with a permission and {name}, 1 process", *figures, 0.4)


def _reader(on: Stand) -> str:
    """Create a user who has the permission that the routes ask for."""
    user = on.users.CreateUser(
        users_pb2.CreateUserRequest(user=users_pb2.User(username="reader")), metadata=on.metadata
    ).user
    role = roles_pb2.Role(name="reader", permissions=["orders:read"])
    role_id = on.users.CreateRole(roles_pb2.CreateRoleRequest(role=role), metadata=on.metadata).role.id
    grant = roles_pb2.Grant(user_id=user.id, role_id=role_id)
    on.users.GrantRole(roles_pb2.GrantRoleRequest(grant=grant), metadata=on.metadata)
    return user.id


def _in_turn(on: Stand, method: str, requests: Sequence[bytes]) -> tuple[float, str, float]:
    """Return the calls a second of a method, their unit, and those of the floor."""
    answer = _answer_bytes(on, method, requests[0])
    calls, floors = [], []
    with echo(on.settings.worker_threads, answer) as target:
        for _ in range(_ROUNDS):
            settle()
            floors.append(
                run_load(target, "/bench.Echo/Echo", requests, _SECONDS, IN_FLIGHT, on.metadata).calls_per_second
            )
            settle()
            calls.append(on.load(f"{_SERVICE}/{method}", requests, _SECONDS).calls_per_second)
    return statistics.median(calls), "calls/s", statistics.median(floors)


def _answer_bytes(on: Stand, method: str, request: bytes) -> int:
    send = on.channel.unary_unary(f"{_SERVICE}/{method}", None, None)
    answer: bytes = send(request, metadata=on.metadata)
    if method == "AuthorizeRequest" and not pb.AuthorizeRequestResponse.FromString(answer).allowed:
        raise SystemExit("the decision was to be positive")
    return len(answer)


def _batches(on: Stand) -> Iterator[Row]:
    """Consume of rates keyed by user, in batches."""
    for kind in ("rate", "calendar"):
        requests = [
            pb.BatchConsumeQuotasRequest(
                consumptions=[
                    pb.QuotaConsumption(quota=f"{kind}-1", subject=pb.QuotaSubject(user_id=f"user {number}"))
                    for number in range(start, start + _BATCH)
                ]
            ).SerializeToString()
            for start in range(0, 10_000, _BATCH)
        ]
        outcomes = [on.load(f"{_SERVICE}/BatchConsumeQuotas", requests, _SECONDS, 16) for _ in range(_ROUNDS)]
        decisions = statistics.median(outcome.calls_per_second for outcome in outcomes) * _BATCH
        name = f"routes: BatchConsumeQuotas of 100, {kind}, 2 processes"
        bar = {"bar": "≥ 40,000", "met": decisions >= 40_000} if kind == "rate" else {}
        yield Row(name, decisions, "decisions/s", **bar)


def _change(on: Stand) -> Iterator[Row]:
    """Change all of 10,000 routes while they are asked for; look when both processes know, and what callers saw."""
    stub = RoutesServiceStub(on.channel)
    requests = [
        pb.ResolveRouteRequest(method="GET", path=path).SerializeToString() for path in _paths(_MANY_ROUTES, _PATHS)
    ]
    tables = [_declared(_MANY_ROUTES, priority) for priority in (1, 2)]
    stub.ApplyRoutes(tables[0], metadata=on.metadata)
    settle()
    applied: list[float] = []
    # By turns: what else the machine does changes within minutes.
    rounds = [
        (
            on.load(f"{_SERVICE}/ResolveRoute", requests, _SECONDS),
            _while_changing(on, stub, tables, requests, applied),
        )
        for _ in range(_CHANGES)
    ]
    quiet, busy = zip(*rounds, strict=True)
    took = statistics.median(applied)
    name = "routes: ApplyRoutes that changes 10,000 routes, until it is live in 2 processes"
    yield Row(name, took, "s", bar="≤ 1 s", met=took <= 1.0)
    p99 = statistics.median(outcome.p99_ms for outcome in busy)
    name = "routes: ResolveRoute while 10,000 routes change, p99, beside without"
    yield at_most(name, p99, "ms", statistics.median(outcome.p99_ms for outcome in quiet), 1.5)
    calls = statistics.median(outcome.calls_per_second for outcome in busy)
    floor = statistics.median(outcome.calls_per_second for outcome in quiet)
    yield beside("routes: ResolveRoute while 10,000 routes change, beside without", calls, "calls/s", floor)
    yield Row("routes: UpdateRoute of one of 10,000 routes, p50", _single_changes(stub, on), "ms")


def _while_changing(
    on: Stand,
    stub: RoutesServiceStub,
    tables: Sequence[pb.ApplyRoutesRequest],
    requests: Sequence[bytes],
    applied: list[float],
) -> Outcome:
    """Load for some seconds, and change the table once meanwhile; acknowledged is live everywhere."""
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(on.load, f"{_SERVICE}/ResolveRoute", requests, _SECONDS)
        # Past the warm-up of the load.
        time.sleep(2.5)
        begin = time.perf_counter()
        answer = stub.ApplyRoutes(tables[(len(applied) + 1) % 2], metadata=on.metadata)
        applied.append(time.perf_counter() - begin)
        if len(answer.updated) != _MANY_ROUTES:
            raise SystemExit("all routes were to change")
        return load.result()


def _single_changes(stub: RoutesServiceStub, on: Stand) -> float:
    page = stub.GetRouteTable(pb.GetRouteTableRequest(page_size=20), metadata=on.metadata)
    times = []
    for number, route in enumerate(page.routes):
        change = pb.UpdateRouteRequest(route=pb.Route(id=route.id, upstream=f"http://other/{number}"))
        begin = time.perf_counter()
        stub.UpdateRoute(change, metadata=on.metadata)
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)


def _templates(count: int) -> Iterator[str]:
    """Yield templates as a platform's services have them: five for each of their things."""
    for number in range(count // 5):
        base = f"/api/v1/service{number % 50}/things{number}"
        yield from (base, f"{base}/{{id}}", f"{base}/{{id}}/parts/{{part:int}}", f"{base}/search", f"{base}/files/**")


def _paths(count: int, many: int) -> list[str]:
    """Return paths that these templates match, in random order."""
    chance = random.Random(1)
    found = []
    for _ in range(many):
        number = chance.randrange(count // 5)
        base = f"/api/v1/service{number % 50}/things{number}"
        ends = ["", f"/{chance.randrange(10_000)}", f"/x/parts/{chance.randrange(100)}", "/search", "/files/a/b.txt"]
        found.append(base + chance.choice(ends))
    return found


def _stored(count: int) -> list[Route]:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Route(f"id {n}", f"r{n}", {"path": path, "upstream": "u", "methods": ["GET"]}, 1, begin + timedelta(n), begin)
        for n, path in enumerate(_templates(count))
    ]


def _declared(count: int, priority: int) -> pb.ApplyRoutesRequest:
    routes = [
        pb.Route(name=f"r{n}", path=path, methods=["GET"], upstream="http://up:8080", priority=priority)
        for n, path in enumerate(_templates(count))
    ]
    return pb.ApplyRoutesRequest(routes=routes)


def _fill(on: Stand, count: int) -> None:
    """Create quotas and routes; nobody comes near the limits."""
    stub = RoutesServiceStub(on.channel)
    never = 1_000_000_000
    rate = pb.RateRule(limit=never, burst=never)
    rate.period.FromTimedelta(timedelta(hours=1))
    month = pb.CalendarRule(limit=never, unit=pb.CALENDAR_UNIT_DAY)
    for number in (1, 2):
        for kind, rule in (("rate", {"rate": rate}), ("calendar", {"calendar": month})):
            quota = pb.Quota(name=f"{kind}-{number}", keys=[pb.QUOTA_KEY_USER, pb.QUOTA_KEY_GIVEN], **rule)
            stub.CreateQuota(pb.CreateQuotaRequest(quota=quota), metadata=on.metadata)
    table = _declared(count, 0)
    for first in ("rate", "calendar"):
        table.routes.add(
            name=f"decide-{first}",
            path=f"/decide/{first}/{{id}}",
            upstream="http://up:8080",
            permissions=[pb.RoutePermission(permission="orders:read")],
            quotas=["rate-1", f"{first}-2"],
        )
    stub.ApplyRoutes(table, metadata=on.metadata)
