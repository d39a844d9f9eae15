"""Quotas by real calls: their life, consuming, repeating, releasing, usage and reset, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub

from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.routes.population import create, create_quota, new_quota, rate, stub, unique

DAY = pb.CalendarRule(limit=3, unit=pb.CALENDAR_UNIT_DAY, time_zone="Europe/Berlin")
ONE = pb.ConcurrencyRule(limit=1)
RULES: list[dict[str, Any]] = [{"rate": rate(3)}, {"calendar": DAY}, {"concurrency": pb.ConcurrencyRule(limit=3)}]
each_rule = pytest.mark.parametrize("rule", RULES, ids=["rate", "calendar", "concurrency"])


def consume(routes: RoutesServiceStub, quota: pb.Quota, **kw: Any) -> pb.ConsumeQuotaResponse:
    return routes.ConsumeQuota(pb.ConsumeQuotaRequest(quota=quota.name, **kw))


def usage(routes: RoutesServiceStub, quota: pb.Quota, **subject: Any) -> pb.GetQuotaUsageResponse:
    request = pb.GetQuotaUsageRequest(quota=quota.name, subject=pb.QuotaSubject(**subject))
    return routes.GetQuotaUsage(request)


@each_rule
def test_the_life_of_a_quota(routes: RoutesServiceStub, rule: dict[str, Any]) -> None:
    quota = create_quota(routes, keys=[pb.QUOTA_KEY_USER], shadow=True, failure_mode=1, **rule)

    assert routes.GetQuota(pb.GetQuotaRequest(id=quota.id)).quota == quota
    assert routes.GetQuota(pb.GetQuotaRequest(name=quota.name)).quota == quota
    listed = routes.ListQuotas(pb.ListQuotasRequest(name_prefix=quota.name)).quotas
    assert list(listed) == [quota]
    mask = FieldMask(paths=["shadow", "failure_mode"])
    changed = pb.Quota(id=quota.id, etag=quota.etag)
    updated = routes.UpdateQuota(pb.UpdateQuotaRequest(quota=changed, update_mask=mask)).quota
    assert (updated.shadow, updated.failure_mode) == (False, pb.QUOTA_FAILURE_MODE_COUNT)
    assert list(updated.keys) == [pb.QUOTA_KEY_USER]
    assert updated.WhichOneof("rule") == next(iter(rule))
    assert refused(lambda: routes.UpdateQuota(pb.UpdateQuotaRequest(quota=changed, update_mask=mask))).code == "ABORTED"
    routes.DeleteQuota(pb.DeleteQuotaRequest(id=quota.id, etag=updated.etag))
    for call in (
        lambda: routes.GetQuota(pb.GetQuotaRequest(id=quota.id)),
        lambda: consume(routes, quota),
        lambda: usage(routes, quota),
        lambda: routes.ResetQuota(pb.ResetQuotaRequest(quota=quota.name)),
        lambda: routes.DeleteQuota(pb.DeleteQuotaRequest(id=quota.id)),
    ):
        refusal = refused(call)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "QUOTA_NOT_FOUND")


def test_defaults(routes: RoutesServiceStub) -> None:
    assert create_quota(routes, rate=rate(7, 60)).rate.burst == 7
    assert create_quota(routes, concurrency=ONE).concurrency.lease_duration.seconds == 60
    assert create_quota(routes, calendar=pb.CalendarRule(limit=1, unit=1)).calendar.time_zone == "UTC"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "quota.name"),
        ({"name": "A"}, "quota.name"),
        ({"name": "a" * 65}, "quota.name"),
        ({"rate": rate(0)}, "quota.rate.limit"),
        ({"rate": rate(-1)}, "quota.rate.limit"),
        ({"rate": pb.RateRule(limit=1)}, "quota.rate.period"),
        ({"rate": rate(1, 0)}, "quota.rate.period"),
        ({"rate": rate(1, 32 * 86_400)}, "quota.rate.period"),
        ({"rate": rate(2_000_000, 1)}, "quota.rate.limit"),
        ({"rate": rate(1, 86_400, burst=32)}, "quota.rate.burst"),
        ({"rate": rate(1, 1, burst=-1)}, "quota.rate.burst"),
        ({"calendar": pb.CalendarRule(limit=0, unit=1)}, "quota.calendar.limit"),
        ({"calendar": pb.CalendarRule(limit=1)}, "quota.calendar.unit"),
        ({"calendar": pb.CalendarRule(limit=1, unit=1, time_zone="Mars/Olympus")}, "quota.calendar.time_zone"),
        ({"calendar": pb.CalendarRule(limit=1, unit=1, time_zone="../etc/passwd")}, "quota.calendar.time_zone"),
        ({"concurrency": pb.ConcurrencyRule()}, "quota.concurrency.limit"),
        (
            {"concurrency": pb.ConcurrencyRule(limit=1, lease_duration=Duration(nanos=1))},
            "quota.concurrency.lease_duration",
        ),
        ({"keys": [1, 1]}, "quota.keys"),
        ({"keys": [0]}, "quota.keys[0]"),
        ({"keys": [9]}, "quota.keys[0]"),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:40],
)
def test_bad_quotas(routes: RoutesServiceStub, changes: dict[str, Any], field: str) -> None:
    quota = new_quota(**changes)
    refusal = refused(lambda: routes.CreateQuota(pb.CreateQuotaRequest(quota=quota)))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert list(refusal.fields) == [field]


def test_a_quota_without_a_rule_and_one_that_is_there(routes: RoutesServiceStub) -> None:
    request = pb.CreateQuotaRequest(quota=pb.Quota(name=unique()))
    assert list(refused(lambda: routes.CreateQuota(request)).fields) == ["quota.rule"]
    quota = create_quota(routes)
    assert refused(lambda: create_quota(routes, name=quota.name)).reason == "QUOTA_EXISTS"
    mask = FieldMask(paths=["rate"])
    wrong = pb.UpdateQuotaRequest(quota=pb.Quota(id=quota.id, concurrency=ONE), update_mask=mask)
    assert list(refused(lambda: routes.UpdateQuota(wrong)).fields) == ["quota.rule"]


def test_a_quota_that_a_route_names_stays(routes: RoutesServiceStub) -> None:
    quota = create_quota(routes)
    route = create(routes, quotas=[quota.name])
    refusal = refused(lambda: routes.DeleteQuota(pb.DeleteQuotaRequest(id=quota.id)))

    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "QUOTA_IN_USE")
    assert refusal.metadata["route"] == route.name
    routes.DeleteRoute(pb.DeleteRouteRequest(id=route.id))
    routes.DeleteQuota(pb.DeleteQuotaRequest(id=quota.id))


@each_rule
def test_consuming_is_seen_in_the_usage_until_it_is_reset(routes: RoutesServiceStub, rule: dict[str, Any]) -> None:
    quota = create_quota(routes, keys=[pb.QUOTA_KEY_GIVEN], **rule)
    subject = {"key": "one"}
    answers = [consume(routes, quota, subject=subject) for _ in range(4)]

    assert [answer.allowed for answer in answers] == [True, True, True, False]
    assert [answer.decision.remaining for answer in answers] == [2, 1, 0, 0]
    assert [answer.decision.counted for answer in answers] == [True] * 4
    assert bool(answers[0].lease) == ("concurrency" in rule)
    assert answers[3].decision.HasField("retry_after") == ("concurrency" not in rule)
    used = usage(routes, quota, **subject)
    assert (used.limit, used.used, used.remaining, used.degraded) == (3, 3, 0, False)
    assert usage(routes, quota, key="another").used == 0

    routes.ResetQuota(pb.ResetQuotaRequest(quota=quota.name, subject=subject, validate_only=True))
    assert usage(routes, quota, **subject).used == 3
    reset = pb.ResetQuotaRequest(quota=quota.name, subject=subject, request_id=str(uuid4()))
    routes.ResetQuota(reset)
    assert usage(routes, quota, **subject).used == 0
    consume(routes, quota, subject=subject)
    routes.ResetQuota(reset)
    assert usage(routes, quota, **subject).used == 1, "a repeat forgets nothing more"
    consume(routes, quota, subject={"key": "another"})
    routes.ResetQuota(pb.ResetQuotaRequest(quota=quota.name))
    assert [usage(routes, quota, key=key).used for key in ("one", "another")] == [0, 0]


@pytest.mark.parametrize("cost", [0, -1, 1_000_000_001])
def test_costs_that_are_none(routes: RoutesServiceStub, cost: int) -> None:
    quota = create_quota(routes)
    refusal = refused(lambda: consume(routes, quota, cost=cost))
    assert (refusal.code, refusal.reason, list(refusal.fields)) == ("INVALID_ARGUMENT", "BAD_REQUEST", ["cost"])
    batch = pb.BatchConsumeQuotasRequest(consumptions=[pb.QuotaConsumption(quota=quota.name, cost=cost)])
    assert list(refused(lambda: routes.BatchConsumeQuotas(batch)).fields) == ["consumptions[0].cost"]
    assert usage(routes, quota).used == 0


@each_rule
def test_a_repeat_consumes_nothing_more(routes: RoutesServiceStub, rule: dict[str, Any]) -> None:
    quota = create_quota(routes, **rule)
    request = pb.ConsumeQuotaRequest(quota=quota.name, request_id=str(uuid4()))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: routes.ConsumeQuota(request), range(8)))

    assert all(answer.allowed for answer in answers)
    assert len({answer.lease for answer in answers}) == 1
    assert usage(routes, quota).used == 1
    other = pb.ConsumeQuotaRequest(quota=quota.name, request_id=request.request_id, cost=2)
    refusal = refused(lambda: routes.ConsumeQuota(other))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "CONSUMPTION_REUSED")
    assert list(refusal.fields) == ["request_id"]
    assert consume(routes, quota, validate_only=True).allowed
    assert usage(routes, quota).used == 1


def test_the_request_ids_of_callers_are_their_own(routes: RoutesServiceStub, platform: Serving) -> None:
    quota = create_quota(routes)
    request = pb.ConsumeQuotaRequest(quota=quota.name, request_id=str(uuid4()))
    routes.ConsumeQuota(request)
    stub(platform, "second").ConsumeQuota(request)
    assert usage(routes, quota).used == 2


def test_a_batch_is_decided_item_by_item(routes: RoutesServiceStub) -> None:
    fast, day, place = (create_quota(routes, keys=[pb.QUOTA_KEY_USER], **rule) for rule in RULES)
    items = [
        pb.QuotaConsumption(quota=quota.name, subject=pb.QuotaSubject(user_id=user))
        for quota in (fast, day, place)
        for user in ("a", "a", "a", "a", "b")
    ]
    request = pb.BatchConsumeQuotasRequest(consumptions=items, request_id=str(uuid4()))

    results = routes.BatchConsumeQuotas(request).results

    assert [result.allowed for result in results] == [True, True, True, False, True] * 3
    assert [result.decision.quota for result in results] == [item.quota for item in items]
    again = routes.BatchConsumeQuotas(request).results
    assert [result.allowed for result in again] == [result.allowed for result in results]
    assert [usage(routes, quota, user_id="a").used for quota in (fast, day, place)] == [3, 3, 3]
    unknown = pb.BatchConsumeQuotasRequest(consumptions=[items[4], pb.QuotaConsumption(quota="none")])
    refusal = refused(lambda: routes.BatchConsumeQuotas(unknown))
    assert (refusal.code, list(refusal.fields)) == ("NOT_FOUND", ["consumptions[1].quota"])
    assert usage(routes, fast, user_id="b").used == 1


def test_release(routes: RoutesServiceStub) -> None:
    quota = create_quota(routes, concurrency=ONE)
    lease = consume(routes, quota).lease
    assert not consume(routes, quota).allowed

    release = pb.ReleaseQuotaRequest(lease=lease, request_id=str(uuid4()))
    assert [routes.ReleaseQuota(release).released_count for _ in range(2)] == [1, 0]

    assert consume(routes, quota).allowed
    refusal = refused(lambda: routes.ReleaseQuota(pb.ReleaseQuotaRequest(lease="nonsense")))
    assert (refusal.code, refusal.reason, list(refusal.fields)) == ("INVALID_ARGUMENT", "LEASE_INVALID", ["lease"])


def test_other_keys_begin_anew_and_another_limit_does_not(routes: RoutesServiceStub) -> None:
    quota = create_quota(routes, calendar=DAY)
    consume(routes, quota)
    more = pb.Quota(id=quota.id, calendar=pb.CalendarRule(limit=9, unit=1, time_zone="Europe/Berlin"))
    routes.UpdateQuota(pb.UpdateQuotaRequest(quota=more))
    assert (usage(routes, quota).used, usage(routes, quota).remaining) == (1, 8)
    routes.UpdateQuota(pb.UpdateQuotaRequest(quota=pb.Quota(id=quota.id, keys=[pb.QUOTA_KEY_USER])))
    assert usage(routes, quota).used == 0


def test_no_address_and_no_key_is_stored(routes: RoutesServiceStub, platform: Serving) -> None:
    quota = create_quota(routes, calendar=DAY, keys=[pb.QUOTA_KEY_IP, pb.QUOTA_KEY_GIVEN])
    consume(routes, quota, subject={"client_ip": "203.0.113.77", "key": "very-special"}, request_id=str(uuid4()))
    dsn = platform.settings.postgres_dsn.get_secret_value()  # type: ignore[union-attr]
    with psycopg.connect(dsn) as connection:
        for table in ("usage", "allowed", "lease_held", "idempotency", "change"):
            text = str(connection.execute(f"SELECT * FROM routes.{table}").fetchall())
            assert "203.0.113" not in text
            assert "very-special" not in text
