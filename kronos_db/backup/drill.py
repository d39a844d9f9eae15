"""Proves a backup: restores it, runs it, reads every page, and compares its content with what the database had."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kronos_db.backup.catalog import Catalog
from kronos_db.backup.database import Source
from kronos_db.backup.instance import Instance
from kronos_db.backup.model import (
    AtLsn,
    Backup,
    BackupError,
    BackupUnusableError,
    Content,
    Drill,
    DrillReport,
    Fault,
    ProgramError,
    Progress,
    RestoreRequest,
    State,
    Step,
    TableContent,
    Work,
)
from kronos_db.backup.plan import plan
from kronos_db.backup.programs import Programs
from kronos_db.backup.restore import Restoration, aside
from kronos_db.backup.vault import Vault
from kronos_db.backup.verify import Verification
from kronos_db.embedded.account import account_for

# Nobody needs what a drill restored, so nothing waits for a disk.
SCRATCH = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "10GB"}


class Drilling:
    """Drills backups in a scratch folder; `user` is a superuser in them."""

    def __init__(self, vault: Vault, programs: Programs, restoration: Restoration, scratch: Path, user: str) -> None:
        self._vault = vault
        self._catalog = Catalog(vault)
        self._programs = programs
        self._restoration = restoration
        self._scratch = scratch
        self._user = user

    def drill(self, backup_id: str) -> Work[DrillReport]:
        """Drill, as `Engine.drill` describes."""
        backup = self._catalog.get(backup_id)
        if backup.content is None:
            raise BackupUnusableError(
                f"No content was taken with backup {backup_id}, so a drill has nothing to compare with.",
                metadata={"backup": backup_id},
            )
        report = yield from Verification(self._vault).verify(backup_id)
        if not report.sound:
            return DrillReport(backup_id, report.faults, 0, 0, 0.0)
        try:
            tables, rows, seconds, faults = yield from self._restored(backup, backup.content)
        except BackupError as error:
            return DrillReport(backup_id, (Fault("restore", str(error)),), 0, 0, 0.0)
        if not faults:
            self._keep(backup_id, Drill(datetime.now(UTC), seconds, tables, rows))
        return DrillReport(backup_id, tuple(faults), tables, rows, seconds)

    def _restored(self, backup: Backup, content: Content) -> Work[tuple[int, int, float, list[Fault]]]:
        request = RestoreRequest(
            self._scratch / "drill", AtLsn(content.lsn), timeline=backup.timeline, backup_id=backup.id
        )
        with scratch_instance(self._programs, self._restoration, request.folder) as instance:
            began = time.monotonic()
            planned = plan(self._vault, request, backup.system_identifier)
            yield from self._restoration.lay_out(planned, instance, account_for(request.folder))
            yield from self._restoration.recover(planned, instance, SCRATCH)
            seconds = time.monotonic() - began
            yield Progress(Step.COMPARE, backup_id=backup.id)
            found = Source(instance.dsn(self._user, "postgres")).hashes()
            faults = list(differences(content.tables, found))
            yield Progress(Step.CHECK_PAGES, backup_id=backup.id)
            faults += self._pages(instance, backup)
        tables = sum(map(len, found.values()))
        rows = sum(table.rows for each in found.values() for table in each.values())
        return tables, rows, seconds, faults

    def _pages(self, instance: Instance, backup: Backup) -> Iterator[Fault]:
        """Read every page of every table and index, through the server and as files."""
        try:
            dsn = instance.dsn(self._user, "postgres")
            self._programs.run(
                "pg_amcheck", "--all", "--install-missing", "--heapallindexed", f"--maintenance-db={dsn}"
            )
            instance.stop()
            if backup.checksums:
                self._programs.run("pg_checksums", "--check", f"--pgdata={instance.data}")
        except ProgramError as error:
            yield Fault("pages", str(error))

    def _keep(self, backup_id: str, drill: Drill) -> None:
        with self._catalog.lock():
            # Read again: it may have been removed meanwhile.
            self._catalog.put(replace(self._catalog.get(backup_id), state=State.VERIFIED, drill=drill))


@contextmanager
def scratch_instance(programs: Programs, restoration: Restoration, folder: Path) -> Iterator[Instance]:
    """Hold a place for an instance that is thrown away with all that it has."""
    with aside(folder) as staging:
        instance = Instance(staging, programs, account_for(folder), restoration.reach.paths)
        try:
            yield instance
        finally:
            instance.close()


def differences(
    expected: Mapping[str, Mapping[str, TableContent]], found: Mapping[str, Mapping[str, TableContent]]
) -> Iterator[Fault]:
    """Compare the tables of all databases."""
    for database in expected.keys() | found.keys():
        before, after = expected.get(database, {}), found.get(database, {})
        for table in before.keys() | after.keys():
            was, now = before.get(table), after.get(table)
            if was != now:
                rows = f"{was.rows if was else 'no'} rows were there, {now.rows if now else 'no'} were restored"
                yield Fault(f"{database}: {table}", f"Not what the database had: {rows}.")
