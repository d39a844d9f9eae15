"""A PostgreSQL that is run on restored files, to recover them or to look at them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from kronos_db.backup.model import ProgramError
from kronos_db.backup.programs import Programs
from kronos_db.embedded import processes
from kronos_db.embedded.account import Account
from kronos_db.embedded.sockets import SocketDirectory

PORT = "5432"
# Over whatever the restored configuration says: nobody but us comes near, nothing is written anywhere else.
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": PORT,
    "unix_socket_permissions": "0700",
    # `ready` means then that recovery is over.
    "hot_standby": "off",
    "archive_mode": "off",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "ssl": "off",
}
_FORWARDED = "AWS_"
_STOP_LIMIT = 300.0
_END_LIMIT = 10.0
_LOOK = 0.2


class Instance:
    """The data directory `folder`/data, run with its socket and log beside it, as `account` when this is root."""

    def __init__(self, folder: Path, programs: Programs, account: Account | None, reach: Sequence[Path] = ()) -> None:
        self.data = folder / "data"
        self.log = folder / "postgres.log"
        self._run = folder / "run"
        self._hba = folder / "pg_hba.conf"
        self._programs = programs
        self._account = account
        self._reach = reach
        # In the title of every process of it: what outlived us is found by it.
        self._name = "kronos-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        self._sockets = SocketDirectory(self._run, f".s.PGSQL.{PORT}")
        self._process: subprocess.Popen[bytes] | None = None

    def end_leftovers(self) -> None:
        """End the server that a killed process left running here."""
        for number in (signal.SIGQUIT, signal.SIGKILL):
            left = processes.marked(self._name)
            if left:
                processes.end(left, number, _END_LIMIT, lambda: processes.marked(self._name))
        self._sockets.close()

    def start(self, settings: Mapping[str, str], waiting: Callable[[], None]) -> None:
        """Start and return when it is ready, recovery included; calls `waiting` now and then until it is.

        Raises ProgramError with the last lines of its log when it ends instead.
        """
        self._hba.write_text("local all all trust\n", encoding="ascii")
        sockets = self._sockets.open(self._account)
        if self._account:
            self._account.give(self._hba)
        own = {**_SETTINGS, "unix_socket_directories": str(sockets), "hba_file": str(self._hba), **settings}
        binary = Path(self._programs.path("postgres"))
        command = [str(binary), "-D", str(self.data), "-c", f"cluster_name={self._name}"]
        command += [word for name, value in own.items() for word in ("-c", f"{name}={value}")]
        if self._account:
            command = self._account.command(command, [binary, self.data, self._hba, *self._reach])
        # Cut, so that what it ends with is of this start.
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(), start_new_session=True
            )
        while not processes.wait_until(self._settled, _LOOK):
            waiting()
        if self._process.poll() is not None:
            self.close()
            raise ProgramError(f"PostgreSQL did not start on what was restored: {self._last_words()}")

    def stop(self) -> None:
        """Stop it, with a checkpoint. Raises ProgramError when it does not stop in order."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            code = -1
        self.close()
        if code != 0:
            raise ProgramError(f"PostgreSQL did not stop in order on what was restored: {self._last_words()}")

    def close(self) -> None:
        """End it at once if it still runs."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(_END_LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        self._sockets.close()

    def dsn(self, user: str, database: str) -> str:
        """Return the connection URL of the running server."""
        name, base, host = (quote(text, safe="") for text in (user, database, str(self._sockets.path())))
        return f"postgresql://{name}@/{base}?host={host}&port={PORT}"

    def said(self, text: str) -> bool:
        """Return whether the log of the last start has `text`."""
        return text in self.log.read_text(encoding="utf-8", errors="replace")

    def _settled(self) -> bool:
        assert self._process is not None  # noqa: S101 - just started
        return self._process.poll() is not None or self._status() == (self._process.pid, "ready")

    def _status(self) -> tuple[int | None, str]:
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
            return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""  # noqa: PLR2004 - its eighth line
        except (FileNotFoundError, IndexError, ValueError):
            return None, ""

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-6:])


def remove(folder: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def _environment() -> Mapping[str, str]:
    """Return what a server may see, and what its restore_command needs to reach object storage."""
    forwarded = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    return {**processes.environment(), **forwarded}
