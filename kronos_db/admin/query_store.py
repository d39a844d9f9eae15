"""Runs statements of operators: in sessions of a role for that, in transactions that read and are rolled back.

`Reading` is one such transaction; each of its methods is one layer of docs/decisions/0018-restricted-sql.md.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple, cast

import psycopg
import structlog
from psycopg import generators, pq
from psycopg.types.string import TextLoader

from kronos_db.admin.query_model import (
    NotReadableError,
    QueryLimits,
    QueryRoleError,
    QueryTimeoutError,
    QueryTooLargeError,
    StatementFailedError,
    StatementRefusedError,
    TooCostlyError,
)
from kronos_db.runtime.database.failures import Failure, classify
from kronos_db.runtime.database.pool import Connection, Pool
from kronos_db.runtime.database.reading_role import faults
from kronos_db.runtime.database.standbys import Progress
from kronos_db.runtime.errors import KronosError, UnavailableError

_log = structlog.get_logger(__name__)

# Seconds beyond the statement's time: for the transaction as a whole, and after which the server is not waited for.
_TRANSACTION_MARGIN = 0.05
_SILENCE_MARGIN = 0.12
_CANCEL_LIMIT = 1.0
# Seconds that a statement waits for a standby to have everything, before it runs on the primary.
_PATIENCE = 1.0
# Rows that PostgreSQL is asked for at once. They come one by one, so that what was not asked for yet is not computed.
_FETCHED = 1_000
# Types whose values are short whatever they are: their length need not be asked for. Those with a length of their own.
_SHORT_TYPES = frozenset(
    psycopg.adapters.types[name].oid
    for name in (
        *("bool", "int2", "int4", "int8", "float4", "float8", "numeric", "money", "oid", "uuid"),
        *("date", "time", "timetz", "timestamp", "timestamptz", "interval", "inet", "cidr", "macaddr", "macaddr8"),
    )
)
_TEXTS = frozenset(psycopg.adapters.types[name].oid for name in ("text", "varchar", "bpchar"))
_BYTEA = psycopg.adapters.types["bytea"].oid

_TYPES = """
SELECT pg_catalog.format_type(c.oid, c.modifier), t.typelem, t.typcategory::text
FROM ROWS FROM (pg_catalog.unnest(%s::oid[]), pg_catalog.unnest(%s::int4[])) WITH ORDINALITY AS c (oid, modifier, place)
JOIN pg_catalog.pg_type AS t ON t.oid = c.oid
ORDER BY c.place
"""
# What may be left in a session that was rolled back: one row for each.
_LEFT = """
SELECT 'an advisory lock' FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
UNION ALL SELECT 'the setting ' || name FROM pg_catalog.pg_settings WHERE source = 'session'
UNION ALL SELECT 'temporary objects' WHERE pg_catalog.pg_my_temp_schema() <> 0
UNION ALL SELECT 'a prepared statement' FROM pg_catalog.pg_prepared_statements
UNION ALL SELECT 'a cursor' FROM pg_catalog.pg_cursors WHERE is_holdable
UNION ALL SELECT 'a channel' FROM pg_catalog.pg_listening_channels()
UNION ALL SELECT 'another role' WHERE current_user <> session_user
"""
_TIMEOUTS = frozenset({"57014", "25P04", "25P03"})
# By SQLSTATE what a refusal of PostgreSQL is, given what it says.
_REFUSALS: Mapping[str, Callable[[str], KronosError]] = {
    "42501": NotReadableError,
    "25006": lambda what: StatementRefusedError("read only", what),
    "55P03": lambda what: UnavailableError(what, retry_after=1.0),
    "53400": lambda _what: QueryTooLargeError("more is set aside on disk for it than is allowed"),
    "53200": lambda _what: QueryTooLargeError("PostgreSQL has no memory for it"),
    "54000": QueryTooLargeError,
    "54001": lambda _what: QueryTooLargeError("it nests too deeply for PostgreSQL"),
}


class Column(NamedTuple):
    """A column of a result: its name, the oid of its type, the type as SQL writes it, that of elements or 0."""

    name: str
    oid: int
    type: str
    element: int


class Plan(NamedTuple):
    """What PostgreSQL expects: the plan as JSON, its whole cost, and how many rows."""

    text: str
    cost: float
    rows: float


Row = tuple[str | None, ...]


class Reading:
    """One transaction that reads. Its statements raise psycopg's errors; `failure_of` says what they mean."""

    def __init__(self, connection: Connection, limits: QueryLimits, until: float) -> None:
        self._connection = connection
        self._limits = limits
        # time.monotonic() at which the statement is to be over.
        self._until = until
        # Held while a cancel is sent, so that none reaches whoever has the connection next.
        self._lock = threading.Lock()
        self.over = False
        self.cancelled = False

    def begin(self) -> None:
        """Begin, read only, and take the snapshot."""
        self._limit_silence()
        with self._connection.pipeline():
            self.open()
            self.limit_time()
            # The snapshot: from here on the transaction cannot become one that writes.
            self.execute("SELECT 1")

    def open(self) -> None:
        """Begin a transaction that cannot write."""
        self.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    def limit_time(self) -> None:
        """Have PostgreSQL end each statement, and the transaction, in time."""
        milliseconds = max(1, int((self._until - time.monotonic()) * 1000))
        transaction = milliseconds + int(_TRANSACTION_MARGIN * 1000)
        self.execute(f"SET LOCAL statement_timeout = {milliseconds}")
        self.execute(f"SET LOCAL transaction_timeout = {transaction}")
        self.execute(f"SET LOCAL idle_in_transaction_session_timeout = {transaction}")

    def execute(self, text: str, params: Sequence[Any] | None = None) -> psycopg.Cursor[Any]:
        """Run one statement by the extended protocol, which takes no second one."""
        self._limit_silence()
        # Without parameters psycopg would use the simple protocol, unless results are to be binary.
        return self._connection.cursor().execute(text, params, binary=params is None, prepare=False)

    def plan(self, text: str) -> Plan:
        """Return the plan of a statement."""
        rows = self.execute(f"EXPLAIN (FORMAT JSON, VERBOSE) {text}").fetchall()
        found = rows[0][0] if rows else None
        root = found[0].get("Plan") if found and isinstance(found[0], dict) else None
        if root is None:
            raise StatementRefusedError("statement", "PostgreSQL has no plan for it")
        return Plan(json.dumps(found), float(root["Total Cost"]), float(root["Plan Rows"]))

    def columns(self, text: str) -> list[Column]:
        """Return the columns of a statement's result, without running it."""
        self._limit_silence()
        pgconn = self._connection.pgconn
        with self._connection.lock:
            pgconn.send_prepare(b"", text.encode())
            self._raise_failure(self._connection.wait(generators.execute(pgconn)))
            pgconn.send_describe_prepared(b"")
            described = self._raise_failure(self._connection.wait(generators.execute(pgconn)))
        if not described.nfields:
            return []
        oids = [described.ftype(place) for place in range(described.nfields)]
        modifiers = [described.fmod(place) for place in range(described.nfields)]
        rows = self.execute(_TYPES, (oids, modifiers)).fetchall()
        return [
            Column(_text(described.fname(place)), oids[place], name, element if category == "A" else 0)
            for place, (name, element, category) in enumerate(rows)
        ]

    def rows(self, text: str, columns: Sequence[Column], most: int) -> Generator[Row, None, None]:
        """Yield at most `most` rows of a statement, as text; raises QueryTooLargeError for one that is too long."""
        self.execute(_declaration(text, columns, self._limits.row_bytes))
        while most > 0:
            wanted, count = min(_FETCHED, most), 0
            # The connection is locked while rows come: whoever wants no more of them has to say so.
            with closing(self._fetched(columns, wanted)) as fetched:
                for row in fetched:
                    count += 1
                    if row[-1] is not None:
                        raise QueryTooLargeError(f"a row has {row[-1]} bytes, and {self._limits.row_bytes} are allowed")
                    yield row[:-1]
            most = most - count if count == wanted else 0

    @property
    def expired(self) -> bool:
        """Whether the time of the statement is over."""
        return time.monotonic() >= self._until

    def end(self) -> bool:
        """Roll back; return False when the session is not as it was before, or may not be."""
        with self._lock:
            self.over = True
        connection = self._connection
        if self.cancelled or connection.closed:
            return False
        try:
            connection.silence_limit = _CANCEL_LIMIT
            connection.execute("ROLLBACK", prepare=False)
            left = [str(row[0]) for row in connection.execute(_LEFT, prepare=False)]
        except psycopg.Error:
            return False
        if left or connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            _log.warning("query_left_something", left=left)
            return False
        return True

    def cancel(self) -> None:
        """Have PostgreSQL end the statement: for when the caller has left."""
        with self._lock:
            if not self.over:
                self.cancelled = True
                self._connection.cancel_safe(timeout=_CANCEL_LIMIT)

    def _fetched(self, columns: Sequence[Column], count: int) -> Generator[Row, None, None]:
        cursor = self._connection.cursor()
        for column in columns:
            # As PostgreSQL writes it: values are made of it where they are needed.
            cursor.adapters.register_loader(column.oid, TextLoader)
        self._limit_silence()
        with closing(cast("Generator[Row, None, None]", cursor.stream(f"FETCH {count} FROM kronos_result"))) as stream:
            for row in stream:
                yield row
                self._limit_silence()

    def _limit_silence(self) -> None:
        self._connection.silence_limit = max(0.01, self._until - time.monotonic() + _SILENCE_MARGIN)

    def _raise_failure(self, results: list[Any]) -> Any:
        for result in results:
            if result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
        return results[-1]


