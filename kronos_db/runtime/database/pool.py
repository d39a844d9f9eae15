"""The bounded pool of connections of one domain's login role."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg_pool import ConnectionPool

from kronos_db.runtime import deadline

Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of a pool. `timeout` in seconds; `max_waiting` calls wait at most, more are refused."""

    max_size: int = 4
    max_waiting: int = 64
    timeout: float = 2.0
    prepared_statements: bool = True


class Pool:
    """Connections of one role to one database, in autocommit mode: whoever wants a transaction says BEGIN.

    The first connection is made in the background, so that a server comes up while PostgreSQL is still away.
    """

    def __init__(self, name: str, dsn: str, limits: PoolLimits) -> None:
        self.name = name
        self.limits = limits
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            dsn,
            min_size=1,
            max_size=limits.max_size,
            max_waiting=limits.max_waiting,
            timeout=limits.timeout,
            name=name,
            num_workers=1,
            # Short, so that its growing pauses do not outlast the outage by much.
            reconnect_timeout=4.0,
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

        Raises psycopg_pool.TooManyRequests when too many wait already, PoolTimeout when none comes free in time.
        """
        connection = self._pool.getconn(deadline.remaining(self.limits.timeout))
        try:
            yield connection
        finally:
            self._pool.putconn(connection)

    def stats(self) -> dict[str, int]:
        """Return the gauges and counters of psycopg_pool by their names there."""
        return self._pool.get_stats()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close(timeout=5.0)
