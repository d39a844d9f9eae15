"""Indexes are changed one at a time, nothing half-done stays, and what does not help is undone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kronos_db.admin.advice import Advice, Kind
from kronos_db.admin.change_store import ChangeStore
from kronos_db.admin.changes import (
    Change,
    ChangeFailedError,
    ChangeRunningError,
    ChangeState,
    Mean,
    NotOwnerError,
    judge,
)
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.background import Held
from kronos_db.runtime.errors import RequestIdReusedError
from kronos_db.runtime.identifiers import uuid7
from tests.parts.domain import LIMIT, new_database, opened, settings_of
from tests.parts.eventually import eventually

NAME = "kronos_adv_users_display_name"
CREATE = f'CREATE INDEX CONCURRENTLY "{NAME}" ON "users"."users" USING btree ("display_name")'
DROP = f'DROP INDEX CONCURRENTLY IF EXISTS "users"."{NAME}"'
ADVICE = Advice(Kind.MISSING, "users", "users", NAME, CREATE, DROP, "")
REBUILD = Advice(Kind.BLOATED, "users", "users", NAME, f'REINDEX INDEX CONCURRENTLY "users"."{NAME}"', "", "")
HELD = Held(1, lambda: True)


class World:
    """A migrated database, its owner, and the store of changes."""

    def __init__(self, dsn: str, folder: Path, store: ChangeStore) -> None:
        self.dsn = dsn
        self.folder = folder
        self.store = store

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def indexes(self) -> dict[str, bool]:
        """The indexes of the table that are not of its migrations, and whether they are valid."""
        found = self.run(
            "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
            f" WHERE relname LIKE '{NAME}%'"
        )
        return {str(name): bool(valid) for name, valid in found}

    def apply(self, advice: Advice = ADVICE, change_id: UUID | None = None, **changes: Any) -> Change:
        options: dict[str, Any] = {"caller": "ann", "before": {}, "lock_timeout": 10.0, **changes}
        *_, last = self.store.apply(change_id or uuid7(), advice, **options)
        assert last.change is not None
        return last.change

    def settle(self, means: Mapping[str, Mean] | None = None) -> None:
        self.store.settle(HELD, timedelta(0), lambda _domain, _after, _until: means or {})

    def state_of(self, change_id: UUID) -> ChangeState | None:
        change = self.store.get(change_id)
        return change and change.state

    @contextmanager
    def writer(self) -> Iterator[None]:
        """A transaction that writes the table for as long as it lasts: every build waits for it."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute("LOCK TABLE users.users IN ROW EXCLUSIVE MODE")
            yield

    @contextmanager
    def applying(self, advice: Advice, change_id: UUID) -> Iterator[subprocess.Popen[bytes]]:
        """A process that applies an advice."""
        job = {
            "dsn": self.dsn,
            "folder": str(self.folder / str(change_id)),
            "id": str(change_id),
            "kind": advice.kind.value,
            "index": advice.index,
            "statement": advice.statement,
        }
        command = [sys.executable, "-m", "tests.admin.index_apply", json.dumps(job)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def made(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("changes")
    with new_database(postgres) as dsn, opened(settings_of(folder, dsn), "admin") as database:
        yield World(dsn, folder, ChangeStore(database, {"users": dsn}, dsn))


@pytest.fixture
def world(made: World) -> World:
    for name in made.indexes():
        made.run(f'DROP INDEX users."{name}"')
    made.run("TRUNCATE admin.index_changes")
    return made


def test_an_index_is_made_and_taken_back(world: World) -> None:
    change = world.apply()
    assert (change.state, change.caller, world.indexes()) == (ChangeState.DONE, "ann", {NAME: True})
    undone = world.apply(replace(ADVICE, kind=Kind.UNUSED, statement=DROP, undo=CREATE))
    assert (undone.state, world.indexes()) == (ChangeState.DONE, {})
    assert [each.id for each in world.store.list_page(None, 10)] == [undone.id, change.id]
    assert [each.id for each in world.store.list_page((undone.create_time, undone.id), 10)] == [change.id]


@pytest.mark.parametrize("advice", [ADVICE, REBUILD], ids=["create", "reindex"])
def test_what_a_killed_process_has_left_is_found_and_removed(world: World, advice: Advice) -> None:
    if advice is REBUILD:
        world.run(CREATE)
    change_id = uuid7()
    with world.writer(), world.applying(advice, change_id) as process:
        eventually(lambda: False in world.indexes().values(), LIMIT)
        with pytest.raises(ChangeRunningError):
            world.apply()
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT)
        # The backend notices that its client is gone, and what it was building stays, not valid.
        eventually(lambda: not _building(world), LIMIT)
        assert False in world.indexes().values()
        assert world.state_of(change_id) is ChangeState.RUNNING
    world.settle()
    assert world.state_of(change_id) is ChangeState.FAILED
    assert world.indexes() == ({NAME: True} if advice is REBUILD else {})


def _building(world: World) -> bool:
    return bool(
        world.run(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'kronos-db:index'"
            " AND datname = current_database()"
        )
    )


def test_the_next_change_clears_away_what_a_killed_process_has_left(world: World) -> None:
    with world.writer(), world.applying(ADVICE, uuid7()) as process:
        eventually(lambda: False in world.indexes().values(), LIMIT)
        process.kill()
        process.wait(LIMIT)
        eventually(lambda: not _building(world), LIMIT)
    assert world.apply().state is ChangeState.DONE
    assert world.indexes() == {NAME: True}


def test_a_build_that_postgres_ends_leaves_nothing(world: World) -> None:
    change_id = uuid7()
    with world.writer():
        failed: list[BaseException] = []

        def apply() -> None:
            try:
                world.apply(change_id=change_id)
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        thread = threading.Thread(target=apply)
        thread.start()
        eventually(lambda: False in world.indexes().values(), LIMIT)
        world.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kronos-db:index'"
            " AND datname = current_database() AND query LIKE 'CREATE INDEX%'"
        )
        eventually(lambda: not any(world.run("SELECT 1 FROM pg_stat_progress_create_index")), LIMIT)
    thread.join(LIMIT)
    assert isinstance(failed[0], ChangeFailedError)
    assert (world.state_of(change_id), world.indexes()) == (ChangeState.FAILED, {})


