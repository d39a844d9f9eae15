"""Restores: exactly what was wanted, or a refusal before anything was written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from kronos_db.backup.engine import finish
from kronos_db.backup.model import (
    ArchiveGapError,
    AtBackup,
    AtLsn,
    AtTime,
    BackupDamagedError,
    BackupError,
    BackupKeyError,
    BackupNotFoundError,
    BeforeTransaction,
    FolderInUseError,
    ForeignBackupError,
    Lsn,
    RestoreRequest,
    Step,
    TablesMismatchError,
    TargetUnreachableError,
)
from kronos_db.backup.postgres import PostgresEngine, Setup
from kronos_db.runtime.crypto.master_key import create_master_key_file
from tests.backup.conftest import ROWS, Chained, fill, names
from tests.parts.backups import Make

FIRST = {"PLAINTEXT-MARKER": ROWS}
SECOND = {**FIRST, "second": ROWS}
ALL = {**SECOND, "third": ROWS}


def test_the_latest_moment_is_restored_from_destination_and_master_key_alone(chained: Chained) -> None:
    protected = chained.protected
    restored = protected.restore("latest")
    assert restored.backup_id == chained.incremental.id
    assert restored.target_reached
    assert restored.timeline == 2
    assert restored.lsn == protected.engine().archive_state().last
    with protected.restored("latest") as connection:
        assert names(connection) == ALL
        assert connection.execute("SHOW restore_command").fetchone() == ("",)
    assert not list((protected.folder / "latest").glob(".data.*"))


@pytest.mark.parametrize(("which", "expected"), [("full", FIRST), ("incremental", SECOND)])
def test_a_named_backup_is_restored_as_it_was(chained: Chained, which: str, expected: dict[str, int]) -> None:
    backup = getattr(chained, which)
    chained.protected.restore(which, AtBackup(backup.id))
    with chained.protected.restored(which) as connection:
        assert names(connection) == expected


def test_a_restore_may_be_left_to_the_server_that_is_started_on_it(chained: Chained) -> None:
    restored = chained.protected.restore("waiting", recover=False)
    assert restored.lsn is None
    assert (restored.folder / "recovery.signal").exists()
    assert "kronos_db.backup.fetch" in (restored.folder / "postgresql.auto.conf").read_text()


def test_every_write_before_a_second_is_there_and_none_after(make: Make) -> None:
    """A writer says when each write began and was acknowledged; the times restored to lie in the middle of that."""
    protected = make()
    fill(protected)
    protected.run("CREATE TABLE users.mark (id int)")
    protected.receive()
    protected.back_up()
    writes: list[tuple[int, datetime, datetime]] = []
    # A second that begins in half of one or later.
    moment = (datetime.now(UTC) + timedelta(seconds=1.5)).replace(microsecond=0)
    with psycopg.connect(protected.postgres.dsn, autocommit=True) as connection:
        while datetime.now(UTC) < moment + timedelta(seconds=0.5):
            start = datetime.now(UTC)
            connection.execute("INSERT INTO users.mark VALUES (%s)", [len(writes)])
            writes.append((len(writes), start, datetime.now(UTC)))
    with psycopg.connect(protected.postgres.dsn, autocommit=True) as connection:
        xid = connection.execute("INSERT INTO users.mark VALUES (-1) RETURNING pg_current_xact_id()::text::bigint")
        [before] = xid.fetchone() or (0,)
        lsn = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        connection.execute("INSERT INTO users.mark VALUES (-2)")
    assert lsn is not None
    protected.archived()

    protected.restore("second", AtTime(moment))
    with protected.restored("second") as connection:
        found = {row[0] for row in connection.execute("SELECT id FROM users.mark")}
    must = {number for number, _, acknowledged in writes if acknowledged < moment}
    must_not = {number for number, start, _ in writes if start > moment}
    assert must
    assert must_not
    assert must <= found
    assert not found & must_not
    protected.restore("transaction", BeforeTransaction(before))
    with protected.restored("transaction") as connection:
        assert connection.execute("SELECT count(*), min(id) FROM users.mark").fetchone() == (len(writes), 0)
    protected.restore("lsn", AtLsn(Lsn.parse(lsn[0])))
    with protected.restored("lsn") as connection:
        assert connection.execute("SELECT count(*), min(id) FROM users.mark").fetchone() == (len(writes) + 1, -1)


def test_a_time_after_the_last_write_restores_all_and_says_that_the_archive_ended(chained: Chained) -> None:
    restored = chained.protected.restore("quiet", AtTime(datetime.now(UTC)))
    assert not restored.target_reached
    with chained.protected.restored("quiet") as connection:
        assert names(connection) == ALL


def engine_with(chained: Chained, **more: object) -> PostgresEngine:
    setup = {
        "destination": chained.protected.destination,
        "master_key_file": chained.protected.key_file,
        "scratch": chained.protected.folder / "scratch",
        **more,
    }
    return PostgresEngine(Setup(**setup))  # type: ignore[arg-type]


def refused(engine: PostgresEngine, request: RestoreRequest, error: type[BackupError]) -> None:
    """Check that a restore is refused, and that nothing was written."""
    folder = request.folder
    before = sorted(folder.rglob("*")) if folder.exists() else None
    with pytest.raises(error):
        finish(engine.restore(request))
    assert (sorted(folder.rglob("*")) if folder.exists() else None) == before
    assert not list(folder.parent.glob(f".{folder.name}.*"))


def test_a_wrong_master_key_is_refused(chained: Chained, tmp_path: Path) -> None:
    create_master_key_file(tmp_path / "other.key")
    engine = engine_with(chained, master_key_file=tmp_path / "other.key")
    refused(engine, RestoreRequest(tmp_path / "data"), BackupKeyError)


@pytest.mark.parametrize("name", ["base.tar", "manifest"])
def test_a_truncated_object_is_refused(chained: Chained, tmp_path: Path, name: str) -> None:
    path = Path(chained.protected.destination) / "backups" / chained.full.id / name
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1])
        refused(chained.protected.engine(), RestoreRequest(tmp_path / "data"), BackupDamagedError)
        path.unlink()
        refused(chained.protected.engine(), RestoreRequest(tmp_path / "data"), BackupDamagedError)
    finally:
        path.write_bytes(content)


def test_an_altered_object_leaves_nothing_at_the_target(chained: Chained, tmp_path: Path) -> None:
    path = Path(chained.protected.destination) / "backups" / chained.full.id / "base.tar"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        refused(chained.protected.engine(), RestoreRequest(tmp_path / "data"), BackupDamagedError)
    finally:
        path.write_bytes(content)


def test_a_backup_of_another_cluster_is_refused(chained: Chained, make: Make, tmp_path: Path) -> None:
    other = make(destination=chained.protected.destination)
    other.key_file.write_bytes(chained.protected.key_file.read_bytes())
    foreign = other.engine()
    refused(foreign, RestoreRequest(tmp_path / "data", backup_id=chained.full.id), ForeignBackupError)
    refused(foreign, RestoreRequest(tmp_path / "data"), TargetUnreachableError)
    wrong = RestoreRequest(tmp_path / "data", backup_id=chained.full.id, system_identifier=1)
    refused(chained.protected.engine(), wrong, ForeignBackupError)


def test_a_folder_in_use_is_refused(chained: Chained, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    refused(chained.protected.engine(), RestoreRequest(tmp_path / "data"), FolderInUseError)
    refused(chained.protected.engine(), RestoreRequest(chained.protected.postgres.data), FolderInUseError)


def test_targets_that_no_backup_reaches_are_refused(chained: Chained, tmp_path: Path) -> None:
    engine, folder = chained.protected.engine(database=False), tmp_path / "data"
    ancient = AtTime(chained.full.start_time - timedelta(days=1))
    refused(engine, RestoreRequest(folder, ancient), TargetUnreachableError)
    refused(engine, RestoreRequest(folder, AtTime(datetime.now(UTC) + timedelta(days=1))), TargetUnreachableError)
    refused(engine, RestoreRequest(folder, AtLsn(Lsn(1))), TargetUnreachableError)
    refused(engine, RestoreRequest(folder, AtLsn(Lsn.parse("FF/0"))), ArchiveGapError)
    refused(engine, RestoreRequest(folder, AtBackup("0198c0de-0000-7000-8000-000000000000")), BackupNotFoundError)


def test_a_missing_segment_is_refused_and_never_taken_for_the_end(chained: Chained, tmp_path: Path) -> None:
    wal = Path(chained.protected.destination) / "wal"
    pieces = sorted(path for path in wal.rglob("*-*") if path.is_file())
    stop = chained.incremental.stop_lsn
    assert stop is not None
    lost = next(path for path in pieces if int(path.name.split("-")[0], 16) > stop)
    assert lost != pieces[-1]
    content = lost.read_bytes()
    try:
        lost.unlink()
        refused(chained.protected.engine(), RestoreRequest(tmp_path / "data"), ArchiveGapError)
        assert chained.protected.engine().archive_state().gaps
    finally:
        lost.write_bytes(content)


def test_two_restores_into_one_folder_do_not_meet(chained: Chained, tmp_path: Path) -> None:
    engine = chained.protected.engine()
    first = engine.restore(RestoreRequest(tmp_path / "data", recover=False))
    while next(first).step is not Step.FETCH:
        pass
    with pytest.raises(BackupError):
        finish(engine.restore(RestoreRequest(tmp_path / "data", recover=False)))
    finish(first)
    assert (tmp_path / "data" / "PG_VERSION").exists()


def test_one_schema_goes_back_in_time_and_the_others_do_not(make: Make) -> None:
    protected = make()
    fill(protected)
    protected.run("CREATE SCHEMA logs", "CREATE TABLE logs.record (id int)", "CREATE TABLE users.empty (id int)")
    # Of the runtime: keys that are erased stay erased, and who watches has to read anew.
    protected.run(
        "CREATE TABLE users.data_key (id int)",
        "INSERT INTO users.data_key VALUES (1)",
        "CREATE TABLE users.change_horizon (purged xid8)",
        "INSERT INTO users.change_horizon VALUES ('0')",
    )
    protected.receive()
    backup = protected.back_up()
    protected.run(
        "DELETE FROM users.visit",
        "DELETE FROM users.person",
        "INSERT INTO users.person (name) VALUES ('new')",
        "INSERT INTO users.empty VALUES (1)",
        "INSERT INTO logs.record VALUES (1)",
        "DELETE FROM users.data_key",
    )
    last = protected.one("SELECT max(id) FROM users.person")
    restored = finish(protected.engine().restore_tables("users", AtBackup(backup.id)))
    assert restored.rows == {"person": ROWS, "visit_all": ROWS, "empty": 0}
    with psycopg.connect(protected.postgres.dsn) as connection:
        assert names(connection) == FIRST
    assert protected.one("SELECT count(*) FROM users.visit") == ROWS
    assert protected.one("SELECT count(*) FROM users.empty") == 0
    assert protected.one("SELECT count(*) FROM logs.record") == 1
    assert protected.one("SELECT count(*) FROM users.data_key") == 0
    assert protected.one("SELECT purged::text::bigint > 0 FROM users.change_horizon")
    protected.run("INSERT INTO users.person (name) VALUES ('next')")
    assert protected.one("SELECT max(id) FROM users.person") > last  # type: ignore[operator]
    protected.run("ALTER TABLE users.person ADD COLUMN age int")
    with pytest.raises(TablesMismatchError):
        finish(protected.engine().restore_tables("users", AtBackup(backup.id)))
    with psycopg.connect(protected.postgres.dsn) as connection:
        assert names(connection) == {**FIRST, "next": 1}
