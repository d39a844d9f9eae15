"""One domain's door to PostgreSQL: single reads, and transactions that are safe to retry."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

import psycopg
import structlog

from kronos_db.runtime import deadline, tracing
from kronos_db.runtime.database.changes import (
    About,
    Change,
    ChangeLog,
    Instant,
    Noted,
    Page,
    Position,
    channel,
    settled,
)
from kronos_db.runtime.database.failures import Failure, UnconfirmedCommitError, classify, translate
from kronos_db.runtime.database.idempotency import Mutation, Reply, Result
from kronos_db.runtime.database.pool import Connection, Pool
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.standbys import NoStandbyError, Standbys
from kronos_db.runtime.database.traced import begun, recorded
from kronos_db.runtime.database.transaction import Load, Params, Row, Transaction, as_row
from kronos_db.runtime.database.writing import Doubt, Writing, Written
from kronos_db.runtime.errors import PositionLostError, UnavailableError
from kronos_db.runtime.workers import about_to_block

_ATTEMPTS = 6
_FIRST_PAUSE = 0.005
# Milliseconds: a statement that is begun at all gets so long.
_SHORTEST_LIMIT = 5
_log = structlog.get_logger(__name__)


class Copies(Protocol):
    """Who keeps copies of the data and has to drop those that a write made old."""

    @property
    def holder(self) -> UUID:
        """Names those who drop their copies with `outdate` itself; everybody else must be waited for."""

    def outdate(self, tags: Sequence[str], snapshot: str, timeline: str, others: bool) -> None:
        """Return when no copy that depends on one of `tags` is answered from that was read before `snapshot`.

        `timeline` is that of the snapshot; `others` tells whether there are holders beside our own.
        """


class Database:
    """The database of one domain, through its own role.

    `copies` is told of what writes make old, `on_changed` that a write with changes was committed. `prepare` is given
    their tags then, and may take a moment to make new copies, before the old ones are refused. `standbys` are asked
    what need not be read from the primary.

    `statement_timeout` is that of the role, in seconds. A call with less left of its deadline takes that as the limit
    of its statements.
    """

    def __init__(self, domain: str, pool: Pool, statement_timeout: float = 30.0) -> None:
        self.domain = domain
        self.pool = pool
        self._statement_timeout = statement_timeout
        self.copies: Copies | None = None
        self.on_changed: Callable[[], None] | None = None
        self.prepare: Callable[[Sequence[str]], None] | None = None
        self.standbys: Standbys | None = None
        self._log = ChangeLog(domain)
        self._writing = Writing(domain, self._log, self.limit, lambda: self.copies.holder if self.copies else None)

    def fetch_all(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run one read in one round trip; return `make(*columns)` of every row."""
        return self.read(lambda tx: tx.fetch_all(query, params, make))

    def fetch_one(self, query: Query, params: Params, make: Callable[..., Row]) -> Row | None:
        """Run one read in one round trip; return `make(*columns)` of its first row, or None."""
        return self.read(lambda tx: tx.fetch_one(query, params, make))

    def execute(self, query: Query, params: Params) -> int:
        """Run one statement that may be repeated without harm, on its own; return how many rows it touched."""
        return self._attempt(_confirmed(lambda connection: begun(connection, self.limit).execute(query, params)))

    def run(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run one writing statement that may be repeated without harm, on its own; return `make(*columns)` of rows."""
        return self._attempt(
            _confirmed(lambda connection: begun(connection, self.limit).fetch_all(query, params, make))
        )

    def read(self, work: Callable[[Transaction], Result]) -> Result:
        """Run `work`, whose statements stand alone and may be repeated; again when a connection was lost."""
        return self._attempt(lambda connection: work(begun(connection, self.limit)))

    def fetch_all_aside(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """As `fetch_all`, on a standby if one has everything that was acknowledged before: for what costs much."""
        if self.standbys is not None:
            try:
                return self.standbys.read(
                    lambda connection: begun(connection, self.limit).fetch_all(query, params, make)
                )
            except NoStandbyError:
                # The primary answers.
                pass
        return self.fetch_all(query, params, make)

    def close(self) -> None:
        """Close all connections."""
        self.pool.close()
        if self.standbys is not None:
            self.standbys.close()

    def limit(self) -> str | None:
        """Return the statement_timeout that the call's deadline asks for, in ms; None when the role's is shorter.

        To send it along costs a statement about 60 µs, so that gathered reads pay 2 to 4 µs each: see
        docs/decisions/0006-overload.md. Calls without a deadline, or with one beyond the role's limit, pay nothing.
        """
        left = deadline.remaining(self._statement_timeout)
        return None if left >= self._statement_timeout else str(max(_SHORTEST_LIMIT, int(left * 1000)))

    def write(
        self, work: Callable[[Transaction], Result], mutation: Mutation[Result, Reply], load: Load | None = None
    ) -> Reply:
        """Run `work` in one transaction and return its reply; a repeat of the call returns the first reply.

        With `load` its rows are put in first: a COPY cannot be sent along with other statements.

        `work` may run more than once and must touch nothing but its transaction. What it raises rolls everything
        back. Before it returns, no copy of what the write changed is answered from anywhere. Raises
        RequestIdReusedError, ConstraintError, ConflictError, UnavailableError, OverloadedError, StatementTimeoutError.
        """
        if mutation.request_id is None and not mutation.validate_only:
            # Nobody repeats it but the attempts made here: it is settled as calls that are written together are.
            return self.write_together(lambda tx: [work(tx)], [mutation], load)[0]
        written = self._attempt(self._whole(lambda connection: self._writing.once(connection, work, mutation, load)))
        self._outdate(written)
        reply: Reply = written.reply
        return reply

    def write_together(
        self,
        work: Callable[[Transaction], Sequence[Result]],
        mutations: Sequence[Mutation[Result, Reply]],
        load: Load | None = None,
    ) -> list[Reply]:
        """Run `work`, which does what several calls ask for, in one transaction; return the reply of each.

        Whatever fails fails for all and nothing is written: then each is to be written alone with `write`, which also
        finds out which of them had been answered before. Raises what `write` does.
        """
        doubts: list[Doubt] = []
        try:
            written = self._attempt(
                self._whole(lambda connection: self._writing.together(connection, work, mutations, load, doubts))
            )
        except Exception as error:
            if doubts and not isinstance(error, UnavailableError):
                # Whoever would write each alone now might write it twice.
                raise UnavailableError(f"whether it was committed is not known: {error}", retry_after=1.0) from error
            raise
        self._outdate(written)
        replies: list[Reply] = written.reply
        return replies

    def transact(self, work: Callable[[Transaction], Result]) -> Result:
        """Run `work`, which may be repeated without harm, in one transaction.

        For what changes nothing of which copies are kept, and has no answer to be kept.
        """
        return self._attempt(self._whole(lambda connection: self._writing.unanswered(connection, work)))

    def changes_since(self, position: Position, limit: int, *, whole: bool = True) -> Page:
        """Return at most `limit` changes that became visible after `position`, in commit order.

        When they are not to be `whole`, their bodies have no more than their tags depend on.

        Raises PositionLostError when some of them were removed already, or when the position is of another history.
        """
        params = {
            "seen": position.seen,
            "until": position.until,
            "place": position.place,
            "part": position.part,
            "limit": limit,
            "whole": whole,
        }
        rows = self.fetch_all(self._log.queries["since"], params, as_row)
        snapshot, newest, purged, identity, timeline = rows[0][:5]
        history = f"{identity}.{timeline}"
        if position.history not in {"", history}:
            raise PositionLostError(f"the position is of {position.history}, {self.domain} is at {history}")
        if purged >= int(position.seen.partition(":")[0]):
            raise PositionLostError(f"changes of {self.domain} up to transaction {purged} were removed")
        found = [
            Noted(Change(kind, record_id, body), place, part, time)
            for _, _, _, _, _, place, part, kind, record_id, body, time in rows
            if place is not None
        ]
        snapshot = position.until or settled(snapshot, newest)
        more = len(found) == limit
        end = Position(snapshot, history=history)
        if more:
            end = Position(position.seen, snapshot, found[-1].place, found[-1].part, history)
        return Page(found, position, snapshot, end)

    def instant(self) -> Instant:
        """Return the snapshot now, and the history that it is of."""
        snapshot, newest, *history = self.fetch_all(self._log.queries["now"], {}, as_row)[0]
        return Instant(settled(snapshot, newest), *history)

    def position(self) -> Position:
        """Return the position of who has seen every change up to now."""
        instant = self.instant()
        return Position(instant.snapshot, history=f"{instant.identity}.{instant.timeline}")

    def notify(self, about: About = "changes") -> None:
        """Wake those who listen on the domain's channel."""
        self.fetch_all(self._log.queries["notify"], {"channel": channel(self.domain, about)}, as_row)

    def purge_changes(self, kept: float, limit: int = 1000) -> int:
        """Remove at most `limit` changes older than `kept` seconds; return how many that were."""
        return self.fetch_one(self._log.queries["purge"], {"kept": kept, "limit": limit}, int) or 0

    def _outdate(self, written: Written) -> None:
        """Tell who waits for changes, and return when nobody answers from copies of before the write."""
        if written.tells and self.on_changed is not None:
            self.on_changed()
        if written.tags and self.prepare is not None:
            self.prepare(written.tags)
        if written.tags and self.copies is not None:
            self.copies.outdate(written.tags, written.snapshot, written.timeline, written.others)

    def _whole(self, run: Callable[[Connection], Result]) -> Callable[[Connection], Result]:
        """Return `run`, which is a whole transaction, so that it is confirmed, and is a span where that is wanted."""
        return recorded(self.domain, _confirmed(run)) if tracing.span() is not None else _confirmed(run)

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
