"""Express and Sequelize serving the same read as JSON over HTTP: what a service would do that has its own database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from benchmarks.ports import free_address
from benchmarks.stand import program
from kronos_db.runtime.crypto.keyring import DataKey

FOLDER = Path(__file__).parent / "express"
_INSTALL_SECONDS = 300.0
# What libpq calls a part of a DSN, and the variable that means the same.
_VARIABLES = {"dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD", "host": "PGHOST", "port": "PGPORT"}


class NotInstalledError(Exception):
    """There is no Express to measure; the text says why."""


def install() -> None:
    """Install what the lock file names. Raises NotInstalledError."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise NotInstalledError("there is no node and npm")
    print("installing Express and Sequelize", file=sys.stderr)
    try:
        subprocess.run([npm, "ci", "--silent"], cwd=FOLDER, check=True, timeout=_INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError("npm could not install it") from error


@contextmanager
def express(dsn: str, key: DataKey, processes: int, connections: int) -> Iterator[str]:
    """Serve the database of `dsn`, whose rows are sealed under `key`, with so many processes; yield its address.

    Each process has so many connections.
    """
    address = free_address()
    command = ["node", "server.mjs", address.rpartition(":")[2], str(processes), str(connections)]
    parts = conninfo_to_dict(dsn)
    database = {name: str(parts[part]) for part, name in _VARIABLES.items() if parts.get(part)}
    keys = {"SEAL_KEYS": json.dumps({key.id_bytes.hex(): key.key.hex()})}
    with program(command, FOLDER, {**os.environ, **database, **keys, "NODE_ENV": "production"}):
        yield address
