"""Unary calls that wait for something without holding a thread: they step aside, and are put back in their queue.

A handler that has nothing to answer yet parks its call. The worker that ran it drops it without an answer, which
gRPC takes as a call that is still going on, and goes on with the next. When the call is woken, or its time is over, it
is queued anew and runs from its beginning: the handler finds in `Call.waited` what it left there.

This leans on one thing inside `grpc/_server.py` (1.60 to 1.85 at least): a unary call that raises what is no
`Exception` is not answered. A test tells.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import NoReturn

# Seconds that the thread gets to end.
_PATIENCE = 1.0
# From so many on, it is looked who waits no more.
_CROWD = 1000


class StepAside(BaseException):
    """Carries a parked call from its handler to the worker that runs it, past everything that catches errors."""

    def __init__(self, parked: Parked) -> None:
        super().__init__("the call waits")
        self.parked = parked


class Parked:
    """A place for one call that waits; it may step aside again and again until `until`, a time.monotonic()."""

    def __init__(self, until: float) -> None:
        self.until = until
        self._lock = threading.Lock()
        # Of a call that stepped aside: what puts it back, and what ends it unanswered.
        self._held: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._woken = False
        self._left = False

    @property
    def is_over(self) -> bool:
        """Whether it has waited as long as it may."""
        return time.monotonic() >= self.until

    def wake(self) -> None:
        """Have the call go on; from any thread, and once for each time that it steps aside."""
        with self._lock:
            self._woken = True
            held, self._held = self._held, None
        if held is not None:
            resume, _ = held
            resume()

    def leave(self) -> None:
        """Take note that the caller left, or was answered: then nothing is held."""
        with self._lock:
            self._left = True
            held, self._held = self._held, None
        if held is not None:
            _, end = held
            end()

    def expect(self) -> None:
        """Begin to listen for `wake`: what comes from here on is not lost, also before the call has stepped aside."""
        with self._lock:
            self._woken = False

    @property
    def is_done(self) -> bool:
        """Whether its caller was answered or left."""
        return self._left

    def step_aside(self) -> NoReturn:
        """Leave the thread."""
        raise StepAside(self)

    def hold(self, resume: Callable[[], None], end: Callable[[], None]) -> None:
        """Keep what puts the call back, and what ends it when its caller has left. For the worker."""
        with self._lock:
            if not self._woken and not self._left:
                self._held = resume, end
                return
        if self._left:
            end()
        else:
            resume()


class Parking:
    """Wakes parked calls when their time is over, with one thread for all of a process."""

    def __init__(self) -> None:
        self.closing = False
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._due: list[tuple[float, int, Parked]] = []
        self._thread: threading.Thread | None = None
        self._crowd = _CROWD

    def watch(self, parked: Parked) -> None:
        """Wake a call when its time is over, or the process is about to end."""
        with self._changed:
            if not self.closing:
                self._forget_done()
                heapq.heappush(self._due, (parked.until, next(self._order), parked))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="parking", daemon=True)
                    self._thread.start()
                elif self._due[0][2] is parked:
                    self._changed.notify()
                return
        parked.wake()

    def close(self) -> None:
        """Have all calls go on at once, and none wait any more."""
        with self._changed:
            self.closing = True
            waiting, self._due = self._due, []
            thread = self._thread
            self._changed.notify()
        for _, _, parked in waiting:
            parked.wake()
        if thread is not None:
            thread.join(_PATIENCE)

    def _forget_done(self) -> None:
        """Forget those whose time is not over and who are answered, when there are many."""
        if len(self._due) >= self._crowd:
            self._due = [each for each in self._due if not each[2].is_done]
            heapq.heapify(self._due)
            self._crowd = max(_CROWD, 2 * len(self._due))

    def _run(self) -> None:
        while True:
            with self._changed:
                if self.closing:
                    return
                now = time.monotonic()
                if not self._due or self._due[0][0] > now:
                    self._changed.wait(self._due[0][0] - now if self._due else None)
                    continue
                _, _, parked = heapq.heappop(self._due)
            parked.wake()
