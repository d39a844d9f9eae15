"""kill -9 at every step: what is there afterwards is what was there before, or what was to be there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from kronos_db.backup.engine import finish
from kronos_db.backup.model import Kind, Policy, State
from kronos_db.embedded import processes
from tests.backup.conftest import fill
from tests.parts.backups import Make, Protected
from tests.parts.eventually import eventually

SOAK = os.environ.get("KRONOS_TEST_SOAK") == "1"
LIMIT = 60.0
# Runs work of an engine, and kills itself right before its Nth change of files (renames, links, removals, folders).
_CHILD = """
import os, signal, sys
from pathlib import Path
from kronos_db.backup.engine import finish
from kronos_db.backup.model import Kind, Policy, RestoreRequest
from kronos_db.backup.postgres import PostgresEngine, Setup
from datetime import datetime, UTC
what, destination, key_file, scratch, dsn, target, left = sys.argv[1:]
left = int(left)
def watch(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "subprocess.Popen"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
engine = PostgresEngine(Setup(destination, Path(key_file), Path(scratch), dsn))
sys.addaudithook(watch)
if what == "create":
    finish(engine.create(Kind.FULL))
elif what == "retain":
    engine.retain(Policy(keep_count=1, keep_age=None), datetime.now(UTC))
else:
    finish(engine.restore(RestoreRequest(Path(target))))
"""


def killed(protected: Protected, what: str, target: Path, step: int) -> bool:
    """Run `what` and return whether it was killed at `step`; else it came to its end."""
    arguments = [protected.destination, protected.key_file, protected.folder, protected.postgres.dsn, target, step]
    done = subprocess.run([sys.executable, "-c", _CHILD, what, *map(str, arguments)], check=False, timeout=LIMIT)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def clean_a_day_later(protected: Protected) -> None:
    """Let retention find what killed processes left as it is after a day: only then it is nobody's."""
    retain = Policy(keep_count=99)
    for _ in range(2):
        protected.engine().retain(retain, datetime.now(UTC))
        for path in (Path(protected.destination) / "backups").rglob("*"):
            os.utime(path, (0, 0))
    protected.engine().retain(retain, datetime.now(UTC))


def kept_folders(protected: Protected) -> set[str]:
    return {path.name for path in (Path(protected.destination) / "backups").iterdir()}


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_backup_that_is_killed_is_whole_or_not_there(make: Make, tmp_path: Path) -> None:
    protected = make()
    fill(protected)
    first = protected.back_up()
    step = 0
    whole = set()
    while True:
        step += 1 if SOAK else 4
        was_killed = killed(protected, "create", tmp_path, step)
        states = {backup.id: backup.state for backup in protected.engine().list()}
        assert states[first.id] is State.COMPLETE
        assert set(states.values()) <= {State.COMPLETE, State.FAILED}
        whole |= {backup_id for backup_id, state in states.items() if state is State.COMPLETE}
        # What died with it holds no lock.
        eventually(lambda: not processes.marked("--pgdata=-"), LIMIT)
        if not was_killed:
            break
    assert step > 10
    for backup_id in whole:
        assert finish(protected.engine().verify(backup_id)).sound
    assert len(whole) > 1
    clean_a_day_later(protected)
    assert {backup.id for backup in protected.engine().list()} == whole
    assert kept_folders(protected) == whole


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_retention_that_is_killed_leaves_whole_chains(make: Make, tmp_path: Path) -> None:
    protected = make()
    old = [protected.back_up(Kind.FULL), protected.back_up(Kind.INCREMENTAL)]
    kept = protected.back_up(Kind.FULL)
    step = 0
    while killed(protected, "retain", tmp_path, step := step + (1 if SOAK else 4)):
        for backup in protected.engine().list():
            assert finish(protected.engine().verify(backup.id)).sound
    assert step > 2 * len(old)
    assert [backup.id for backup in protected.engine().list()] == [kept.id]
    clean_a_day_later(protected)
    assert kept_folders(protected) == {kept.id}


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_restore_that_is_killed_leaves_nothing_or_all_at_its_target(make: Make, tmp_path: Path) -> None:
    protected = make()
    fill(protected)
    protected.back_up()
    protected.back_up(Kind.INCREMENTAL)
    target = tmp_path / "restored" / "data"
    # Most steps are removals of the members' thousand files: of those not every one is killed at.
    step, stride = 0, 1 if SOAK else 1200
    while killed(protected, "restore", target, step := step + (4 if step < 8 and not SOAK else stride)):
        assert not target.exists() or (target / "PG_VERSION").exists()
        if target.exists():
            break
    assert (target / "PG_VERSION").exists()
    assert step > 8
    with protected.restored("../restored", protected.folder / "postgres") as connection:
        found = connection.execute("SELECT count(*) FROM users.person").fetchone()
    with psycopg.connect(protected.postgres.dsn) as connection:
        assert found == connection.execute("SELECT count(*) FROM users.person").fetchone()
