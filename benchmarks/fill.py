"""Fills the table of users with sealed rows by COPY: a million of them in half the time that calls would take.

    python -m benchmarks.fill FIRST END STEP

Rows are as BatchCreateUsers writes them: the server's own code seals them under the keys of the database that the
settings in the environment name.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

import psycopg

from kronos_db.config import Settings, environment_of, load
from kronos_db.runtime.crypto.keyring import KeyRing
from kronos_db.runtime.crypto.master_key import FileMasterKeys
from kronos_db.runtime.crypto.normalization import Normalization
from kronos_db.runtime.crypto.sealing import Index, Sealer
from kronos_db.runtime.database.data_keys import DataKeys
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.schemas import open_database

_COPY = """
COPY users.users (
    id, username, username_key, email, phone, display_name, attributes, state, create_time, update_time
) FROM STDIN
"""
_PROCESSES = os.cpu_count() or 1
# Seconds for all of it.
_LIMIT = 900.0
_EMAIL = Index("users.email", Normalization.CASELESS)
_PHONE = Index("users.phone", Normalization.PHONE)


def fill(settings: Settings, users: int) -> list[str]:
    """Create so many users with a process for each core; return their ids in random order."""
    environment = {**os.environ, **environment_of(settings)}
    command = [sys.executable, "-m", "benchmarks.fill"]
    with ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(_dsn(settings), autocommit=True))
        fillers = [
            stack.enter_context(subprocess.Popen([*command, str(first), str(users), str(_PROCESSES)], env=environment))
            for first in range(_PROCESSES)
        ]
        _wait(connection, fillers, users)
        # What would else be done in the midst of a measurement.
        connection.execute("VACUUM (ANALYZE) users.users")
        connection.execute("CHECKPOINT")
        ids = [row[0] for row in connection.execute("SELECT id::text FROM users.users")]
    return random.sample(ids, len(ids))


def keys_of_users(settings: Settings) -> KeyRing:
    """Return the keys under which the rows are sealed."""
    assert settings.master_key_file is not None
    database = open_database(settings, "users")
    try:
        return KeyRing("users", FileMasterKeys(settings.master_key_file), DataKeys(database))
    finally:
        database.pool.close()


def _wait(connection: psycopg.Connection, fillers: Sequence[subprocess.Popen[bytes]], users: int) -> None:
    """Show how far it is until all `fillers` are done; fail when one of them does."""
    give_up = time.monotonic() + _LIMIT
    while any(filler.poll() is None for filler in fillers) and time.monotonic() < give_up:
        done = connection.execute("SELECT sum(tuples_processed) FROM pg_stat_progress_copy").fetchone()
        print(f"\rcreating users: {(done and done[0]) or 0:,} of {users:,}", end="", file=sys.stderr)
        time.sleep(0.5)
    print(file=sys.stderr)
    if any(filler.poll() != 0 for filler in fillers):
        for filler in fillers:
            filler.kill()
        raise SystemExit("the users could not be created")


def main() -> None:
    """Copy the users with the numbers that the arguments say."""
    numbers = range(*map(int, sys.argv[1:]))
    settings = load()
    sealer = Sealer(keys_of_users(settings))
    now = datetime.now(UTC)
    with (
        psycopg.connect(_dsn(settings)) as connection,
        connection.cursor() as cursor,
        cursor.copy(_COPY) as copy,
    ):
        for number in numbers:
            copy.write_row(_row(sealer, number, now))


def _dsn(settings: Settings) -> str:
    dsn = settings.domain_direct_dsn("users")
    assert dsn is not None
    return dsn


def _row(sealer: Sealer, number: int, now: datetime) -> tuple[object, ...]:
    user_id, username = uuid7_text(), f"user{number}"
    email = sealer.seal_text(f"{username}@example.org", "kronos.users.v1.User.email", user_id, _EMAIL)
    phone = sealer.seal_text(f"+1555{number:07}", "kronos.users.v1.User.phone", user_id, _PHONE)
    return (user_id, username, username, email, phone, "", "{}", 1, now, now)


if __name__ == "__main__":
    main()
