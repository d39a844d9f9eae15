"""The backups in a destination: their records, their chains, and who may change them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from kronos_db.backup import records
from kronos_db.backup.model import (
    Backup,
    BackupBusyError,
    BackupDamagedError,
    BackupKeyError,
    BackupNotFoundError,
    BackupUnusableError,
    ForeignBackupError,
    State,
)
from kronos_db.backup.vault import Vault

FOLDER = "backups/"
# The objects of a backup. Its record is written first, as RUNNING, and again when all others are there.
RECORD, BASE, MANIFEST = "record", "base.tar", "manifest"
# Who makes, removes or changes backups holds it.
_LOCK = "backups"
_ATTEMPTS = 4
_PAUSE = 0.1
_INTERRUPTED = "It was interrupted: whoever made it died."


class Catalog:
    """All backups of a destination, whatever database they are of."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to change the catalog. Raises BackupBusyError."""
        with ExitStack() as stack:
            for attempt in range(_ATTEMPTS):
                try:
                    stack.enter_context(self._vault.destination.lock(_LOCK))
                    break
                except BackupBusyError:
                    if attempt == _ATTEMPTS - 1:
                        raise
                    # Who lists backups takes it for a moment too.
                    time.sleep(_PAUSE)
            yield

    def put(self, backup: Backup) -> None:
        """Write the record of a backup, all at once."""
        self._vault.write(name(backup.id, RECORD), backup.id, [records.encode(backup)])

    def all(self) -> Sequence[Backup]:
        """Return all, oldest first. Raises BackupKeyError when the master key is the wrong one for all of them."""
        found: list[Backup] = []
        wrong: BackupKeyError | None = None
        for backup_id in sorted(self._ids()):
            try:
                found.append(self._read(backup_id))
            except BackupKeyError as error:
                wrong = error
            except BackupDamagedError:
                # What verify is for; a list is to show the others.
                continue
        if wrong is not None and not found:
            raise wrong
        return self._settled(found)

    def get(self, backup_id: str) -> Backup:
        """Return one. Raises BackupNotFoundError."""
        if backup_id not in self._ids():
            raise BackupNotFoundError(f"There is no backup {backup_id}.", metadata={"backup": backup_id})
        return self._settled([self._read(backup_id)])[0]

    def chain(self, backup_id: str) -> Sequence[Backup]:
        """Return a backup and all that it builds upon, the full one first. Raises BackupUnusableError and the like."""
        chain = [self.get(backup_id)]
        while chain[0].parent is not None:
            chain.insert(0, self.get(chain[0].parent))
        for member in chain:
            if not member.restorable:
                raise BackupUnusableError(f"Backup {member.id} is {member.state.value}: {member.failure}")
            if member.system_identifier != chain[-1].system_identifier:
                raise ForeignBackupError(f"Backup {member.id} is of another database cluster than its chain.")
        return chain

    def check_sizes(self, chain: Sequence[Backup]) -> None:
        """Raise BackupDamagedError when an object of the chain is missing or not as long as it was written."""
        for member in chain:
            stored = {each.name: each.size for each in self._vault.destination.list(f"{FOLDER}{member.id}/")}
            for object_name, size in (member.objects or {}).items():
                if stored.get(object_name) != size:
                    raise BackupDamagedError(
                        f"{object_name} has {stored.get(object_name, 0)} bytes of the {size} that were written."
                    )

    def remove(self, backup_id: str) -> None:
        """Remove a backup: its record first, so that none is listed that is not whole, and its key, which ends it."""
        destination = self._vault.destination
        destination.delete(name(backup_id, RECORD))
        self._vault.forget_key(backup_id)
        for stored in list(destination.list(f"{FOLDER}{backup_id}/")):
            destination.delete(stored.name)

    def orphans(self) -> set[str]:
        """Return the ids of removed backups whose removal was interrupted."""
        folders = {stored.name.split("/")[1] for stored in self._vault.destination.list(FOLDER)}
        return folders - self._ids()

    def _ids(self) -> set[str]:
        listed = (stored.name.split("/") for stored in self._vault.destination.list(FOLDER))
        return {parts[1] for parts in listed if parts[2:] == [RECORD]}

    def _read(self, backup_id: str) -> Backup:
        backup = records.decode(b"".join(self._vault.read(name(backup_id, RECORD))))
        if backup.id != backup_id:
            raise BackupDamagedError(f"The record of backup {backup_id} is another's.")
        return backup

    def _settled(self, backups: Sequence[Backup]) -> Sequence[Backup]:
        """Return them as they are: one that is RUNNING while nobody holds the lock has failed."""
        if any(backup.state is State.RUNNING for backup in backups) and not self._busy():
            return [
                replace(backup, state=State.FAILED, failure=_INTERRUPTED) if backup.state is State.RUNNING else backup
                for backup in backups
            ]
        return backups

    def _busy(self) -> bool:
        try:
            with self._vault.destination.lock(_LOCK):
                return False
        except BackupBusyError:
            return True


def name(backup_id: str, part: str) -> str:
    """Return the name of an object of a backup."""
    return f"{FOLDER}{backup_id}/{part}"


def descendants(backups: Sequence[Backup], backup_id: str) -> Iterator[Backup]:
    """Return the backups that build upon one, directly or not."""
    for backup in backups:
        if backup.parent == backup_id:
            yield backup
            yield from descendants(backups, backup.id)
