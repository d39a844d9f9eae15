"""What is told of a primary and its standby, from both sides."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from kronos_db.admin.status_store import Server, ServerLook
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.backups import Protected
from tests.parts.eventually import eventually

_REPLICATING = {"fsync": "off", "wal_level": "replica", "wal_receiver_status_interval": "1"}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    primary = EmbeddedPostgres(tmp_path / "primary", _REPLICATING)
    primary.start()
    standby = EmbeddedPostgres(tmp_path / "standby", _REPLICATING)
    standby.directory.mkdir()
    shutil.copy(primary.directory / "password", standby.directory)
    command = [primary.bin_dir / "pg_basebackup", "-d", primary.dsn, "-D", standby.data, "-R", "-c", "fast", "-N"]
    subprocess.run(command, check=True, capture_output=True)
    standby.start()
    yield primary, standby
    standby.stop("immediate")
    primary.stop("immediate")


def test_lag_is_told_from_both_sides(pair: tuple[EmbeddedPostgres, EmbeddedPostgres]) -> None:
    with ExitStack() as stack:
        looks = [ServerLook(each.dsn) for each in pair]
        for look in looks:
            stack.callback(look.close)
        lag_is_told(pair, looks)


def lag_is_told(pair: tuple[EmbeddedPostgres, EmbeddedPostgres], looks: list[ServerLook]) -> None:

    def both() -> tuple[Server, Server]:
        return looks[0].look(), looks[1].look()

    eventually(lambda: both()[0].standbys == 1, 10)
    primary, standby = both()
    assert (primary.is_standby, standby.is_standby) == (False, True)
    assert standby.standbys == 0
    with (
        psycopg.connect(pair[0].dsn, autocommit=True) as write,
        psycopg.connect(pair[1].dsn, autocommit=True) as replay,
    ):
        write.execute("CREATE TABLE written (number integer)")
        there = "SELECT to_regclass('written') IS NOT NULL"
        eventually(lambda: replay.execute(there).fetchone() == (True,), 20)
        eventually(lambda: both()[1].replication_lag == 0, 20)
        replay.execute("SELECT pg_wal_replay_pause()")
        write.execute("INSERT INTO written VALUES (1)")
        eventually(lambda: all((each.replication_lag or 0) > 0.3 for each in both()), 20, lambda: str(both()))
        replay.execute("SELECT pg_wal_replay_resume()")
        eventually(lambda: both()[1].replication_lag == 0, 10)


def test_an_archive_that_replays_nothing_is_not_behind(tmp_path: Path) -> None:
    protected = Protected(tmp_path)
    protected.start()
    look = ServerLook(protected.postgres.dsn)
    try:
        protected.run("CREATE TABLE written (number integer)")
        protected.receive()

        def has_lag() -> object:
            protected.run("INSERT INTO written VALUES (1)")
            return protected.one("SELECT replay_lag IS NOT NULL FROM pg_stat_replication")

        # PostgreSQL says so of whoever receives and does not replay: it grows for ever.
        eventually(has_lag, 30)
        found = look.look()
        assert (found.standbys, found.replication_lag) == (1, None)
    finally:
        look.close()
        protected.stop()
