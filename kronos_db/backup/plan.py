"""What a restore will do: which backups it takes, where it will stop, and whether the archive reaches that far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kronos_db.backup.catalog import Catalog
from kronos_db.backup.model import (
    ArchiveGapError,
    AtBackup,
    AtLsn,
    AtTime,
    Backup,
    BackupUnusableError,
    BeforeTransaction,
    ForeignBackupError,
    Gap,
    Latest,
    Lsn,
    RestoreRequest,
    RestoreTarget,
    TargetUnreachableError,
)
from kronos_db.backup.vault import Vault
from kronos_db.backup.wal import WalArchive


@dataclass(frozen=True, slots=True)
class Plan:
    """A restore that can be done as far as can be told without reading everything."""

    chain: Sequence[Backup]
    timeline: int
    target: RestoreTarget
    settings: Mapping[str, str]


def plan(vault: Vault, request: RestoreRequest, system_identifier: int | None) -> Plan:
    """Return what `request` means for the cluster with `system_identifier`; None: the only one in the destination.

    Reads no backup, writes nothing. Raises what a restore raises for a wrong key, a cut object, a foreign backup, a
    target that is not reachable.
    """
    catalog = Catalog(vault)
    target = request.target
    backups = catalog.all()
    wanted = request.backup_id or (target.backup_id if isinstance(target, AtBackup) else None)
    if wanted is not None:
        last = catalog.get(wanted)
        _refuse_foreign(last, system_identifier)
        if not last.restorable:
            raise BackupUnusableError(f"Backup {last.id} is {last.state.value}.", metadata={"backup": last.id})
        system_identifier = last.system_identifier
    else:
        system_identifier = system_identifier or _only_one(backups)
    mine = [each for each in backups if each.system_identifier == system_identifier and each.restorable]
    archive = WalArchive(vault, system_identifier)
    timeline = request.timeline or _timeline(archive, mine, target)
    if wanted is None:
        last = _youngest_before(target, timeline, archive, mine)
    chain = catalog.chain(last.id)
    catalog.check_sizes(chain)
    archive.check_keys()
    _refuse_gaps(archive, last, timeline, target)
    return Plan(chain, timeline, target, recovery_settings(target, timeline))


def recovery_settings(target: RestoreTarget, timeline: int) -> Mapping[str, str]:
    """Return PostgreSQL's settings for a recovery that ends at `target`, and goes on as a primary from there."""
    settings = {"recovery_target_timeline": str(timeline), "recovery_target_action": "promote"}
    match target:
        case AtTime(time):
            settings["recovery_target_time"] = time.astimezone(UTC).isoformat(sep=" ")
        case AtLsn(lsn):
            settings |= {"recovery_target_lsn": str(lsn), "recovery_target_inclusive": "off"}
        case BeforeTransaction(xid):
            settings |= {"recovery_target_xid": str(xid), "recovery_target_inclusive": "off"}
        case AtBackup():
            settings["recovery_target"] = "immediate"
        case Latest():
            pass
    return settings


def _refuse_foreign(backup: Backup, system_identifier: int | None) -> None:
    if system_identifier is not None and backup.system_identifier != system_identifier:
        raise ForeignBackupError(
            f"Backup {backup.id} is of the cluster {backup.system_identifier}, not of {system_identifier}.",
            metadata={"backup": backup.id},
        )


def _only_one(backups: Sequence[Backup]) -> int:
    found = {backup.system_identifier for backup in backups if backup.restorable}
    if not found:
        raise TargetUnreachableError("There is no complete backup in the destination.")
    if len(found) > 1:
        names = ", ".join(map(str, sorted(found)))
        raise ForeignBackupError(f"The destination has backups of several clusters, so name one: {names}.")
    return found.pop()


def _timeline(archive: WalArchive, backups: Sequence[Backup], target: RestoreTarget) -> int:
    """Return the latest timeline there is; of a backup's own state, that of the backup."""
    if isinstance(target, AtBackup):
        return next((each.timeline for each in backups if each.id == target.backup_id), 1)
    archived = {piece.timeline for piece in archive.pieces()}
    return max(archive.timelines() | archived | {backup.timeline for backup in backups}, default=1)


def _youngest_before(target: RestoreTarget, timeline: int, archive: WalArchive, backups: Sequence[Backup]) -> Backup:
    for backup in sorted(backups, key=lambda each: each.stop_time or each.start_time, reverse=True):
        if archive.leads((backup.timeline, backup.stop_lsn or Lsn(0)), timeline) and _before(backup, target):
            return backup
    raise TargetUnreachableError("No complete backup in the destination lies before the target.")


def _before(backup: Backup, target: RestoreTarget) -> bool:
    match target:
        case AtTime(time):
            if time > datetime.now(UTC):
                raise TargetUnreachableError("The target time lies in the future.")
            return backup.stop_time is not None and backup.stop_time <= time
        case AtLsn(lsn):
            return backup.stop_lsn is not None and backup.stop_lsn <= lsn
        case BeforeTransaction(xid):
            return backup.next_xid is not None and backup.next_xid <= xid
    return True


def _refuse_gaps(archive: WalArchive, last: Backup, timeline: int, target: RestoreTarget) -> None:
    """Refuse what would be found out in the middle of recovery. Where a time or a transaction is, only that tells."""
    stop = last.stop_lsn or Lsn(0)
    found: Sequence[Gap] = []
    if isinstance(target, Latest):
        found = archive.missing(timeline, (last.timeline, stop))
    elif isinstance(target, AtLsn):
        found = archive.missing(timeline, (last.timeline, stop), target.lsn)
    if found:
        gap = found[0]
        raise ArchiveGapError(
            f"The archive lacks the WAL from {gap.start} to {gap.end} of timeline {gap.timeline}.",
            metadata={"start": str(gap.start), "end": str(gap.end)},
        )
