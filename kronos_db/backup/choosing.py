"""Which backups are meant: the newest that can be restored, and all that build on one."""

from __future__ import annotations

from collections.abc import Iterable

from kronos_db.backup.model import Backup, BackupNotFoundError


def newest(backups: Iterable[Backup]) -> Backup:
    """Return the newest backup that can be restored. Raises BackupNotFoundError."""
    usable = [backup for backup in backups if backup.restorable]
    if not usable:
        raise BackupNotFoundError("there is no backup that can be restored")
    return max(usable, key=lambda backup: backup.start_time)


def built_on(backup_id: str, backups: Iterable[Backup]) -> list[str]:
    """Return the backups that build on one, however many steps away, parents before children."""
    found = [backup_id]
    # Oldest first: a parent is older than its children.
    for backup in sorted(backups, key=lambda each: each.start_time):
        if backup.parent in found:
            found.append(backup.id)
    return found[1:]
