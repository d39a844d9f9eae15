"""Everything of backups in one process: what serves their methods, and what is done beside calls."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from kronos_db.admin.backup_following import Following
from kronos_db.admin.backup_metrics import watch_backups
from kronos_db.admin.backup_runner import Runner
from kronos_db.admin.backup_schedule import Clock, now
from kronos_db.admin.backup_service import BackupParts
from kronos_db.admin.backup_status import BackupsSeen
from kronos_db.admin.backup_store import BackupStore
from kronos_db.admin.backup_upkeep import Archiving, Looking
from kronos_db.admin.backup_work import BackupWork, Places
from kronos_db.backup.engine import Engine
from kronos_db.runtime.database.background import BackgroundWork
from kronos_db.runtime.database.database import Database


class Backups:
    """Built once for a process. Without an engine nothing is done, and all methods but those of the policy refuse.

    `renew` has what must follow when the tables of a domain were brought back, by domain.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine | None,
        *,
        renew: Mapping[str, Callable[[], None]],
        restore_folder: Path | None,
        registry: CollectorRegistry,
        release: Callable[[], None],
        clock: Clock = now,
    ) -> None:
        store = BackupStore(database)
        places = Places(socket.gethostname(), restore_folder, renew)
        self.following = Following(store)
        self.works: list[BackgroundWork] = []
        self._runner: Runner | None = None
        # What GetStatus tells, None where there are no backups.
        self.seen: BackupsSeen | None = None
        if engine is None:
            self.parts = BackupParts(store, self.following, places)
            return
        self.seen = BackupsSeen(store)
        looking = Looking(store, engine)
        count = watch_backups(registry, looking)

        def ended(kind: str, done: bool) -> None:
            count(kind, done)
            looking.look()

        self._runner = Runner(store, BackupWork(engine, store, places, clock), clock, release, ended)
        # The archive last: works are stopped in this order, and commits may wait for it.
        self.works = [self._runner.work, looking.work, Archiving(store, engine, release).work]
        self.parts = BackupParts(store, self.following, places, engine, self._runner.work.hurry)

    def stop(self) -> None:
        """Leave the runs of this process to another one."""
        if self._runner is not None:
            self._runner.stop()
