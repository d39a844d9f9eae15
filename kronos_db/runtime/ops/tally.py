"""What is counted with every call: rows of numbers, in a file where a kill -9 must not take them away.

prometheus_client's own values take a lock, a check of the process id and a packing into its file for each of the seven
counts of a call: as much as all else that the interceptors do.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

# Of a row: its key's digest, and its numbers.
_KEY_BYTES = 8
_NUMBER_BYTES = 8


class Tallies:
    """Rows of `width` numbers by key, at most `rows` of them, all zero at first.

    With `path` they are kept in that file, and a process that opens it goes on from them.
    """

    def __init__(self, width: int, path: Path | None = None, rows: int = 1024) -> None:
        self._width = width
        self._step = _KEY_BYTES + width * _NUMBER_BYTES
        self._memory = _mapped(path, rows * self._step)
        self._view = memoryview(self._memory)
        self._places = {self._key_at(start): start for start in range(0, rows * self._step, self._step)}
        # The key of a place that is free.
        self._places.pop(bytes(_KEY_BYTES), None)
        self._end = rows * self._step

    def row(self, key: str) -> memoryview[float]:
        """Return the numbers of `key`. Raises ValueError when there is no place left."""
        digest = hashlib.blake2b(key.encode(), digest_size=_KEY_BYTES).digest()
        start = self._places.get(digest)
        if start is None:
            start = max(self._places.values(), default=-self._step) + self._step
            if start >= self._end:
                raise ValueError("no room for another row")
            self._view[start : start + _KEY_BYTES] = digest
            self._places[digest] = start
        numbers = self._view[start + _KEY_BYTES : start + self._step]
        return numbers.cast("d")

    def _key_at(self, start: int) -> bytes:
        return bytes(self._view[start : start + _KEY_BYTES])


def _mapped(path: Path | None, size: int) -> mmap.mmap:
    if path is None:
        return mmap.mmap(-1, size)
    with path.open("a+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)
