"""What a route and a quota are, what is asked of other domains, and what can go wrong."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from kronos_db.routes.template import PathInvalidError, TemplateInvalidError
from kronos_db.runtime.errors import Answer, Code, FieldViolation, KronosError

# The kinds of records in the log of changes.
ROUTE, QUOTA = "route", "quota"
MOST_ROUTES = 20_000
MOST_QUOTAS = 10_000


class Event(enum.StrEnum):
    """What happened to a route or a quota, as those who watch are told."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class Route(NamedTuple):
    """A route as stored. `spec` has all that a caller sets, as JSON with the names of the contract."""

    id: str
    name: str
    spec: Mapping[str, Any]
    version: int
    create_time: datetime
    update_time: datetime


class NewRoute(NamedTuple):
    """A route to be written. `path` is where it stands in the request, for errors.

    `shape` is that of its template; `headers` are those that a request must have, as one text: two routes ask for the
    same ones when it is the same.
    """

    path: str
    id: str
    name: str
    spec: Mapping[str, Any]
    shape: str
    headers: str


class Kind(enum.IntEnum):
    """How a quota counts."""

    CALENDAR = 0
    RATE = 1
    CONCURRENCY = 2


class Failure(enum.IntEnum):
    """What a quota does while Redis is away."""

    REFUSE = 1
    ALLOW = 2
    COUNT = 3


class Quota(NamedTuple):
    """A quota as stored.

    `rule` is JSON: of a rate limit, period_us and burst; of a calendar quota limit, unit and time_zone; of concurrent
    requests limit and lease_us. `keys` are numbers of the contract's QuotaKey. Use counts on as long as `generation`
    is the same.
    """

    id: str
    name: str
    kind: int
    rule: Mapping[str, Any]
    keys: Sequence[int]
    shadow: bool
    failure: int
    generation: int
    version: int
    create_time: datetime
    update_time: datetime


class NewQuota(NamedTuple):
    """A quota to be written; `kind` is None when no rule was given."""

    id: str
    name: str
    kind: int | None
    rule: Mapping[str, Any]
    keys: Sequence[int]
    shadow: bool
    failure: int


class Listing(NamedTuple):
    """Filters of a listing; "" filters nothing. `after` is the name of the last row seen."""

    limit: int
    name_prefix: str
    after: str
    host: str = ""
    quota: str = ""


class Applied(NamedTuple):
    """What a declaration of the whole table changes, by names; `version` is the table's afterwards."""

    created: Sequence[str]
    updated: Sequence[str]
    deleted: Sequence[str]
    unchanged: int
    version: int


class Access(Protocol):
    """What Routes asks of Users, answered from copies and never from before a write."""

    def active(self, user_ids: Sequence[str]) -> frozenset[str]:
        """Return those of the users (lower-case UUIDs) that exist, are active and not deleted."""

    def may(self, questions: Sequence[tuple[str, str, str]]) -> list[bool]:
        """Tell of each user, permission and scope whether that is allowed. Raises BadRequestError."""


class Identity(Protocol):
    """Who holds a token."""

    @property
    def subject(self) -> str:
        """The user or service that the token is of."""

    @property
    def client(self) -> str:
        """The client program that it was given to."""

    @property
    def scopes(self) -> Sequence[str]:
        """What it is good for."""


class Identities(Protocol):
    """What Routes asks of Tokens."""

    def identify(self, tokens: Sequence[str]) -> Sequence[Identity | None]:
        """Return who holds each token; None for one that is not valid."""


class RouteNotFoundError(KronosError):
    """No such route."""


class NoRouteMatchesError(KronosError):
    """No route matches the request."""


class QuotaNotFoundError(KronosError):
    """No such quota."""


class RoutesEtagMismatchError(KronosError):
    """The route, quota or table changed since the caller read it."""


class RouteExistsError(KronosError):
    """Another route has the name or id."""


class RouteConflictError(KronosError):
    """Another route matches requests that this one matches, and nothing but age tells which goes first."""


class RoutesAmbiguousError(KronosError):
    """Routes of a declaration match requests alike, and nothing but age tells which goes first."""


class TableFullError(KronosError):
    """There are as many routes or quotas as there may be."""


class TableChangedError(KronosError):
    """The table changed between two of its pages."""


class QuotaExistsError(KronosError):
    """Another quota has the name or id."""


class QuotaInUseError(KronosError):
    """A route names the quota."""


class LeaseInvalidError(KronosError):
    """The lease is none of this server."""


class ConsumptionReusedError(KronosError):
    """The request id was used before for another consumption."""


def unknown_quota(name: str, field: str) -> QuotaNotFoundError:
    """Return the error of a quota that `field` names and that is not there."""
    return QuotaNotFoundError(violations=[FieldViolation(field, f"there is no quota {name}")])


ERRORS: Mapping[type[KronosError], Answer] = {
    PathInvalidError: Answer(
        Code.INVALID_ARGUMENT, "PATH_INVALID", "The path cannot be read in one way alone, or is none."
    ),
    TemplateInvalidError: Answer(
        Code.INVALID_ARGUMENT, "TEMPLATE_INVALID", "The template of a path breaks a rule of the contract."
    ),
    RouteNotFoundError: Answer(Code.NOT_FOUND, "ROUTE_NOT_FOUND", "There is no such route."),
    NoRouteMatchesError: Answer(Code.NOT_FOUND, "NO_ROUTE_MATCHES", "No route matches the request."),
    QuotaNotFoundError: Answer(Code.NOT_FOUND, "QUOTA_NOT_FOUND", "There is no such quota."),
    RoutesEtagMismatchError: Answer(
        Code.ABORTED, "ROUTES_ETAG_MISMATCH", "It changed since it was read; read it again."
    ),
    RouteExistsError: Answer(Code.ALREADY_EXISTS, "ROUTE_EXISTS", "Another route has the name or id given in {field}."),
    RouteConflictError: Answer(
        Code.ALREADY_EXISTS,
        "ROUTE_CONFLICT",
        "The route {route} matches requests alike; give one of them a higher priority.",
    ),
    RoutesAmbiguousError: Answer(
        Code.FAILED_PRECONDITION,
        "ROUTES_AMBIGUOUS",
        "Routes match requests alike, {route} and others, {count} in all; validate_only reports them.",
    ),
    TableFullError: Answer(Code.RESOURCE_EXHAUSTED, "TABLE_FULL", "There are {limit} already, which is the most."),
    TableChangedError: Answer(Code.ABORTED, "TABLE_CHANGED", "The table changed between two pages; begin anew."),
    QuotaExistsError: Answer(Code.ALREADY_EXISTS, "QUOTA_EXISTS", "Another quota has the name or id."),
    QuotaInUseError: Answer(Code.FAILED_PRECONDITION, "QUOTA_IN_USE", "The route {route} names the quota."),
    LeaseInvalidError: Answer(Code.INVALID_ARGUMENT, "LEASE_INVALID", "The lease is none of this server."),
    ConsumptionReusedError: Answer(
        Code.INVALID_ARGUMENT,
        "CONSUMPTION_REUSED",
        "The request_id was used within 5 minutes for another consumption.",
    ),
}
