"""Receives WAL as a standby does, and calls flushed what is sealed and durable in the destination."""

from __future__ import annotations

import contextlib
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from kronos_db.backup.model import BackupBusyError, BackupError, Lsn, ProgramError
from kronos_db.backup.wal import Piece, WalArchive, parse_history

# By this name `synchronous_standby_names` knows the receiver.
APPLICATION = "kronos_archive"

# A server that is gone without a word is noticed within a minute.
_CONNECTION: Mapping[str, str | int] = {
    "replication": "true",
    "dbname": "replication",
    "application_name": APPLICATION,
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
_XLOG = struct.Struct(">cQQQ")
_KEEPALIVE = ord("k")
_STATUS = struct.Struct(">cQQQQ?")
# PostgreSQL counts microseconds from here.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# Seconds: between two looks at `stopped`, and between two reports of the position when nothing comes.
_LOOK = 0.25
_REPORT = 5.0
# Small pieces that are merged into one longer one, again and again, until the segment is whole: each byte of WAL is
# stored three times at most, and a segment never has more than a few hundred objects.
_MERGE = 64
# Of what has come and is not yet stored, in bytes: so much is stored at once.
_BATCH = 4 * 1024 * 1024
_OBJECT_IN_USE = b"55006"
_DUPLICATE_OBJECT = b"42710"
# The file of WAL is gone; the slot was given up.
_LOST = (b"58P01", b"55000")


class _WalLostError(ProgramError):
    """The server no longer has the WAL that the archive lacks."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What IDENTIFY_SYSTEM says."""

    system_identifier: int
    timeline: int
    position: Lsn


class Replication:
    """A replication connection, straight to the server. Raises ProgramError for what the server refuses."""

    def __init__(self, dsn: str) -> None:
        info = make_conninfo(dsn, **_CONNECTION)
        self._connection = pq.PGconn.connect(info.encode())
        if self._connection.status != pq.ConnStatus.OK:
            raise ProgramError(f"The database takes no replication connection: {self._said()}")

    def identify(self) -> Identity:
        """Return whom this talks to and where its WAL is."""
        row = self._row("IDENTIFY_SYSTEM")
        return Identity(int(row[0]), int(row[1]), Lsn.parse(row[2].decode()))

    def segment_size(self) -> int:
        """Return the bytes of a file of WAL."""
        number, unit = self._row("SHOW wal_segment_size")[0].decode()[:-2], self._row("SHOW wal_segment_size")[0][-2:]
        return int(number) * {b"kB": 1 << 10, b"MB": 1 << 20, b"GB": 1 << 30}[unit]

    def ensure_slot(self, slot: str) -> Lsn | None:
        """Make the physical slot if there is none, keeping WAL from now on; return what it keeps from."""
        result = self._connection.exec_(f"CREATE_REPLICATION_SLOT {slot} PHYSICAL (RESERVE_WAL)".encode())
        failed = result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
        if failed and result.error_field(pq.DiagnosticField.SQLSTATE) != _DUPLICATE_OBJECT:
            raise ProgramError(f"The slot {slot} cannot be made: {_text(result.error_message)}")
        kept = self._row(f"READ_REPLICATION_SLOT {slot}")[1]
        return Lsn.parse(kept.decode()) if kept else None

    def drop_slot(self, slot: str) -> None:
        """Remove the slot."""
        self._connection.exec_(f"DROP_REPLICATION_SLOT {slot}".encode())

    def history(self, timeline: int) -> bytes:
        """Return the history file of a timeline after the first."""
        return self._row(f"TIMELINE_HISTORY {timeline}")[1]

    def start(self, slot: str, timeline: int, position: Lsn) -> None:
        """Begin to stream. Raises BackupBusyError when another receiver has the slot."""
        command = f"START_REPLICATION SLOT {slot} PHYSICAL {position} TIMELINE {timeline}"
        result = self._connection.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            if result.error_field(pq.DiagnosticField.SQLSTATE) == _OBJECT_IN_USE:
                raise BackupBusyError(f"Another receiver has the slot {slot}.")
            raise _refusal(f"WAL from {position} on, timeline {timeline}", result)

    def messages(self, seconds: float) -> Iterator[memoryview | None]:
        """Return what has come, after waiting for at most `seconds`; None at the end of the stream."""
        length, message = self._next()
        if length == 0:
            # Not `select`, which takes no descriptors from 1,024 on.
            readable = select.poll()
            readable.register(self._connection.socket, select.POLLIN)
            readable.poll(seconds * 1000)
            self._consume()
            length, message = self._next()
        while length > 0:
            yield message
            length, message = self._next()
        if length < 0:
            yield None

    def report(self, flushed: Lsn) -> None:
        """Tell the server what is durable."""
        now = int((datetime.now(UTC) - _EPOCH).total_seconds() * 1_000_000)
        with _as_program_error():
            self._connection.put_copy_data(_STATUS.pack(b"r", flushed, flushed, 0, now, False))
            self._connection.flush()

    def end(self) -> tuple[int, Lsn] | None:
        """End the stream; return the timeline that follows and where it begins, when the server names one."""
        with contextlib.suppress(psycopg.Error):
            self._connection.put_copy_end()
        following: tuple[int, Lsn] | None = None
        while (result := self._connection.get_result()) is not None:
            if result.status in (pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH):
                # What was still on its way is not stored, so it comes again.
                with _as_program_error():
                    while self._connection.get_copy_data(0)[0] > 0:
                        continue
            elif result.status == pq.ExecStatus.TUPLES_OK:
                following = int(result.get_value(0, 0) or 0), Lsn.parse((result.get_value(0, 1) or b"").decode())
            elif result.status == pq.ExecStatus.FATAL_ERROR:
                raise _refusal("The stream of WAL ended", result)
        return following

    def close(self) -> None:
        """Close the connection."""
        self._connection.finish()

    def _next(self) -> tuple[int, memoryview]:
        with _as_program_error():
            return self._connection.get_copy_data(1)

    def _consume(self) -> None:
        with _as_program_error():
            self._connection.consume_input()

    def _row(self, command: str) -> list[bytes]:
        result = self._connection.exec_(command.encode())
        if result.status != pq.ExecStatus.TUPLES_OK or not result.ntuples:
            raise ProgramError(f"{command.split(maxsplit=1)[0]}: {_text(result.error_message)}")
        return [result.get_value(0, column) or b"" for column in range(result.nfields)]

    def _said(self) -> str:
        return _text(self._connection.error_message)


@dataclass
class _Segment:
    """What has come of the segment that is filled at the moment, from `start` on, and how it lies in the archive."""

    timeline: int
    start: Lsn
    data: bytearray = field(default_factory=bytearray)
    stored: int = 0
    # Small pieces, then those that 64 of them were merged into, and so on.
    levels: list[list[Piece]] = field(default_factory=list)


class Receiver:
    """Streams WAL of one server into the archive until told to stop.

    `interval` is how long WAL may wait to be stored, in seconds; 0 stores it as it comes, for commits that wait.
    `streaming` is called once the stream runs.
    """

    def __init__(
        self,
        connect: Callable[[], Replication],
        archive: WalArchive,
        slot: str,
        interval: float,
        streaming: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._replication = connect()
        self._archive = archive
        self._slot = slot
        self._interval = interval
        self._streaming = streaming
        self._size = self._replication.segment_size()
        self._key = archive.usable_key()
        self._flushed = Lsn(0)
        self._reported = 0.0
        self._waiting_since: float | None = None

    def run(self, stopped: threading.Event) -> None:
        """Receive until `stopped`. Raises BackupError when connection or destination is lost; run anew then."""
        timeline, position = self._where_to_begin()
        try:
            self._follow(timeline, position, stopped)
        except _WalLostError:
            # What is lost is lost, and shows as a gap; what comes from now on must not be lost too.
            self._replication.close()
            self._replication = self._connect()
            self._follow(*self._what_is_left(), stopped)

    def close(self) -> None:
        """Close the connection."""
        self._replication.close()

    def _follow(self, timeline: int, position: Lsn, stopped: threading.Event) -> None:
        while not stopped.is_set():
            self._ensure_history(timeline)
            self._replication.start(self._slot, timeline, position)
            self._streaming()
            following = self._stream(timeline, position, stopped)
            if following is not None:
                timeline, position = following[0], Lsn(following[1] - following[1] % self._size)
            elif not stopped.is_set():
                raise ProgramError("The database ended the stream of WAL.")

    def _where_to_begin(self) -> tuple[int, Lsn]:
        """Return where the archive ends, on the server's timeline or the nearest one before it; else its oldest WAL."""
        identity = self._replication.identify()
        kept = self._replication.ensure_slot(self._slot)
        pieces = self._archive.pieces(identity.timeline)
        if pieces:
            return identity.timeline, max(piece.end for piece in pieces)
        if identity.timeline > 1:
            return self._after_promotion(identity)
        first = identity.position if kept is None else min(kept, identity.position)
        return identity.timeline, Lsn(first - first % self._size)

    def _what_is_left(self) -> tuple[int, Lsn]:
        """Return the oldest WAL that a new slot keeps."""
        self._replication.drop_slot(self._slot)
        kept = self._replication.ensure_slot(self._slot)
        identity = self._replication.identify()
        first = identity.position if kept is None else min(kept, identity.position)
        return identity.timeline, Lsn(first - first % self._size)

    def _after_promotion(self, identity: Identity) -> tuple[int, Lsn]:
        ancestors = parse_history(self._replication.history(identity.timeline))
        for ancestor in reversed(ancestors):
            ends = [piece.end for piece in self._archive.pieces(ancestor.timeline)]
            if ends and max(ends) < ancestor.end:
                return ancestor.timeline, max(ends)
            if ends:
                break
        fork = ancestors[-1].end
        return identity.timeline, Lsn(fork - fork % self._size)

    def _ensure_history(self, timeline: int) -> None:
        if timeline > 1 and timeline not in self._archive.timelines():
            self._archive.put_history(self._key, timeline, self._replication.history(timeline))

    def _stream(self, timeline: int, position: Lsn, stopped: threading.Event) -> tuple[int, Lsn] | None:
        segment = _Segment(timeline, position)
        self._flushed = position
        while not stopped.is_set():
            for message in self._replication.messages(min(_LOOK, self._interval or _LOOK)):
                if message is None:
                    self._store(segment)
                    return self._replication.end()
                segment = self._take(segment, message)
            self._store_if_due(segment)
            self._report_if_due()
        self._store(segment)
        self._replication.report(self._flushed)
        with contextlib.suppress(BackupError):
            self._replication.end()
        return None

    def _take(self, segment: _Segment, message: memoryview) -> _Segment:
        if message[0] == _KEEPALIVE:
            # The last byte asks for an answer at once: a server that wants to stop waits for it.
            if message[-1]:
                self._store(segment)
                self._report()
            return segment
        start = Lsn(_XLOG.unpack_from(message)[1])
        data = message[_XLOG.size :]
        if start != segment.start + len(segment.data):
            raise ProgramError(f"WAL came from {start}, not from {Lsn(segment.start + len(segment.data))} on.")
        while data:
            room = self._size - (segment.start + len(segment.data)) % self._size
            segment.data += data[:room]
            data = data[room:]
            if (segment.start + len(segment.data)) % self._size == 0:
                segment = self._complete(segment)
        if len(segment.data) - segment.stored >= _BATCH:
            self._store(segment)
        # Asked at the end: what came may have completed one segment and begun the next.
        if segment.stored < len(segment.data) and self._waiting_since is None:
            self._waiting_since = time.monotonic()
        return segment

    def _complete(self, segment: _Segment) -> _Segment:
        """Store a whole segment as one object, and remove the pieces that it was."""
        self._archive.put(self._key, segment.timeline, segment.start, segment.data)
        self._advance(Lsn(segment.start + len(segment.data)))
        for piece in (piece for level in segment.levels for piece in level):
            if piece.end - piece.start < len(segment.data):
                self._archive.delete(piece)
        return _Segment(segment.timeline, self._flushed)

    def _store_if_due(self, segment: _Segment) -> None:
        since = self._waiting_since
        if since is not None and time.monotonic() - since >= self._interval:
            self._store(segment)

    def _store(self, segment: _Segment) -> None:
        if segment.stored < len(segment.data):
            self._put_piece(segment, 0, segment.stored, len(segment.data))
            segment.stored = len(segment.data)
            self._advance(Lsn(segment.start + segment.stored))

    def _put_piece(self, segment: _Segment, level: int, low: int, high: int) -> None:
        start = Lsn(segment.start + low)
        self._archive.put(self._key, segment.timeline, start, segment.data[low:high])
        piece = Piece(segment.timeline, start, Lsn(segment.start + high), 0, datetime.now(UTC))
        while len(segment.levels) <= level:
            segment.levels.append([])
        pieces = segment.levels[level]
        pieces.append(piece)
        if len(pieces) == _MERGE:
            segment.levels[level] = []
            self._put_piece(segment, level + 1, pieces[0].start - segment.start, pieces[-1].end - segment.start)
            for each in pieces:
                self._archive.delete(each)

    def _advance(self, position: Lsn) -> None:
        self._flushed = position
        self._waiting_since = None
        self._report()

    def _report_if_due(self) -> None:
        if time.monotonic() - self._reported >= _REPORT:
            self._report()

    def _report(self) -> None:
        self._replication.report(self._flushed)
        self._reported = time.monotonic()


@contextlib.contextmanager
def _as_program_error() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise ProgramError(f"The connection for WAL is lost: {error}") from error


def _refusal(what: str, result: pq.abc.PGresult) -> ProgramError:
    lost = result.error_field(pq.DiagnosticField.SQLSTATE) in _LOST
    return (_WalLostError if lost else ProgramError)(f"{what}: {_text(result.error_message)}")


def _text(message: bytes | str | None) -> str:
    return (message.decode(errors="replace") if isinstance(message, bytes) else message or "").strip()
