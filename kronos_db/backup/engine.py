"""What any engine of backups does: ours on PostgreSQL's own programs, or pgBackRest or Barman in its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from kronos_db.backup.model import (
    ArchiveState,
    Backup,
    DrillReport,
    Kind,
    Policy,
    Progress,
    Restored,
    RestoredTables,
    RestoreRequest,
    RestoreTarget,
    Retention,
    VerifyReport,
    Work,
)

_T = TypeVar("_T")


class Engine(Protocol):
    """Makes backups, keeps them, and restores from them. All of it raises errors of `model` and may take hours.

    Work (`Work`) runs in the thread that iterates it. It is not begun before the first `next`. From other threads
    other work of the same engine may run at the same time; what must not is refused with BackupBusyError.
    """

    def create(self, kind: Kind | None = None, label: str = "") -> Work[Backup]:
        """Make a backup. Kind None: incremental, when it can be.

        A full one is made instead of an incremental one when there is none to build upon, after a promotion (another
        timeline), a change of data checksums or of the major version; the kind in the result tells. It is COMPLETE, and
        can be restored, before the step FINGERPRINT begins.
        """

    def list(self) -> Sequence[Backup]:
        """Return all backups in the destination, oldest first. Needs no database."""

    def get(self, backup_id: str) -> Backup:
        """Return one. Raises BackupNotFoundError. Needs no database."""

    def verify(self, backup_id: str) -> Work[VerifyReport]:
        """Read every byte of the backup, of its chain, and of the archive from it on. Needs no database.

        What is wrong is in the report; raises only when it could not look.
        """

    def drill(self, backup_id: str) -> Work[DrillReport]:
        """Verify, restore into a scratch folder, start, read every page, compare the content; keep what it took."""

    def restore(self, request: RestoreRequest) -> Work[Restored]:
        """Restore into a folder. All checks come before the first byte is written there. Needs no database."""

    def restore_tables(self, schema: str, target: RestoreTarget, database: str | None = None) -> Work[RestoredTables]:
        """Bring all tables of `schema` in the live database to the target's state, in one transaction.

        `database` None is the one that the engine is connected to.
        """

    def delete(self, backup_id: str) -> None:
        """Remove a backup. Raises BackupNeededError when another builds upon it."""

    def retain(self, policy: Policy, now: datetime) -> Retention:
        """Remove the backups that `policy` does not keep, what failed ones left, and WAL that none kept needs."""

    def archive(self, stopped: threading.Event) -> None:
        """Receive WAL until `stopped` is set. Returns then; raises when the database or destination is lost.

        One at a time in a fleet; the slot refuses a second with BackupBusyError.
        """

    def archive_state(self) -> ArchiveState:
        """Return what the archive has and lacks. Works without a database, which then tells less."""

    def expected_recovery_seconds(self) -> float | None:
        """Return what the last drill measured, None before there was one."""


def finish(work: Work[_T], report: Callable[[Progress], None] = lambda _progress: None) -> _T:
    """Do all of `work`, and return its result. What `report` raises ends the work early."""
    try:
        while True:
            report(next(work))
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        work.close()
