"""Routes and quotas of the tests, each with a name of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub

from kronos_db.routes.model import Kind, Quota, Route
from tests.parts.serving import Serving

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def stub(serving: Serving, caller: str = "operator") -> RoutesServiceStub:
    return RoutesServiceStub(serving.channel_of(caller))


def unique(prefix: str = "n") -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def route(name: str, path: str, age: int = 0, **spec: Any) -> Route:
    """A route as stored, created `age` seconds after the first."""
    time = _BEGIN + timedelta(seconds=age)
    return Route(f"id of {name}", name, {"path": path, "upstream": "up", **spec}, 1, time, time)


def new_route(**changes: Any) -> pb.Route:
    """A route to be created, under a path of its own."""
    values: dict[str, Any] = {"name": unique("r"), "upstream": "http://up", "caller": pb.CALLER_REQUIREMENT_ANYONE}
    values["path"] = f"/{values['name']}"
    return pb.Route(**{**values, **changes})


def create(routes: RoutesServiceStub, **changes: Any) -> pb.Route:
    return routes.CreateRoute(pb.CreateRouteRequest(route=new_route(**changes))).route


def rate(limit: int, seconds: float = 3600.0, burst: int = 0) -> pb.RateRule:
    rule = pb.RateRule(limit=limit, burst=burst)
    rule.period.FromTimedelta(timedelta(seconds=seconds))
    return rule


def new_quota(**changes: Any) -> pb.Quota:
    quota = pb.Quota(**{"name": unique("q"), **changes})
    if quota.WhichOneof("rule") is None:
        quota.rate.CopyFrom(rate(10))
    return quota


def create_quota(routes: RoutesServiceStub, **changes: Any) -> pb.Quota:
    return routes.CreateQuota(pb.CreateQuotaRequest(quota=new_quota(**changes))).quota


def stored_quota(kind: Kind, rule: dict[str, Any], **changes: Any) -> Quota:
    """A quota as stored."""
    values: dict[str, Any] = {"keys": [], "shadow": False, "failure": 3, "generation": 1, "version": 1}
    return Quota(
        id="0190b6f2-7c1e-7000-8000-000000000000",
        name="some",
        kind=kind,
        rule=rule,
        create_time=_BEGIN,
        update_time=_BEGIN,
        **{**values, **changes},
    )
