"""What is told of backups, in the JSON form of the contract's messages: runs keep it so, and streams read it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from kronos_db.backup.model import (
    ArchiveState,
    AtBackup,
    AtLsn,
    AtTime,
    Backup,
    BeforeTransaction,
    DrillReport,
    Fault,
    Latest,
    Lsn,
    Progress,
    Restored,
    RestoredTables,
    RestoreTarget,
    VerifyReport,
)

Json: TypeAlias = dict[str, Any]
# So many faults are told one by one.
MOST_FAULTS = 100


def moment(time: datetime) -> str:
    """Return a time as a Timestamp."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds(length: float) -> str:
    """Return seconds as a Duration."""
    return f"{length:.3f}s"


def progress_json(progress: Progress) -> Json:
    """Return a BackupProgress."""
    return _without_none(
        step=progress.step.value,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        bytes_per_second=progress.rate,
        time_left=_seconds(progress.time_left),
        backup_id=progress.backup_id,
    )


def backup_json(backup: Backup) -> Json:
    """Return a Backup."""
    drill = backup.drill
    return _without_none(
        id=backup.id,
        kind=f"BACKUP_KIND_{backup.kind.name}",
        parent_id=backup.parent,
        state=f"BACKUP_STATE_{backup.state.name}",
        start_time=moment(backup.start_time),
        stop_time=_moment(backup.stop_time),
        start_lsn=_lsn(backup.start_lsn),
        stop_lsn=_lsn(backup.stop_lsn),
        timeline=backup.timeline,
        database_bytes=backup.size,
        stored_bytes=backup.stored,
        system_identifier=str(backup.system_identifier),
        failure=backup.failure,
        label=backup.label,
        checksums=backup.checksums,
        server_version=backup.server_version,
        drill_time=_moment(drill.at) if drill else None,
        restore_time=seconds(drill.restore_seconds) if drill else None,
    )


def report_json(report: VerifyReport | DrillReport) -> Json:
    """Return a BackupReport."""
    told = {"backup_id": report.backup_id, "sound": report.sound, **_faults(report.faults)}
    if isinstance(report, DrillReport):
        return {
            **told,
            "tables": report.tables,
            "rows": report.rows,
            "restore_time": seconds(report.restore_seconds),
        }
    return {
        **told,
        **_without_none(
            chain=list(report.chain),
            objects=report.objects,
            bytes=report.bytes,
            restorable_until_lsn=_lsn(report.restorable_until),
        ),
    }


def restored_json(restored: Restored, host: str) -> Json:
    """Return a Restored of a new instance."""
    return _without_none(
        backup_id=restored.backup_id,
        host=host,
        folder=str(restored.folder),
        lsn=_lsn(restored.lsn),
        timeline=restored.timeline,
        target_reached=restored.target_reached,
        duration=seconds(restored.seconds),
    )


def tables_json(restored: RestoredTables, domain: str) -> Json:
    """Return a Restored of a domain."""
    return {
        "backup_id": restored.backup_id,
        "domain": domain,
        "rows": dict(restored.rows),
        "target_reached": True,
        "duration": seconds(restored.seconds),
    }


def archive_json(state: ArchiveState) -> Json:
    """Return an ArchiveState."""
    return _without_none(
        timeline=state.timeline,
        first_lsn=_lsn(state.first),
        last_lsn=_lsn(state.last),
        last_time=_moment(state.last_time),
        gaps=[
            {"timeline": gap.timeline, "start_lsn": str(gap.start), "end_lsn": str(gap.end)}
            for gap in state.gaps[:MOST_FAULTS]
        ],
        stored_bytes=state.stored,
        lag_bytes=state.lag,
        slot_bytes=state.slot_lag,
        slot_lost=state.slot_lost,
        receiving=state.receiving,
        synchronous=state.synchronous,
    )


def target_json(target: RestoreTarget) -> Json:
    """Return a RestoreTarget."""
    match target:
        case Latest():
            return {"latest": True}
        case AtTime(time):
            return {"time": moment(time)}
        case AtLsn(lsn):
            return {"lsn": str(lsn)}
        case AtBackup(backup_id):
            return {"backup_id": backup_id}
        case BeforeTransaction(xid):
            return {"before_transaction": xid}


def target_of(told: Json) -> RestoreTarget:
    """Return what `target_json` was made of."""
    [(name, value)] = told.items()
    match name:
        case "time":
            return AtTime(datetime.fromisoformat(value))
        case "lsn":
            return AtLsn(Lsn.parse(value))
        case "backup_id":
            return AtBackup(value)
        case "before_transaction":
            return BeforeTransaction(int(value))
        case _:
            return Latest()


def _faults(faults: Sequence[Fault]) -> Json:
    return {
        "faults": [{"where": fault.where, "what": fault.what} for fault in faults[:MOST_FAULTS]],
        "fault_count": len(faults),
    }


def _without_none(**values: Any) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _moment(time: datetime | None) -> str | None:
    return None if time is None else moment(time)


def _seconds(length: float | None) -> str | None:
    return None if length is None else seconds(length)


def _lsn(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)
