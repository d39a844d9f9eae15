"""The archive of WAL: nothing acknowledged is lost, and what is missing shows."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from kronos_db.backup.engine import finish
from kronos_db.backup.model import AtBackup, BackupBusyError, Kind
from kronos_db.embedded import processes
from tests.backup.conftest import fill, names
from tests.parts.backups import Make, Protected
from tests.parts.eventually import eventually

SOAK = os.environ.get("KRONOS_TEST_SOAK") == "1"
RUNS = 20 if SOAK else 3
WRITERS = 4
ENOUGH = 100
LIMIT = 30.0
PROMPT = 4.0


class Load:
    """Writers that note which of their writes were acknowledged, and when, until the database is gone."""

    def __init__(self, protected: Protected, run: int) -> None:
        self.acknowledged: list[tuple[str, float]] = []
        self._dsn = protected.postgres.dsn
        self._threads = [threading.Thread(target=self._write, args=(f"{run}-{number}",)) for number in range(WRITERS)]

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            for thread in self._threads:
                thread.join(LIMIT)

    def _write(self, name: str) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                for number in range(1_000_000):
                    key = f"{name}-{number}"
                    connection.execute("INSERT INTO written VALUES (%s)", [key])
                    self.acknowledged.append((key, time.monotonic()))
        except psycopg.Error:
            return


def kill(protected: Protected) -> float:
    """Kill every process of the server at once; return when."""
    pid = protected.postgres.pid
    assert pid is not None
    title = next(word for word in processes.command_line(pid).split() if "cluster_name=" in word).partition("=")[2]
    for each in (pid, *processes.marked(title)):
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return time.monotonic()


def written(protected: Protected, name: str) -> set[str]:
    protected.restore(name)
    with protected.restored(name) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM written")}


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_no_acknowledged_write_is_lost_with_the_primary(make: Make) -> None:
    """kill -9 under load; then nothing but destination and master key."""
    protected = make()
    protected.run("CREATE TABLE written (id text)")
    protected.receive(synchronous=True)
    protected.back_up()
    lost: list[set[str]] = []
    for run in range(RUNS):
        load = Load(protected, run)
        with load.until_the_end():
            eventually(lambda: len(load.acknowledged) > ENOUGH, LIMIT, lambda: protected.receiver_errors)  # noqa: B023
            kill(protected)
        protected.stop_receiving()
        lost.append({key for key, _ in load.acknowledged} - written(protected, f"run{run}"))
        protected.start()
        protected.receiver_errors.clear()
        protected.receive(synchronous=True)
    assert lost == [set()] * RUNS


def test_without_waiting_commits_only_the_last_moments_can_be_lost(make: Make) -> None:
    interval = 0.2
    # What a put takes, and a thread that has to wait for its turn on a busy machine.
    allowance = 1.0
    protected = make()
    protected.run("CREATE TABLE written (id text)")
    protected.receive(interval=interval)
    protected.back_up()
    load = Load(protected, 0)
    with load.until_the_end():
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 3 * (interval + allowance), LIMIT)
        killed = kill(protected)
    protected.stop_receiving()
    found = written(protected, "restored")
    safe = {key for key, at in load.acknowledged if at < killed - interval - allowance}
    assert len(safe) > ENOUGH
    assert safe <= found


def test_a_commit_waits_for_the_archive_when_it_is_to(make: Make) -> None:
    protected = make()
    protected.run("CREATE TABLE written (id text)")
    protected.receive(synchronous=True)
    assert protected.engine().archive_state().synchronous
    protected.stop_receiving()
    writer = threading.Thread(target=protected.run, args=("INSERT INTO written VALUES ('waits')",))
    writer.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    eventually(lambda: protected.one(waiting) == 1, LIMIT)
    assert writer.is_alive()
    protected.receive(synchronous=True)
    writer.join(LIMIT)
    assert not writer.is_alive()
    protected.run("INSERT INTO written VALUES ('goes on')")
    protected.stop_receiving()
    protected.receive(synchronous=False)
    eventually(lambda: protected.one("SHOW synchronous_standby_names") == "", LIMIT)


def test_a_second_receiver_is_refused(make: Make) -> None:
    protected = make()
    protected.receive()
    with pytest.raises(BackupBusyError):
        protected.engine().archive(threading.Event())


def test_small_pieces_become_whole_segments(make: Make) -> None:
    protected = make()
    protected.run("CREATE TABLE written (id text)")
    protected.receive(synchronous=True)
    protected.run(*(f"INSERT INTO written VALUES ('{number}')" for number in range(150)))
    wal = Path(protected.destination) / "wal"
    eventually(lambda: len(list(wal.rglob("*-*"))) < 70 + 20, LIMIT, lambda: len(list(wal.rglob("*-*"))))
    protected.run("SELECT pg_switch_wal()")
    began = time.monotonic()
    # Its WAL comes together with the end of the segment before.
    protected.run("INSERT INTO written VALUES ('last')")
    assert time.monotonic() - began < PROMPT
    protected.archived()
    whole = [path for path in wal.rglob("*-*") if path.name.startswith("0000000001000000-")]
    assert [path.name for path in whole] == ["0000000001000000-0000000002000000"]
    assert not protected.engine().archive_state().gaps


def test_a_gap_shows_when_the_server_had_to_give_up_wal(make: Make) -> None:
    protected = make(settings={"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
    protected.run("CREATE TABLE written (id text)")
    protected.receive()
    protected.back_up()
    protected.stop_receiving()
    for _ in range(6):
        protected.run("INSERT INTO written SELECT 'x' FROM generate_series(1, 1000)", "SELECT pg_switch_wal()")
    protected.run("CHECKPOINT")
    eventually(lambda: protected.engine().archive_state().slot_lost, LIMIT, protected.engine().archive_state)
    protected.receive()
    protected.run("INSERT INTO written VALUES ('after')")
    protected.archived()
    state = protected.engine().archive_state()
    assert state.gaps
    assert not state.slot_lost
    protected.back_up(Kind.FULL)
    protected.archived()
    protected.restore("latest")
    with protected.restored("latest") as connection:
        assert connection.execute("SELECT count(*) FROM written").fetchone() == (6001,)


def test_a_restored_database_goes_on_in_the_same_archive_on_its_own_timeline(make: Make) -> None:
    """Disaster, restore, go on: the first backup is a full one, and both pasts can be restored."""
    protected = make()
    fill(protected)
    protected.receive()
    first = protected.back_up()
    protected.run("INSERT INTO users.person (name) VALUES ('lost')")
    protected.archived()
    protected.stop()
    protected.restore("second/postgres", AtBackup(first.id))
    (protected.folder / "second" / "postgres" / "password").write_bytes(
        (protected.folder / "postgres" / "password").read_bytes()
    )
    second = Protected(protected.folder / "second", destination=protected.destination, key_file=protected.key_file)
    second.start()
    try:
        second.receive()
        again = second.back_up()
        assert (again.kind, again.timeline) == (Kind.FULL, 2)
        second.run("INSERT INTO users.person (name) VALUES ('kept')")
        assert second.back_up().kind is Kind.INCREMENTAL
        second.archived()
        state = second.engine().archive_state()
        assert (state.timeline, state.gaps) == (2, ())
        for backup in second.engine().list():
            report = finish(second.engine().verify(backup.id))
            assert report.sound, report.faults
        second.restore("latest")
        with second.restored("latest", protected.folder / "postgres") as connection:
            assert set(names(connection)) == {"PLAINTEXT-MARKER", "kept"}
        second.restore("past", timeline=1)
        with second.restored("past", protected.folder / "postgres") as connection:
            assert set(names(connection)) == {"PLAINTEXT-MARKER", "lost"}
    finally:
        second.stop()
