"""The data directory of `kronos-db dev`: one process at a time, and where each part has its place."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kronos_db.embedded.errors import EmbeddedError


class DataDirectoryInUseError(EmbeddedError):
    """Another process holds the data directory."""


class DataDirectory:
    """The directory at `path`, made with mode 0700 when missing and locked for the life of this process.

    The lock goes with the process, however it ends. `close` gives it back earlier. Raises DataDirectoryInUseError,
    whose text names the path and the holder's pid, and EmbeddedError when the path cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.postgres = self.path / "postgres"
        self.redis = self.path / "redis"
        self.keys = self.path / "keys"
        self.log = self.path / "log"
        try:
            for part in (self.path, self.keys, self.log):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(self.path / "lock")
        except BlockingIOError:
            raise DataDirectoryInUseError(
                f"{self.path} is in use by another kronos-db ({_holder(self.path / 'lock')})."
            ) from None
        except OSError as error:
            raise EmbeddedError(f"{self.path} cannot be the data directory: {error.strerror}.") from error

    def close(self) -> None:
        """Give the directory back; the lock file stays, so that two takers never lock different files."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock at `path`; raise BlockingIOError when another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _holder(lock: Path) -> str:
    # Between taking the lock and writing the pid the file is empty for a moment.
    pid = lock.read_text(encoding="ascii").strip()
    return f"pid {pid}" if pid else "just starting"
