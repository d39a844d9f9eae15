"""Streams that follow runs: one thread reads what all of a process follow, and an idle stream costs memory alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import structlog

from kronos_db.admin.backup_runs import Run, RunBrokenError, RunsEndingError, failure_of
from kronos_db.admin.backup_store import BackupStore
from kronos_db.backup.as_json import Json
from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.feed.subscription import Outlet

# Seconds between two looks, while somebody follows a run.
_EVERY = 0.2
# Seconds that the thread gets to end.
_PATIENCE = 5.0
# Makes the message of a run, of its progress or of its result.
Make: TypeAlias = Callable[[Run], Any]

_log = structlog.get_logger(__name__)


class Following:
    """All streams of a process that follow runs. A run goes on whether or not anybody follows it."""

    def __init__(self, store: BackupStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._followers: list[_Follower] = []
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def follow(self, outlet: Outlet, run_id: str, first: Any, make: Make) -> None:
        """Send `first` on `outlet`, and then how far a run is, until it is over; returns at once.

        Raises RunsEndingError.
        """
        follower = _Follower(outlet, run_id, make)
        follower.send(first)
        with self._lock:
            if self._closed:
                raise RunsEndingError
            self._followers.append(follower)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="follow backups", daemon=True)
                self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """End all streams, and begin no more; the runs go on."""
        with self._lock:
            self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                self._followers = [follower for follower in self._followers if not follower.is_over]
                followers = list(self._followers)
            if not followers:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._tell(followers)
            except KronosError as error:
                # PostgreSQL is away: they wait with us.
                _log.info("backup runs cannot be followed for now", reason=str(error))
            self._wake.wait(_EVERY)
            self._wake.clear()
        for follower in self._followers:
            follower.fail(RunsEndingError())

    def _tell(self, followers: list[_Follower]) -> None:
        runs = {run.id: run for run in self._store.get_many(list({follower.run_id for follower in followers}))}
        for follower in followers:
            try:
                follower.tell(runs.get(follower.run_id))
            except Exception as error:  # noqa: BLE001  # nobody else is to suffer: the errors interceptor logs it
                follower.fail(error)


class _Follower:
    """One stream. Used by one thread but for `_take`, which gRPC's calls."""

    def __init__(self, outlet: Outlet, run_id: str, make: Make) -> None:
        self.run_id = run_id
        self.is_over = False
        self._outlet = outlet
        self._make = make
        self._told: Json | None = None
        # Messages handed to gRPC, and those of them that the caller has taken.
        self._sent = self._taken = 0
        self._tells = outlet.on_taken(self._take)
        if not outlet.on_closed(self._close):
            self.is_over = True

    def tell(self, run: Run | None) -> None:
        """Send what is new of the run, unless the caller has yet to take what was sent last; its end in any case."""
        if self.is_over:
            return
        if run is None:
            self.fail(RunBrokenError(metadata={"run_id": self.run_id}))
        elif run.state == "failed":
            self.fail(failure_of(run))
        elif run.state == "done":
            self.send(self._make(run))
            self.is_over = True
            self._outlet.complete()
        elif run.progress is not None and run.progress != self._told and (self._taken >= self._sent or not self._tells):
            self._told = run.progress
            self.send(self._make(run))

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        if not self.is_over:
            self.is_over = True
            self._outlet.fail(error)

    def send(self, message: Any) -> None:
        """Hand one message to gRPC."""
        self._sent += 1
        self._outlet.send(message)

    def _take(self) -> None:
        self._taken += 1

    def _close(self) -> None:
        self.is_over = True
