"""An engine of backups that makes none: its work goes on when a test says so, and its backups are records alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kronos_db.backup.model import (
    ArchiveState,
    Backup,
    BackupBusyError,
    BackupError,
    BackupNotFoundError,
    DrillReport,
    Fault,
    Kind,
    Lsn,
    Policy,
    Progress,
    Restored,
    RestoredTables,
    RestoreRequest,
    RestoreTarget,
    Retention,
    State,
    Step,
    VerifyReport,
    Work,
)

EPOCH = datetime(2026, 1, 4, tzinfo=UTC)


class ScriptedEngine:
    """Shared by the processes of a test, as a destination is. `gate` closed holds all work at its first progress."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.backups: dict[str, Backup] = {}
        self.begun: list[str] = []
        self.ended_early: list[str] = []
        self.failures: list[BackupError] = []
        self.archiving = 0
        self.restored_into: list[Path] = []
        self._lock = threading.Lock()
        self._at_work = False
        self._numbers = itertools.count(1)

    def create(self, kind: Kind | None = None, label: str = "") -> Work[Backup]:
        with self._alone():
            yield from self._steps("create")
            parent = max(self.backups, default=None)
            made = Kind.FULL if kind is Kind.FULL or parent is None else Kind.INCREMENTAL
            number = next(self._numbers)
            backup = Backup(
                id=f"backup-{number:03}",
                kind=made,
                parent=None if made is Kind.FULL else parent,
                state=State.COMPLETE,
                system_identifier=7,
                server_version=180001,
                timeline=1,
                start_time=EPOCH.replace(second=number % 60),
                checksums=True,
                label=label,
                start_lsn=Lsn(1 << 24),
                stop_lsn=Lsn(1 << 25),
                stop_time=EPOCH.replace(minute=1, second=number % 60),
                size=1000,
                stored=300,
                objects={},
            )
            self.backups[backup.id] = backup
            return backup

    def list(self) -> Sequence[Backup]:
        return sorted(self.backups.values(), key=lambda backup: backup.start_time)

    def get(self, backup_id: str) -> Backup:
        if backup_id not in self.backups:
            raise BackupNotFoundError(f"there is no {backup_id}")
        return self.backups[backup_id]

    def verify(self, backup_id: str) -> Work[VerifyReport]:
        yield from self._steps("verify")
        return VerifyReport(
            backup_id, (backup_id,), 3, 300, (Fault("base", "one byte is not what it was"),), Lsn(1 << 26), 0.5
        )

    def drill(self, backup_id: str) -> Work[DrillReport]:
        yield from self._steps("drill")
        self.backups[backup_id] = replace(self.backups[backup_id], state=State.VERIFIED)
        return DrillReport(backup_id, (), 12, 3456, 1.5)

    def restore(self, request: RestoreRequest) -> Work[Restored]:
        yield from self._steps("restore")
        self.restored_into.append(request.folder)
        return Restored(request.folder, min(self.backups), 2.5, Lsn(1 << 26), 2, True)

    def restore_tables(self, schema: str, target: RestoreTarget, database: str | None = None) -> Work[RestoredTables]:
        yield from self._steps(f"restore {schema}")
        return RestoredTables(min(self.backups), {f"{schema}.users": 5}, 2.5)

    def delete(self, backup_id: str) -> None:
        self.begun.append("delete")
        self.get(backup_id)
        del self.backups[backup_id]

    def retain(self, policy: Policy, now: datetime) -> Retention:
        with self._alone():
            self.begun.append("retain")
            self.gate.wait()
            return Retention((), 0, 0)

    def archive(self, stopped: threading.Event) -> None:
        with self._lock:
            self.archiving += 1
        stopped.wait()
        with self._lock:
            self.archiving -= 1

    def archive_state(self) -> ArchiveState:
        return ArchiveState(1, Lsn(1 << 24), Lsn(1 << 27), EPOCH, (), 4096, 12, 34, False, True, False)

    def expected_recovery_seconds(self) -> float | None:
        return 1.5

    def _steps(self, name: str) -> Iterator[Progress]:
        self.begun.append(name)
        if self.failures:
            raise self.failures.pop(0)
        try:
            yield Progress(Step.CHECKPOINT)
            while not self.gate.wait(0.02):
                yield Progress(Step.COPY, 250, 1000, 100.0, 7.5, "backup-x")
            yield Progress(Step.DONE, 1000, 1000)
        except GeneratorExit:
            self.ended_early.append(name)
            raise

    def _alone(self) -> _Alone:
        return _Alone(self)


class _Alone:
    """As the lock in the destination: the second is refused."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        with self._engine._lock:
            if self._engine._at_work:
                raise BackupBusyError("another backup is at work")
            self._engine._at_work = True

    def __exit__(self, *_error: object) -> None:
        self._engine._at_work = False
