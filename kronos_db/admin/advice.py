"""What is known of tables, indexes and statements, and what is advised of them: no SQL and no protobuf."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum

# Statements of so long count.
PERIOD = timedelta(days=7)


class Kind(Enum):
    """Why an index is advised to be made, dropped or made anew."""

    MISSING = 1
    UNUSED = 2
    DUPLICATE = 3
    REDUNDANT = 4
    INVALID = 5
    BLOATED = 6


@dataclass(frozen=True, slots=True)
class Column:
    """A column and what ANALYZE found out about it.

    `distinct` as pg_stats has it: below zero it is a share of the rows. `common` is how frequent the most common values
    are, most frequent first, and `common_values` which these are, as text.
    """

    name: str
    type: str
    not_null: bool = False
    distinct: float | None = None
    null_share: float = 0.0
    width: int = 8
    common: Sequence[float] = ()
    common_values: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `rows` as the planner estimates them, writes since the statistics began, size in bytes."""

    schema: str
    name: str
    rows: float
    size: int
    writes: int
    columns: Mapping[str, Column]
    primary_key: Sequence[str] = ()
    partitioned: bool = False

    @property
    def full_name(self) -> str:
        """With its schema."""
        return f"{self.schema}.{self.name}"

    def distinct(self, column: str) -> float | None:
        """Return how many distinct values a column has, None when that is not known."""
        known = self.columns.get(column)
        if known is None or known.distinct is None:
            return None
        return -known.distinct * self.rows if known.distinct < 0 else known.distinct


@dataclass(frozen=True, slots=True)
class Index:
    """An index. `keys` are columns or expressions with what differs from the default (`DESC`, an operator class).

    `enforces`: unique, primary, exclusion, replica identity or clustered on. `supports_key`: its leading columns are
    those of a foreign key. `scans` is what is known of all servers; `building`: some backend is at work on it.
    """

    name: str
    table: str
    definition: str
    method: str
    keys: Sequence[str]
    columns: Sequence[str]
    included: Sequence[str] = ()
    predicate: str = ""
    unique: bool = False
    enforces: bool = False
    constraint: bool = False
    supports_key: bool = False
    valid: bool = True
    building: bool = False
    partition_of: bool = False
    scans: int = 0
    size: int = 0
    expected_size: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the keys are columns alone, in default order and operator class, of all rows."""
        return self.method == "btree" and not self.predicate and list(self.keys) == list(self.columns)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as it was issued in the period looked at: total time in ms."""

    id: str
    text: str
    calls: int
    total_ms: float
    rows: int
    query: str = ""
    methods: Sequence[str] = ()

    @property
    def mean_ms(self) -> float:
        """Of each call."""
        return self.total_ms / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """One domain's schema. `observed` is how long its statistics have been counted; `statements` are those of PERIOD.

    `unknown_standbys`: how many standbys read this data whose scans are not among those of `indexes`.
    """

    domain: str
    schema: str
    observed: timedelta
    tables: Mapping[str, Table]
    indexes: Sequence[Index]
    statements: Sequence[Statement] = ()
    unknown_standbys: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something is worth an advice."""

    # Before that, an index that is not used is not called unused.
    observed: timedelta = timedelta(days=7)
    unused_size: int = 64 * 1024
    # Bytes that an index would become smaller by, and the share of it that this must be.
    wasted: int = 10 * 1024 * 1024
    wasted_share: float = 0.5
    # Smaller tables are read whole in no time.
    rows: float = 5_000
    # Statements that are fast, or rare, need no index.
    mean_ms: float = 2.0
    calls: int = 5
    # An index is to find at most this share of a table.
    share: float = 0.05
    # What keeping one more index costs each written row, in ms.
    write_ms: float = 0.01


@dataclass(frozen=True, slots=True)
class Measured:
    """What a scratch database said: times in ms for each call, sizes in bytes, scaled to the whole table."""

    before_ms: float
    after_ms: float
    size: int
    write_us: float
    sampled_rows: int
    used: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do. `statement` is its DDL, `undo` what takes it back; `index` the name of the index concerned."""

    kind: Kind
    domain: str
    table: str
    index: str
    statement: str
    undo: str
    reason: str
    evidence: Sequence[str] = ()
    size: int = 0
    gain_ms: float = 0.0
    queries: Sequence[str] = field(default=())
    measured: Measured | None = None

    @property
    def id(self) -> str:
        """The same as long as the same is advised: a hash of what would be done."""
        text = f"{self.kind.name}\0{self.domain}\0{self.statement}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def quoted(name: str) -> str:
    """Return an identifier as SQL has it."""
    return '"' + name.replace('"', '""') + '"'
