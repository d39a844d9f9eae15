"""The archive of WAL in a destination: which of it is there, what is missing, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from kronos_db.backup.model import ArchiveGapError, BackupDamagedError, BackupKeyError, Gap, Lsn
from kronos_db.backup.sealed import CHUNK
from kronos_db.backup.vault import Vault
from kronos_db.runtime.identifiers import uuid7_text

_RANGE = re.compile(r"wal/\d+/([0-9A-F]{8})/([0-9A-F]{16})-([0-9A-F]{16})")
_HISTORY = re.compile(r"wal/\d+/([0-9A-F]{8})\.history")
# A line of a history file: timeline, where it ended, why.
_ANCESTOR = re.compile(r"\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)")
_LOW = 32


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """An object of the archive: the WAL `[start, end)` of a timeline. Pieces may overlap; where they do they agree."""

    timeline: int
    start: Lsn
    end: Lsn
    stored: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A timeline, and where the next one of a history left it."""

    timeline: int
    end: Lsn


class WalArchive:
    """The archive of the database cluster with `system_identifier`."""

    def __init__(self, vault: Vault, system_identifier: int) -> None:
        self._vault = vault
        self._folder = f"wal/{system_identifier}/"
        self._key_prefix = f"wal-{system_identifier}-"

    def new_key(self) -> str:
        """Make a data key for the WAL to come; return its id."""
        key_id = self._key_prefix + uuid7_text()
        self._vault.new_key(key_id)
        return key_id

    def put(self, key_id: str, timeline: int, start: Lsn, data: bytes | bytearray) -> None:
        """Store WAL; durable when this returns."""
        name = self._name(timeline, start, Lsn(start + len(data)))
        pieces = (bytes(data[place : place + CHUNK]) for place in range(0, len(data), CHUNK))
        self._vault.write(name, key_id, pieces)

    def delete(self, piece: Piece) -> None:
        """Remove a piece that another one covers, or that nothing needs."""
        self._vault.destination.delete(self._name(piece.timeline, piece.start, piece.end))

    def put_history(self, key_id: str, timeline: int, data: bytes) -> None:
        """Store the history file of a timeline."""
        self._vault.write(f"{self._folder}{timeline:08X}.history", key_id, [data])

    def pieces(self, timeline: int | None = None) -> Sequence[Piece]:
        """Return what is there, sorted; of all timelines or one."""
        prefix = self._folder if timeline is None else f"{self._folder}{timeline:08X}/"
        return sorted(
            Piece(int(found[1], 16), Lsn(int(found[2], 16)), Lsn(int(found[3], 16)), stored.size, stored.modified)
            for stored in self._vault.destination.list(prefix)
            if (found := _RANGE.fullmatch(stored.name))
        )

    def timelines(self) -> set[int]:
        """Return the timelines with a history file. The first one has none."""
        found = (_HISTORY.fullmatch(stored.name) for stored in self._vault.destination.list(self._folder))
        return {int(each[1], 16) for each in found if each}

    def history(self, timeline: int) -> bytes | None:
        """Return the history file of a timeline, None when it has none here."""
        if timeline not in self.timelines():
            return None
        return b"".join(self._vault.read(f"{self._folder}{timeline:08X}.history"))

    def ancestors(self, timeline: int) -> Sequence[Ancestor]:
        """Return the timelines that this one comes from, oldest first, itself not among them."""
        return parse_history(self.history(timeline) or b"")

    def leads(self, position: tuple[int, Lsn], timeline: int) -> bool:
        """Return whether recovery from `position` (timeline, LSN) can get to `timeline`."""
        if position[0] == timeline:
            return True
        return any(each.timeline == position[0] and position[1] <= each.end for each in self.ancestors(timeline))

    def missing(self, timeline: int, position: tuple[int, Lsn], end: Lsn | None = None) -> Sequence[Gap]:
        """Return what is missing on the way from `position` (timeline, LSN) to `end` or the last WAL of `timeline`."""
        pieces = self.pieces()
        way = [*self.ancestors(timeline), Ancestor(timeline, end or Lsn(0))]
        found: list[Gap] = []
        start = position[1]
        for step in (step for step in way if step.timeline >= position[0]):
            found += gaps(pieces, step.timeline, start, step.end or None)
            start = max(start, step.end)
        return found

    def read(self, piece: Piece) -> bytes:
        """Return a piece. Raises BackupDamagedError."""
        name = self._name(piece.timeline, piece.start, piece.end)
        data = b"".join(self._vault.read(name))
        if len(data) != piece.end - piece.start:
            raise BackupDamagedError(f"{name} does not have the bytes that it is named for.")
        return data

    def segment(self, timeline: int, start: Lsn, size: int) -> bytes | None:
        """Return a file of WAL as PostgreSQL wants it, zeros behind the archive's end; None when that is before it.

        Raises ArchiveGapError when WAL is missing in it that is not behind the end: recovery must not end there as if
        there was no more.
        """
        pieces, end = self.pieces(timeline), Lsn(start + size)
        inside = [piece for piece in pieces if piece.start < end and piece.end > start]
        beyond = any(piece.start >= end for piece in pieces)
        before = any(piece.end <= start for piece in pieces)
        if not inside and not (before and beyond):
            return None
        content = bytearray(size)
        reached = start
        for piece in cover(inside, start, end):
            # A timeline's first segment begins before it: what is before its first piece nobody asks for.
            if piece.start > reached and (before or reached > start):
                break
            data = self.read_or_merged(piece)
            low, high = max(piece.start, start), min(piece.end, end)
            content[low - start : high - start] = data[low - piece.start : high - piece.start]
            reached = Lsn(high)
        more = beyond or any(piece.end > reached for piece in inside)
        if reached < end and more:
            raise ArchiveGapError(f"The archive lacks WAL from {reached} on, timeline {timeline}.")
        return bytes(content)

    def check_keys(self) -> None:
        """Raise BackupKeyError when the master key does not open the keys of this archive."""
        for stored in self._vault.destination.list("keys/"):
            key_id = stored.name.removeprefix("keys/")
            if key_id.startswith(self._key_prefix):
                self._vault.check_key(key_id)

    def usable_key(self) -> str:
        """Return the id of the youngest key that opens, or of a new one."""
        ids = sorted(stored.name.removeprefix("keys/") for stored in self._vault.destination.list("keys/"))
        mine = [each for each in ids if each.startswith(self._key_prefix)]
        for key_id in reversed(mine):
            try:
                self._vault.check_key(key_id)
            except (BackupKeyError, BackupDamagedError):
                continue
            return key_id
        if mine:
            raise BackupKeyError("The master key opens no key of the archive of WAL here: it is another's.")
        return self.new_key()

    def read_or_merged(self, piece: Piece) -> bytes:
        """Return a piece, from a longer one when it was merged into that since it was listed."""
        try:
            return self.read(piece)
        except BackupDamagedError:
            # The receiver may just have merged it into a longer one.
            longer = [
                each for each in self.pieces(piece.timeline) if each.start <= piece.start and each.end >= piece.end
            ]
            if not longer or piece in longer:
                raise
            data = self.read(longer[0])
            return data[piece.start - longer[0].start :][: piece.end - piece.start]

    def _name(self, timeline: int, start: Lsn, end: Lsn) -> str:
        return f"{self._folder}{timeline:08X}/{start:016X}-{end:016X}"


