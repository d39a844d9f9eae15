"""Converts between the contract's messages and what is stored, and checks what the contract cannot say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kronos.routes.v1 import routes_pb2 as pb

from kronos_db.routes import quotas
from kronos_db.routes.model import Failure, Kind, NewQuota, NewRoute, Quota, Route
from kronos_db.routes.template import parse
from kronos_db.runtime.database.changes import Noted
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.timestamps import set_timestamp

# What a caller sets of a route, and how the value of each is stored; None is not.
ROUTE_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "methods": sorted,
    "host": str.lower,
    "path": str,
    "headers": lambda headers: sorted([header.name.lower(), header.value] for header in headers),
    "upstream": str,
    "caller": lambda caller: ANYONE if caller == pb.CALLER_REQUIREMENT_ANYONE else None,
    "permissions": lambda permissions: [[each.permission, each.scope] for each in permissions],
    "scopes": list,
    "quotas": list,
    "priority": int,
    "metadata": dict,
}
RULES = ("rate", "calendar", "concurrency")
QUOTA_FIELDS = (*RULES, "keys", "shadow", "failure_mode")
ANYONE = "anyone"
_US = 1_000_000
_LEASE_US = 60 * _US
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_EVENTS = {
    "created": pb.ROUTE_EVENT_CREATED,
    "updated": pb.ROUTE_EVENT_UPDATED,
    "deleted": pb.ROUTE_EVENT_DELETED,
}
_KEYS: Mapping[int, pb.QuotaKey.ValueType] = {int(key): key for key in pb.QuotaKey.values()}
_FAILURES: Mapping[int, pb.QuotaFailureMode.ValueType] = {int(mode): mode for mode in pb.QuotaFailureMode.values()}


def spec_of(route: pb.Route) -> dict[str, Any]:
    """Return what a caller sets of a route; what has its default is left out."""
    spec = {}
    for name, read in ROUTE_FIELDS.items():
        if (given := getattr(route, name)) and (value := read(given)) is not None:
            spec[name] = value
    return spec


def new_route(path: str, route_id: str, name: str, spec: Mapping[str, Any]) -> NewRoute:
    """Return a route to be written. Raises BadRequestError and TemplateInvalidError for what cannot be one."""
    for field in ("path", "upstream"):
        if field not in spec:
            raise BadRequestError.of(f"{path}.{field}", "is required")
    if not name:
        raise BadRequestError.of(f"{path}.name", "is required")
    template = parse(spec["path"], f"{path}.path")
    headers = spec.get("headers", ())
    if len(headers) > 1 and len({header for header, _ in headers}) < len(headers):
        raise BadRequestError.of(f"{path}.headers", "must not name a header twice")
    if spec.get("caller") == ANYONE:
        for field in ("permissions", "scopes"):
            if field in spec:
                raise BadRequestError.of(f"{path}.{field}", "needs a known caller")
    for index, (_, scope) in enumerate(spec.get("permissions", ())):
        for unknown in set(_PLACEHOLDER.findall(scope)) - set(template.names):
            where = f"{path}.permissions[{index}].scope"
            raise BadRequestError.of(where, f"{{{unknown}}} is no parameter of one segment of the path")
    asked = "\n".join([f"{header}:{value}" for header, value in headers]) if headers else ""
    return NewRoute(path, route_id, name, spec, template.shape, asked)


def fill_route(message: pb.Route, route: Route) -> None:
    """Write a route into an empty message."""
    message.id = route.id
    message.name = route.name
    fill_spec(message, route.spec)
    message.etag = str(route.version)
    set_timestamp(message.create_time, route.create_time)
    set_timestamp(message.update_time, route.update_time)


def fill_spec(message: pb.Route, spec: Mapping[str, Any]) -> None:
    """Write what a caller sets of a route into a message."""
    message.path = spec["path"]
    message.upstream = spec["upstream"]
    message.host = spec.get("host", "")
    message.priority = spec.get("priority", 0)
    message.caller = pb.CALLER_REQUIREMENT_ANYONE if spec.get("caller") == ANYONE else pb.CALLER_REQUIREMENT_KNOWN
    for name in ("methods", "scopes", "quotas"):
        if name in spec:
            getattr(message, name).extend(spec[name])
    for name, value in spec.get("headers", ()):
        message.headers.add(name=name, value=value)
    for permission, scope in spec.get("permissions", ()):
        message.permissions.add(permission=permission, scope=scope)
    if "metadata" in spec:
        message.metadata.update(spec["metadata"])


def route_message(route: Route) -> pb.Route:
    """Return a route as the contract has it."""
    message = pb.Route()
    fill_route(message, route)
    return message


def route_change(noted: Noted, change: pb.RouteChange) -> None:
    """Write what is told of a change into an empty message."""
    body = noted.change.body
    change.route_id = noted.change.record_id
    change.event = _EVENTS[body["event"]]
    change.table_version = str(body["table"])
    set_timestamp(change.change_time, noted.time)
    if "spec" in body:
        created, updated = (datetime.fromisoformat(body[name]) for name in ("created", "updated"))
        route = Route(noted.change.record_id, body["name"], body["spec"], body["version"], created, updated)
        fill_route(change.route, route)


def quota_spec(quota: pb.Quota) -> NewQuota:
    """Return a quota to be written; its kind is None when it has no rule. Raises BadRequestError."""
    kind, rule = _rule(quota)
    failure = Failure(quota.failure_mode or pb.QUOTA_FAILURE_MODE_COUNT)
    return NewQuota(quota.id.lower(), quota.name, kind, rule, list(quota.keys), quota.shadow, failure)


def _rule(quota: pb.Quota) -> tuple[Kind | None, dict[str, Any]]:
    if quota.HasField("rate"):
        rate = quota.rate
        period = rate.period.seconds * _US + rate.period.nanos // 1000
        burst = rate.burst or rate.limit
        if rate.limit > period:
            raise BadRequestError.of(
                "quota.rate.limit", "must not be more than 1,000,000 for each second of the period"
            )
        if burst * period > quotas.LONGEST_US * rate.limit:
            raise BadRequestError.of("quota.rate.burst", "must not take more than 31 days to fill up")
        return Kind.RATE, {"limit": rate.limit, "period_us": period, "burst": burst}
    if quota.HasField("calendar"):
        zone = quota.calendar.time_zone or "UTC"
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise BadRequestError.of("quota.calendar.time_zone", "is no time zone of the IANA database") from None
        return Kind.CALENDAR, {"limit": quota.calendar.limit, "unit": quota.calendar.unit, "time_zone": zone}
    if quota.HasField("concurrency"):
        lease = quota.concurrency.lease_duration
        lease_us = lease.seconds * _US + lease.nanos // 1000 or _LEASE_US
        return Kind.CONCURRENCY, {"limit": quota.concurrency.limit, "lease_us": lease_us}
    return None, {}


def quota_message(quota: Quota) -> pb.Quota:
    """Return a quota as the contract has it."""
    rule = quota.rule
    message = pb.Quota(
        id=quota.id,
        name=quota.name,
        shadow=quota.shadow,
        etag=str(quota.version),
    )
    message.keys.extend(_KEYS[key] for key in quota.keys)
    message.failure_mode = _FAILURES[quota.failure]
    if quota.kind == Kind.RATE:
        message.rate.limit, message.rate.burst = rule["limit"], rule["burst"]
        set_duration(message.rate.period, rule["period_us"] / _US)
    elif quota.kind == Kind.CALENDAR:
        message.calendar.limit, message.calendar.time_zone = rule["limit"], rule["time_zone"]
        message.calendar.unit = rule["unit"]
    else:
        message.concurrency.limit = rule["limit"]
        set_duration(message.concurrency.lease_duration, rule["lease_us"] / _US)
    set_timestamp(message.create_time, quota.create_time)
    set_timestamp(message.update_time, quota.update_time)
    return message


def fill_decision(message: pb.QuotaDecision, state: quotas.State, now: float) -> None:
    """Write what became of a quota at Unix time `now` into an empty message."""
    rule = state.rule
    message.quota = rule.name
    message.allowed = state.fits
    message.limit = rule.size
    if not rule.denies:
        message.shadow = True
    if state.counted:
        message.counted = True
        message.remaining = state.remaining
        if state.reset is not None:
            set_time(message.reset_time, now + state.reset)
        if state.retry is not None:
            set_duration(message.retry_after, state.retry)


def set_time(message: Timestamp, at: float) -> None:
    """Set a Timestamp to Unix time, to the microsecond."""
    micros = int(at * _US)
    message.seconds, message.nanos = micros // _US, micros % _US * 1000


def set_duration(message: Duration, seconds: float) -> None:
    """Set a Duration, to the microsecond and never shorter."""
    micros = -int(-seconds * _US // 1)
    message.seconds, message.nanos = micros // _US, micros % _US * 1000
