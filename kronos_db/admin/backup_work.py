"""Does what a run asks for, with the engine, and tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kronos_db.admin.backup_runs import RestoreFolderError, Run, RunInterruptedError
from kronos_db.admin.backup_schedule import Clock
from kronos_db.admin.backup_store import BackupStore
from kronos_db.backup.as_json import Json, backup_json, report_json, restored_json, tables_json, target_of
from kronos_db.backup.choosing import built_on, newest
from kronos_db.backup.engine import Engine, finish
from kronos_db.backup.model import (
    Backup,
    BackupNotFoundError,
    DrillReport,
    Kind,
    Progress,
    RestoreRequest,
    Step,
    VerifyReport,
)
from kronos_db.backup.model import Work as EngineWork

# Seconds in which WAL that was written must be in the archive, and between two looks for it.
_ON_ITS_WAY, _LOOK = 30.0, 0.25
Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where restores go: this machine's name, the folder of new instances, and what follows in each domain.

    `renew` has for every domain whose tables may be brought back what must be done after that, see
    `runtime/database/renewal.py`.
    """

    host: str
    restore_folder: Path | None
    renew: Mapping[str, Callable[[], None]]


class BackupWork:
    """What the holder of the lease does for a run."""

    def __init__(self, engine: Engine, store: BackupStore, places: Places, clock: Clock) -> None:
        self.engine = engine
        self.places = places
        self._store = store
        self._clock = clock

    def perform(self, run: Run, report: Report) -> Json:
        """Do all of a run and return what its streams end with, in the JSON form of the last message.

        `run.attempt` is how often it was begun before. Raises errors of `backup/model.py` and of `backup_runs.py`, and
        what `report` raises.
        """
        match run.kind:
            case "create":
                return self._create(run, report)
            case "verify":
                return self._verify(run, report)
            case "restore":
                return self._restore(run, report)
            case "delete":
                return self._delete(run)
            case "retain":
                kept = self.engine.retain(self._store.policy().policy, self._clock())
                return {"deleted_ids": list(kept.backups)}

    def _create(self, run: Run, report: Report) -> Json:
        kind = run.request.get("kind")
        made = finish(self.engine.create(Kind(kind) if kind else None, run.request.get("label", "")), report)
        return {"backup": backup_json(made)}

    def _verify(self, run: Run, report: Report) -> Json:
        backup_id = run.request.get("id") or newest(self.engine.list()).id
        if run.request.get("drill"):
            self._await_archive(self.engine.get(backup_id), report)
            work: EngineWork[VerifyReport | DrillReport] = self.engine.drill(backup_id)
        else:
            work = self.engine.verify(backup_id)
        return {"report": report_json(finish(work, report))}

    def _await_archive(self, backup: Backup, report: Report) -> None:
        """Wait until the archive has the moment that a drill compares with: right behind a backup it is on its way."""
        give_up = time.monotonic() + _ON_ITS_WAY
        while backup.content is not None and time.monotonic() < give_up:
            state = self.engine.archive_state()
            if not state.receiving or (state.last is not None and state.last > backup.content.lsn):
                return
            report(Progress(Step.VERIFY_ARCHIVE, backup_id=backup.id))
            time.sleep(_LOOK)

    def _restore(self, run: Run, report: Report) -> Json:
        target = target_of(run.request["target"])
        domain = run.request.get("domain")
        if domain:
            return {"restored": self._bring_back(run, domain, report)}
        if self.places.restore_folder is None:
            raise RestoreFolderError
        folder = self.places.restore_folder / run.request["instance"]
        restored = finish(self.engine.restore(RestoreRequest(folder, target)), report)
        return {"restored": restored_json(restored, self.places.host)}

    def _bring_back(self, run: Run, domain: str, report: Report) -> Json:
        renew = self.places.renew[domain]
        if run.attempt:
            # The process before may have come to its end, and what was written since must not be lost to a second time.
            renew()
            raise RunInterruptedError
        restored = finish(self.engine.restore_tables(domain, target_of(run.request["target"])), report)
        renew()
        return tables_json(restored, domain)

    def _delete(self, run: Run) -> Json:
        wanted = run.request["id"]
        backups = self.engine.list()
        gone = [*reversed(built_on(wanted, backups)), wanted] if run.request.get("force") else [wanted]
        for backup_id in gone:
            try:
                self.engine.delete(backup_id)
            except BackupNotFoundError:
                # The process before has come so far.
                if not run.attempt:
                    raise
        return {"deleted_ids": gone}
