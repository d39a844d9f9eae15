"""Runs, policy and summary of backups in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from kronos_db.admin.backup_runs import NewRun, PolicyEtagMismatchError, Run, RunActiveError, refuses
from kronos_db.admin.backup_schedule import Done
from kronos_db.backup.as_json import Json
from kronos_db.backup.model import Policy
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import ConflictError, FieldViolation

QUERIES = Path(__file__).with_name("backups.sql")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class KeptPolicy:
    """The policy as it is kept: with its version, and what was done of it. What failed a moment ago is held back."""

    policy: Policy
    version: int
    update_time: datetime
    done: Done
    held_back: Sequence[str]


class BackupStore:
    """What all processes know of backups. The backups themselves are in the destination."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._queries = load_queries(QUERIES, "admin")

    def add(self, run: NewRun, mutation: Mutation[str, Reply], check: Callable[[], object]) -> Reply:
        """Write down a run that somebody asked for. Raises RunActiveError, and what `check` raises.

        A repeat of the call gets the first answer, whatever `check` would say by now.
        """

        def work(tx: Transaction) -> str:
            check()
            self._add(tx, run)
            return run.id

        return self.database.write(work, mutation)

    def add_scheduled(self, run: NewRun) -> None:
        """Write down a run that is due by itself. Raises RunActiveError."""
        self.database.transact(lambda tx: self._add(tx, run))

    def get_many(self, ids: Sequence[str]) -> list[Run]:
        """Return the runs that have one of `ids`."""
        return self.database.fetch_all(self._queries["get_many"], {"ids": list(ids)}, Run)

    def active(self) -> list[Run]:
        """Return the runs that are not over."""
        return self.database.fetch_all(self._queries["active"], {}, Run)

    def open(self, fence: int) -> list[Run]:
        """Return the runs that the holder with this fence is to take up."""
        return self.database.fetch_all(self._queries["open"], {"fence": fence}, Run)

    def take(self, run: Run, fence: int) -> bool:
        """Take a run up; False when somebody else did."""
        return self.database.execute(self._queries["take"], {"id": run.id, "fence": fence}) == 1

    def tell(self, run: Run, fence: int, progress: Json) -> bool:
        """Note how far a run has come; False when it is no longer that of this holder."""
        params = {"id": run.id, "fence": fence, "progress": json.dumps(progress)}
        return self.database.execute(self._queries["tell"], params) == 1

    def finish(self, run: Run, fence: int, result: Json) -> None:
        """Note what came of a run."""
        self._finish(run, fence, {"state": "done", "result": json.dumps(result), "failure": "", "detail": ""})

    def fail(self, run: Run, fence: int, failure: str, detail: str) -> None:
        """Note why nothing came of a run: the name of the exception, and its text."""
        self._finish(run, fence, {"state": "failed", "result": None, "failure": failure, "detail": detail})

    def put_back(self, run: Run, fence: int, seconds: float) -> None:
        """Let a run be begun anew in so many seconds."""
        self.database.execute(self._queries["put_back"], {"id": run.id, "fence": fence, "seconds": seconds})

    def forget(self) -> None:
        """Remove what ended long ago."""
        self.database.execute(self._queries["forget"], {})

    def policy(self) -> KeptPolicy:
        """Return the policy."""
        found = self.database.fetch_one(self._queries["policy"], {}, _kept)
        if found is None:
            raise ConflictError("the row of backup_policy was deleted")
        return found

    def set_policy(self, policy: Policy, version: int | None, mutation: Mutation[KeptPolicy, Reply]) -> Reply:
        """Change the policy. Raises PolicyEtagMismatchError."""

        def work(tx: Transaction) -> KeptPolicy:
            current = tx.fetch_one(self._queries["lock"], {}, int)
            if version is not None and version != current:
                raise PolicyEtagMismatchError(violations=[FieldViolation("policy.etag", "is not the current one")])
            params: dict[str, Any] = {
                name: getattr(policy, name)
                for name in ("full_schedule", "incremental_schedule", "drill_schedule", "keep_count", "keep_age")
            }
            tx.execute(self._queries["set_policy"], params)
            kept = tx.fetch_one(self._queries["policy"], {}, _kept)
            if kept is None:
                raise ConflictError("the row of backup_policy was deleted")
            return kept

        return self.database.write(work, mutation)

    def summary(self) -> tuple[Json, float] | None:
        """Return what was last found in the destination and how many seconds ago, None before somebody looked."""
        return self.database.fetch_one(self._queries["summary"], {}, lambda summary, age: (summary, age))

    def set_summary(self, summary: Json) -> None:
        """Note what was found in the destination."""
        self.database.execute(self._queries["set_summary"], {"summary": json.dumps(summary)})

    def _add(self, tx: Transaction, run: NewRun) -> None:
        tx.fetch_one(self._queries["lock"], {}, int)
        for other in tx.fetch_all(self._queries["active"], {}, Run):
            if refuses(run.kind, other.kind):
                raise RunActiveError(metadata={"kind": other.kind, "run_id": other.id})
        params = {
            "id": run.id,
            "kind": run.kind,
            "task": run.task,
            "due": run.due,
            "request": json.dumps(run.request),
        }
        tx.execute(self._queries["add"], params)

    def _finish(self, run: Run, fence: int, values: dict[str, Any]) -> None:
        self.database.execute(self._queries["finish"], {"id": run.id, "fence": fence, **values})


def _kept(  # noqa: PLR0917  # the columns of the row
    full: str,
    incremental: str,
    drill: str,
    count: int | None,
    age: timedelta | None,
    version: int,
    update_time: datetime,
    last_full: datetime | None,
    last_incremental: datetime | None,
    last_drill: datetime | None,
    created: datetime | None,
    retained: datetime | None,
    held_back: Sequence[str],
) -> KeptPolicy:
    done = Done(last_full, last_incremental, last_drill, update_time, created, retained)
    return KeptPolicy(Policy(full, incremental, drill, count, age), version, update_time, done, held_back)
