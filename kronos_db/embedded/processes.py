"""Starts the processes of embedded servers, and ends those that outlived whoever had started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

_STEP = 0.01
_INHERITED = ("PATH", "TMPDIR", "LD_LIBRARY_PATH")
_LOG_BYTES = 16 * 1024 * 1024


def environment() -> Mapping[str, str]:
    """Return what a server may see of our environment: no secrets, no PGHOST or the like that would change it."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | {"LC_ALL": "C"}


def spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server that writes to the end of `log`, in a session of its own: Ctrl-C in a terminal is not for it."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - callers name our own servers
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=environment(),
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def last_line(log: Path) -> str:
    """Return the last line of a log, for the text of an error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "it wrote nothing"


def command_line(pid: int) -> str:
    """Return the command line of a process, its arguments parted by blanks; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def marked(marker: str) -> list[int]:
    """Return the pids of all processes with `marker` in their command line."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if marker in command_line(pid)]


def end(pids: Iterable[int], number: signal.Signals, seconds: float, alive: Callable[[], object]) -> bool:
    """Send a signal to `pids` and return whether `alive` turned false within `seconds`."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return wait_until(lambda: not alive(), seconds)


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Return whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_STEP)
    return True
