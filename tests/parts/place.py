"""What stands around a server in production, as the files in deploy/ make it: PostgreSQL, pgBouncer and Redis."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.ports import free_address
from kronos_db.embedded import processes
from kronos_db.embedded.account import account_for
from kronos_db.embedded.postgres import SUPERUSER, EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from tests.parts.eventually import eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
_LIMIT = 30.0  # seconds
# Over those of deploy/postgresql.conf: its memory is that of a machine of its own, and its disk outlives a power cut.
LIGHT: Mapping[str, str] = {"shared_buffers": "64MB", "fsync": "off"}


class Place:
    """PostgreSQL with deploy/postgresql.conf and Redis in `folder`; pgBouncer when it is told to start.

    PostgreSQL and pgBouncer listen on ports of 127.0.0.1. As root they run as another account.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pgbouncer_address = free_address()
        self.postgres_address = free_address()
        self._pgbouncer: subprocess.Popen[bytes] | None = None
        (folder / "postgres").mkdir()
        conf = shutil.copy(DEPLOY / "postgresql.conf", folder / "postgres" / "deployed.conf")
        host, _, port = self.postgres_address.partition(":")
        # The name `include` reads as a setting does; what comes behind it goes before it.
        settings = {"include": str(conf), **LIGHT, "listen_addresses": host, "port": port}
        self.postgres = EmbeddedPostgres(folder / "postgres", settings)
        self.redis = EmbeddedRedis(folder / "redis")

    def start(self) -> None:
        """Start PostgreSQL and Redis."""
        self.postgres.start()
        if EmbeddedRedis.available():
            self.redis.start()

    @property
    def redis_url(self) -> str:
        """Where Redis is; without one on this machine, where none is: the server is the same but slower."""
        return self.redis.url if self.redis.running else f"redis://{self.pgbouncer_address}"

    @property
    def programs(self) -> Path:
        """The folder of PostgreSQL's programs, psql among them."""
        return self.postgres.bin_dir

    def superuser(self) -> dict[str, str]:
        """Return the environment in which psql is the superuser."""
        host, _, port = self.postgres_address.partition(":")
        password = (self.postgres.directory / "password").read_text(encoding="ascii")
        return {"PGHOST": host, "PGPORT": port, "PGUSER": SUPERUSER, "PGPASSWORD": password, "PGDATABASE": "kronos"}

    def start_pgbouncer(self, binary: Path, ini: Path, userlist: Path) -> None:
        """Start pgBouncer with a copy of deploy/pgbouncer.ini, changed where its lines say HERE."""
        host, _, port = self.pgbouncer_address.partition(":")
        to_host, _, to_port = self.postgres_address.partition(":")
        text = ini.read_text(encoding="utf-8")
        for line, ours in (
            ("kronos = host=postgres port=5432 ", f"kronos = host={to_host} port={to_port} "),
            ("listen_addr = 0.0.0.0\nlisten_port = 6432\n", f"listen_addr = {host}\nlisten_port = {port}\n"),
            ("auth_file = /etc/pgbouncer/userlist.txt\n", f"auth_file = {self.folder}/bouncer/userlist.txt\n"),
        ):
            assert text.count(line) == 1, line
            text = text.replace(line, ours)
        folder = self.folder / "bouncer"
        folder.mkdir()
        # Its socket in /tmp is nobody's concern.
        (folder / "pgbouncer.ini").write_text(f"{text}\nunix_socket_dir =\n", encoding="utf-8")
        shutil.copy(userlist, folder)
        command = [str(binary), str(folder / "pgbouncer.ini")]
        account = account_for(folder)
        if account:
            account.give(folder)
            command = account.command(command, [binary, folder])
        self._pgbouncer = processes.spawn(command, folder / "log")
        log = folder / "log"
        eventually(lambda: "process up" in log.read_text(), _LIMIT, log.read_text)

    def stop(self) -> None:
        """End all of it."""
        if self._pgbouncer is not None:
            self._pgbouncer.kill()
            self._pgbouncer.wait(_LIMIT)
        self.redis.stop()
        self.postgres.stop("immediate")


def clean_environment() -> dict[str, str]:
    """Return our environment without what would lead a program elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("KRONOS", "PG", "PYTHON"))}