def segment_name(timeline: int, position: int, size: int) -> str:
    """Return PostgreSQL's name of the file of WAL that has `position`."""
    per_id = (1 << _LOW) // size
    number = position // size
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def parse_segment_name(name: str, size: int) -> tuple[int, Lsn] | None:
    """Return timeline and start of a file of WAL; None when `name` is not the name of one."""
    if not re.fullmatch(r"[0-9A-F]{24}", name):
        return None
    return int(name[:8], 16), Lsn((int(name[8:16], 16) * ((1 << _LOW) // size) + int(name[16:], 16)) * size)


def parse_history(data: bytes) -> Sequence[Ancestor]:
    """Read a timeline history file."""
    lines = (_ANCESTOR.match(line) for line in data.decode("utf-8", "replace").splitlines())
    return [Ancestor(int(found[1]), Lsn.parse(found[2])) for found in lines if found]


def cover(pieces: Iterable[Piece], start: Lsn, end: Lsn) -> Iterator[Piece]:
    """Return pieces that together have all of `[start, end)` that any of them has: none that adds nothing."""
    reached = start
    waiting = sorted(pieces, key=lambda piece: (piece.start, -piece.end))
    while reached < end:
        here = [piece for piece in waiting if piece.start <= reached < piece.end]
        if here:
            best = max(here, key=lambda piece: piece.end)
        else:
            later = [piece for piece in waiting if piece.start > reached]
            if not later or later[0].start >= end:
                return
            best = later[0]
        yield best
        reached = best.end


def gaps(pieces: Iterable[Piece], timeline: int, start: Lsn, end: Lsn | None = None) -> Sequence[Gap]:
    """Return what is missing of one timeline from `start` to `end`, or to the end of its last piece."""
    found, reached = [], start
    for piece in sorted(piece for piece in pieces if piece.timeline == timeline):
        if end is not None and piece.start >= end:
            break
        if piece.start > reached:
            found.append(Gap(timeline, reached, piece.start))
        reached = max(reached, piece.end)
    if end is not None and reached < end:
        found.append(Gap(timeline, reached, end))
    return found