class Primaries(NamedTuple):
    """Where statements run that a standby has not all for, by the name of a domain, and what tells that it has."""

    pools: Mapping[str, Pool]
    progress: Progress


class QueryStore:
    """Where statements run: a pool for each database, by the name of a domain, "" for the common one.

    Those that `primaries` names lead to a standby.
    """

    def __init__(
        self, pools: Mapping[str, Pool], reading: type[Reading] = Reading, primaries: Primaries | None = None
    ) -> None:
        self._pools = pools
        self._reading = reading
        self._primaries = primaries
        # Those whose role was found to be as it must be.
        self._fit: set[Pool] = set()

    @contextmanager
    def reading(self, domain: str, limits: QueryLimits, text: str) -> Iterator[Reading]:
        """Give a transaction for `text`. Errors of PostgreSQL become those of query_model."""
        until = time.monotonic() + limits.seconds
        with self._connected(domain) as (pool, connection):
            reading = self._reading(connection, limits, until)
            kept = False
            try:
                self._check_role(pool, connection)
                reading.begin()
                yield reading
            except psycopg.Error as error:
                raise failure_of(error, text, reading.expired, limits) from error
            finally:
                kept = reading.end()
                if not kept:
                    connection.close()

    def check_cost(self, plan: Plan, limits: QueryLimits) -> None:
        """Raise TooCostlyError when PostgreSQL expects more cost than is allowed."""
        if plan.cost > limits.cost:
            raise TooCostlyError(plan.cost, limits.cost)

    def close(self) -> None:
        """Close all connections."""
        primaries = self._primaries.pools if self._primaries is not None else {}
        for pool in {*self._pools.values(), *primaries.values()}:
            pool.close()

    @contextmanager
    def _connected(self, domain: str) -> Iterator[tuple[Pool, Connection]]:
        """Lend a connection to the database of a domain, in which everything is that was acknowledged before."""
        pool = self._pools[domain]
        with ExitStack() as stack:
            connection = None
            if self._primaries is not None and domain in self._primaries.pools:
                connection = self._current(stack, pool, self._primaries.progress)
                if connection is None:
                    stack.close()
                    pool = self._primaries.pools[domain]
            yield pool, connection or stack.enter_context(pool.connection())

    @staticmethod
    def _current(stack: ExitStack, pool: Pool, progress: Progress) -> Connection | None:
        """Return a connection to a standby that has everything, which `stack` gives back; None when it has not."""
        position = progress.position()
        try:
            connection = stack.enter_context(pool.connection())
            return connection if position is not None and progress.reaches(connection, position, _PATIENCE) else None
        except (psycopg.Error, KronosError) as error:
            _log.warning("the standby for operators' statements is not asked", reason=str(error))
            return None

    def _check_role(self, pool: Pool, connection: Connection) -> None:
        if pool in self._fit:
            return
        found = faults(connection)
        if found:
            raise QueryRoleError(found[0])
        self._fit.add(pool)


