"""Writes log lines to standard output from a thread of its own, so that no call waits for whoever reads them."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

# Seconds between two writes. Each write lets go of the interpreter lock; one for each line would cost a call more than
# making the line does. What a kill -9 loses is at most this much.
_INTERVAL = 0.1
# Lines that are kept while nobody reads; the oldest go first.
_MOST_LINES = 100_000


class Output:
    """Lines on their way to standard output. `add` never blocks and never raises."""

    def __init__(self) -> None:
        # What is still to be made waits as what makes it, of what.
        self._lines: deque[bytes | tuple[Callable[..., bytes], int, tuple[object, ...]]] = deque(maxlen=_MOST_LINES)
        self._writing = threading.Lock()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        # A forked child has no writer thread, and a lock may be held in it for ever.
        os.register_at_fork(after_in_child=self._forget)

    def add(self, line: bytes, *, urgent: bool = False) -> None:
        """Write `line` soon; when it is urgent, before returning."""
        self._lines.append(line)
        if urgent:
            self.flush()
        elif self._thread is None:
            self._begin()

    def add_later(self, make: Callable[..., bytes], *values: object) -> None:
        """Write what `make` makes of the time.time_ns() of now, and `values`; it must not raise.

        Made when it is written, with many others, it costs half of what it does alone.
        """
        self._lines.append((make, time.time_ns(), values))
        if self._thread is None:
            self._begin()

    def flush(self) -> None:
        """Write what is there."""
        # When nobody reads any more the work goes on without.
        with self._writing, suppress(OSError, ValueError):
            found = [self._lines.popleft() for _ in range(len(self._lines))]
            if found:
                lines = [line if isinstance(line, bytes) else line[0](line[1], *line[2]) for line in found]
                sys.stdout.buffer.write(b"\n".join((*lines, b"")))
                sys.stdout.buffer.flush()

    def _begin(self) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="log output", daemon=True)
                self._thread.start()
                atexit.register(self.flush)

    def _follow(self) -> None:
        while True:
            time.sleep(_INTERVAL)
            self.flush()

    def _forget(self) -> None:
        self._lines.clear()
        self._writing = threading.Lock()
        self._start = threading.Lock()
        self._thread = None
