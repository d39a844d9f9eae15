"""One domain's door to PostgreSQL: single reads, and transactions that are safe to retry."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import structlog

from kronos_db.runtime import deadline
from kronos_db.runtime.database.failures import Failure, classify, translate, violates
from kronos_db.runtime.database.idempotency import PRIMARY_KEY, Idempotency, Mutation, Reply, Result
from kronos_db.runtime.database.pool import Connection, Pool
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.errors import ConflictError
from kronos_db.runtime.workers import about_to_block

Row = TypeVar("Row")
Params = Mapping[str, Any]

_ATTEMPTS = 6
_FIRST_PAUSE = 0.005
_log = structlog.get_logger(__name__)


class Transaction:
    """The statements of one transaction, or of one autocommitted read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fetch_all(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run `query`; return `make(*columns)` of every row."""
        # Rows as tuples come out of psycopg's C code; a row factory would be called between each two of them.
        cursor = self._connection.cursor(binary=True).execute(query.text, params, prepare=_prepare(query))
        return [make(*row) for row in cursor.fetchall()]

    def fetch_one(self, query: Query, params: Params, make: Callable[..., Row]) -> Row | None:
        """Run `query`; return `make(*columns)` of its first row, or None."""
        cursor = self._connection.cursor(binary=True).execute(query.text, params, prepare=_prepare(query))
        row = cursor.fetchone()
        return None if row is None else make(*row)

    def execute(self, query: Query, params: Params) -> int:
        """Run `query`; return how many rows it touched."""
        # binary=True keeps even a statement without parameters on the extended protocol: no stacked statements.
        return self._connection.execute(query.text, params, prepare=_prepare(query), binary=True).rowcount


def _prepare(query: Query) -> bool | None:
    # None leaves it to the connection's prepare_threshold, which knows what the way to PostgreSQL can do.
    return None if query.prepared else False


class UnconfirmedCommitError(psycopg.OperationalError):
    """COMMIT was answered, but not in a way that vouches for the transaction: as good as a lost connection."""


class Database:
    """The database of one domain, through its own role."""

    def __init__(self, domain: str, pool: Pool) -> None:
        self.domain = domain
        self.pool = pool
        self._idempotency = Idempotency(domain)

    def fetch_all(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run one read in one round trip; return `make(*columns)` of every row."""
        return self.read(lambda tx: tx.fetch_all(query, params, make))

    def fetch_one(self, query: Query, params: Params, make: Callable[..., Row]) -> Row | None:
        """Run one read in one round trip; return `make(*columns)` of its first row, or None."""
        return self.read(lambda tx: tx.fetch_one(query, params, make))

    def execute(self, query: Query, params: Params) -> int:
        """Run one statement that may be repeated without harm, on its own; return how many rows it touched."""
        return self._attempt(_confirmed(lambda connection: Transaction(connection).execute(query, params)))

    def read(self, work: Callable[[Transaction], Result]) -> Result:
        """Run `work`, whose statements stand alone and may be repeated; again when a connection was lost."""
        return self._attempt(lambda connection: work(Transaction(connection)))

    def write(self, work: Callable[[Transaction], Result], mutation: Mutation[Result, Reply]) -> Reply:
        """Run `work` in one transaction and return its reply; a repeat of the call returns the first reply.

        `work` may run more than once and must touch nothing but its transaction. What it raises rolls everything
        back. Raises RequestIdReusedError, ConstraintError, ConflictError, UnavailableError, OverloadedError,
        StatementTimeoutError.
        """
        return self._attempt(_confirmed(lambda connection: self._write_once(connection, work, mutation)))

    def _write_once(
        self, connection: Connection, work: Callable[[Transaction], Result], mutation: Mutation[Result, Reply]
    ) -> Reply:
        try:
            with _rolled_back_on_error(connection):
                with connection.pipeline():
                    connection.execute("BEGIN", binary=True)
                    reply = mutation.reply(work(Transaction(connection)))
                    if not mutation.validate_only:
                        self._idempotency.keep(connection, mutation, reply)
                        commit = connection.execute("COMMIT", binary=True)
                if mutation.validate_only:
                    # Not in the pipeline: psycopg forgets its prepared statements when it sees a ROLLBACK, and would
                    # send DEALLOCATE ALL only after the next statement was prepared.
                    connection.execute("ROLLBACK", binary=True)
                    return reply
        except Exception as error:
            # The write may have failed because an earlier attempt of the same call went through: then its reply counts.
            if isinstance(error, psycopg.Error) and classify(error) is not Failure.FINAL:
                raise
            earlier = self._idempotency.recall(connection, mutation)
            if earlier is not None:
                return earlier
            if isinstance(error, psycopg.Error) and violates(error, PRIMARY_KEY):
                raise ConflictError("the earlier answer of this call was purged in between") from error
            raise
        if commit.statusmessage != "COMMIT":
            raise UnconfirmedCommitError(f"COMMIT was answered with {commit.statusmessage}")
        return reply

    def _attempt(self, run: Callable[[Connection], Result]) -> Result:
        about_to_block()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self.pool.connection() as connection, _closed_when_lost(connection):
                    return run(connection)
            except psycopg.Error as error:
                pause = _FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5)
                gave_up = attempt == _ATTEMPTS or deadline.remaining(pause) < pause
                if classify(error) is Failure.FINAL or gave_up:
                    raise translate(error) from error
                _log.warning("database attempt failed", domain=self.domain, attempt=attempt, sqlstate=error.sqlstate)
            time.sleep(pause)
        raise AssertionError("unreachable")


def _confirmed(run: Callable[[Connection], Result]) -> Callable[[Connection], Result]:
    """Make `run` fail when the server warned of anything: its commit may then be lost with this server."""

    def confirmed(connection: Connection) -> Result:
        connection.warned = False
        result = run(connection)
        if connection.warned:
            raise UnconfirmedCommitError("PostgreSQL warned instead of confirming the commit")
        return result

    return confirmed


@contextmanager
def _closed_when_lost(connection: Connection) -> Iterator[None]:
    """Close a connection that lives but leads nowhere: to a former primary, say. The pool then makes another."""
    try:
        yield
    except psycopg.Error as error:
        if classify(error) is Failure.LOST:
            connection.close()
        raise


@contextmanager
def _rolled_back_on_error(connection: Connection) -> Iterator[None]:
    """Leave the connection outside of any transaction when the block fails."""
    try:
        yield
    except BaseException:
        try:
            if not connection.closed:
                connection.execute("ROLLBACK", binary=True)
        except psycopg.Error:
            connection.close()
        raise
