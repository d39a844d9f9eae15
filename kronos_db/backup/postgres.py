"""The engine of backups on PostgreSQL's own programs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from kronos_db.backup import retention
from kronos_db.backup.catalog import Catalog
from kronos_db.backup.create import Creation
from kronos_db.backup.database import SlotState, Source
from kronos_db.backup.destination import open_destination
from kronos_db.backup.directory import Directory
from kronos_db.backup.drill import Drilling
from kronos_db.backup.model import (
    ArchiveState,
    Backup,
    BackupError,
    DatabaseUnsuitableError,
    DrillReport,
    Gap,
    Kind,
    Lsn,
    Policy,
    ProgramError,
    Restored,
    RestoredTables,
    RestoreRequest,
    RestoreTarget,
    Retention,
    VerifyReport,
    Work,
)
from kronos_db.backup.programs import Programs
from kronos_db.backup.receiver import APPLICATION, Receiver, Replication
from kronos_db.backup.restore import Reach, Restoration
from kronos_db.backup.tables import TableRestoration
from kronos_db.backup.vault import Vault
from kronos_db.backup.verify import Verification
from kronos_db.backup.wal import WalArchive
from kronos_db.runtime.crypto.master_key import FileMasterKeys

_DEFAULT_USER = "postgres"


@dataclass(frozen=True, slots=True)
class Setup:
    """Where everything is.

    `destination` is a folder or `s3://bucket/prefix`. `dsn` is a direct connection as superuser; None when there is no
    database to talk to: what needs none works all the same. `programs` is the folder of PostgreSQL's programs; None
    looks for them. `scratch` has room for the whole database, for drills. `slot` keeps WAL for the receiver.

    `synchronous` makes commits wait until their WAL is durable in the destination. Else at most `interval` seconds,
    and what a put takes, lie between a commit and that; this much can be lost with the database.
    """

    destination: str
    master_key_file: Path
    scratch: Path
    dsn: str | None = None
    programs: Path | None = None
    slot: str = "kronos_archive"
    synchronous: bool = False
    interval: float = 1.0


class PostgresEngine:
    """An `Engine`. Opens destination and master key at once, the database when it is needed."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._destination = open_destination(setup.destination)
        self._vault = Vault(self._destination, FileMasterKeys(setup.master_key_file))
        self._catalog = Catalog(self._vault)
        self._programs = Programs(setup.programs)
        self._restoration = Restoration(self._vault, self._programs, self._reach())

    def create(self, kind: Kind | None = None, label: str = "") -> Work[Backup]:
        """Make a backup; see `Engine`."""
        return Creation(self._source(), self._vault, self._programs).create(kind, label)

    def list(self) -> Sequence[Backup]:
        """Return all backups, oldest first."""
        return self._catalog.all()

    def get(self, backup_id: str) -> Backup:
        """Return one backup. Raises BackupNotFoundError."""
        return self._catalog.get(backup_id)

    def verify(self, backup_id: str) -> Work[VerifyReport]:
        """Read every byte of a chain and of the archive behind it."""
        return Verification(self._vault).verify(backup_id)

    def drill(self, backup_id: str) -> Work[DrillReport]:
        """Restore a backup into the scratch folder and compare its content."""
        drilling = Drilling(self._vault, self._programs, self._restoration, self._setup.scratch, self._user())
        return drilling.drill(backup_id)

    def restore(self, request: RestoreRequest) -> Work[Restored]:
        """Restore into a folder."""
        return self._restoration.restore(request, request.system_identifier or self._system_identifier())

    def restore_tables(self, schema: str, target: RestoreTarget, database: str | None = None) -> Work[RestoredTables]:
        """Bring a schema's tables in the live database to the target's state."""
        source = self._source()
        name = database or str(conninfo_to_dict(source.dsn).get("dbname") or self._user())
        restoration = TableRestoration(
            self._vault, self._programs, self._restoration, self._setup.scratch, source=source, user=self._user()
        )
        return restoration.restore(schema, target, name)

    def delete(self, backup_id: str) -> None:
        """Remove a backup that no other builds upon."""
        retention.remove(self._vault, backup_id)

    def retain(self, policy: Policy, now: datetime) -> Retention:
        """Remove what `policy` does not keep."""
        return retention.apply(self._vault, policy, now)

    def archive(self, stopped: threading.Event) -> None:
        """Receive WAL until `stopped`; see `Engine`."""
        source = self._source()
        dsn = source.dsn
        archive = WalArchive(self._vault, source.facts().system_identifier)
        synchronous = self._setup.synchronous

        def streaming() -> None:
            source.let_commits_wait(APPLICATION, wait=synchronous)

        interval = 0.0 if synchronous else self._setup.interval
        receiver = Receiver(lambda: Replication(dsn), archive, self._setup.slot, interval, streaming)
        try:
            receiver.run(stopped)
        finally:
            receiver.close()

    def archive_state(self) -> ArchiveState:
        """Return what the archive has and lacks."""
        slot = self._slot()
        backups = [backup for backup in self._catalog.all() if backup.restorable]
        system_identifier = self._system_identifier() or (backups[-1].system_identifier if backups else None)
        if system_identifier is None:
            return ArchiveState(None, None, None, None, (), 0)
        mine = [backup for backup in backups if backup.system_identifier == system_identifier]
        return _state(WalArchive(self._vault, system_identifier), mine, slot)

    def expected_recovery_seconds(self) -> float | None:
        """Return what the youngest backup with a drill took to restore."""
        drills = [backup.drill for backup in self._catalog.all() if backup.drill is not None]
        return max(drills, key=lambda drill: drill.at).restore_seconds if drills else None

    def _source(self) -> Source:
        if self._setup.dsn is None:
            raise DatabaseUnsuitableError("This needs the database, and there is no connection to it in the settings.")
        return Source(self._setup.dsn)

    def _slot(self) -> SlotState | None:
        try:
            return self._source().slot(self._setup.slot, APPLICATION)
        except BackupError:
            return None

    def _system_identifier(self) -> int | None:
        try:
            return self._source().facts().system_identifier
        except (ProgramError, DatabaseUnsuitableError):
            # Lost, which is when a restore is wanted.
            return None

    def _user(self) -> str:
        return str(conninfo_to_dict(self._setup.dsn or "").get("user") or _DEFAULT_USER)

    def _reach(self) -> Reach:
        folder = Path(self._destination.url) if isinstance(self._destination, Directory) else None
        return Reach(self._destination.url, self._setup.master_key_file.absolute(), folder)


def _state(archive: WalArchive, backups: Sequence[Backup], slot: SlotState | None) -> ArchiveState:
    pieces = archive.pieces()
    timelines = archive.timelines() | {piece.timeline for piece in pieces}
    timeline = max(timelines, default=None)
    current = [piece for piece in pieces if piece.timeline == timeline]
    last = max((piece.end for piece in current), default=None)
    missing: Sequence[Gap] = ()
    if timeline is not None:
        positions = [(each.timeline, each.stop_lsn or Lsn(0)) for each in backups]
        oldest = min((each for each in positions if archive.leads(each, timeline)), default=None)
        missing = archive.missing(timeline, oldest) if oldest else ()
    return ArchiveState(
        timeline=timeline,
        first=min((piece.start for piece in current), default=None),
        last=last,
        last_time=max((piece.modified for piece in current), default=None),
        gaps=tuple(missing),
        stored=sum(piece.stored for piece in pieces),
        lag=None if slot is None or last is None else max(0, slot.position - last),
        slot_lag=None if slot is None else slot.kept,
        slot_lost=None if slot is None else slot.lost,
        receiving=None if slot is None else slot.receiving,
        synchronous=None if slot is None else slot.synchronous,
    )
