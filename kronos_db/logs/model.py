"""What a log record is, how long it is kept, and what can be wrong with a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from kronos_db.runtime.errors import Answer, KronosError

# The kind of record that a portion of new log records is in the log of changes.
KIND = "records"

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
DAY = 86_400 * SECOND
# Nanoseconds since 1970 that a bigint holds: until 2262-04-11.
LATEST = (1 << 63) - 1
# Partitions are made so far ahead; records up to a day ahead of the clock have their place.
AHEAD = 3 * DAY
EARLY = DAY

# By how many days records are kept: how long a partition is. The last records of one outlive their days by so much.
WIDTHS: Mapping[int, int] = {
    1: DAY,
    3: DAY,
    7: DAY,
    14: DAY,
    30: DAY,
    90: 7 * DAY,
    180: 7 * DAY,
    365: 30 * DAY,
    730: 30 * DAY,
    1825: 30 * DAY,
}
DEFAULT_KEEP_DAYS = 30
SEVERITIES = 25
# Of each severity number its range: 1 TRACE to 6 FATAL. A severity that is not known is kept like INFO.
RANGE_OF: Sequence[int] = [3, *((severity - 1) // 4 + 1 for severity in range(1, SEVERITIES))]

Direction: TypeAlias = Literal["newest", "oldest"]
Grouping: TypeAlias = Literal["nothing", "severity", "service", "attribute"]


class Origin(NamedTuple):
    """Where records come from. Attributes are JSON text, sensitive values sealed or redacted."""

    id: str
    service: str
    attributes: str
    scope_name: str
    scope_version: str
    scope_attributes: str


class Record(NamedTuple):
    """A record as stored; times in nanoseconds since 1970, ids as hexadecimal digits, attributes as JSON text."""

    batch: str
    part: int
    time: int
    own_time: int | None
    observed_time: int | None
    severity: int
    severity_text: str | None
    structured: bool
    body: str | None
    attributes: str
    trace_id: str | None
    span_id: str | None
    flags: int
    event_name: str | None
    dropped: int
    service: str
    origin: str

    @property
    def place(self) -> list[str]:
        """The sort key in pages: time, then the record's name."""
        return [str(self.time), self.batch, str(self.part)]


class Refusal(NamedTuple):
    """Why a record was refused: its index in the request, the rule that it breaks, the field within it, a sentence."""

    part: int
    reason: str
    field: str
    description: str


class Count(NamedTuple):
    """How many records a write adds to a minute."""

    minute: int
    service: str
    severity: int
    keep_days: int
    records: int


@dataclass(slots=True, eq=False)
class Batch:
    """What one call brings: `rows` in PostgreSQL's text format, one for each record that is stored."""

    id: str
    rows: list[str] = field(default_factory=list)
    # The index of each row in the request.
    parts: list[int] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    # Those that this process has not met of late.
    origins: dict[str, Origin] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are meant; None filters nothing. `attributes` is JSON that theirs contain, as they are stored."""

    service: str | None = None
    minimum_severity: int | None = None
    maximum_severity: int | None = None
    trace_id: str | None = None
    span_id: str | None = None
    event_name: str | None = None
    attributes: str | None = None
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    body_contains: str | None = None

    @property
    def counted(self) -> bool:
        """Whether the counts by minute, service and severity tell such records apart."""
        return not (
            self.trace_id
            or self.span_id
            or self.event_name
            or self.attributes
            or self.present
            or self.absent
            or self.body_contains
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of records: `after` is the place of the last one seen. Times as in Record."""

    limit: int
    direction: Direction
    time_from: int
    time_until: int
    filter: Filter
    after: Sequence[str] | None


class Page(NamedTuple):
    """Records, and whether more follow."""

    records: list[Record]
    more: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What is counted: from and until which minute since 1970, in intervals of so many minutes, by what."""

    minute_from: int
    minute_until: int
    minutes: int
    filter: Filter
    grouping: Grouping
    attribute_key: str
    group_limit: int


class Tally(NamedTuple):
    """Counts by interval and group; the groups with the most records first; all records, and all groups."""

    counts: list[tuple[int, str, int]]
    groups: list[tuple[str, int]]
    total: int
    all_groups: int


class Class(NamedTuple):
    """What is kept for one number of days."""

    keep_days: int
    records: int
    bytes: int
    partitions: int


class Stats(NamedTuple):
    """How much there is; minutes since 1970, None when there is nothing."""

    records: int
    services: int
    oldest: int | None
    newest: int | None
    classes: list[Class]


class Rule(NamedTuple):
    """For how many days the records of a service ("" for all) and a range of severities (0 for all) are kept."""

    service: str
    severity: int
    keep_days: int


class Retention:
    """The rules, made ready for intake."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = {(rule.service, rule.severity): rule.keep_days for rule in rules}
        self._known: dict[str, Sequence[int]] = {}
        self._others = self._days_of("")
        self._named = {rule.service for rule in rules}

    def days(self, service: str) -> Sequence[int]:
        """Return for each severity number for how many days such records of a service are kept."""
        if service not in self._named:
            return self._others
        if service not in self._known:
            self._known[service] = self._days_of(service)
        return self._known[service]

    def _days_of(self, service: str) -> Sequence[int]:
        rules = self._rules
        return [
            next(
                (rules[key] for key in ((service, severity), (service, 0), ("", severity), ("", 0)) if key in rules),
                DEFAULT_KEEP_DAYS,
            )
            for severity in RANGE_OF
        ]


class RefusedError(Exception):
    """A record breaks a rule; its batch goes on without it."""

    def __init__(self, reason: str, where: str, description: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.description = description


ERRORS: Mapping[type[KronosError], Answer] = {}


def params_of(wanted: Filter) -> dict[str, Any]:
    """Return a filter as parameters of the queries."""
    return {
        "service": wanted.service,
        "minimum_severity": wanted.minimum_severity,
        "maximum_severity": wanted.maximum_severity,
        "trace_id": wanted.trace_id,
        "span_id": bytes.fromhex(wanted.span_id) if wanted.span_id else None,
        "event_name": wanted.event_name,
        "attributes": wanted.attributes,
        "present": list(wanted.present) or None,
        "absent": list(wanted.absent) or None,
        "body": wanted.body_contains,
    }
