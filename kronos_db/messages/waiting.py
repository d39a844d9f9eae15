"""Who waits for messages in this process, and what wakes them: enqueues here, notifications from elsewhere, and a look.

One message wakes one who waits; whoever got messages wakes the next, since there may be more. Notifications may be lost
and do not say which queue they are about: one thread then looks at all queues that anybody waits for, with one
statement; and without any notification once a second, or when a message is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from kronos_db.messages.model import Queue
from kronos_db.messages.store import MessagesStore
from kronos_db.runtime.errors import KronosError

_log = structlog.get_logger(__name__)

# Seconds between two looks when nobody notifies, and between any two.
_POLL = 1.0
_INTERVAL = 0.01
# Seconds that the thread gets to end.
_PATIENCE = 5.0


class Waiter(Protocol):
    """Somebody who waits for messages of a queue."""

    def wake(self) -> None:
        """Look for messages soon; returns at once. Whoever is woken waits no more, until it enters anew."""


class Waiting:
    """The lines of those who wait, one for each queue; first come, first woken. From any thread.

    `notify` tells other processes that there are messages.
    """

    def __init__(self, store: MessagesStore, notify: Callable[[], None]) -> None:
        self._store = store
        self._notify = notify
        self._lock = threading.Lock()
        self._lines: dict[str, tuple[Queue, dict[Waiter, None]]] = {}
        self._heard = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        store.on_ready = self.ready

    @property
    def count(self) -> int:
        """How many wait."""
        with self._lock:
            return sum(len(line) for _, line in self._lines.values())

    def enter(self, queue: Queue, waiter: Waiter) -> None:
        """Wait at the end of the line of `queue`. What is enqueued from here on wakes somebody."""
        with self._lock:
            # Then the thread does not look every second.
            asleep = not self._lines
            self._lines.setdefault(queue.bin, (queue, {}))[1][waiter] = None
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="waiting messages", daemon=True)
                self._thread.start()
        if asleep:
            self._heard.set()

    def leave(self, queue: Queue, waiter: Waiter) -> None:
        """Wait no more."""
        with self._lock:
            _, line = self._lines.get(queue.bin, (queue, {}))
            line.pop(waiter, None)
            if not line:
                self._lines.pop(queue.bin, None)

    def wake(self, queue: Queue) -> None:
        """Wake the first in the line of `queue`."""
        waiter = self._first(queue.bin)
        if waiter is not None:
            waiter.wake()

    def ready(self, queue: Queue) -> None:
        """Take note that a queue got messages that may be leased: here, and in other processes."""
        self.wake(queue)
        self._notify()

    def notified(self) -> None:
        """Take note that some queue got messages; returns at once."""
        self._heard.set()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._heard.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def _first(self, bin_id: str) -> Waiter | None:
        with self._lock:
            found = self._lines.get(bin_id)
            if found is None:
                return None
            line = found[1]
            waiter = next(iter(line))
            del line[waiter]
            if not line:
                del self._lines[bin_id]
            return waiter

    def _run(self) -> None:
        pause: float | None = None
        while not self._closed:
            self._heard.wait(pause)
            self._heard.clear()
            pause = _POLL
            try:
                pause = self._look()
            except KronosError as error:
                _log.warning("did not look for messages", reason=str(error))
            except Exception:  # noqa: BLE001  # logged, and tried again
                _log.exception("did not look for messages")
            time.sleep(_INTERVAL)

    def _look(self) -> float | None:
        """Wake whoever there is something for; return in how many seconds to look again, None when nobody waits."""
        with self._lock:
            queues = {bin_id: queue for bin_id, (queue, _) in self._lines.items()}
        if not queues:
            return None
        pause = _POLL
        due_lows = [self._store.low_water.due(bin_id) for bin_id in queues]
        for astir in self._store.astir(list(queues), due_lows):
            if not astir.exists:
                self._wake_all(astir.bin)
                continue
            revived = self._store.revive(queues[astir.bin]) if astir.due else 0
            if astir.ready or revived:
                self.wake(queues[astir.bin])
            if astir.next_due is not None:
                pause = min(pause, astir.next_due)
        return pause

    def _wake_all(self, bin_id: str) -> None:
        # Whoever is woken looks the queue up anew.
        while (waiter := self._first(bin_id)) is not None:
            waiter.wake()
