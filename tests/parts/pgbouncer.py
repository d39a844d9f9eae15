"""A real pgBouncer in transaction mode before a PostgreSQL of the tests."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from kronos_db.embedded import processes
from kronos_db.embedded.account import account_for
from kronos_db.embedded.sockets import SocketDirectory, listener

_PORT = "6432"
_SOCKET = f".s.PGSQL.{_PORT}"
_LIMIT = 10.0  # seconds


def version(binary: Path) -> tuple[int, int]:
    """Return major and minor version of a pgBouncer binary."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=_LIMIT).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    if found is None:
        raise ValueError(f"{binary} does not say its version: {said!r}")
    return int(found[1]), int(found[2])


class PgBouncer:
    """pgBouncer on a Unix socket in `directory`, in front of every database of the server that `target` leads to.

    `target` is a superuser's DSN over a Unix socket. Every login role with a SCRAM secret logs in with its own
    password: pgBouncer reads the secret (auth_query) and passes the login through. `max_prepared_statements` needs
    1.21; None leaves it out. `settings` go over our own.
    """

    def __init__(
        self,
        binary: Path,
        directory: Path,
        target: str,
        max_prepared_statements: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._binary = binary
        self._directory = directory
        self._target = {name: str(value) for name, value in conninfo_to_dict(target).items()}
        self.log_file = directory / "pgbouncer.log"
        self._sockets = SocketDirectory(directory / "run", _SOCKET)
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {
            "pool_mode": "transaction",
            "listen_port": _PORT,
            "auth_type": "scram-sha-256",
            "auth_query": "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
            "admin_users": self._target["user"],
            "max_client_conn": "500",
            "default_pool_size": "20",
            # Tests stop and start PostgreSQL: the default of 15 s would refuse logins long after it is back.
            "server_login_retry": "1",
        }
        if max_prepared_statements is not None:
            self._settings["max_prepared_statements"] = str(max_prepared_statements)
        self._settings.update(settings or {})

    def start(self) -> None:
        """Start it and return when it takes connections."""
        account = account_for(self._directory)
        folder = self._sockets.open(account)
        self._write_files(folder)
        command = [str(self._binary), str(self._directory / "pgbouncer.ini")]
        if account:
            account.give(self._directory)
            command = account.command(command, [self._binary, self._directory, Path(self._target["host"])])
        process = processes.spawn(command, self.log_file)
        self._process = process
        processes.wait_until(lambda: process.poll() is not None or listener(folder / _SOCKET), _LIMIT)
        if listener(folder / _SOCKET) is None:
            self.stop()
            raise RuntimeError(f"pgBouncer did not start: {processes.last_line(self.log_file)}")

    def stop(self) -> None:
        """End it at once, whatever its clients do."""
        if self._process:
            self._process.kill()
            self._process.wait(_LIMIT)
            self._process = None
            self._sockets.close()

    def dsn(self, user: str, password: str, database: str) -> str:
        """Return the connection URL of a role to a database through this pgBouncer."""
        folder = self._sockets.path()
        name, secret, base, host = (quote(text, safe="") for text in (user, password, database, str(folder)))
        return f"postgresql://{name}:{secret}@/{base}?host={host}&port={_PORT}"

    def _write_files(self, folder: Path) -> None:
        user, password = self._target["user"], self._target["password"]
        settings = {
            "unix_socket_dir": str(folder),
            "auth_file": str(self._directory / "userlist.txt"),
            **self._settings,
        }
        lines = [
            "[databases]",
            f"* = host={self._target['host']} port={self._target['port']} auth_user={user}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (self._directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self._directory / "userlist.txt").write_text(f'"{user}" "{password}"\n', encoding="utf-8")
