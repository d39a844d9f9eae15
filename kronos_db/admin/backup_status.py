"""What GetStatus tells of backups: from what the process that looks into the destination found last."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kronos_db.admin.backup_store import BackupStore
from kronos_db.admin.status import Backups
from kronos_db.admin.watching import DegradedError, Watched
from kronos_db.backup.as_json import Json

# Seconds: nobody has looked for so long, and what who asks waits for the first look.
_OLD = 60.0
_FIRST_LOOK = 0.02


class BackupsSeen:
    """Reads the summary while somebody asks for the status."""

    def __init__(self, store: BackupStore) -> None:
        self._store = store
        self._watched: Watched[Json] = Watched("backups", self._look)
        self.start = self._watched.start
        self.stop = self._watched.stop

    def status(self) -> Backups:
        """Tell it; waits for the first look alone, and not for long."""
        self._watched.want()
        self._watched.wait(_FIRST_LOOK)
        found = self._watched.value
        if found is None:
            return Backups(self._watched.health)
        return Backups(
            self._watched.health,
            _moment(found.get("last_backup_time")),
            _moment(found.get("restorable_from")),
            _moment(found.get("restorable_until")),
            found.get("recovery_seconds"),
            found.get("gaps", 0),
        )

    def _look(self) -> Json:
        found = self._store.summary()
        if found is None:
            raise DegradedError("nobody has looked into the destination yet", None)
        summary, age = found
        fault = _fault_of(summary, age)
        if fault is not None:
            raise DegradedError(fault, summary)
        return summary


def _fault_of(summary: Json, age: float) -> str | None:
    if age > _OLD:
        return f"nobody has looked into the destination for {age:.0f} s"
    if summary["last_backup_time"] is None:
        return "there is no backup"
    if summary["gaps"]:
        return "the archive lacks WAL"
    return None if summary["receiving"] else "no WAL is being received"


def _moment(told: Any) -> datetime | None:
    return None if told is None else datetime.fromisoformat(told)
