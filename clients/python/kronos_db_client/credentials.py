"""The bearer token of a caller, from a file that may be replaced while the process runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Credential: TypeAlias = Callable[[], str]

# Seconds between two looks at the file.
_LOOK = 1.0


class FileToken:
    """The token in a file, without blanks around it; read again within a second of its change.

    While the file cannot be read, as in the middle of its replacement, the last token stays. Raises OSError for one
    that cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._state = _state_of(path)
        self._token = path.read_text("utf-8").strip()
        self._looked = time.monotonic()

    def __call__(self) -> str:
        """Return the token."""
        if time.monotonic() - self._looked >= _LOOK and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._token

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            state = _state_of(self._path)
            if state != self._state:
                token = self._path.read_text("utf-8").strip()
                if token:
                    self._token, self._state = token, state
        except OSError:
            return


def _state_of(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)  # noqa: PTH116 - a tenth of the time of Path.stat
    return found.st_mtime_ns, found.st_ino, found.st_size
