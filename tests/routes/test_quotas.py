"""Rules of quotas: units, keys, calendar periods in time zones, and the fields that HTTP is told."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from kronos_db.routes.model import Kind
from kronos_db.routes.quotas import DAY, MONTH, Rule, State, Subject, period_at, response_headers, state_of, subnet
from tests.routes.population import stored_quota

SECRET = b"secret"
ALICE = Subject("alice", "app", "192.0.2.1", "r1", "k")


def rate(limit: int, period_us: int, burst: int) -> Rule:
    return Rule(stored_quota(Kind.RATE, {"limit": limit, "period_us": period_us, "burst": burst}))


def test_a_rate_in_ticks_never_gives_more_than_it_says() -> None:
    assert rate(1, 1_000_000, 1).emission == 8_000_000
    third = rate(3, 1_000_000, 3)
    assert third.emission * 3 >= 8_000_000
    assert third.most == 3 * third.emission
    assert rate(1_000_000, 1_000_000, 5).emission == 8


def test_what_is_left_of_a_rate() -> None:
    rule = rate(10, 10_000_000, 5)

    assert state_of(rule, True, rule.emission, 1)[:5] == (rule, True, True, 4, 1)
    assert state_of(rule, True, rule.emission, 1).reset == 1.0
    denied = state_of(rule, False, rule.most, 2)
    assert (denied.remaining, denied.retry, denied.reset) == (0, 2.0, 5.0)
    assert state_of(rule, False, 0, 6).retry is None, "more than the burst never passes"


@pytest.mark.parametrize(
    ("zone", "at", "unit", "first", "end"),
    [
        ("UTC", "2026-03-01T00:00:00", DAY, "2026-03-01", "2026-03-02T00:00:00"),
        ("UTC", "2026-02-28T23:59:59", MONTH, "2026-02-01", "2026-03-01T00:00:00"),
        ("Europe/Berlin", "2026-03-28T23:30:00", DAY, "2026-03-29", "2026-03-29T22:00:00"),
        ("Europe/Berlin", "2026-10-25T12:00:00", DAY, "2026-10-25", "2026-10-25T23:00:00"),
        ("America/New_York", "2026-01-01T04:59:59", MONTH, "2025-12-01", "2026-01-01T05:00:00"),
        ("Asia/Kolkata", "2024-02-29T18:29:59", DAY, "2024-02-29", "2024-02-29T18:30:00"),
        ("America/Santiago", "2026-09-06T12:00:00", DAY, "2026-09-06", "2026-09-07T03:00:00"),
    ],
)
def test_calendar_periods(zone: str, at: str, unit: int, first: str, end: str) -> None:
    """Days of 23 and 25 hours, leap days, the turn of the year, and midnights that do not exist."""
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()
    period = period_at(zone, unit, moment)

    assert period.slot == (datetime.fromisoformat(first) - datetime(1970, 1, 1)).days  # noqa: DTZ001
    assert datetime.fromtimestamp(period.end, UTC) == datetime.fromisoformat(end).replace(tzinfo=UTC)
    assert period_at(zone, unit, period.end).slot > period.slot
    local = datetime.fromtimestamp(period.end, ZoneInfo(zone))
    assert local.hour in {0, 1}, "it begins with the first moment of a day"


def test_keys_tell_apart_what_the_quota_looks_at_and_nothing_else() -> None:
    by_user = Rule(stored_quota(Kind.RATE, {"limit": 1, "period_us": 10, "burst": 1}, keys=[1]))
    by_all = Rule(stored_quota(Kind.RATE, {"limit": 1, "period_us": 10, "burst": 1}, keys=[5, 4, 3, 2, 1]))

    assert by_user.key(ALICE, SECRET) == by_user.key(Subject("alice"), SECRET)
    assert by_user.key(ALICE, SECRET) != by_user.key(Subject("bob"), SECRET)
    assert by_user.key(ALICE, SECRET) != by_user.key(ALICE, b"another")
    for place, value in enumerate(["x", "x", "192.0.2.2", "x", "x"]):
        other = Subject(*ALICE[:place], value, *ALICE[place + 1 :])
        assert by_all.key(other, SECRET) != by_all.key(ALICE, SECRET)
    again = Rule(stored_quota(Kind.RATE, {"limit": 1, "period_us": 10, "burst": 1}, keys=[1], generation=2))
    assert again.key(ALICE, SECRET) != by_user.key(ALICE, SECRET)
    assert "alice" not in by_user.key(ALICE, SECRET)


def test_ipv6_counts_by_its_network() -> None:
    assert subnet("2001:db8::1") == subnet("2001:db8:0:0:ffff::9") == "2001:db8::/64"
    assert subnet("2001:db8:0:1::1") != subnet("2001:db8::1")
    assert subnet("::ffff:192.0.2.1") == subnet("192.0.2.1")


def test_fields_of_http() -> None:
    minute = rate(100, 60_000_000, 20)
    day = Rule(stored_quota(Kind.CALENDAR, {"limit": 7, "unit": DAY, "time_zone": "UTC"}))
    places = Rule(stored_quota(Kind.CONCURRENCY, {"limit": 3, "lease_us": 10}))
    shadow = Rule(stored_quota(Kind.CONCURRENCY, {"limit": 3, "lease_us": 10}, shadow=True))
    states = [
        State(minute, True, True, 19, 1, 0.6),
        State(day, False, True, 0, 7, 10.2, 10.2),
        State(places, True, True, 2, 1),
        State(shadow, False, True, 0, 3),
    ]

    assert response_headers(states, denied=True) == {
        "RateLimit-Policy": '"some";q=20;w=12, "some";q=7;w=86400, "some";q=3;qu="concurrent-requests"',
        "RateLimit": '"some";r=19;t=1, "some";r=0;t=11, "some";r=2',
        "Retry-After": "11",
    }
    assert "Retry-After" not in response_headers(states, denied=False)
    assert response_headers([State(minute, True, False)], denied=False) == {}
