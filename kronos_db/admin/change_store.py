"""Changes indexes without locking anybody out, one at a time in the fleet, and leaves nothing half-done behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import structlog

from kronos_db.admin.advice import Advice, Kind, quoted
from kronos_db.admin.changes import (
    Change,
    ChangeFailedError,
    ChangeRunningError,
    ChangeState,
    Mean,
    NotOwnerError,
    Progress,
    judge,
)
from kronos_db.runtime.database.background import Held
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.operating import OperatorConnection, connected
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import as_row
from kronos_db.runtime.errors import ConflictError, KronosError, RequestIdReusedError

_QUERIES = load_queries(Path(__file__).with_name("indexes.sql"), "admin")
# Seconds between two looks at the progress of a build.
_LOOK = 0.25
# Seconds for what is asked beside a build.
_ASIDE = 10.0
# Seconds that a lock is waited for when a leftover is dropped.
_DROP_LOCK = 30.0
# A build whose process is gone ends soon after: so often its backend looks whether somebody still waits for it.
_CONNECTION_CHECK = "1s"
_log = structlog.get_logger(__name__)

# What the statements of a domain took between two times, by query id.
Means = Callable[[str, datetime, datetime], Mapping[str, Mean]]


class ChangeStore:
    """The changes of indexes. `owners` are the DSNs of the roles that own the tables of each domain.

    `lock_dsn` leads straight to the admin domain's database.
    """

    def __init__(self, database: Database, owners: Mapping[str, str], lock_dsn: str) -> None:
        self._database = database
        self._owners = owners
        self._lock_dsn = lock_dsn

    def get(self, change_id: UUID) -> Change | None:
        """Return one change."""
        return self._database.fetch_one(_QUERIES["get_change"], {"id": change_id}, _change)

    def list_page(self, after: tuple[datetime, str] | None, limit: int) -> list[Change]:
        """Return changes that are older than that of `after`, the newest first."""
        at, change_id = after or (None, None)
        params = {"after": at, "after_id": change_id, "limit": limit}
        return self._database.fetch_all(_QUERIES["list_changes"], params, _change)

    def earlier(self, change_id: UUID, advice_id: str) -> Change | None:
        """Return the change that an earlier call with this request id made. Raises RequestIdReusedError."""
        change = self.get(change_id)
        if change is not None and change.advice_id != advice_id:
            raise RequestIdReusedError
        return change

    def check(self, advice: Advice) -> None:
        """Raise NotOwnerError when the table cannot be changed."""
        with self._owner(advice.domain) as direct:
            if not direct.fetch_one(_QUERIES["owns"], {"schema": advice.domain, "table": advice.table}, bool):
                raise NotOwnerError(metadata={"table": f"{advice.domain}.{advice.table}"})

    def apply(
        self,
        change_id: UUID,
        advice: Advice,
        *,
        caller: str,
        before: Mapping[str, Mean],
        lock_timeout: float,
        active: Callable[[], bool] = lambda: True,
    ) -> Iterator[Progress]:
        """Do what is advised, and yield how far it is, at last with the change.

        When `active` says that nobody waits any more, or the iterator is closed, the build is cancelled and what it has
        left is removed. Raises ChangeRunningError, NotOwnerError, ChangeFailedError.
        """
        with self._locked():
            self.check(advice)
            self._settle_all()
            self._begin(change_id, advice, caller, before)
            change = self._known(change_id)
            try:
                yield from self._run(change, lock_timeout, active)
            except BaseException as error:
                self._end(change, *self._settled(change, _said(error)))
                raise
            self._end(change, ChangeState.DONE, "")
            yield Progress(share=1.0, change=self._known(change_id))

    def _run(self, change: Change, lock_timeout: float, active: Callable[[], bool]) -> Iterator[Progress]:
        with self._owner(change.domain, lock_timeout, 0.0) as builder, self._owner(change.domain) as watcher:
            if any(busy and not valid for _name, valid, busy in self._found(change, watcher)):
                # Somebody else's, by hand.
                raise ChangeRunningError
            # Of an earlier attempt under the same name.
            self._drop_leftovers(change, builder)
            build = _Build(builder, change.statement)
            try:
                while not build.ended(_LOOK):
                    found = watcher.fetch_one(_QUERIES["progress"], {"pid": builder.pid}, Progress)
                    yield replace(found or Progress(), change=change)
                    _check(active)
            except BaseException:
                build.cancel()
                raise
            build.check()

    def settle(self, held: Held, judged_after: timedelta, means: Means) -> None:
        """Finish or clear away what a process that died has left, and undo what did not help. Background work."""
        if not self._in(ChangeState.RUNNING) and not self._in(ChangeState.DONE):
            return
        try:
            with self._locked():
                self._settle_all()
                for change in self._in(ChangeState.DONE):
                    if held():
                        self._judge(change, judged_after, means)
        except ChangeRunningError:
            # Whoever is at it leaves nothing.
            return

    def _settle_all(self) -> None:
        """Settle what is said to run. Raises ChangeRunningError when a backend is still at it."""
        for change in self._in(ChangeState.RUNNING):
            self._end(change, *self._settled(change, "The process that ran it ended."))

    def _settled(self, change: Change, why: str) -> tuple[ChangeState, str]:
        """Remove what a change that ended early has left; return how it stands then."""
        with self._owner(change.domain, _DROP_LOCK, 0.0) as direct:
            found = self._found(change, direct)
            if any(busy and not valid for _name, valid, busy in found):
                # The backend has not noticed yet that nobody waits for it.
                raise ChangeRunningError(metadata={"change": change.id})
            self._drop_leftovers(change, direct)
        names = {name for name, _valid, _busy in found}
        is_valid = any(name == change.index and valid for name, valid, _busy in found)
        done = {
            "CREATE": is_valid,
            "DROP": not is_valid,
            # The old one is renamed when the new one is in its place.
            "REINDEX": any("_ccold" in name for name in names - {change.index}),
        }
        return (ChangeState.DONE if done[change.statement.split(" ", 1)[0]] else ChangeState.FAILED), why

    def _drop_leftovers(self, change: Change, direct: OperatorConnection) -> None:
        for name, valid, _busy in self._found(change, direct):
            rebuilt = change.statement.startswith("REINDEX") and name == change.index
            if not valid and not rebuilt:
                direct.run(f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(change.domain)}.{quoted(name)}")
                _log.info("leftover of an index build removed", index=name, domain=change.domain)

    def _found(self, change: Change, direct: OperatorConnection) -> Sequence[tuple[str, bool, bool]]:
        params = {"schema": change.domain, "index": change.index}
        return direct.fetch_all(_QUERIES["found"], params, as_row)

    def _judge(self, change: Change, judged_after: timedelta, means: Means) -> None:
        now = datetime.now(UTC)
        if now - change.update_time < judged_after:
            return
        verdict = judge(change, means(change.domain, change.update_time, now))
        if verdict is None:
            # What nobody complained about for so long stays.
            if now - change.update_time > _PATIENCE:
                self._end(change, ChangeState.KEPT, "No statement speaks against it.")
            return
        if not verdict.keep:
            with self._owner(change.domain, _DROP_LOCK, 0.0) as direct:
                # Of an earlier attempt at it.
                self._drop_leftovers(change, direct)
                direct.run(change.undo)
        self._end(change, ChangeState.KEPT if verdict.keep else ChangeState.UNDONE, verdict.why)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with connected(self._lock_dsn, "index-lock", _ASIDE) as direct:
            if not direct.fetch_one(_QUERIES["lock"], {}, bool):
                raise ChangeRunningError
            yield

    @contextmanager
    def _owner(
        self, domain: str, lock_timeout: float = _ASIDE, timeout: float = _ASIDE
    ) -> Iterator[OperatorConnection]:
        settings = {
            "lock_timeout": f"{int(lock_timeout * 1000)}ms",
            "client_connection_check_interval": _CONNECTION_CHECK,
            "search_path": "pg_catalog",
        }
        with connected(self._owners[domain], "index", timeout, settings) as direct:
            yield direct

    def _begin(self, change_id: UUID, advice: Advice, caller: str, before: Mapping[str, Mean]) -> None:
        params: dict[str, Any] = {
            "id": change_id,
            "advice_id": advice.id,
            "kind": advice.kind.value,
            "domain": advice.domain,
            "table": advice.table,
            "index": advice.index,
            "statement": advice.statement,
            "undo": advice.undo,
            "caller": caller,
            "before": json.dumps(before),
        }
        if not self._database.execute(_QUERIES["begin_change"], params):
            # Two calls with one request id: the lock was free in between.
            raise ConflictError("the same change was begun meanwhile")

    def _end(self, change: Change, state: ChangeState, detail: str) -> None:
        params = {"id": change.id, "state": state.value, "detail": detail}
        self._database.execute(_QUERIES["end_change"], params)

    def _in(self, state: ChangeState) -> list[Change]:
        return self._database.fetch_all(_QUERIES["changes_in"], {"state": state.value}, _change)

    def _known(self, change_id: UUID) -> Change:
        change = self.get(change_id)
        if change is None:
            raise ConflictError("the change was removed meanwhile")
        return change


# What has neither helped nor hurt for so long is kept.
_PATIENCE = timedelta(days=7)


class _Build:
    """A statement that runs on a thread of its own, so that its progress can be watched."""

    def __init__(self, direct: OperatorConnection, statement: str) -> None:
        self._direct = direct
        self._statement = statement
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="index build", daemon=True)
        self._thread.start()

    def ended(self, patience: float) -> bool:
        """Wait for the end for so many seconds; tell whether it has come."""
        return self._ended.wait(patience)

    def cancel(self) -> None:
        """Have PostgreSQL stop, and wait until it has."""
        while not self._ended.wait(_LOOK):
            self._direct.cancel()

    def check(self) -> None:
        """Raise what went wrong."""
        if isinstance(self._error, psycopg.Error | KronosError):
            raise ChangeFailedError(str(self._error), metadata={"why": _said(self._error).rstrip(".")}) from self._error
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._direct.run(self._statement)
        except BaseException as error:  # noqa: BLE001  # raised by `check` on the thread that waits
            self._error = error
        finally:
            self._ended.set()


def _check(active: Callable[[], bool]) -> None:
    if not active():
        raise ChangeFailedError("the caller left", metadata={"why": "the caller left"})


def _said(error: BaseException) -> str:
    """Return what PostgreSQL said, without the values that its details may quote."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, psycopg.Error) and cause.diag.message_primary:
            return cause.diag.message_primary
        cause = cause.__cause__
    if isinstance(error, GeneratorExit):
        return "The caller left."
    return str(error)


def _change(*row: Any) -> Change:
    change = Change(*row)
    before = {query: Mean(*mean) for query, mean in json.loads(row[11]).items()}
    return replace(change, kind=Kind(row[2]), state=ChangeState(row[9]), before=before)
