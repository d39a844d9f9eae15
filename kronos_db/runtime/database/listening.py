"""Wakes processes when a log of changes has grown: LISTEN on one connection, NOTIFY from a thread of its own.

Only hints pass here, and they may be lost or come twice: whoever is woken reads the log, and looks now and then
without having been woken.
"""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Callable, Mapping

import psycopg
import structlog
from psycopg import sql

from kronos_db.runtime.database.changes import About
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.errors import KronosError

_log = structlog.get_logger(__name__)

# Seconds between two attempts to connect: at first, and at most.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
# Seconds after which a silent connection is looked at.
_SILENCE = 60.0
# Seconds that a thread gets to end; it may be waiting for PostgreSQL.
_PATIENCE = 1.0
# Seconds between two notifications of one channel. Each commit of one takes a lock of the whole PostgreSQL server.
_INTERVAL = 0.01


class Listener:
    """Listens on channels of one database, on a connection that must not lead through a transaction-pooling pgBouncer.

    `wakers` holds what to call for each channel: when it was notified, and after each connect, since what was said
    before it is lost. They are called on the listener's thread and must return at once.
    """

    def __init__(self, dsn: str, wakers: Mapping[str, Callable[[], None]]) -> None:
        self.connects = 0
        self._dsn = dsn
        self._wakers = dict(wakers)
        self._stopped = threading.Event()
        self._bell, self._ring = socket.socketpair()
        self._pause = _FIRST_PAUSE
        self._thread = threading.Thread(target=self._run, name="listen", daemon=True)

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of the connection."""
        self._stopped.set()
        self._ring.close()
        if self._thread.ident is None:
            self._bell.close()
        else:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with psycopg.connect(
                    self._dsn,
                    autocommit=True,
                    application_name="kronos-db:listen",
                    connect_timeout=5,
                    keepalives_idle=30,
                    keepalives_interval=10,
                    keepalives_count=3,
                ) as connection:
                    self._listen(connection)
            except psycopg.Error as error:
                if not self._stopped.is_set():
                    _log.warning("does not listen for changes; looks every second", reason=str(error).strip())
            self._stopped.wait(self._pause * random.uniform(0.5, 1.5))
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._bell.close()

    def _listen(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Wake who is to be woken, until the connection is lost or the listener is stopped."""
        for channel in self._wakers:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        self.connects += 1
        self._pause = _FIRST_PAUSE
        self._wake(self._wakers)
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        while True:
            heard = poll.poll(_SILENCE * 1000)
            if self._stopped.is_set():
                return
            if not heard:
                connection.execute("SELECT")
            self._wake({note.channel for note in connection.notifies(timeout=0)})

    def _wake(self, channels: Mapping[str, object] | set[str]) -> None:
        for channel in channels:
            self._wakers[channel]()


class Notifier:
    """Notifies after writes, at most once each ten milliseconds for each database, and never in their transactions.

    What fails is counted in `failures` and given up: who was not woken looks by himself.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._lock = threading.Lock()
        self._due: dict[tuple[str, About], Database] = {}
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)

    def start(self) -> None:
        """Notify from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Notify no more."""
        self._stopped.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE)

    def changed(self, database: Database, about: About = "changes") -> None:
        """Take note that a write to `database` was committed; returns at once."""
        with self._lock:
            self._due[database.domain, about] = database
        self._woken.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.wait(_SILENCE)
            self._woken.clear()
            with self._lock:
                due, self._due = self._due, {}
            for (_, about), database in due.items():
                self._notify(database, about)
            self._stopped.wait(_INTERVAL)

    def _notify(self, database: Database, about: About) -> None:
        try:
            database.notify(about)
        except KronosError:
            self.failures += 1
        except Exception:  # noqa: BLE001  # logged: polling goes on
            self.failures += 1
            _log.exception("not notified", domain=database.domain)
