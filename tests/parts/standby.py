"""A PostgreSQL with a streaming standby of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.eventually import eventually

LIMIT = 30.0  # seconds
_SETTINGS = {"fsync": "off", "max_connections": "100"}


class Pair:
    """A primary, and a standby that replays what the primary writes."""

    def __init__(self, folder: Path) -> None:
        self.primary = EmbeddedPostgres(folder / "primary", _SETTINGS)
        self.standby = EmbeddedPostgres(folder / "standby", _SETTINGS)

    def start(self) -> None:
        """Start both."""
        self.primary.start()
        self.standby.directory.mkdir()
        shutil.copy(self.primary.directory / "password", self.standby.directory)
        program = self.primary.bin_dir / "pg_basebackup"
        command = [program, "-d", self.primary.dsn, "-D", self.standby.data, "-R", "-c", "fast", "-N"]
        subprocess.run(command, check=True, capture_output=True)
        self.standby.start()
        eventually(self.caught_up, LIMIT)

    def stop(self) -> None:
        """End both."""
        self.standby.stop("immediate")
        self.primary.stop("immediate")

    @property
    def either(self) -> str:
        """A DSN that leads to whichever of the two takes writes."""
        first, second = (conninfo_to_dict(each.dsn) for each in (self.primary, self.standby))
        hosts, ports = f"{first['host']},{second['host']}", f"{first['port']},{second['port']}"
        return make_conninfo(
            user=first["user"],
            password=first["password"],
            dbname=first["dbname"],
            host=hosts,
            port=ports,
            target_session_attrs="read-write",
        )

    def on_standby(self, text: str) -> Any:
        """Return the one value of a query on the standby."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            found = connection.execute(text).fetchone()
        return found[0] if found else None

    def caught_up(self) -> bool:
        """Whether the standby has replayed all there is."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            found = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert found is not None
        return bool(self.on_standby(f"SELECT pg_last_wal_replay_lsn() >= '{found[0]}'"))

    def pause(self) -> None:
        """Have the standby replay nothing more."""
        self.on_standby("SELECT pg_wal_replay_pause()")
        eventually(lambda: self.on_standby("SELECT pg_get_wal_replay_pause_state()") == "paused", LIMIT)

    def resume(self) -> None:
        """Let it replay again."""
        self.on_standby("SELECT pg_wal_replay_resume()")
