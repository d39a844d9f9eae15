"""The bounded pool of connections of one domain's login role."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson
import psycopg
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from kronos_db.runtime import deadline
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.errors import DeadlineTooShortError, KronosError, OverloadedError, UnavailableError
from kronos_db.runtime.issuer import ISSUED

Value = TypeVar("Value")

_WARNING = "01000"
# Seconds for which the pauses between attempts to connect grow.
_RECONNECT = 4.0


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that gives up a server that keeps silent, and remembers warnings.

    `silence_limit` in seconds. `warned` is set by a WARNING without a code of its own: at COMMIT it says that the wait
    for a synchronous standby was cancelled, so that the transaction may be lost with this server.
    """

    silence_limit: float | None = None
    warned = False

    def wait(self, gen: PQGen[Value], interval: float = 0.1, timeout: float | None = None) -> Value:
        """Wait for the server. Closes the connection and raises OperationalError when it says nothing for too long."""
        give_up = time.monotonic() + self.silence_limit if timeout is None and self.silence_limit else None
        try:
            return super().wait(gen, interval, self.silence_limit if timeout is None else timeout)
        except psycopg.OperationalError:
            if give_up is not None and time.monotonic() >= give_up:
                # Half an answer may still come: nobody may use this connection again.
                self.pgconn.finish()
            raise

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Send the statements of the block when a result is asked for, or at its end, and not each by itself.

        psycopg would send each at once, which costs a poll, a write and mostly a switch to the server's process. Leans
        on a method of psycopg's own: were it gone, statements would be sent one by one again; a test tells.
        """
        with super().pipeline() as pipeline:
            pipeline._communicate_gen = partial(_queue, pipeline)  # type: ignore[method-assign]  # noqa: SLF001
            yield pipeline

    def issue(self, query: Query, params: Mapping[str, Any] | None = None) -> psycopg.Cursor[Any]:
        """Run a statement that goes with those of a call, and take note of whose method issues it."""
        ISSUED.note(query.text)
        return self.execute(query.text, params, binary=True)

    def note(self, notice: Diagnostic) -> None:
        """Take a notice of the server."""
        self.warned = self.warned or notice.sqlstate == _WARNING


def _queue(pipeline: psycopg.Pipeline) -> PQGen[None]:
    """Hand the commands of a pipeline to libpq, which sends them when results are fetched, or its buffer is full."""
    while pipeline.command_queue:
        pipeline.command_queue.popleft()()
    # As psycopg's own, it is a generator.
    yield from ()


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of a pool.

    `timeout` is the seconds that a call waits for a connection; `max_waiting` calls wait at most, more are refused.
    `silence` is the seconds after which a server that does not answer is given up: more than any statement may take.
    """

    max_size: int = 4
    max_waiting: int = 64
    timeout: float = 2.0
    prepared_statements: bool = True
    silence: float = 35.0
    # Connections that are kept though nobody needs them.
    min_size: int = 1


class Pool:
    """Connections of one role to one database, in autocommit mode: whoever wants a transaction says BEGIN.

    The first connection is made in the background, so that a server comes up while PostgreSQL is still away.
    """

    def __init__(self, name: str, dsn: str, limits: PoolLimits) -> None:
        self.name = name
        self.limits = limits
        self._lock = threading.Lock()
        self._lent = 0
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            dsn,
            connection_class=Connection,
            configure=self._configure,
            min_size=limits.min_size,
            max_size=limits.max_size,
            max_waiting=limits.max_waiting,
            timeout=limits.timeout,
            name=name,
            num_workers=1,
            # Short, so that its growing pauses do not outlast the outage by much.
            reconnect_timeout=_RECONNECT,
            reconnect_failed=_go_on,
            open=False,
            kwargs={
                "autocommit": True,
                # None: never by name, as a pgBouncer without max_prepared_statements wants it.
                "prepare_threshold": 0 if limits.prepared_statements else None,
                "application_name": f"kronos-db:{name}",
                "connect_timeout": 5,
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
            },
        )
        self._pool.open(wait=False)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection; a broken one is replaced when it comes back.

        Raises OverloadedError when too many wait already or none comes free in time, UnavailableError when that is
        because PostgreSQL is away, DeadlineTooShortError when the caller's deadline is over.
        """
        connection = self._take()
        self._count(+1)
        try:
            yield connection
        finally:
            self._count(-1)
            self._pool.putconn(connection)

    def stats(self) -> dict[str, int]:
        """Return the gauges and counters of psycopg_pool by their names there."""
        return self._pool.get_stats()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close(timeout=5.0)

    def _configure(self, connection: Connection) -> None:
        connection.silence_limit = self.limits.silence
        connection.add_notice_handler(connection.note)
        # In a sixth of the time that the json module takes.
        set_json_loads(orjson.loads, connection)

    def _take(self) -> Connection:
        give_up = time.monotonic() + deadline.remaining(self.limits.timeout)
        while True:
            try:
                connection = self._pool.getconn(give_up - time.monotonic())
            except (TooManyRequests, PoolTimeout, PoolClosed) as error:
                raise self._refusal(error) from error
            if not _hung_up(connection):
                return connection
            # Closed by the server while it lay here. Were it lent, every one of them would cost an attempt.
            connection.close()
            self._pool.putconn(connection)

    def _refusal(self, error: psycopg.Error) -> KronosError:
        if deadline.remaining(1.0) <= 0:
            return DeadlineTooShortError("the deadline passed before a connection was there")
        if isinstance(error, PoolClosed) or not self._lent:
            # Nobody holds a connection, and yet there is none.
            return UnavailableError(f"PostgreSQL gives no connection: {error}", retry_after=1.0)
        if isinstance(error, TooManyRequests):
            return OverloadedError("the pool's queue is full", retry_after=0.1)
        return OverloadedError("no connection came free in time", retry_after=0.5)

    def _count(self, change: int) -> None:
        with self._lock:
            self._lent += change


def _go_on(pool: ConnectionPool[Connection]) -> None:
    """Begin to connect anew: psycopg_pool would leave that to the next request.

    When as many as may wait have waited in vain it refuses every request before that, and so never connects again.
    """
    if not pool.get_stats()["pool_size"]:
        pool.check()


def _hung_up(connection: Connection) -> bool:
    """Tell, without a round trip, whether the server has closed an idle connection: else it has nothing to say."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))