def failure_of(error: psycopg.Error, text: str, expired: bool, limits: QueryLimits) -> KronosError:
    """Return what an error of PostgreSQL means to whoever sent `text`."""
    state = error.sqlstate or ""
    what = (error.diag.message_primary or str(error)).strip().rstrip(".")
    if state in _TIMEOUTS or (not state and expired):
        return QueryTimeoutError(limits.seconds)
    if state in _REFUSALS:
        return _REFUSALS[state](what)
    if classify(error) is Failure.LOST:
        return UnavailableError(f"PostgreSQL is away: {error}", retry_after=1.0)
    return StatementFailedError(state, what, _position(error, text))


def _position(error: psycopg.Error, text: str) -> int:
    """Return the place in `text` that PostgreSQL points at, 0 for none."""
    place = error.diag.statement_position
    if place is None or not place.isdigit():
        return 0
    return int(place) if int(place) <= len(text) else 0


def _declaration(text: str, columns: Sequence[Column], row_bytes: int) -> str:
    """Return the statement that makes a cursor for `text`: in rows that are too long there is but their length.

    OFFSET 0 keeps PostgreSQL from computing a column again for its length.
    """
    names = [f"c{place}" for place in range(len(columns))]
    sizes = [_size(name, column.oid) for name, column in zip(names, columns, strict=True)]
    fits = f"r.size <= {row_bytes}"
    shown = [
        f"CASE WHEN {fits} THEN r.{name} END" if size else f"r.{name}" for name, size in zip(names, sizes, strict=True)
    ]
    shown.append(f"CASE WHEN NOT {fits} THEN r.size END")
    # Of a result without columns there is nothing to name.
    aliases = f"({', '.join(names)})" if names else ""
    size = " + ".join(["0", *filter(None, sizes)])
    return (  # The statement itself is what the caller is to run.
        f"DECLARE kronos_result NO SCROLL CURSOR FOR SELECT {', '.join(shown)} FROM (SELECT s.*, {size} AS size"  # noqa: S608
        f" FROM (SELECT * FROM (\n{text}\n) AS q OFFSET 0) AS s {aliases} OFFSET 0) AS r"
    )


def _size(name: str, oid: int) -> str:
    """Return SQL for the bytes of a column as text, '' when it is short."""
    if oid in _SHORT_TYPES:
        return ""
    if oid in _TEXTS:
        # Without reading it: its length stands before it.
        return f"COALESCE(octet_length(s.{name}), 0)::int8"
    if oid == _BYTEA:
        # As text two digits for each.
        return f"COALESCE(octet_length(s.{name}), 0)::int8 * 2"
    return f"COALESCE(octet_length(s.{name}::text), 0)::int8"


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")
