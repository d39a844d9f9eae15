"""The thread that sends on streams: one message of one stream after the other, and it never waits for a caller."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Protocol

# Seconds that the thread gets to end.
_PATIENCE = 5.0


class Stream(Protocol):
    """Something that sends what waits for one caller."""

    def push(self) -> None:
        """Send what is next, unless the caller has yet to take what was sent last."""

    def end(self, error: Exception) -> None:
        """End the stream with an error."""


class Pusher:
    """Sends for all streams of a process."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Stream | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    def start(self) -> None:
        """Send from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE)

    def wake(self, stream: Stream) -> None:
        """Look at a stream soon; returns at once, whatever locks the caller holds."""
        self._queue.put(stream)

    def _run(self) -> None:
        while (stream := self._queue.get()) is not None:
            try:
                stream.push()
            except Exception as error:  # noqa: BLE001  # see below
                # Nobody else is to suffer: the errors interceptor answers and logs it.
                stream.end(error)
