"""What one process of the fleet does beside runs: archives WAL, and looks what there is, for metrics and GetStatus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from kronos_db.admin.backup_store import BackupStore
from kronos_db.backup.as_json import Json, moment
from kronos_db.backup.engine import Engine
from kronos_db.backup.model import ArchiveState, Backup, State
from kronos_db.runtime.database.background import BackgroundWork, Held

# Seconds. With commits that wait for the archive, they wait for its lease to run out when its holder dies.
_LEASE = 3.0
_ARCHIVE_RETRY = 1.0
_NOTICE = 0.5
# Seconds between two looks into the destination. After each run there is one more.
_LOOK_EVERY = 15.0

_log = structlog.get_logger(__name__)


class Archiving:
    """The background work `archive-wal`: receives WAL for as long as this process holds the lease."""

    def __init__(self, store: BackupStore, engine: Engine, release: Callable[[], None]) -> None:
        self._engine = engine
        self._release = release
        self.work = BackgroundWork(store.database, "archive-wal", _ARCHIVE_RETRY, self.archive, lease_seconds=_LEASE)

    def archive(self, held: Held) -> None:
        """Archive until the lease is lost; raises when PostgreSQL or the destination is, and is begun again then."""
        self._release()
        stopped, ended = threading.Event(), threading.Event()
        watcher = threading.Thread(target=_watch, args=(held, stopped, ended), name="archive-wal lease", daemon=True)
        watcher.start()
        try:
            self._engine.archive(stopped)
        finally:
            ended.set()
            watcher.join()


def _watch(held: Held, stopped: threading.Event, ended: threading.Event) -> None:
    """Set `stopped` when the lease is lost."""
    while held():
        if ended.wait(_NOTICE):
            return
    stopped.set()


@dataclass(frozen=True, slots=True)
class Found:
    """What a look into the destination found. `recovery_seconds` is what the last drill measured."""

    backups: tuple[Backup, ...]
    archive: ArchiveState
    recovery_seconds: float | None

    @property
    def newest(self) -> Backup | None:
        """The newest backup that can be restored."""
        return max((each for each in self.backups if each.restorable), key=lambda each: each.start_time, default=None)

    @property
    def verified(self) -> Backup | None:
        """The newest backup that a drill found sound."""
        found = (each for each in self.backups if each.state is State.VERIFIED)
        return max(found, key=lambda each: each.start_time, default=None)

    @property
    def restorable_until(self) -> datetime | None:
        """The last moment that can be restored."""
        if self.newest is None:
            return None
        times = [time for time in (self.newest.stop_time, self.archive.last_time) if time is not None]
        return max(times, default=None)

    @property
    def restorable_from(self) -> datetime | None:
        """The oldest moment that can be restored."""
        times = (each.stop_time for each in self.backups if each.restorable and each.stop_time is not None)
        return min(times, default=None)

    def summary(self) -> Json:
        """Return what everybody is told of it, as JSON."""
        last = self.newest.stop_time if self.newest else None
        moments = {
            "last_backup_time": last,
            "restorable_from": self.restorable_from,
            "restorable_until": self.restorable_until,
        }
        return {
            **{name: None if time is None else moment(time) for name, time in moments.items()},
            "recovery_seconds": self.recovery_seconds,
            "gaps": len(self.archive.gaps),
            "receiving": self.archive.receiving,
        }


class Looking:
    """The background work `look-at-backups`: what it finds is in PostgreSQL for all processes, and in metrics here."""

    def __init__(self, store: BackupStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        # What this process found when it looked last.
        self.found: Found | None = None
        self.work = BackgroundWork(store.database, "look-at-backups", _LOOK_EVERY, self._look, lease_seconds=_LEASE)

    def look(self) -> None:
        """Look, and let everybody know."""
        found = Found(
            tuple(self._engine.list()), self._engine.archive_state(), self._engine.expected_recovery_seconds()
        )
        self._store.set_summary(found.summary())
        self.found = found

    def _look(self, _held: Held) -> None:
        self.look()
        self._store.forget()
