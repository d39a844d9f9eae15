"""Does the runs, in one process of the fleet: takes them up, begins those that the schedule asks for, tells how far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from kronos_db.admin.backup_runs import MOST_ATTEMPTS, Kind, NewRun, Run, RunActiveError, RunInterruptedError, excludes
from kronos_db.admin.backup_schedule import Clock, Task, due
from kronos_db.admin.backup_store import BackupStore
from kronos_db.admin.backup_work import BackupWork
from kronos_db.backup.as_json import Json, progress_json
from kronos_db.backup.model import BackupBusyError, Progress, Step
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.identifiers import uuid7_text

# Seconds: the lease is looked at three times in its duration, and so often the runner looks for runs; sooner when a
# run is written down in its own process.
_LEASE = 3.0
_SOONEST = 0.1
# Seconds between two notes of how far a run is.
_TELL_EVERY = 0.25
# Seconds until a run is begun anew whose predecessor may still be at it.
_BUSY_PAUSE = 2.0
# Seconds between two attempts to write down how a run ended.
_RETRY = 1.0
# Seconds that runs get to notice that the process ends.
_PATIENCE = 5.0
# What is done by itself, as a run.
_TASKS: dict[Task, NewRun] = {
    "full": NewRun("", "create", {"kind": "full", "label": "scheduled"}, "full"),
    "incremental": NewRun("", "create", {"kind": "incremental", "label": "scheduled"}, "incremental"),
    "drill": NewRun("", "verify", {"drill": True}, "drill"),
    "retain": NewRun("", "retain", {}, "retain"),
}

_log = structlog.get_logger(__name__)


class _LeaveError(Exception):
    """The run is not ours any more: whoever has the lease begins it anew."""


class Runner:
    """The background work `backups`, with a thread for each run.

    `release` lets the calling thread, and those that it starts, run on every core. `on_end` is called when a run is
    over, with its kind and whether it was done.
    """

    def __init__(
        self,
        store: BackupStore,
        work: BackupWork,
        clock: Clock,
        release: Callable[[], None] = lambda: None,
        on_end: Callable[[str, bool], None] = lambda _kind, _done: None,
    ) -> None:
        self._store = store
        self._work = work
        self._clock = clock
        self._release = release
        self._on_end = on_end
        self._stopping = threading.Event()
        # By run: what it does, and the thread that does it.
        self._at_work: dict[str, tuple[Kind, threading.Thread]] = {}
        self.work = BackgroundWork(store.database, "backups", _SOONEST, self.look, lease_seconds=_LEASE)

    def stop(self) -> None:
        """Leave the runs, so that another process begins them anew."""
        self._stopping.set()
        give_up = time.monotonic() + _PATIENCE
        for _, thread in list(self._at_work.values()):
            thread.join(max(0.0, give_up - time.monotonic()))

    def look(self, held: Held) -> None:
        """Begin what the schedule asks for, and take up what waits."""
        self._at_work = {run_id: work for run_id, work in self._at_work.items() if work[1].is_alive()}
        self._schedule()
        for run in self._store.open(held.fence):
            # One that was left a moment ago ends first, and what excludes it.
            if run.id in self._at_work or any(excludes(run.kind, kind) for kind, _ in self._at_work.values()):
                continue
            if held() and self._store.take(run, held.fence):
                thread = threading.Thread(target=self._do, args=(run, held), name=f"backup {run.kind}", daemon=True)
                self._at_work[run.id] = run.kind, thread
                thread.start()

    def _schedule(self) -> None:
        at = self._clock()
        kept = self._store.policy()
        for task in due(kept.policy, kept.done, at):
            if task not in kept.held_back:
                # While another run is in its way: its turn comes when that is over.
                with suppress(RunActiveError):
                    self._store.add_scheduled(replace(_TASKS[task], id=uuid7_text(), due=at))

    def _do(self, run: Run, held: Held) -> None:
        self._release()
        fence = held.fence
        _log.info("backup run begins", run=run.id, kind=run.kind, attempt=run.attempt + 1)
        if run.attempt >= MOST_ATTEMPTS:
            self._fail(run, held, RunInterruptedError(f"begun {run.attempt} times, and never ended"))
            return
        try:
            result = self._work.perform(run, self._telling(run, held))
        except _LeaveError:
            _log.info("backup run left", run=run.id, kind=run.kind)
        except BackupBusyError as busy:
            if run.attempt:
                # Whoever did it before may not have noticed yet that it is over.
                self._note(held, lambda: self._store.put_back(run, fence, _BUSY_PAUSE))
            else:
                self._fail(run, held, busy)
        except KronosError as error:
            self._fail(run, held, error)
        except Exception:  # noqa: BLE001  # whatever it is, the run must not be left open
            _log.exception("backup run broken", run=run.id, kind=run.kind)
            self._note(held, lambda: self._store.fail(run, fence, "RunBrokenError", ""))
            self._on_end(run.kind, False)
        else:
            _log.info("backup run done", run=run.id, kind=run.kind)
            self._note(held, lambda: self._store.finish(run, fence, result))
            self._on_end(run.kind, True)

    def _fail(self, run: Run, held: Held, error: KronosError) -> None:
        name, detail = type(error).__name__, str(error)
        _log.warning("backup run failed", run=run.id, kind=run.kind, reason=name, detail=detail)
        self._note(held, lambda: self._store.fail(run, held.fence, name, detail))
        self._on_end(run.kind, False)

    def _note(self, held: Held, note: Callable[[], None]) -> None:
        """Write down how a run ended, as long as it is ours."""
        while held():
            try:
                note()
            except KronosError as error:
                _log.warning("the end of a backup run is not noted for now", reason=str(error))
                self._stopping.wait(_RETRY)
            else:
                return

    def _telling(self, run: Run, held: Held) -> Callable[[Progress], None]:
        """Return what notes the progress of a run, and ends it when it is not ours any more."""
        told_at, told_step = 0.0, Step.DONE

        def tell(progress: Progress) -> None:
            nonlocal told_at, told_step
            if self._stopping.is_set() or not held():
                raise _LeaveError
            now = time.monotonic()
            if progress.step is told_step and now - told_at < _TELL_EVERY:
                return
            told_at, told_step = now, progress.step
            self._tell(run, held.fence, progress_json(progress))

        return tell

    def _tell(self, run: Run, fence: int, progress: Json) -> None:
        try:
            if not self._store.tell(run, fence, progress):
                raise _LeaveError
        except KronosError as error:
            # PostgreSQL is away; what reads the destination alone need not mind.
            _log.info("the progress of a backup run is not noted for now", reason=str(error))
