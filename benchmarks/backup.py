"""The rows of backups: beside PostgreSQL's own programs on the same disk, and what serving notices."""

from __future__ import annotations

import base64
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from kronos.users.v1 import users_pb2 as pb

from benchmarks.load import Outcome
from benchmarks.stand import Row, Stand, at_least, at_most, settle, stand
from kronos_db.backup.engine import finish
from kronos_db.backup.model import Kind, RestoreRequest, Step
from kronos_db.backup.postgres import PostgresEngine, Setup
from kronos_db.backup.programs import Programs, connection
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.crypto.master_key import create_master_key_file

_ROWS = 1_000_000
# Random bytes of a row: with base64 and headers it has 1 KiB, of which a quarter can be compressed.
_ROW_BYTES = 720
_ROUNDS = 3
_USERS = 1_000
_IN_FLIGHT = 8
_LOAD_SECONDS = 5.0
_GET = "/kronos.users.v1.UsersService/GetUser"


def rows() -> Iterator[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="kronos-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = EmbeddedPostgres(folder / "postgres")
        postgres.start()
        try:
            _fill(postgres.dsn)
            yield from _beside_programs(folder, postgres)
        finally:
            postgres.stop("immediate")
    yield from _while_serving()


def _beside_programs(folder: Path, postgres: EmbeddedPostgres) -> Iterator[Row]:
    place = _Place(folder, postgres.dsn)
    size = _megabytes(postgres.dsn)
    ours, plain = _in_turn(place.full, place.plain_full)
    yield at_least("backup: full, of 1 GB, beside pg_basebackup", size / ours, "MB/s", size / plain, 0.7)
    with psycopg.connect(postgres.dsn, autocommit=True) as live:
        live.execute("UPDATE filling SET body = reverse(body) WHERE id < %s", [_ROWS // 100])
    incremental = place.incremental()
    place.plain_incremental()
    yield at_most("backup: incremental after 1 % of the rows changed, beside a full one", incremental, "s", ours, 0.3)
    restored, combined = _in_turn(place.restore, place.combine)
    yield at_most("backup: restore of a chain of two, beside copy and pg_combinebackup", restored, "s", combined, 1.5)


def _while_serving() -> Iterator[Row]:
    with stand() as on, tempfile.TemporaryDirectory(prefix="kronos-bench-") as name:
        dsn = on.settings.postgres_dsn
        assert dsn is not None
        _fill(dsn.get_secret_value())
        requests = [pb.GetUserRequest(id=each).SerializeToString() for each in _create_users(on)]
        place = _Place(Path(name), dsn.get_secret_value())

        def load() -> Outcome:
            return on.load(_GET, requests, _LOAD_SECONDS, _IN_FLIGHT)

        load()
        alone, meanwhile = [], []
        for _ in range(_ROUNDS):
            settle()
            alone.append(load().p99_ms)
            with _backing_up(place):
                meanwhile.append(load().p99_ms)
        yield at_most(
            "backup: GetUser by id while a full backup is made, p99",
            statistics.median(meanwhile),
            "ms",
            statistics.median(alone),
            1.5,
        )


class _Place:
    """Backups of one database by the engine, and plain ones by PostgreSQL's programs, in one folder."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self._folder = folder
        self._dsn = dsn
        self._programs = Programs()
        create_master_key_file(folder / "master.key")
        self._engine = PostgresEngine(Setup(str(folder / "backups"), folder / "master.key", folder / "scratch", dsn))

    def full(self) -> None:
        """Make a full backup, durable; what is done once it is COMPLETE is not measured."""
        self._create(Kind.FULL)

    def incremental(self) -> float:
        """Make an incremental backup and return the seconds."""
        return _seconds(lambda: self._create(Kind.INCREMENTAL))

    def plain_full(self) -> None:
        """Run pg_basebackup."""
        shutil.rmtree(self._folder / "plain0", ignore_errors=True)
        self._base_backup("plain0")

    def plain_incremental(self) -> None:
        """Run pg_basebackup on top of that."""
        self._base_backup("plain1", f"--incremental={self._folder / 'plain0' / 'backup_manifest'}")

    def restore(self) -> None:
        """Restore the chain, without recovery."""
        shutil.rmtree(self._folder / "restored", ignore_errors=True)
        finish(self._engine.restore(RestoreRequest(self._folder / "restored", recover=False)))

    def combine(self) -> None:
        """Copy the plain backups from where they lie and combine them."""
        for name in ("copied0", "copied1", "combined"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for number in ("0", "1"):
            source, copy = (str(self._folder / f"{name}{number}") for name in ("plain", "copied"))
            subprocess.run(["cp", "-r", source, copy], check=True)
        folders = [str(self._folder / name) for name in ("copied0", "copied1")]
        self._programs.run("pg_combinebackup", f"--output={self._folder / 'combined'}", *folders)

    def _create(self, kind: Kind) -> None:
        work = self._engine.create(kind)
        while next(work).step is not Step.FINGERPRINT:
            pass
        work.close()

    def _base_backup(self, name: str, *more: str) -> None:
        info, environment = connection(self._dsn)
        arguments = [f"--dbname={info}", f"--pgdata={self._folder / name}", "--checkpoint=fast", *more]
        self._programs.run("pg_basebackup", *arguments, environment=environment)


@contextmanager
def _backing_up(place: _Place) -> Iterator[None]:
    """Make full backups, one after the other, until this ends."""
    ended = threading.Event()

    def make() -> None:
        while not ended.is_set():
            place.full()

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _fill(dsn: str) -> None:
    print("filling 1 GB", file=sys.stderr)
    with psycopg.connect(dsn) as live:
        live.execute("CREATE TABLE filling (id int PRIMARY KEY, body text NOT NULL)")
        with live.cursor().copy("COPY filling FROM STDIN") as copy:
            for number in range(_ROWS):
                body = base64.b64encode(os.urandom(_ROW_BYTES)).decode()
                copy.write_row((number, body))
    with psycopg.connect(dsn, autocommit=True) as live:
        # Else autovacuum does it some time later, and every page is one that changed.
        live.execute("VACUUM (FREEZE, ANALYZE) filling")


def _create_users(on: Stand) -> list[str]:
    users = [pb.User(username=f"user{number}", email=f"user{number}@example.org") for number in range(_USERS)]
    request = pb.BatchCreateUsersRequest(users=users, request_id=str(uuid.uuid4()))
    return [user.id for user in on.users.BatchCreateUsers(request, metadata=on.metadata).users]


def _megabytes(dsn: str) -> float:
    with psycopg.connect(dsn) as live:
        row = live.execute("SELECT sum(pg_database_size(oid)) FROM pg_database").fetchone()
    assert row is not None
    return float(row[0]) / 1e6


def _in_turn(ours: Callable[[], None], floor: Callable[[], None]) -> tuple[float, float]:
    """Measure both in turn, and return the seconds of each in the middle."""
    found = [(_seconds(ours), _seconds(floor)) for _ in range(_ROUNDS)]
    return statistics.median(each[0] for each in found), statistics.median(each[1] for each in found)


def _seconds(work: Callable[[], None]) -> float:
    # What the one before left to be written is not its successor's.
    os.sync()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
