"""What is known of statements: their counters, what they cost, and the sessions that run them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import pglast

from kronos_db.runtime.errors import KronosError

_PLACE = re.compile(r"%\((\w+)\)s")


class ActiveQueryGoneError(KronosError):
    """The session has ended, is another one by now, or does something else."""


class UnknownDomainError(KronosError):
    """There is no such domain."""


class SourceState(Enum):
    """Whether a domain's statements can be counted."""

    COUNTED = 1
    EXTENSION_MISSING = 2
    NOT_LOADED = 3
    TOO_OLD = 4
    UNREACHABLE = 5

    @property
    def remedy(self) -> str:
        """What is to be done about it; empty when nothing is."""
        return _REMEDIES.get(self.name, "")


_REMEDIES = {
    "EXTENSION_MISSING": "CREATE EXTENSION pg_stat_statements in this database, as a superuser.",
    "NOT_LOADED": "Add pg_stat_statements to shared_preload_libraries and restart PostgreSQL.",
    "TOO_OLD": "ALTER EXTENSION pg_stat_statements UPDATE, with PostgreSQL 17 or later.",
    "UNREACHABLE": "PostgreSQL does not answer, straight, to the role of this domain.",
}


@dataclass(frozen=True, slots=True)
class Counter:
    """A row of pg_stat_statements: what it has counted of one statement since `stats_since`."""

    query_id: int
    top_level: bool
    stats_since: datetime
    calls: int
    total_us: int
    rows: int
    blocks_hit: int
    blocks_read: int
    temp_bytes: int
    wal_bytes: int
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading one domain's statements gave."""

    domain: str
    state: SourceState
    counters: Sequence[Counter] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """How reading a domain went the last time, and when it last went well."""

    domain: str
    state: SourceState
    taken_at: datetime | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one statement cost in a period. `source` is the text that it was written as, where that is known."""

    domain: str
    query_id: int
    calls: int
    total_us: int
    rows: int
    blocks_hit: int
    blocks_read: int
    temp_bytes: int
    wal_bytes: int
    text: str
    queries: Sequence[str]
    methods: Sequence[str]
    source: str
    weight: str


@dataclass(frozen=True, slots=True)
class Period:
    """Which costs are asked for. `order` is the number of the contract's StatementOrder."""

    after: datetime
    until: datetime
    order: int = 1
    domain: str | None = None
    method: str | None = None
    last: tuple[str, str, int] | None = None
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """A session of a domain's role that does something."""

    pid: int
    backend_start: datetime
    transaction_start: datetime | None
    query_start: datetime | None
    state: str
    wait_type: str
    wait: str
    blocked_by: Sequence[int]
    application: str
    text: str


@dataclass(frozen=True, slots=True)
class Target:
    """What to cancel: the session of that pid that began then and, if given, the statement that began then."""

    domain: str
    pid: int
    backend_start: datetime
    query_start: datetime | None
    end: bool
    # Only look whether it is there.
    pretend: bool = False


def numbered(text: str) -> str:
    """Return a named query with $1, $2, … for its named parameters, as the server gets it."""
    numbers: dict[str, int] = {}
    return _PLACE.sub(lambda found: f"${numbers.setdefault(found.group(1), len(numbers) + 1)}", text).replace("%%", "%")


def fingerprint(text: str) -> str:
    """Return what is the same for a statement and its normalised form; empty for what cannot be parsed.

    PostgreSQL 18 drops the comments before a statement, so that its name is not in pg_stat_statements.
    """
    try:
        found: str = pglast.fingerprint(text)
    except pglast.parser.ParseError:
        return ""
    return found
