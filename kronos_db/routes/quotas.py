"""What a quota allows: its rule in the units in which it is counted, whose use is counted, and what HTTP is told."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from kronos_db.routes.model import Failure, Kind, Quota

# Rates are counted in ticks of 125 ns: whole numbers, exact in the doubles of Lua until the year 2060.
TICKS = 8_000_000
_TICKS_PER_US = 8
_US = 1_000_000
# More than any rate may be ahead.
_TOO_MUCH = 1 << 52
# Longest that filling up a burst may take, in microseconds.
LONGEST_US = 31 * 86_400 * _US
DAY, MONTH = 1, 2
# How long a counter of a calendar quota is kept after its period.
_KEPT = timedelta(days=40)
_EPOCH = date(1970, 1, 1)
_IPV6_PREFIX = 64


class Subject(NamedTuple):
    """Whose use is counted, in the order of the contract's QuotaKey; "" is nobody in particular."""

    user: str = ""
    client: str = ""
    address: str = ""
    route: str = ""
    given: str = ""


_ADDRESS = 3


class Period(NamedTuple):
    """A day or month: its first day since 1970, and when it ends as Unix time."""

    slot: int
    end: float


class Rule:
    """A quota in the units in which it is counted.

    `most` is what may be consumed at once: units of a calendar quota, ticks of a rate, requests at once. `size` is the
    same in units. `policy` is its member of the field RateLimit-Policy. `code` is the number of its kind.
    """

    __slots__ = (
        "_keys",
        "_prefix",
        "_zone",
        "code",
        "denies",
        "emission",
        "failure",
        "is_calendar",
        "is_concurrency",
        "is_rate",
        "kind",
        "lease_us",
        "most",
        "name",
        "policy",
        "quota",
        "size",
    )

    def __init__(self, quota: Quota) -> None:
        rule = quota.rule
        self.quota = quota
        self.name = quota.name
        self.kind = Kind(quota.kind)
        # Asked a hundred thousand times a second: looking up the members of an enumeration would be dear.
        self.code = self.kind.value
        self.is_calendar = self.kind is Kind.CALENDAR
        self.is_rate = self.kind is Kind.RATE
        self.is_concurrency = self.kind is Kind.CONCURRENCY
        self._prefix = f"{quota.id}\0{quota.generation}"
        self._keys = tuple(sorted(quota.keys))
        self.denies = not quota.shadow
        self.failure = Failure(quota.failure)
        self.emission = 1
        self.lease_us: int = rule.get("lease_us", 0)
        self.most = self.size = rule["limit"]
        self._zone = ""
        if self.is_rate:
            self.emission = -(-rule["period_us"] * _TICKS_PER_US // rule["limit"])
            self.size = rule["burst"]
            self.most = self.size * self.emission
        elif self.is_calendar:
            self._zone = rule["time_zone"]
        self.policy = self._policy(rule)

    def taken(self, cost: int) -> int:
        """Return what consuming `cost` takes of `most`; of concurrent requests for how many milliseconds."""
        if self.is_concurrency:
            return self.lease_us // 1000 if cost else 0
        taken = cost * self.emission
        return min(taken, _TOO_MUCH)

    def key(self, subject: Subject, secret: bytes) -> str:
        """Return the name of the counter of `subject`, 32 hexadecimal digits: a keyed hash, so it tells no address."""
        named = self._prefix
        for key in self._keys:
            named += "\0" + (subnet(subject.address) if key == _ADDRESS and subject.address else subject[key - 1])
        return hashlib.blake2b(named.encode(), key=secret, digest_size=16).hexdigest()

    def period(self) -> Period:
        """Return the day or month that it is now."""
        return period_at(self._zone, self.quota.rule["unit"], time.time())

    def _policy(self, rule: Mapping[str, Any]) -> str:
        if self.kind is Kind.RATE:
            return f'"{self.name}";q={self.size};w={max(1, -(-self.most // TICKS))}'
        if self.kind is Kind.CONCURRENCY:
            return f'"{self.name}";q={self.size};qu="concurrent-requests"'
        # Without a window for months, which differ.
        return f'"{self.name}";q={self.size}' + (";w=86400" if rule["unit"] == DAY else "")


class State(NamedTuple):
    """What became of one quota in a decision; `reset` and `retry` in seconds from now, None when not known."""

    rule: Rule
    fits: bool
    counted: bool
    remaining: int = 0
    used: int = 0
    reset: float | None = None
    retry: float | None = None


def state_of(rule: Rule, fits: bool, level: int, cost: int) -> State:
    """Return the state of a quota whose counter is at `level` after a decision.

    Of a rate that is how far it is ahead in ticks, else what is used.
    """
    if rule.is_rate:
        remaining = max(0, (rule.most - level) // rule.emission)
        retry = None
        if not fits and (taken := rule.taken(cost)) <= rule.most:
            retry = (level + taken - rule.most) / TICKS
        return State(rule, fits, True, remaining, rule.size - remaining, level / TICKS, retry)
    remaining = max(0, rule.size - level)
    if rule.is_concurrency:
        return State(rule, fits, True, remaining, level)
    left = max(0.0, rule.period().end - time.time())
    return State(rule, fits, True, remaining, level, left, left if not fits and cost <= rule.size else None)


def response_headers(states: Sequence[State], denied: bool) -> dict[str, str]:
    """Return the fields of draft-ietf-httpapi-ratelimit-headers-10, and Retry-After when a quota denied."""
    told = [state for state in states if state.rule.denies and state.counted]
    headers = {}
    if told:
        headers["RateLimit-Policy"] = ", ".join([state.rule.policy for state in told])
        headers["RateLimit"] = ", ".join([_limit(state) for state in told])
    if denied:
        # Of those that can pass at some time, the last; a place may come free at any time.
        waits = [1.0 if state.retry is None else state.retry for state in told if not state.fits]
        headers["Retry-After"] = str(max(1, math.ceil(max(waits, default=1.0))))
    return headers


def _limit(state: State) -> str:
    reset = "" if state.reset is None else f";t={math.ceil(state.reset)}"
    return f'"{state.rule.name}";r={state.remaining}{reset}'


@lru_cache(4096)
def subnet(address: str) -> str:
    """Return what an address counts as: an IPv4 address as itself, an IPv6 one as its network of 64 bits."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False))
    return str(found)


# Of each zone and unit: the period that it is, and when it began.
_periods: dict[tuple[str, int], tuple[float, Period]] = {}


def period_at(zone: str, unit: int, at: float) -> Period:
    """Return the day or month of Unix time `at` in a time zone."""
    known = _periods.get((zone, unit))
    if known is not None and known[0] <= at < known[1].end:
        return known[1]
    tz = ZoneInfo(zone)
    today = datetime.fromtimestamp(at, tz).date()
    first = today.replace(day=1) if unit == MONTH else today
    following = (first + timedelta(days=32)).replace(day=1) if unit == MONTH else first + timedelta(days=1)
    begin, end = (datetime(day.year, day.month, day.day, tzinfo=tz).timestamp() for day in (first, following))
    period = Period((first - _EPOCH).days, end)
    _periods[zone, unit] = (begin, period)
    return period


def expiry(rule: Rule) -> datetime:
    """Return until when the counter of a quota in PostgreSQL is of any use."""
    if rule.kind is Kind.CALENDAR:
        return datetime.fromtimestamp(rule.period().end, UTC) + _KEPT
    return datetime.now(UTC) + timedelta(microseconds=max(LONGEST_US, rule.lease_us))


def as_uuid(name: str) -> str:
    """Return 32 hexadecimal digits as a UUID's text."""
    return str(UUID(name))
