"""A `kronos-db dev` of the tests: a process of its own, with all that it starts."""

from __future__ import annotations

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

from kronos_db.config import PREFIX

PROGRAM = str(Path(sys.executable).with_name("kronos-db"))
_LIMIT = 120.0  # seconds, on a machine that does much else
_LAST_LINE = "UsersService/ListUsers"
# As without the settings of whoever runs the tests.
_CHEAP = {
    "KRONOS_DB_GRPC_LISTEN": "127.0.0.1:0",
    "KRONOS_DB_OPS_LISTEN": "127.0.0.1:0",
    "KRONOS_DB_PASSWORD_MEMORY_KIB": "64",
}


class Dev:
    """`kronos-db dev` on `data`, in a process group of its own as in a terminal. `lines` is what it has printed."""

    def __init__(self, data: Path, settings: Mapping[str, str] | None = None) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        # As from a terminal, also when the tests themselves run below nohup.
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, "dev"],
            env={**inherited, **_CHEAP, "KRONOS_DB_DATA_DIR": str(data), **(settings or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        signal.signal(signal.SIGHUP, before)
        self.lines: list[str] = []
        self._unread: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, text: str) -> str:
        """Return the first line, from those not waited for yet, that has `text`."""
        while (line := self._unread.get(timeout=_LIMIT)) is not None:
            if text in line:
                return line
        raise AssertionError(f"it ended without {text!r}:\n{''.join(self.lines)}")

    def serve(self) -> None:
        """Return when it has printed its calls."""
        self.wait_for(_LAST_LINE)

    @property
    def calls(self) -> list[str]:
        """The calls to paste."""
        return [line.strip() for line in self.lines if re.search(r" call .* UsersService/", line)]

    @property
    def address(self) -> str:
        """HOST:PORT of gRPC."""
        return self._argument("--address")

    @property
    def token(self) -> str:
        """The bearer token."""
        return self._argument("--token")

    @property
    def credential(self) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata of a call that carries the token."""
        return (("authorization", f"Bearer {self.token}"),)

    def family(self) -> list[psutil.Process]:
        """The process and all that it started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Wait until it has ended and return its exit code."""
        code = self.process.wait(_LIMIT)
        self._reader.join(_LIMIT)
        return code

    def close(self) -> None:
        """End it, whatever it does; what it started too."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        self.end()
        if self.process.stdout:
            self.process.stdout.close()

    def _argument(self, name: str) -> str:
        words = shlex.split(self.calls[0])
        return words[words.index(name) + 1]

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            self._unread.put(line)
        self._unread.put(None)
