"""AuthorizeRequest: route, caller, scopes, permissions, quotas, in this order; a denial consumes nothing."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub

from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.routes.conftest import ANN, BOB, SUSPENDED, TOKEN, Platform
from tests.routes.population import create, create_quota, rate, stub, unique

KNOWN = pb.CALLER_REQUIREMENT_KNOWN
READ = pb.RoutePermission(permission="orders:read")


def authorize(routes: RoutesServiceStub, path: str, **kw: Any) -> pb.AuthorizeRequestResponse:
    return routes.AuthorizeRequest(pb.AuthorizeRequestRequest(method="GET", path=path, **kw))


def used(routes: RoutesServiceStub, quota: pb.Quota) -> int:
    return routes.GetQuotaUsage(pb.GetQuotaUsageRequest(quota=quota.name)).used


def test_an_allowed_request_is_told_all(routes: RoutesServiceStub) -> None:
    second, day = (
        create_quota(routes, rate=rate(2, 60)),
        create_quota(routes, calendar=pb.CalendarRule(limit=9, unit=1)),
    )
    base = unique("o")
    route = create(
        routes,
        path=f"/{base}/{{id}}",
        caller=KNOWN,
        permissions=[READ],
        quotas=[second.name, day.name],
        scopes=["orders"],
    )

    answer = authorize(routes, f"/{base}//7", user_id=ANN.upper())

    assert (answer.allowed, answer.denial, answer.rule, answer.http_status) == (True, pb.DENIAL_UNSPECIFIED, "", 200)
    assert answer.route == route
    assert (dict(answer.parameters), answer.normalized_path) == ({"id": "7"}, f"/{base}/7")
    assert answer.subject == ANN
    assert answer.table_version
    assert [(each.quota, each.allowed, each.remaining) for each in answer.quotas] == [
        (second.name, True, 1),
        (day.name, True, 8),
    ]
    headers = dict(answer.response_headers)
    assert headers["RateLimit-Policy"] == f'"{second.name}";q=2;w=60, "{day.name}";q=9;w=86400'
    assert headers["RateLimit"].startswith(f'"{second.name}";r=1;t=30, "{day.name}";r=8;t=')
    assert set(headers) == {"RateLimit-Policy", "RateLimit"}


@pytest.mark.parametrize(
    ("spec", "caller", "denied"),
    [
        ({"caller": KNOWN}, {}, ("UNAUTHENTICATED", "", 401)),
        ({"caller": KNOWN}, {"token": "forged"}, ("UNAUTHENTICATED", "", 401)),
        ({"caller": KNOWN}, {"user_id": SUSPENDED}, ("INACTIVE", "", 403)),
        ({}, {"user_id": SUSPENDED}, ("INACTIVE", "", 403)),
        ({"caller": KNOWN, "scopes": ["orders", "admin"]}, {"token": TOKEN}, ("SCOPE", "admin", 403)),
        ({"caller": KNOWN, "permissions": [READ]}, {"user_id": BOB}, ("PERMISSION", "orders:read", 403)),
        (
            {"caller": KNOWN, "permissions": [READ, pb.RoutePermission(permission="orders:drop")]},
            {"token": TOKEN},
            ("PERMISSION", "orders:drop", 403),
        ),
    ],
)
def test_denials_consume_nothing(
    routes: RoutesServiceStub, spec: dict[str, Any], caller: dict[str, Any], denied: tuple[str, str, int]
) -> None:
    quota = create_quota(routes)
    route = create(routes, quotas=[quota.name], **spec)

    answer = authorize(routes, route.path, **caller)

    assert not answer.allowed
    assert (pb.Denial.Name(answer.denial), answer.rule, answer.http_status) == (f"DENIAL_{denied[0]}", *denied[1:])
    assert answer.route == route
    assert not answer.quotas
    assert used(routes, quota) == 0


def test_no_route(routes: RoutesServiceStub) -> None:
    answer = authorize(routes, f"/{unique()}")
    assert (answer.denial, answer.http_status) == (pb.DENIAL_NO_ROUTE, 404)
    assert not answer.HasField("route")


def test_permissions_in_the_scope_that_the_path_names(routes: RoutesServiceStub) -> None:
    base = unique("t")
    write = pb.RoutePermission(permission="orders:write", scope="tenant/{tenant}")
    create(routes, path=f"/{base}/{{tenant}}/orders", caller=KNOWN, permissions=[READ, write])

    assert authorize(routes, f"/{base}/acme/orders", token=TOKEN).allowed
    assert authorize(routes, f"/{base}/other/orders", token=TOKEN).rule == "orders:write"
    # What Users refuses as a scope nobody has a permission for.
    assert authorize(routes, f"/{base}/a%20b/orders", token=TOKEN).denial == pb.DENIAL_PERMISSION


def test_all_permissions_are_asked_at_once(routes: RoutesServiceStub) -> None:
    route = create(routes, caller=KNOWN, permissions=[READ, pb.RoutePermission(permission="orders:write")])
    before = Platform.asked
    authorize(routes, route.path, user_id=ANN)
    assert Platform.asked == before + 1


def test_anybody_may_call_without_a_caller_and_with_a_token_that_is_none(routes: RoutesServiceStub) -> None:
    route = create(routes)
    for caller, subject in (({}, ""), ({"token": "forged"}, ""), ({"token": TOKEN}, ANN), ({"user_id": BOB}, BOB)):
        answer = authorize(routes, route.path, **caller)  # type: ignore[arg-type]  # a mapping of texts
        assert (answer.allowed, answer.subject) == (True, subject)


def test_quotas_are_all_or_nothing(routes: RoutesServiceStub) -> None:
    fast = create_quota(routes, rate=rate(100))
    day = create_quota(routes, calendar=pb.CalendarRule(limit=2, unit=pb.CALENDAR_UNIT_MONTH))
    place = create_quota(routes, concurrency=pb.ConcurrencyRule(limit=100))
    route = create(routes, quotas=[fast.name, day.name, place.name])
    answers = [authorize(routes, route.path) for _ in range(4)]

    assert [answer.allowed for answer in answers] == [True, True, False, False]
    denied = answers[2]
    assert (denied.denial, denied.rule, denied.http_status) == (pb.DENIAL_QUOTA, day.name, 429)
    assert int(denied.response_headers["Retry-After"]) >= 1
    assert not denied.lease
    assert [each.remaining for each in denied.quotas] == [98, 0, 98]
    assert [used(routes, quota) for quota in (fast, day, place)] == [2, 2, 2]
    assert routes.ReleaseQuota(pb.ReleaseQuotaRequest(lease=answers[0].lease)).released_count == 1
    assert used(routes, place) == 1


def test_a_repeat_and_a_dry_run(routes: RoutesServiceStub) -> None:
    quotas = [create_quota(routes), create_quota(routes, calendar=pb.CalendarRule(limit=5, unit=1))]
    route = create(routes, quotas=[quota.name for quota in quotas])
    request_id = str(uuid4())

    answers = [authorize(routes, route.path, request_id=request_id) for _ in range(3)]
    authorize(routes, route.path, validate_only=True)

    assert all(answer.allowed for answer in answers)
    assert [used(routes, quota) for quota in quotas] == [1, 1]
    assert refused(lambda: authorize(routes, route.path, request_id=request_id, cost=2)).reason == "CONSUMPTION_REUSED"


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        (pb.QUOTA_KEY_USER, {"user_id": ANN}, {"user_id": BOB}),
        (pb.QUOTA_KEY_USER, {"token": TOKEN}, {}),
        (pb.QUOTA_KEY_CLIENT, {"client_id": "a"}, {"client_id": "b"}),
        (pb.QUOTA_KEY_CLIENT, {"token": TOKEN, "client_id": "says"}, {"client_id": "says"}),
        (pb.QUOTA_KEY_IP, {"client_ip": "192.0.2.1"}, {"client_ip": "192.0.2.2"}),
        (pb.QUOTA_KEY_IP, {"client_ip": "2001:db8::1"}, {"client_ip": "2001:db8:1::1"}),
        (pb.QUOTA_KEY_GIVEN, {"quota_key": "a"}, {"quota_key": "b"}),
    ],
)
def test_use_is_counted_apart(routes: RoutesServiceStub, key: int, one: dict[str, str], other: dict[str, str]) -> None:
    quota = create_quota(routes, rate=rate(1), keys=[key])
    route = create(routes, quotas=[quota.name])

    assert [authorize(routes, route.path, **one).allowed for _ in range(2)] == [True, False]  # type: ignore[arg-type]
    assert authorize(routes, route.path, **other).allowed  # type: ignore[arg-type]  # a mapping of texts


def test_use_by_route(routes: RoutesServiceStub) -> None:
    quota = create_quota(routes, rate=rate(1), keys=[pb.QUOTA_KEY_ROUTE])
    first, second = (create(routes, quotas=[quota.name]) for _ in range(2))
    assert [authorize(routes, route.path).allowed for route in (first, second, first)] == [True, True, False]


def test_an_address_that_is_none(routes: RoutesServiceStub) -> None:
    refusal = refused(lambda: authorize(routes, "/", client_ip="300.1.1.1"))
    assert (refusal.reason, list(refusal.fields)) == ("BAD_REQUEST", ["client_ip"])


def test_where_users_and_tokens_are_not_built_nobody_is_known(serving: Serving) -> None:
    routes = stub(serving)
    route = create(routes, caller=KNOWN)
    assert authorize(routes, route.path, user_id=ANN).denial == pb.DENIAL_INACTIVE
    assert authorize(routes, route.path, token=TOKEN).denial == pb.DENIAL_UNAUTHENTICATED
