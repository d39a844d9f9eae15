"""A connection of its own to PostgreSQL, for looks at it that no pool and no other caller is to delay."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Params, Row
from kronos_db.runtime.errors import UnavailableError

# What a client asks first (protocol 3.0, "SSLRequest"): any server answers with one byte, before it does anything else.
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_DEFAULT_PORT = "5432"
# Seconds, and milliseconds that sent bytes may stay unconfirmed.
_CONNECT_TIMEOUT = 2
_UNCONFIRMED = 5000
_MOST_CHARACTERS = 200


class Direct:
    """A connection that is made when it is needed, and anew when it was lost. For one thread."""

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = dsn
        self._name = name
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def fetch_all(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run one read; return `make(*columns)` of every row. Raises UnavailableError, with a sentence why."""
        try:
            cursor = self._connected().cursor(binary=True)
            return [make(*row) for row in cursor.execute(query.text, params).fetchall()]
        except psycopg.Error as error:
            self.close()
            raise UnavailableError(_sentence(error)) from error

    def is_pooled(self) -> bool:
        """Tell whether sessions end before PostgreSQL: then its process is not the one that the login named."""
        try:
            connection = self._connected()
            found = connection.execute("SELECT pg_catalog.pg_backend_pid()", binary=True).fetchone()
            return found is None or found[0] != connection.pgconn.backend_pid
        except psycopg.Error as error:
            self.close()
            raise UnavailableError(_sentence(error)) from error

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._dsn,
                autocommit=True,
                prepare_threshold=None,
                application_name=self._name,
                connect_timeout=_CONNECT_TIMEOUT,
                tcp_user_timeout=_UNCONFIRMED,
            )
        return self._connection


def address_of(dsn: str) -> str:
    """Return HOST:PORT/DATABASE of a DSN; several hosts stand with commas between them."""
    parts = conninfo_to_dict(dsn)
    places = [f"{host}:{port}" for host, port in _places(dsn)]
    return f"{','.join(places)}/{parts.get('dbname', '')}"


def greets(dsn: str, seconds: float) -> bool:
    """Tell whether something that speaks PostgreSQL's protocol answers at a host of `dsn`, whatever is behind it."""
    for host, port in _places(dsn):
        with contextlib.suppress(OSError), _socket(host, port, seconds) as connection:
            connection.sendall(_SSL_REQUEST)
            if connection.recv(1) in {b"S", b"N"}:
                return True
    return False


def _places(dsn: str) -> list[tuple[str, str]]:
    parts = conninfo_to_dict(dsn)
    hosts = str(parts.get("host") or parts.get("hostaddr") or "localhost").split(",")
    ports = str(parts.get("port") or _DEFAULT_PORT).split(",")
    return list(zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True))


def _socket(host: str, port: str, seconds: float) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, int(port)), seconds)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(seconds)
        connection.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        connection.close()
        raise
    return connection


def _sentence(error: psycopg.Error) -> str:
    text = (error.diag.message_primary or str(error)).strip().partition("\n")[0]
    return text[:_MOST_CHARACTERS] or type(error).__name__
