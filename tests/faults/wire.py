"""A proxy between the server and PostgreSQL that reads the protocol and misbehaves at chosen statements."""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from psycopg.conninfo import conninfo_to_dict

from tests.parts.domain import LIMIT

_CHUNK = 65536
# PostgreSQL's message types: https://www.postgresql.org/docs/current/protocol-message-formats.html
_PARSE, _BIND, _SYNC, _QUERY = b"P", b"B", b"S", b"Q"
_READY = b"Z"


class Moment(enum.Enum):
    """What happens when the client sends the statement."""

    # The statement does not arrive: both ends are cut.
    CUT_BEFORE = enum.auto()
    # The server does it and answers, but the answer does not arrive: both ends are cut.
    CUT_AFTER = enum.auto()
    # The client is cut; the server gets the statement only after `Fault.release`.
    LATE = enum.auto()
    # Nothing arrives any more, and nobody is told.
    SILENCE = enum.auto()
    # The server's answer to COMMIT is that of a ROLLBACK.
    ROLLBACK_TAG = enum.auto()


@dataclass
class Fault:
    """A fault that waits for its statement. `struck` is set then, `done` when the server has seen the last of it."""

    statement: str
    moment: Moment
    struck: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let the server have a statement that is LATE; return when it has answered."""
        self.released.set()
        assert self.done.wait(LIMIT), "the server does not answer the late statement"


class Wire:
    """Listens on a local port and passes everything on to the server of `dsn`, but for the faults."""

    def __init__(self, dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        self._target = f"{parts['host']}/.s.PGSQL.{parts['port']}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._sockets: list[socket.socket] = []
        self._closed = False
        # While it is set, who connects is cut off.
        self.away = threading.Event()
        self.statements: list[str] = []
        threading.Thread(target=self._accept, name="wire", daemon=True).start()

    def arm(self, statement: str, moment: Moment, times: int = 1) -> Fault:
        """Have something happen at the next statement whose text contains `statement`; return the last of `times`."""
        faults = [Fault(statement, moment) for _ in range(times)]
        with self._lock:
            self._faults += faults
        return faults[-1]

    def disarm(self) -> None:
        """Forget the faults that did not strike."""
        with self._lock:
            self._faults.clear()

    def cut_all(self) -> None:
        """Cut every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for end in sockets:
            _cut(end)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        # A blocked accept() would outlive a mere close(), and take one more client.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._closed = True
        self.cut_all()

    def seen(self, statement: str) -> Fault | None:
        """Note a statement; return the fault that it meets."""
        with self._lock:
            self.statements.append(statement)
            fault = next((fault for fault in self._faults if fault.statement in statement), None)
            if fault:
                self._faults.remove(fault)
            return fault

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.away.is_set():
                _cut(client)
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                _cut(client)
                continue
            with self._lock:
                closed = self._closed
                self._sockets += [client, server]
            if closed:
                self.cut_all()
                return
            _Pair(self, client, server)


class _Pair:
    """One connection of the client and its connection to the server."""

    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        self._wire = wire
        self._client = client
        self._server = server
        self._names: dict[bytes, str] = {}
        # What becomes of the server's messages: set by the fault that struck.
        self._fault: Fault | None = None
        for work in (self._upward, self._downward):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()

    def _guarded(self, work: object) -> None:
        with contextlib.suppress(OSError):
            work()  # type: ignore[operator] # one of the two below
        if self._fault is None or self._fault.moment is not Moment.LATE:
            _cut(self._client)
            _cut(self._server)

    def _upward(self) -> None:
        messages = _messages(self._client, startup=True)
        for kind, message in messages:
            statement = self._statement(kind, message)
            fault = self._wire.seen(statement) if statement else None
            if fault is None:
                self._server.sendall(message)
                continue
            self._fault = fault
            if fault.moment is Moment.SILENCE:
                fault.struck.set()
                fault.released.wait(LIMIT)
                return
            if fault.moment is Moment.CUT_BEFORE:
                _cut(self._server)
                _cut(self._client)
                fault.struck.set()
                return
            rest = _until_sync(message, messages)
            if fault.moment is Moment.LATE:
                _cut(self._client)
                fault.struck.set()
                fault.released.wait(LIMIT)
            self._server.sendall(rest)

    def _statement(self, kind: bytes, message: bytes) -> str | None:
        """Return the text of the statement that `message` runs."""
        if kind == _QUERY:
            return message[5:-1].decode()
        if kind == _PARSE:
            name, text, _ = message[5:].split(b"\0", 2)
            self._names[name] = text.decode()
        if kind == _BIND:
            _portal, name, _ = message[5:].split(b"\0", 2)
            return self._names.get(name, "")
        return None

    def _downward(self) -> None:
        for kind, message in _messages(self._server, startup=False):
            fault = self._fault
            if fault is None or fault.moment is Moment.SILENCE:
                self._client.sendall(message)
            elif fault.moment is Moment.ROLLBACK_TAG:
                self._client.sendall(_tag(b"ROLLBACK") if message == _tag(b"COMMIT") else message)
                if kind == _READY:
                    fault.struck.set()
            elif kind == _READY:
                # The answer was complete, and nobody gets it.
                _cut(self._client)
                _cut(self._server)
                fault.struck.set()
                fault.done.set()
                return
        if self._fault:
            self._fault.done.set()


def _tag(text: bytes) -> bytes:
    return b"C" + struct.pack("!i", 4 + len(text) + 1) + text + b"\0"


def _messages(source: socket.socket, *, startup: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and bytes of every message until the end; the first of a client has no type."""
    buffer = b""
    while chunk := source.recv(_CHUNK):
        buffer += chunk
        while True:
            head = 0 if startup else 1
            if len(buffer) < head + 4:
                break
            size = head + struct.unpack("!i", buffer[head : head + 4])[0]
            if len(buffer) < size:
                break
            yield buffer[:head], buffer[:size]
            buffer, startup = buffer[size:], False


def _until_sync(first: bytes, messages: Iterator[tuple[bytes, bytes]]) -> bytes:
    """Return `first` and all that follow up to the message that makes the server answer to the end."""
    parts = [first]
    if first[:1] != _QUERY:
        for kind, message in messages:
            parts.append(message)
            if kind == _SYNC:
                break
    return b"".join(parts)


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
