"""What namespaces, entries and leases are, how the log of changes names them, and what can be wrong with them."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from kronos_db.runtime.errors import Answer, BadRequestError, Code, KronosError

# Kinds of records in the log of changes. Entries and tags are parts of their namespace there.
NAMESPACE_KIND, ENTRY_KIND, TAG_KIND = "namespace", "entry", "tag"
KINDS = frozenset({NAMESPACE_KIND, ENTRY_KIND, TAG_KIND})

# What stands between keys, and between the tags of one, where many are one text; neither may hold it.
KEY_SEPARATOR, TAG_SEPARATOR = "\x1f", "\x1e"
# And what stands between keys in the log of changes: the one control character that JSON does not escape. In a list
# they would have two quotes each, which psycopg escapes one by one.
LOGGED_SEPARATOR = "\x7f"


class IndexType(enum.StrEnum):
    """What an index takes out of a value, as it is stored."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"


class Index(NamedTuple):
    """A declared index: its number in the namespace from 1, its name, the members on the way, its type."""

    number: int
    name: str
    path: str
    type: IndexType


class Namespace(NamedTuple):
    """A namespace as stored; times in seconds, None: without end, or without a stale time. 0 is no limit."""

    name: str
    id: str
    durable: bool
    sensitive: bool
    default_ttl: float | None
    default_stale_time: float | None
    max_entries: int
    max_bytes: int
    max_value_bytes: int
    indexes: Sequence[Mapping[str, str]]
    version: int
    create_time: datetime
    update_time: datetime

    def declared(self) -> list[Index]:
        """Return the indexes."""
        return [
            Index(number, item["name"], item["path"], IndexType(item["type"]))
            for number, item in enumerate(self.indexes, 1)
        ]


class Entry(NamedTuple):
    """An entry as stored. `expire_time` None: it does not end. The value of a sensitive namespace is sealed."""

    key: str
    version: int
    tags: Sequence[str]
    expire_time: datetime | None
    update_time: datetime
    value: bytes


class Found(NamedTuple):
    """An entry that was asked for: at which place, the seconds that it has left, and whether its use is to be noted."""

    place: int
    entry: Entry
    left: float | None
    unused: bool


@dataclass(frozen=True, slots=True)
class Writes:
    """Entries to be stored, column by column; all lists are equally long, or None where nobody gave anything.

    `keys` are different from each other. `ttls` and `stales` are in seconds, None: without end, none. `indexed` has the
    text of an array for each. `leases` are ids and numbers.
    """

    keys: Sequence[str]
    values: Sequence[bytes]
    tags: Sequence[str] | None
    ttls: Sequence[float | None]
    stales: Sequence[float | None]
    expected: Sequence[int | None] | None = None
    indexed: Sequence[str] | None = None
    leases: Sequence[tuple[str, int]] | None = None

    @property
    def size(self) -> int:
        """How many bytes that are, roughly as they count for the limits."""
        return sum(map(len, self.keys)) + sum(map(len, self.values)) + 128 * len(self.keys)


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A call's wish for one key: the entry, or the lease `lease_id` for so many seconds."""

    namespace: Namespace
    key: str
    lease_id: str
    seconds: float


class State(NamedTuple):
    """What there is for a key: the number of the lease if that was given, and the entry if there is one.

    `is_current`: it is neither over nor invalidated; `is_servable`: it may be answered as a stale value. `lease_left`
    are the seconds of the lease that somebody else holds.
    """

    lease_base: int | None
    is_current: bool
    is_servable: bool
    lease_left: float | None
    entry: Entry | None


NOTHING = State(None, is_current=False, is_servable=False, lease_left=None, entry=None)


@dataclass(frozen=True, slots=True)
class Query:
    """A query by an index: from `low` on, until before `high`, behind the value and key of `after` if there is one."""

    index: Index
    low: str
    high: str
    descending: bool
    after: Sequence[str] | None
    limit: int


class Stats(NamedTuple):
    """What was counted for a namespace."""

    hits: int = 0
    misses: int = 0
    puts: int = 0
    evictions: int = 0
    expirations: int = 0


class NamespaceNotFoundError(KronosError):
    """There is no namespace of this name."""

    @classmethod
    def of(cls, name: str) -> NamespaceNotFoundError:
        """Return the error of one name."""
        return cls(metadata={"namespace": name})


class NamespaceExistsError(KronosError):
    """There is a namespace of this name already."""


class NamespaceEtagMismatchError(KronosError):
    """The namespace changed since the caller read it."""


class NamespaceFullError(KronosError):
    """A durable namespace has as many entries or bytes as it may."""


class IndexNotDeclaredError(BadRequestError):
    """The namespace declares no index of this name."""


ERRORS: Mapping[type[KronosError], Answer] = {
    NamespaceNotFoundError: Answer(Code.NOT_FOUND, "NAMESPACE_NOT_FOUND", "There is no namespace {namespace}."),
    NamespaceExistsError: Answer(Code.ALREADY_EXISTS, "NAMESPACE_EXISTS", "There is a namespace {namespace} already."),
    NamespaceEtagMismatchError: Answer(
        Code.ABORTED, "NAMESPACE_ETAG_MISMATCH", "The namespace changed since it was read; read it again."
    ),
    NamespaceFullError: Answer(
        Code.RESOURCE_EXHAUSTED, "NAMESPACE_FULL", "The namespace {namespace} is at its limit of {limit}."
    ),
    IndexNotDeclaredError: Answer(
        Code.INVALID_ARGUMENT, "INDEX_NOT_DECLARED", "The namespace {namespace} declares no index {index}."
    ),
}


def joined(names: Sequence[str]) -> str:
    """Return keys, or tags, as one text."""
    return KEY_SEPARATOR.join(names)


def row(columns: tuple[Any, ...]) -> Entry | None:
    """Return the entry of its columns, None when there is none."""
    return None if columns[1] is None else Entry(*columns)
