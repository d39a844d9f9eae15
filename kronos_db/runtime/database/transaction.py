"""The statements of a transaction, as stores send them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg

from kronos_db.runtime.database.changes import Change, ChangeLog, FoundChanges, tag
from kronos_db.runtime.database.pool import Connection
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.issuer import ISSUED

Row = TypeVar("Row")
Params = Mapping[str, Any]

# The same as SET LOCAL, which takes no parameters.
_SET_LIMIT = "SELECT pg_catalog.set_config('statement_timeout', %(limit)s, true)"


class Load(NamedTuple):
    """Rows that a write brings along: `query` is a COPY … FROM STDIN, `data` is in PostgreSQL's text format."""

    query: Query
    data: bytes


class Transaction:
    """The statements of one transaction, or of one autocommitted read.

    `limit` gives the statement_timeout of each statement that stands alone, as `Database.limit` does.
    """

    def __init__(self, connection: Connection, limit: Callable[[], str | None] = lambda: None) -> None:
        self._connection = connection
        self._limit = limit
        self._changes: list[Change] = []
        self._found: FoundChanges | None = None

    def note(self, change: Change) -> None:
        """Note what the transaction changes: copies of it are dropped before the write is acknowledged."""
        self._changes.append(change)

    def note_found(self, found: FoundChanges) -> None:
        """Note the changes that a query finds at the end of the transaction, beside those noted one by one.

        They cost a third of those, since nothing of them passes through Python. A transaction has one such query.
        """
        if self._found is not None:
            raise AssertionError("a transaction notes what one query finds")
        self._found = found

    @property
    def tells(self) -> bool:
        """Whether it changes something that those who watch are told."""
        return bool(self._changes or self._found)

    @property
    def tags(self) -> list[str]:
        """What copies may depend on that it makes old."""
        found = {tag(self._found.kind)} if self._found else set()
        return sorted(found.union(*(change.tags for change in self._changes)))

    def append_to(self, log: ChangeLog) -> None:
        """Write what was noted to the log of changes; the last that the transaction does."""
        if self._changes:
            self._connection.issue(log.queries["append"], log.columns(self._changes))
        if self._found:
            self._connection.issue(*log.appending(self._found, len(self._changes)))

    def fetch_all(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run `query`; return `make(*columns)` of every row."""
        # Rows as tuples come out of psycopg's C code; a row factory would be called between each two of them.
        return [make(*row) for row in self._run(query, params).fetchall()]

    def fetch_one(self, query: Query, params: Params, make: Callable[..., Row]) -> Row | None:
        """Run `query`; return `make(*columns)` of its first row, or None."""
        row = self._run(query, params).fetchone()
        return None if row is None else make(*row)

    def fetch_each(self, query: Query, params: Sequence[Params], make: Callable[..., Row]) -> list[list[Row]]:
        """Run `query` with each of `params`; return `make(*columns)` of each one's rows. In a write, one round trip."""
        cursors = [self._run(query, each) for each in params]
        return [[make(*row) for row in cursor.fetchall()] for cursor in cursors]

    def execute(self, query: Query, params: Params) -> int:
        """Run `query`; return how many rows it touched."""
        return self._run(query, params).rowcount

    def _run(self, query: Query, params: Params) -> psycopg.Cursor[Any]:
        # binary=True keeps even a statement without parameters on the extended protocol: no stacked statements.
        cursor = self._connection.cursor(binary=True)
        ISSUED.note(query.text)
        limit = self._limit()
        if limit is None:
            return cursor.execute(query.text, params, prepare=_prepare(query))
        # What is sent together without BEGIN is one transaction: the limit ends with it, and costs no round trip.
        with self._connection.pipeline():
            set_limit(self._connection, limit)
            cursor.execute(query.text, params, prepare=_prepare(query))
        return cursor


def as_row(*columns: Any) -> tuple[Any, ...]:
    """Return the columns of a row as they are: what `fetch_all` makes of it where nothing has to be made."""
    return columns


def set_limit(connection: Connection, limit: str) -> None:
    """Limit the statements of the transaction that is begun, or is sent together with this."""
    connection.execute(_SET_LIMIT, {"limit": limit}, binary=True)


def _prepare(query: Query) -> bool | None:
    # None leaves it to the connection's prepare_threshold, which knows what the way to PostgreSQL can do.
    return None if query.prepared else False
