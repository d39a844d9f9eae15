"""A shell in which the commands of a page are typed one after another: what one exports, the next ones have."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

LIMIT = 120.0  # seconds


class Shell:
    """bash in `folder` with `environment`. What `replace` names is put in place of what the page says."""

    def __init__(self, folder: Path, environment: Mapping[str, str], replace: Mapping[str, str]) -> None:
        self.replace = dict(replace)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=dict(environment),
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def ours(self, text: str) -> str:
        """Return a command of a page as it is here."""
        for theirs, own in self.replace.items():
            text = text.replace(theirs, own)
        return text

    def run(self, command: str, code: int = 0) -> str:
        """Type a command and return what it says; it must end with this exit code."""
        found, said = self._typed(self.ours(command))
        assert found == code, f"{command}\nended with {found}, not {code}:\n{said}"
        return said

    def running(self) -> list[psutil.Process]:
        """Return what was started in the background and runs."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def _typed(self, command: str) -> tuple[int, str]:
        mark = f"end-{uuid.uuid4().hex}"
        assert self._process.stdin is not None
        # Commands get no standard input: it would be the commands after them.
        text = command if "<<" in command else f"{{ {command}\n}} < /dev/null"
        self._process.stdin.write(f"{text}\nprintf '\\n{mark} %s\\n' $?\n".encode())
        self._process.stdin.flush()
        said = self._read(f"\n{mark} ".encode())
        match = re.search(rf"\n{mark} (\d+)\n", said)
        assert match is not None, said
        return int(match[1]), said[: match.start()]

    def _read(self, mark: bytes) -> str:
        assert self._process.stdout is not None
        said = b""
        until = time.monotonic() + LIMIT
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while mark not in said or not said.endswith(b"\n"):
                assert time.monotonic() < until, f"no end within {LIMIT} s:\n{said.decode(errors='replace')}"
                if selector.select(1.0):
                    part = os.read(self._process.stdout.fileno(), 1 << 16)
                    assert part, f"the shell has ended:\n{said.decode(errors='replace')}"
                    said += part
        return said.decode(errors="replace")

    def close(self) -> None:
        """End it, and what it left running."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"kill $(jobs -p) 2> /dev/null; wait; exit\n")
        self._process.stdin.close()
        self._process.stdout.read()
        self._process.wait(LIMIT)
        self._process.stdout.close()