def test_who_leaves_takes_the_build_along(world: World) -> None:
    change_id = uuid7()
    steps: list[int] = []

    def active() -> bool:
        steps.append(1)
        return len(steps) < 3

    with world.writer():
        thread = threading.Thread(target=lambda: _suppressed(world, change_id, active))
        thread.start()
        eventually(lambda: len(steps) >= 3, LIMIT)
        eventually(lambda: not any(world.run("SELECT 1 FROM pg_stat_progress_create_index")), LIMIT)
    thread.join(LIMIT)
    assert (world.state_of(change_id), world.indexes()) == (ChangeState.FAILED, {})


def _suppressed(world: World, change_id: UUID, active: Any) -> None:
    with suppress(ChangeFailedError):
        world.apply(change_id=change_id, active=active)


def test_a_lock_is_waited_for_no_longer_than_was_said(world: World) -> None:
    change_id = uuid7()
    with psycopg.connect(world.dsn) as connection:
        connection.execute("LOCK TABLE users.users IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(ChangeFailedError, match="lock timeout"):
            world.apply(change_id=change_id, lock_timeout=0.2)
        change = world.store.get(change_id)
    assert change is not None
    assert change.state is ChangeState.FAILED
    assert "lock timeout" in change.detail


def test_a_table_of_somebody_else_is_refused(world: World) -> None:
    with pytest.raises(NotOwnerError):
        world.apply(replace(ADVICE, table="none"))
    assert world.store.list_page(None, 10) == []


def test_a_request_id_stands_for_one_change(world: World) -> None:
    change_id = uuid7()
    world.apply(change_id=change_id)
    earlier = world.store.earlier(change_id, ADVICE.id)
    assert earlier is not None
    assert earlier.state is ChangeState.DONE
    with pytest.raises(RequestIdReusedError):
        world.store.earlier(change_id, REBUILD.id)
    assert world.store.earlier(uuid7(), ADVICE.id) is None


@pytest.mark.parametrize(
    ("after", "state", "indexes"),
    [
        (Mean(50, 9.5), ChangeState.UNDONE, {}),
        (Mean(50, 1.0), ChangeState.KEPT, {NAME: True}),
        # Too few calls to tell.
        (Mean(3, 1.0), ChangeState.DONE, {NAME: True}),
    ],
)
def test_what_does_not_help_is_undone(
    world: World, after: Mean, state: ChangeState, indexes: Mapping[str, bool]
) -> None:
    change = world.apply(before={"7": Mean(100, 10.0)})
    world.settle({"7": after})
    assert world.state_of(UUID(change.id)) is state
    assert world.indexes() == indexes


def test_an_index_that_is_missed_comes_back(world: World) -> None:
    world.run(CREATE)
    dropped = world.apply(replace(ADVICE, kind=Kind.UNUSED, statement=DROP, undo=CREATE), before={"7": Mean(100, 1.0)})
    world.settle({"7": Mean(100, 1.2)})
    assert (world.state_of(UUID(dropped.id)), world.indexes()) == (ChangeState.DONE, {})
    world.settle({"7": Mean(100, 40.0)})
    assert (world.state_of(UUID(dropped.id)), world.indexes()) == (ChangeState.UNDONE, {NAME: True})


def test_a_change_without_a_way_back_is_kept() -> None:
    now = datetime.now(UTC)
    change = Change("", "", Kind.BLOATED, "", "", "", "", "", "", ChangeState.DONE, "", {}, now, now)
    verdict = judge(change, {})
    assert verdict is not None
    assert verdict.keep
