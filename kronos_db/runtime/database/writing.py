"""The one transaction of a write: its statements, what it changed, its answer or receipt, and its COMMIT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from kronos_db.runtime.database.changes import ChangeLog, settled
from kronos_db.runtime.database.failures import Failure, UnconfirmedCommitError, classify, violates
from kronos_db.runtime.database.idempotency import PRIMARY_KEY, Idempotency, Mutation, Reply, Result
from kronos_db.runtime.database.pool import Connection
from kronos_db.runtime.database.traced import begun, statement
from kronos_db.runtime.database.transaction import Load, Transaction, set_limit
from kronos_db.runtime.errors import ConflictError
from kronos_db.runtime.identifiers import uuid7


class Written(NamedTuple):
    """A committed write: its reply, whether it is told to those who watch, what it made old, and the snapshot after."""

    reply: Any
    tells: bool
    tags: Sequence[str]
    snapshot: str = ""
    timeline: str = ""
    others: bool = False


class Doubt(NamedTuple):
    """An attempt whose COMMIT was sent, until its outcome is known: its receipt, and what it wrote if it did."""

    receipt: UUID
    replies: Sequence[Any]
    tells: bool
    tags: Sequence[str]


class Writing:
    """Runs the writes of one domain, each in one attempt on a given connection.

    `limit` gives the statement_timeout of a write's statements in ms, None for that of the role; `holder` who keeps
    copies of the data and drops its own, None where there are none.
    """

    def __init__(
        self, domain: str, log: ChangeLog, limit: Callable[[], str | None], holder: Callable[[], UUID | None]
    ) -> None:
        self._idempotency = Idempotency(domain)
        self._log = log
        self._limit = limit
        self._holder = holder

    def once(
        self,
        connection: Connection,
        work: Callable[[Transaction], Result],
        mutation: Mutation[Result, Reply],
        load: Load | None,
    ) -> Written:
        """Write what one call asks for; of a repeat return what the first one wrote."""
        transaction = begun(connection)
        after = None
        try:
            with _rolled_back_on_error(connection):
                with self._begun(connection, load):
                    reply = mutation.reply(work(transaction))
                    if not mutation.validate_only:
                        tags = transaction.tags
                        self._idempotency.keep(connection, mutation, reply, tags)
                        transaction.append_to(self._log)
                        commit = connection.execute("COMMIT", binary=True)
                        after = self._look_after_commit(connection, tags)
                if mutation.validate_only:
                    # Not in the pipeline: psycopg forgets its prepared statements when it sees a ROLLBACK, and would
                    # send DEALLOCATE ALL only after the next statement was prepared.
                    connection.execute("ROLLBACK", binary=True)
                    return Written(reply, False, ())
        except Exception as error:
            # The write may have failed because an earlier attempt of the same call went through: then its reply counts.
            if isinstance(error, psycopg.Error) and classify(error) is not Failure.FINAL:
                raise
            earlier = self._idempotency.recall(connection, mutation)
            if earlier is not None:
                # Whoever made that attempt may not have lived to drop the copies.
                after = self._look_after_commit(connection, earlier.tags)
                return _written(earlier.reply, bool(earlier.tags), earlier.tags, after)
            if isinstance(error, psycopg.Error) and violates(error, PRIMARY_KEY):
                raise ConflictError("the earlier answer of this call was purged in between") from error
            raise
        _check(commit)
        return _written(reply, transaction.tells, tags, after)

    def together(
        self,
        connection: Connection,
        work: Callable[[Transaction], Sequence[Result]],
        mutations: Sequence[Mutation[Result, Reply]],
        load: Load | None,
        doubts: list[Doubt],
    ) -> Written:
        """Write what several calls ask for, unless an attempt before did: `doubts` is handed from one to the next."""
        earlier = self._settled(connection, doubts)
        if earlier is not None:
            return earlier
        transaction = begun(connection)
        receipt = uuid7()
        try:
            with _rolled_back_on_error(connection), self._begun(connection, load):
                results = work(transaction)
                replies = [mutation.reply(result) for mutation, result in zip(mutations, results, strict=True)]
                tags = transaction.tags
                # With more tags than their own, which costs copies alone: whose changes are whose is not known here.
                self._idempotency.keep_all(connection, receipt, mutations, replies, tags)
                transaction.append_to(self._log)
                doubts.append(Doubt(receipt, replies, transaction.tells, tags))
                commit = connection.execute("COMMIT", binary=True)
                after = self._look_after_commit(connection, tags)
        except psycopg.Error as error:
            if classify(error) is not Failure.LOST:
                # The server has said that it failed.
                doubts.clear()
            raise
        _check(commit)
        return _written(replies, transaction.tells, tags, after)

    def unanswered(self, connection: Connection, work: Callable[[Transaction], Result]) -> Result:
        """Run `work`, whose result is no answer that is kept."""
        with _rolled_back_on_error(connection), connection.pipeline():
            connection.execute("BEGIN", binary=True)
            self._limit_statements(connection)
            result = work(begun(connection))
            commit = connection.execute("COMMIT", binary=True)
        _check(commit)
        return result

    def _settled(self, connection: Connection, doubts: list[Doubt]) -> Written | None:
        """Return what an attempt wrote whose outcome was in doubt; None when it wrote nothing and never will."""
        for doubt in doubts:
            if self._idempotency.settle(connection, doubt.receipt):
                return _written(doubt.replies, doubt.tells, doubt.tags, self._look_after_commit(connection, doubt.tags))
        if connection.warned:
            raise UnconfirmedCommitError("PostgreSQL warned instead of confirming that nothing was written")
        doubts.clear()
        return None

    @contextmanager
    def _begun(self, connection: Connection, load: Load | None) -> Iterator[None]:
        """Begin a transaction, with `load` in it, whose statements are sent without waiting for each."""
        if load is not None:
            connection.execute("BEGIN", binary=True)
            self._limit_statements(connection)
            with statement(load.query), connection.cursor().copy(load.query.text) as copy:
                copy.write(load.data)
        with connection.pipeline():
            if load is None:
                connection.execute("BEGIN", binary=True)
                self._limit_statements(connection)
            yield

    def _limit_statements(self, connection: Connection) -> None:
        """Limit the statements of the transaction that was begun; sent with what follows.

        COMMIT is not limited: PostgreSQL stops the clock of statement_timeout before it commits, and so before it waits
        for a standby.
        """
        limit = self._limit()
        if limit is not None:
            set_limit(connection, limit)

    def _look_after_commit(self, connection: Connection, tags: Sequence[str]) -> psycopg.Cursor[Any] | None:
        """Ask for the snapshot, and for other holders of copies, in the round trip of the COMMIT."""
        holder = self._holder() if tags else None
        return None if holder is None else connection.issue(self._log.queries["after_commit"], {"holder": holder})


def _check(commit: psycopg.Cursor[Any]) -> None:
    if commit.statusmessage != "COMMIT":
        raise UnconfirmedCommitError(f"COMMIT was answered with {commit.statusmessage}")


def _written(reply: Any, tells: bool, tags: Sequence[str], after: psycopg.Cursor[Any] | None) -> Written:
    if after is None:
        return Written(reply, tells, tags)
    snapshot, newest, timeline, others = after.fetchall()[0]
    return Written(reply, tells, tags, settled(snapshot, newest), timeline, others)


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
