"""Making backups: what kind they become, what is refused, and that nothing of them is legible."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db.backup.database import Source
from kronos_db.backup.engine import finish
from kronos_db.backup.model import (
    BackupBusyError,
    BackupNeededError,
    BackupNotFoundError,
    DatabaseUnsuitableError,
    Kind,
    Policy,
    ProgramError,
    State,
    Step,
)
from kronos_db.backup.postgres import PostgresEngine, Setup
from kronos_db.backup.sealed import _Cipher
from tests.backup.conftest import ROWS, Chained, fill
from tests.parts.backups import Make


def test_records_say_what_a_backup_is(chained: Chained) -> None:
    full, incremental = chained.full, chained.incremental
    assert (full.kind, full.parent, full.state) == (Kind.FULL, None, State.COMPLETE)
    assert (incremental.kind, incremental.parent) == (Kind.INCREMENTAL, full.id)
    assert full.start_lsn is not None
    assert full.stop_lsn is not None
    assert full.start_lsn < full.stop_lsn <= (incremental.start_lsn or 0)
    assert (full.next_xid or 0) < (incremental.next_xid or 0)
    assert incremental.size < full.size
    assert 0 < full.stored < full.size
    assert full.stored == sum((full.objects or {}).values())
    assert full.content is not None
    assert full.content.tables["kronos"]["users.person"].rows == ROWS
    without_database = chained.protected.engine(database=False)
    assert list(without_database.list()) == [full, incremental]


def test_nothing_of_a_backup_is_legible_in_its_destination(chained: Chained) -> None:
    content = b"".join(path.read_bytes() for path in Path(chained.protected.destination).rglob("*") if path.is_file())
    assert len(content) > 1_000_000
    for text in (b"PLAINTEXT-MARKER", b"users", b"backup_label", b"PG_VERSION", b"CREATE", b"postgres"):
        assert text not in content


def test_progress_tells_the_step_and_how_far_it_is(make: Make) -> None:
    protected = make()
    work = protected.engine().create(Kind.FULL, "by hand")
    told = []
    backup = finish(work, told.append)
    steps = [progress.step for progress in told]
    assert steps[0] is Step.CHECKPOINT
    assert steps[-2:] == [Step.FINGERPRINT, Step.DONE]
    assert {progress.backup_id for progress in told} == {backup.id}
    assert told[-1].bytes_done == told[-1].bytes_total == backup.size
    assert backup.label == "by hand"


class _Lingering(Source):
    """Its sessions end when `sessions` is closed: in PostgreSQL they end some time after their connections."""

    sessions: ExitStack

    @contextmanager
    def connect(self, database: str | None = None) -> Iterator[psycopg.Connection[Any]]:
        yield self.sessions.enter_context(super().connect(database))


def test_a_backup_may_follow_at_once(chained: Chained) -> None:
    source = _Lingering(chained.protected.postgres.dsn)
    with ExitStack() as source.sessions:
        for _ in range(2):
            with source.lock():
                pass


def test_two_backups_at_once_are_refused(make: Make, tmp_path: Path) -> None:
    protected = make()
    first = protected.engine().create(Kind.FULL)
    running = next(first).backup_id
    with pytest.raises(BackupBusyError):
        finish(protected.engine().create(Kind.FULL))
    elsewhere = PostgresEngine(Setup(str(tmp_path / "else"), protected.key_file, tmp_path, protected.postgres.dsn))
    with pytest.raises(BackupBusyError):
        finish(elsewhere.create(Kind.FULL))
    with pytest.raises(BackupBusyError):
        protected.engine().retain(Policy(), datetime.now(UTC))
    assert [backup.state for backup in protected.engine().list()] == [State.RUNNING]
    finish(first)
    assert protected.engine().get(running).state is State.COMPLETE


def test_those_who_serve_go_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    seal = _Cipher.seal

    def looked(self: _Cipher, item: tuple[int, bytes, bool]) -> tuple[bytes, bytes]:
        thread = threading.current_thread()
        seen.append((thread.name.partition("_")[0], os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        return seal(self, item)

    monkeypatch.setattr(_Cipher, "seal", looked)
    finish(make().engine().create(Kind.FULL))
    of_base = {priority for name, priority in seen if name == "seal"}
    # What is made in the caller's own thread, the record and the manifest, is short.
    assert of_base == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


def test_a_backup_that_is_ended_early_has_failed_and_leaves_no_data(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    protected = make()
    # It is over in less than the time between two reports.
    monkeypatch.setattr("kronos_db.backup.create._TELL", 0.001)
    work = protected.engine().create(Kind.FULL)
    backup_id = next(work).backup_id
    assert next(work).step is Step.COPY
    work.close()
    [backup] = protected.engine().list()
    assert (backup.id, backup.state) == (backup_id, State.FAILED)
    assert not list(Path(protected.destination).rglob("base.tar"))
    retained = protected.engine().retain(Policy(), datetime.now(UTC))
    assert retained.backups == (backup_id,)
    assert not protected.engine().list()


def test_a_program_that_fails_is_told_with_its_words(make: Make, tmp_path: Path) -> None:
    protected = make()
    (tmp_path / "programs").mkdir()
    broken = tmp_path / "programs" / "pg_basebackup"
    broken.write_text("#!/bin/sh\necho 'disk on fire' >&2\nexit 1\n")
    broken.chmod(0o755)
    setup = Setup(
        protected.destination, protected.key_file, tmp_path, protected.postgres.dsn, programs=tmp_path / "programs"
    )
    with pytest.raises(ProgramError, match="disk on fire"):
        finish(PostgresEngine(setup).create(Kind.FULL))
    [backup] = protected.engine().list()
    assert backup.state is State.FAILED
    assert "disk on fire" in backup.failure


def test_incremental_only_when_nothing_has_changed(make: Make) -> None:
    protected = make()
    assert protected.back_up().kind is Kind.FULL
    assert protected.back_up().kind is Kind.INCREMENTAL
    base = next(Path(protected.destination).rglob("base.tar"))
    os.truncate(base, base.stat().st_size - 1)
    # Upon a chain that is damaged nothing is built.
    assert protected.back_up(Kind.INCREMENTAL).kind is Kind.FULL
    protected.run("ALTER SYSTEM SET summarize_wal = off", "SELECT pg_reload_conf()")
    protected.postgres.stop()
    protected.postgres = type(protected.postgres)(
        protected.postgres.directory, {"fsync": "off", "summarize_wal": "off"}
    )
    protected.start()
    assert protected.back_up().kind is Kind.FULL
    with pytest.raises(DatabaseUnsuitableError):
        protected.back_up(Kind.INCREMENTAL)


def test_tablespaces_are_refused(make: Make, tmp_path: Path) -> None:
    protected = make(settings={"allow_in_place_tablespaces": "on"})
    with psycopg.connect(protected.postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLESPACE elsewhere LOCATION ''")
    with pytest.raises(DatabaseUnsuitableError, match="elsewhere"):
        protected.back_up()
    assert not protected.engine().list()


def test_what_others_build_upon_is_not_deleted(chained: Chained) -> None:
    engine = chained.protected.engine()
    with pytest.raises(BackupNeededError):
        engine.delete(chained.full.id)
    with pytest.raises(BackupNotFoundError):
        engine.delete("0198c0de-0000-7000-8000-000000000000")


def test_retention_removes_chains_and_the_wal_that_none_needs(make: Make) -> None:
    protected = make()
    fill(protected)
    protected.receive()
    first = [protected.back_up(Kind.FULL), protected.back_up(Kind.INCREMENTAL)]
    protected.run("SELECT pg_switch_wal()", "INSERT INTO users.person (name) VALUES ('between')")
    second = [protected.back_up(Kind.FULL), protected.back_up(Kind.INCREMENTAL)]
    protected.archived()
    engine = protected.engine()
    now = datetime.now(UTC)
    assert engine.retain(Policy(keep_count=2, keep_age=None), now).backups == ()
    assert engine.retain(Policy(keep_count=None, keep_age=timedelta(days=1)), now).backups == ()
    before = engine.archive_state()
    retained = engine.retain(Policy(keep_count=1, keep_age=None), now)
    assert set(retained.backups) == {backup.id for backup in first}
    assert retained.wal_objects > 0
    assert [backup.id for backup in engine.list()] == [backup.id for backup in second]
    after = engine.archive_state()
    assert after.stored == before.stored - retained.wal_bytes
    assert after.first is not None
    assert after.first <= (second[0].start_lsn or 0)
    assert after.gaps == ()
    assert finish(engine.verify(second[1].id)).sound
    # The youngest chain stays, whatever the policy says.
    assert engine.retain(Policy(keep_count=None, keep_age=None), now + timedelta(days=999)).backups == ()
