"""Reads every byte of a chain and of the archive behind it, and tells what is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import google_crc32c

from kronos_db.backup import catalog, manifest
from kronos_db.backup.catalog import Catalog
from kronos_db.backup.manifest import Manifest
from kronos_db.backup.model import Backup, BackupError, Fault, Lsn, Progress, State, Step, VerifyReport, Work
from kronos_db.backup.pace import Pace
from kronos_db.backup.tar import Member, TarReader
from kronos_db.backup.vault import Vault
from kronos_db.backup.wal import Piece, WalArchive, segment_name

# Files that a backup has and its manifest does not list (PostgreSQL documentation, pg_verifybackup).
_UNLISTED = (manifest.NAME, "postgresql.auto.conf", "standby.signal", "recovery.signal")


@dataclass
class _Count:
    objects: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)


class Verification:
    """Verifies backups of one destination."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._catalog = Catalog(vault)

    def verify(self, backup_id: str) -> Work[VerifyReport]:
        """Verify, as `Engine.verify` describes."""
        began = time.monotonic()
        count = _Count()
        chain = self._chain(backup_id, count)
        for member in chain:
            yield from self._member(member, count)
        until = None
        if chain and chain[-1].stop_lsn is not None:
            until = yield from self._archive(chain[-1], count)
        seconds = time.monotonic() - began
        yield Progress(Step.DONE, count.bytes, count.bytes, backup_id=backup_id)
        ids = tuple(member.id for member in chain)
        return VerifyReport(backup_id, ids, count.objects, count.bytes, tuple(count.faults), until, seconds)

    def _chain(self, backup_id: str, count: _Count) -> Sequence[Backup]:
        """Return the members that can be named, the full one first; what is in the way of others is a fault."""
        chain: list[Backup] = []
        wanted: str | None = backup_id
        while wanted is not None:
            try:
                self._vault.check_key(wanted)
                member = self._catalog.get(wanted)
            except BackupError as error:
                if not chain and not self._known(wanted):
                    raise
                count.faults.append(Fault(catalog.name(wanted, catalog.RECORD), str(error)))
                return chain
            chain.insert(0, member)
            if member.state not in (State.COMPLETE, State.VERIFIED):
                count.faults.append(Fault(catalog.name(wanted, catalog.RECORD), f"The backup is {member.state.value}."))
                return chain
            wanted = member.parent
        return chain

    def _known(self, backup_id: str) -> bool:
        folder = f"{catalog.FOLDER}{backup_id}/"
        return any(True for _ in self._vault.destination.list(folder))

    def _member(self, member: Backup, count: _Count) -> Work[None]:
        base = catalog.name(member.id, catalog.BASE)
        watch = _Checksums()
        reader = TarReader(watch)
        pace = Pace(Step.VERIFY, member.id)
        passed = 0
        try:
            self._catalog.check_sizes([member])
            listed = b"".join(self._vault.read(catalog.name(member.id, catalog.MANIFEST)))
            found = manifest.parse(listed)
            for piece in self._vault.read(base):
                reader.feed(piece)
                passed += len(piece)
                yield pace.at(passed, member.size)
            reader.finish()
        except BackupError as error:
            count.faults.append(Fault(base, str(error)))
        else:
            count.faults += (Fault(base, what) for what in _differences(member, found, listed, watch))
        count.objects += 1 + len(member.objects or {})
        count.bytes += passed

    def _archive(self, last: Backup, count: _Count) -> Work[Lsn | None]:
        """Check all WAL behind the backup, on all timelines that lead on from it; return how far it reaches."""
        archive = WalArchive(self._vault, last.system_identifier)
        stop = last.stop_lsn or Lsn(0)
        try:
            archive.check_keys()
            pieces = [piece for piece in archive.pieces() if piece.timeline >= last.timeline and piece.end > stop]
            timeline = max([last.timeline, *archive.timelines(), *(piece.timeline for piece in pieces)])
            if not archive.leads((last.timeline, stop), timeline):
                # A past that was left: after a restore to before this backup.
                timeline = last.timeline
                pieces = [piece for piece in pieces if piece.timeline == timeline]
            for gap in archive.missing(timeline, (last.timeline, stop)):
                where = f"WAL of timeline {gap.timeline}"
                count.faults.append(Fault(where, f"What is from {gap.start} to {gap.end} is missing."))
        except BackupError as error:
            count.faults.append(Fault("archive of WAL", str(error)))
            return stop
        yield from self._pieces(archive, pieces, count)
        return max((piece.end for piece in pieces if piece.timeline == timeline), default=stop)

    def _pieces(self, archive: WalArchive, pieces: Sequence[Piece], count: _Count) -> Work[None]:
        pace = Pace(Step.VERIFY_ARCHIVE)
        total = sum(piece.end - piece.start for piece in pieces)
        passed = 0
        for piece in pieces:
            try:
                archive.read_or_merged(piece)
            except BackupError as error:
                count.faults.append(Fault(f"WAL {piece.start} to {piece.end}, timeline {piece.timeline}", str(error)))
            passed += piece.end - piece.start
            count.objects += 1
            count.bytes += piece.end - piece.start
            yield pace.at(passed, total)


class _Checksums:
    """Sums up every file of a tar stream."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, str]] = {}
        self.manifest = bytearray()
        self._member: Member | None = None
        self._sum = 0

    def begin(self, member: Member) -> None:
        self._member = member
        self._sum = 0

    def data(self, piece: memoryview) -> None:
        self._sum = google_crc32c.extend(self._sum, bytes(piece))
        if self._member and self._member.path == manifest.NAME:
            self.manifest += piece

    def end(self) -> None:
        if self._member and not self._member.folder:
            self.files[self._member.path] = (self._member.size, self._sum.to_bytes(4, "little").hex())


def _differences(member: Backup, found: Manifest, listed: bytes, watch: _Checksums) -> Iterator[str]:
    """Compare files with the manifest as pg_verifybackup does, and look for the WAL that it says is needed."""
    if bytes(watch.manifest) != listed:
        yield "The manifest beside the base backup is not the one in it."
    if found.system_identifier != member.system_identifier:
        yield "The base backup is of another database cluster."
    for path, file in found.files.items():
        if path not in watch.files:
            yield f"{path} is missing."
        elif watch.files[path] != (file.size, file.checksum) and path not in _UNLISTED:
            yield f"{path} does not have the checksum that it was written with."
    for path in watch.files:
        if path not in found.files and path not in _UNLISTED and not path.startswith("pg_wal/"):
            yield f"{path} is in the backup and not in its manifest."
    yield from _missing_wal(found, watch, member.segment_size)


def _missing_wal(found: Manifest, watch: _Checksums, size: int) -> Iterator[str]:
    # The last record ends before the stop, which may be the beginning of a file that was not begun.
    for position in range(found.start_lsn - found.start_lsn % size, found.stop_lsn, size):
        path = f"pg_wal/{segment_name(found.timeline, position, size)}"
        if watch.files.get(path, (0, ""))[0] != size:
            yield f"{path} is missing or short."
