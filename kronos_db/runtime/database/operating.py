"""Connections of operators' work: straight to PostgreSQL, beside the pools of calls, and closed when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from kronos_db.runtime.database.failures import translate
from kronos_db.runtime.database.pool import Connection
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Params, Row

_CONNECT_TIMEOUT = 5
# Seconds beyond its statement_timeout after which a server that says nothing is given up.
_SILENCE_MARGIN = 5.0


class OperatorConnection:
    """A connection in autocommit mode. What PostgreSQL refuses comes as the runtime's exceptions, as of a Database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def pid(self) -> int:
        """The process at the other end."""
        return self._connection.info.backend_pid

    def fetch_all(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run `query`; return `make(*columns)` of every row."""
        with _translated():
            # Extended protocol: no second statement can hide in the text.
            cursor = self._connection.cursor(binary=True).execute(query.text, params, prepare=False)
            return [make(*row) for row in cursor.fetchall()]

    def fetch_one(self, query: Query, params: Params, make: Callable[..., Row]) -> Row | None:
        """Run `query`; return `make(*columns)` of its first row, or None."""
        return next(iter(self.fetch_all(query, params, make)), None)

    def run(self, statement: str) -> None:
        """Run one statement of ours that has no parameters and no answer, for example DDL."""
        with _translated():
            self._connection.execute(statement.encode(), binary=True, prepare=False)

    def ask(self, statement: str) -> Any:
        """Run one statement of ours that has no parameters; return the one value that it answers."""
        with _translated():
            row = self._connection.execute(statement.encode(), binary=True, prepare=False).fetchone()
            return row and row[0]

    def copy_rows(self, select: str, into: OperatorConnection, target: str) -> None:
        """Copy what a query of ours returns into a table, given with its columns, of another database."""
        with _translated():
            source = self._connection.cursor().copy(f"COPY ({select}) TO STDOUT (FORMAT binary)".encode())
            sink = into._connection.cursor().copy(f"COPY {target} FROM STDIN (FORMAT binary)".encode())
            with source as rows, sink as table:
                for data in rows:
                    table.write(data)

    def cancel(self) -> None:
        """Cancel the statement that another thread runs on this connection."""
        self._connection.cancel_safe(timeout=_CONNECT_TIMEOUT)


@contextmanager
def connected(
    dsn: str, name: str, statement_timeout: float, settings: Mapping[str, str] | None = None
) -> Iterator[OperatorConnection]:
    """Give a connection to `dsn` that `pg_stat_activity` shows as `kronos-db:<name>`.

    `statement_timeout` in seconds, 0 for none; `settings` are further ones of the session. Raises UnavailableError when
    PostgreSQL is away.
    """
    with _translated():
        connection = Connection.connect(
            dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT, application_name=f"kronos-db:{name}"
        )
    connection.silence_limit = statement_timeout + _SILENCE_MARGIN if statement_timeout else None
    try:
        chosen = {"statement_timeout": str(int(statement_timeout * 1000)), **(settings or {})}
        with _translated():
            for key, value in chosen.items():
                connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(*key.split(".")), sql.Literal(value)))
        yield OperatorConnection(connection)
    finally:
        connection.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        translated = translate(error)
        if translated is error:
            raise
        raise translated from error
