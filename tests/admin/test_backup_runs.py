"""Runs: done once in a fleet, begun anew by the next holder, never two that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from kronos_db import schemas
from kronos_db.admin.backup_domain import Backups
from kronos_db.admin.backup_runs import (
    NewRun,
    Run,
    RunActiveError,
    RunInterruptedError,
    excludes,
    failure_of,
)
from kronos_db.admin.backup_store import BackupStore
from kronos_db.backup.model import BackupDamagedError
from kronos_db.config import Settings
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.identifiers import uuid7_text
from tests.admin.scripted_engine import ScriptedEngine
from tests.parts.domain import LIMIT, new_database, settings_of
from tests.parts.eventually import eventually

NOW = datetime.now(UTC)


class Host:
    """Processes of one fleet, each with a pool of its own, on one engine and one clock."""

    def __init__(self, stack: ExitStack, settings: Any, folder: Path) -> None:
        self.engine = ScriptedEngine()
        self.time = NOW
        self.renewed: list[str] = []
        self._stack = stack
        self._settings = settings
        self._folder = folder
        self.store = BackupStore(self._opened())

    def process(self) -> Backups:
        backups = Backups(
            self._opened(),
            self.engine,
            renew={"users": lambda: self.renewed.append("users")},
            restore_folder=self._folder / "restored",
            registry=CollectorRegistry(),
            release=lambda: None,
            clock=lambda: self.time,
        )
        self._stack.callback(end, backups)
        for work in backups.works:
            work.start()
        return backups

    def _opened(self) -> Database:
        database = schemas.open_database(self._settings, "admin")
        self._stack.callback(database.pool.close)
        return database

    def ask(self, run_kind: Any, **request: Any) -> str:
        run = NewRun(uuid7_text(), run_kind, request)
        self.store.add_scheduled(run)
        return run.id

    def run(self, run_id: str) -> Run:
        [run] = self.store.get_many([run_id])
        return run

    def over(self, run_id: str) -> Run:
        eventually(lambda: self.run(run_id).is_over, LIMIT, lambda: self.run(run_id))
        return self.run(run_id)


def end(backups: Backups) -> None:
    backups.following.close()
    backups.stop()
    for work in backups.works:
        work.stop()


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """One for all tests here, each of which begins with no runs and no schedule."""
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def settings(database: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    made = settings_of(tmp_path_factory.mktemp("runs"), database)
    schemas.migrate(made, lambda _domain, _name: None)
    return made


@pytest.fixture
def host(database: str, settings: Settings, tmp_path: Path) -> Iterator[Host]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("TRUNCATE admin.backup_run, admin.backup_summary, admin.lease")
        connection.execute(
            "UPDATE admin.backup_policy SET full_schedule = '', incremental_schedule = '', drill_schedule = ''"
        )
    with ExitStack() as stack:
        yield Host(stack, settings, tmp_path)


def test_what_excludes_what() -> None:
    assert excludes("create", "create")
    assert excludes("delete", "verify")
    assert excludes("restore", "retain")
    assert not excludes("create", "restore")
    assert not excludes("restore", "verify")


def test_a_run_is_done_once_though_there_are_two_processes(host: Host) -> None:
    host.process()
    host.process()
    run = host.over(host.ask("create", kind="full", label="by hand"))
    assert run.state == "done"
    assert run.result is not None
    assert run.result["backup"]["label"] == "by hand"
    assert host.engine.begun.count("create") == 1


def test_two_that_exclude_each_other_are_never_under_way_together(host: Host) -> None:
    host.engine.gate.clear()
    host.process()
    first = host.ask("create")
    eventually(lambda: host.run(first).state == "running", LIMIT)
    with pytest.raises(RunActiveError) as refused:
        host.ask("create")
    assert refused.value.metadata == {"kind": "create", "run_id": first}
    with pytest.raises(RunActiveError):
        host.ask("delete", id="x")
    host.engine.gate.set()
    assert host.over(first).state == "done"


def test_a_backup_that_is_asked_for_during_retention_waits_for_its_end(host: Host) -> None:
    host.engine.gate.clear()
    host.process()
    retention = host.ask("retain")
    eventually(lambda: host.run(retention).state == "running", LIMIT)
    backup = host.ask("create")
    eventually(lambda: "retain" in host.engine.begun, LIMIT)
    assert host.run(backup).state == "waiting"
    host.engine.gate.set()
    assert host.over(retention).state == "done"
    assert host.over(backup).state == "done"


def test_progress_is_told_while_it_lasts(host: Host) -> None:
    host.engine.gate.clear()
    host.process()
    run_id = host.ask("create")
    eventually(lambda: (host.run(run_id).progress or {}).get("step") == "copy", LIMIT, lambda: host.run(run_id))
    progress = host.run(run_id).progress
    assert progress == {
        "step": "copy",
        "bytes_done": 250,
        "bytes_total": 1000,
        "bytes_per_second": 100.0,
        "time_left": "7.500s",
        "backup_id": "backup-x",
    }
    host.engine.gate.set()
    host.over(run_id)


def test_a_process_that_stops_leaves_its_run_to_the_next(host: Host) -> None:
    host.engine.gate.clear()
    first = host.process()
    run_id = host.ask("create")
    eventually(lambda: "create" in host.engine.begun, LIMIT)
    host.process()
    end(first)
    assert host.engine.ended_early == ["create"]
    assert not host.run(run_id).is_over
    host.engine.gate.set()
    run = host.over(run_id)
    assert (run.state, run.attempt) == ("done", 2)
    assert host.engine.begun.count("create") == 2


def test_a_run_whose_holder_died_is_begun_anew_but_not_for_ever(host: Host, database: str) -> None:
    run_id = host.ask("create")
    with psycopg.connect(database, autocommit=True) as connection:
        # As a process that was killed leaves it: under a fence before that of any holder to come.
        connection.execute("UPDATE admin.backup_run SET state = 'running', fence = 0, attempt = 5")
    host.process()
    run = host.over(run_id)
    assert run.state == "failed"
    assert isinstance(failure_of(run), RunInterruptedError)
    assert "create" not in host.engine.begun


def test_bringing_a_domain_back_is_not_done_twice(host: Host, database: str) -> None:
    run_id = host.ask("restore", target={"latest": True}, domain="users")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE admin.backup_run SET state = 'running', fence = 0, attempt = 1")
    host.process()
    run = host.over(run_id)
    assert isinstance(failure_of(run), RunInterruptedError)
    # It may have been done: then copies are old.
    assert host.renewed == ["users"]
    assert "restore users" not in host.engine.begun


def test_a_failure_is_the_same_in_every_process(host: Host) -> None:
    host.engine.failures.append(BackupDamagedError("base.0007 is not what it was"))
    host.process()
    run = host.over(host.ask("verify", id="b", drill=False))
    error = failure_of(run)
    assert isinstance(error, BackupDamagedError)
    assert error.metadata == {"run_id": run.id, "detail": "base.0007 is not what it was"}


def test_retention_follows_a_backup(host: Host) -> None:
    host.process()
    host.over(host.ask("create"))
    eventually(lambda: "retain" in host.engine.begun, LIMIT)


def set_policy(database: str, full: str, incremental: str = "", drill: str = "") -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "UPDATE admin.backup_policy SET full_schedule = %s, incremental_schedule = %s, drill_schedule = %s, "
            "update_time = %s, last_full = NULL",
            [full, incremental, drill, NOW],
        )


def test_the_schedule_asks_at_its_times(host: Host, database: str) -> None:
    set_policy(database, "0 2 * * *", drill="0 4 * * *")
    host.process()
    eventually(lambda: len(host.engine.backups) == 1, LIMIT)
    eventually(lambda: host.store.policy().done.full == NOW, LIMIT)
    assert not host.store.active() or host.store.active()[0].kind == "retain"
    host.time = NOW + timedelta(days=1)
    eventually(lambda: len(host.engine.backups) == 2, LIMIT)
    eventually(lambda: "drill" in host.engine.begun, LIMIT)
    eventually(lambda: host.store.policy().done.drill == host.time, LIMIT)


def test_what_failed_a_moment_ago_is_not_begun_again_at_once(host: Host, database: str) -> None:
    host.engine.failures.append(BackupDamagedError("no"))
    set_policy(database, "0 2 * * *")
    host.process()
    eventually(lambda: host.store.policy().held_back == ["full"], LIMIT)
    # Later work of the same holder shows that it had its chance.
    host.over(host.ask("verify", id="b", drill=False))
    assert host.engine.begun == ["create", "verify"]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE admin.backup_run SET end_time = end_time - interval '11 minutes'")
    eventually(lambda: host.engine.begun.count("create") == 2, LIMIT)


def test_wal_is_archived_by_one_process_at_a_time(host: Host) -> None:
    first = host.process()
    eventually(lambda: host.engine.archiving == 1, LIMIT)
    host.process()
    end(first)
    eventually(lambda: host.engine.archiving == 1, LIMIT)


def test_what_was_found_is_told_to_every_process(host: Host) -> None:
    host.process()
    host.over(host.ask("create"))

    def found() -> Any:
        summary = host.store.summary()
        return summary and summary[0].get("last_backup_time")

    eventually(found, LIMIT)
    summary = host.store.summary()
    assert summary is not None
    told, age = summary
    assert told["recovery_seconds"] == 1.5
    assert told["gaps"] == 0
    assert told["restorable_until"] >= told["last_backup_time"]
    assert age < LIMIT
