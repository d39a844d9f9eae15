"""Reads the tar stream of pg_basebackup as it passes: no seeking, no file of it on a disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kronos_db.backup.model import BackupDamagedError

BLOCK = 512

_CHECKSUM = slice(148, 156)
_FILE, _OLD_FILE, _FOLDER = b"0", b"\0", b"5"


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder: its path below the data directory, bytes and permissions."""

    path: str
    size: int
    mode: int
    folder: bool


class Visitor(Protocol):
    """Sees each member: `begin`, `data` as often as it takes, `end`."""

    def begin(self, member: Member) -> None:
        """Look at the header of the next member."""

    def data(self, piece: memoryview) -> None:
        """Take the next bytes of the member."""

    def end(self) -> None:
        """Take leave of the member, whose bytes have all come."""


class TarReader:
    """Takes a tar archive (POSIX ustar as PostgreSQL writes it, without links) in pieces and shows it to a visitor."""

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._head = bytearray()
        self._left = 0
        self._padding = 0
        self._open = False
        self._ended = False

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next piece. Raises BackupDamagedError when it is no such archive."""
        rest = memoryview(piece)
        while rest:
            rest = rest[self._take(rest) :]

    def finish(self) -> None:
        """Raise BackupDamagedError unless the archive has come to its end."""
        if not self._ended or self._open or self._head:
            raise BackupDamagedError("The base backup ends too early.")

    def _take(self, rest: memoryview) -> int:
        if self._left:
            taken = min(self._left, len(rest))
            self._visitor.data(rest[:taken])
            self._left -= taken
            self._close_if_done()
            return taken
        if self._padding:
            taken = min(self._padding, len(rest))
            self._padding -= taken
            return taken
        taken = min(BLOCK - len(self._head), len(rest))
        self._head += rest[:taken]
        if len(self._head) == BLOCK:
            head, self._head = bytes(self._head), bytearray()
            self._begin(head)
        return taken

    def _begin(self, head: bytes) -> None:
        if not any(head):
            self._ended = True
            return
        member = _member(head)
        self._left = member.size
        self._padding = -member.size % BLOCK
        self._open = True
        self._visitor.begin(member)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._left:
            self._open = False
            self._visitor.end()


def _member(head: bytes) -> Member:
    blank = head[:148] + b" " * 8 + head[156:]
    if sum(blank) != _number(head[_CHECKSUM]):
        raise BackupDamagedError("The base backup is no tar archive.")
    path = head[:100].rstrip(b"\0").decode("utf-8", "surrogateescape").removeprefix("./").rstrip("/")
    kind = head[156:157]
    if kind not in (_FILE, _OLD_FILE, _FOLDER) or path.startswith("/") or ".." in path.split("/"):
        raise BackupDamagedError(f"The base backup has a member that none should have: {path!r}.")
    size = 0 if kind == _FOLDER else _number(head[124:136])
    return Member(path, size, _number(head[100:108]) & 0o777, kind == _FOLDER)


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & (1 << 8 * len(field) - 1) - 1
    text = field.rstrip(b"\0 ").strip()
    return int(text, 8) if text else 0
