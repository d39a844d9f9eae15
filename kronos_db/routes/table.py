"""The table of this process: every route, ready to be matched, and every quota, of one version of the table.

It is a copy like those of `runtime/cache` (docs/decisions/0007-copies.md): answered from only while the board says that
no route and no quota changed since the snapshot before its reading. A thread makes the next one as soon as a write has
committed and before it is acknowledged, so that calls hardly ever find the copy old (docs/decisions/0014-routes.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from kronos_db.routes.matcher import Edit, Matcher
from kronos_db.routes.model import QUOTA, ROUTE
from kronos_db.routes.quotas import Rule
from kronos_db.routes.store import TableChange
from kronos_db.runtime.cache.board import Board, Mark, now
from kronos_db.runtime.database.changes import Instant, moment
from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.workers import Gatherer, about_to_block

_log = structlog.get_logger(__name__)

_PLACES = Board.places((ROUTE, QUOTA))
# Seconds between two looks at the table when nobody says that it changed.
_POLL = 1.0
# Seconds that a write waits at most until the table was made; and then, as a share of what that took here, and in
# seconds at least and at most, so that the other processes, which do the same at the same time, are ready too.
_PATIENCE = 2.0
_FOR_OTHERS, _LEAST_FOR_OTHERS, _MOST_FOR_OTHERS = 0.05, 0.005, 0.25
# For so many seconds routes are put in; then other threads get the interpreter.
_AT_A_TIME, _BREATH = 0.001, 0.0001


class Snapshot:
    """The table at one version. `answers` is for whoever makes answers of it, and is gone with it."""

    __slots__ = ("answers", "matcher", "names", "quotas", "rules", "version", "version_text")

    def __init__(self, version: int, matcher: Matcher, quotas: Mapping[str, Rule]) -> None:
        self.version = version
        self.version_text = str(version)
        self.matcher = matcher
        # By id and by name.
        self.quotas = quotas
        self.rules = {rule.name: rule for rule in quotas.values()}
        self.answers: dict[Any, Any] = {}
        # The ids of the routes by name, A to Z; made by whoever first needs it.
        self.names: Sequence[str] | None = None

    def sorted_ids(self) -> Sequence[str]:
        """Return the ids of all routes, by name."""
        if self.names is None:
            entries = self.matcher.entries
            self.names = sorted(entries, key=lambda route_id: entries[route_id].route.name)
        return self.names


class Source(Protocol):
    """Reads the table."""

    def table_since(self, version: int) -> TableChange:
        """Return what changed since `version`."""


class Table:
    """The table of this process. `instant` tells the snapshot of the database now."""

    def __init__(self, source: Source, instant: Callable[[], Instant], board: Board) -> None:
        self._source = source
        self._instant = instant
        self._board = board
        self._lock = threading.Lock()
        # Of which history of which database the table is: in another one a version says something else.
        self._history: tuple[str, str, str] = ("", "", "")
        # What is answered from, and where the reading before it began; replaced together.
        self._copy: tuple[Snapshot, Mark] = (Snapshot(0, Matcher(), {}), Mark(-1, 0))
        self._readings: Gatherer[str, Snapshot] = Gatherer(lambda _: {"": self._after_others()})
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._finished = threading.Condition()
        self._begun = self._done = 0
        self._thread = threading.Thread(target=self._run, name="routes", daemon=True)
        # Calls that found the table old and had to wait.
        self.waits = 0

    def current(self) -> Snapshot:
        """Return the table with every change that was acknowledged. Raises what reading it raises."""
        snapshot, mark = self._copy
        if self._board.is_current(mark, _PLACES, now()):
            return snapshot
        self.waits += 1
        read = self._readings.get("")
        if read is None:
            raise AssertionError("the table is always there, if empty")
        return read

    def read(self) -> Snapshot:
        """Read what changed, whatever is known, and return the table of after this call began."""
        # Before the lock, not while it is held: calls that this thread has set aside may want it.
        about_to_block()
        with self._lock:
            return self._read()

    def start(self) -> None:
        """Look for changes from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def wake(self) -> None:
        """Take note that the table may have changed; returns at once."""
        self._woken.set()

    def prepare(self, tags: Sequence[str]) -> None:
        """Return when the next table is there, here and probably in the other processes, after a change of `tags`.

        For a write that has committed, before it makes copies old: then nobody waits for the new table. Not for long:
        that copies are old does not depend on it.
        """
        if ROUTE not in tags and QUOTA not in tags:
            return
        began = time.monotonic()
        with self._finished:
            wanted = self._begun + 1
            self._woken.set()
            self._finished.wait_for(lambda: self._done >= wanted, _PATIENCE)
        took = time.monotonic() - began
        time.sleep(min(_MOST_FOR_OTHERS, max(_LEAST_FOR_OTHERS, took * _FOR_OTHERS)))

    def _after_others(self) -> Snapshot:
        with self._lock:
            snapshot, mark = self._copy
            if self._board.is_current(mark, _PLACES, now()):
                return snapshot
            return self._read()

    def _read(self) -> Snapshot:
        # In this order: a mark that was there before the reading, and a snapshot that began before it.
        epoch = self._board.epoch
        instant = self._instant()
        history = (instant.identity, instant.timeline, instant.started)
        before = self._copy[0] if history == self._history else Snapshot(0, Matcher(), {})
        change = self._source.table_since(before.version)
        snapshot = before
        if change.version != before.version or change.whole:
            snapshot = _changed(before, change)
        self._history = history
        self._copy = (snapshot, Mark(epoch, moment(instant.snapshot)))
        return snapshot

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.wait(_POLL)
            self._woken.clear()
            with self._finished:
                self._begun += 1
                begun = self._begun
            try:
                self.read()
            except KronosError as error:
                _log.warning("the table of routes was not read", reason=str(error))
                self._stopped.wait(_POLL)
            except Exception:  # noqa: BLE001  # the thread must go on
                _log.exception("the table of routes was not read")
                self._stopped.wait(_POLL)
            with self._finished:
                self._done = begun
                self._finished.notify_all()


def _changed(before: Snapshot, change: TableChange) -> Snapshot:
    edit = Edit(Matcher() if change.whole else before.matcher)
    for removed in change.removed:
        edit.remove(removed)
    until = time.perf_counter() + _AT_A_TIME
    for route in change.routes:
        edit.put(route)
        if time.perf_counter() > until:
            time.sleep(_BREATH)
            until = time.perf_counter() + _AT_A_TIME
    quotas = {} if change.whole else dict(before.quotas)
    for removed in change.removed:
        quotas.pop(removed, None)
    quotas |= {quota.id: Rule(quota) for quota in change.quotas}
    return Snapshot(change.version, edit.done(), quotas)
