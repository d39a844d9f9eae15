"""Which backups a policy keeps, and what is removed with those that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kronos_db.backup.catalog import Catalog, descendants
from kronos_db.backup.model import Backup, BackupNeededError, Lsn, Policy, Retention
from kronos_db.backup.vault import Vault
from kronos_db.backup.wal import WalArchive


def kept(backups: Sequence[Backup], policy: Policy, now: datetime) -> set[str]:
    """Return the ids that `policy` keeps: whole chains, by the rules of `Policy`, for each cluster by itself.

    The youngest chain is always kept: no policy leaves nothing to restore from. What is not complete is not kept: who
    applies a policy holds the lock, so nobody is making it any more.
    """
    keep: set[str] = set()
    for cluster in {backup.system_identifier for backup in backups}:
        chains = _chains([each for each in backups if each.system_identifier == cluster and each.restorable])
        count = max(1, policy.keep_count or 0)
        for place, chain in enumerate(reversed(chains)):
            young = policy.keep_age is not None and now - (chain[-1].stop_time or now) < policy.keep_age
            if place < count or young:
                keep |= {backup.id for backup in chain}
    return keep


def apply(vault: Vault, policy: Policy, now: datetime) -> Retention:
    """Remove what `policy` does not keep. Raises BackupBusyError."""
    catalog = Catalog(vault)
    with catalog.lock():
        backups = catalog.all()
        keep = kept(backups, policy, now)
        # Youngest first: if it is interrupted, no backup is left without what it builds upon.
        gone = [backup.id for backup in reversed(backups) if backup.id not in keep]
        for backup_id in (*gone, *catalog.orphans()):
            catalog.remove(backup_id)
        objects, size = _trim(vault, [backup for backup in backups if backup.id in keep])
        vault.destination.clean()
    return Retention(tuple(reversed(gone)), objects, size)


def remove(vault: Vault, backup_id: str) -> None:
    """Remove one backup. Raises BackupNotFoundError, BackupNeededError and BackupBusyError."""
    catalog = Catalog(vault)
    with catalog.lock():
        catalog.get(backup_id)
        needing = [backup.id for backup in descendants(catalog.all(), backup_id) if backup.restorable]
        if needing:
            raise BackupNeededError(
                f"Backup {needing[0]} builds upon {backup_id}.", metadata={"backup": backup_id, "needed_by": needing[0]}
            )
        catalog.remove(backup_id)


def _chains(backups: Sequence[Backup]) -> Sequence[Sequence[Backup]]:
    """Return each full backup with all that builds upon it, oldest first."""
    full = [backup for backup in backups if backup.parent is None]
    return [[each, *sorted(descendants(backups, each.id), key=lambda backup: backup.id)] for each in full]


def _trim(vault: Vault, backups: Sequence[Backup]) -> tuple[int, int]:
    """Remove WAL from before the oldest backup of each cluster; return its objects and bytes."""
    objects = size = 0
    for cluster in {backup.system_identifier for backup in backups}:
        needed = [each for each in backups if each.system_identifier == cluster and each.start_lsn is not None]
        if not needed:
            continue
        oldest = min(needed, key=lambda each: (each.timeline, each.start_lsn or Lsn(0)))
        archive = WalArchive(vault, cluster)
        for piece in archive.pieces():
            # A timeline before that of the oldest backup leads on from none that is kept.
            older = piece.timeline == oldest.timeline and piece.end <= (oldest.start_lsn or 0)
            if older or piece.timeline < oldest.timeline:
                archive.delete(piece)
                objects += 1
                size += piece.stored
    return objects, size
