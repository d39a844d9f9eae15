"""Background work that is done once in the whole fleet, by whichever process holds the lease of that name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import structlog

from kronos_db.runtime import deadline
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.leases import Lease, Look

# LOST: the lease, or the process is to stop. The work is not done, and nobody is to blame.
Outcome = Literal["OK", "FAILED", "LOST"]
OUTCOMES: tuple[Outcome, ...] = ("OK", "FAILED", "LOST")

LEASE_SECONDS = 15.0
# So many times in its duration a lease is renewed, or looked at by those that do not hold it.
_LOOKS = 3
# Seconds after which a lease that was to run out has done so.
_AFTER_EXPIRY = 0.02
# Seconds until work that failed is tried again, unless its interval is shorter.
_RETRY = 60.0
# Seconds that work may take to notice that it is to stop, and that releasing all leases may take after that.
_PATIENCE, _RELEASING = 5.0, 2.0

log = structlog.get_logger(__name__)


class Held:
    """What work is given: it asks, between any two steps, whether it still holds the lease, and stops when not."""

    def __init__(self, fence: int, holds: Callable[[], bool]) -> None:
        # For statements that must not happen after another process has taken over.
        self.fence = fence
        self._holds = holds

    def __call__(self) -> bool:
        """Tell whether the work may go on."""
        return self._holds()


class BackgroundWork:
    """Runs `work(held)` every `interval` seconds in one process of the fleet, counted from the last success of any.

    One thread takes and renews the lease, another does the work, so that work may last longer than a lease. `work` may
    run again when it failed or lost its lease: it must bear that. What it raises is logged and counted; it is tried
    again after a minute, or after `interval` if that is shorter.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        interval: float,
        work: Callable[[Held], None],
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.domain = database.domain
        self.name = name
        # When the work was last done in the fleet, as Unix time; None until that is known.
        self.success_time: float | None = None
        self.interval = interval
        self._work = work
        self._lease = Lease(database, name, lease_seconds)
        self._listeners: list[Callable[[Outcome], None]] = []
        self._stopping = threading.Event()
        self._due = threading.Event()
        # time.monotonic() before which this process does not begin again.
        self._not_before = 0.0
        self._away = False
        self._threads = [
            threading.Thread(target=loop, name=f"{part} {self.domain} {name}", daemon=True)
            for part, loop in (("lease", self._keep), ("background", self._follow))
        ]

    @property
    def holds(self) -> bool:
        """Whether this process holds the lease."""
        return self._lease.fence is not None

    def on_end(self, listener: Callable[[Outcome], None]) -> None:
        """Have `listener` called after each run."""
        self._listeners.append(listener)

    def hurry(self) -> None:
        """Do the work soon, if this process holds the lease and did not do it less than `interval` ago."""
        self._due.set()

    def start(self) -> None:
        """Begin to compete for the lease."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, and release the lease so that another process takes over at once."""
        stop_all([self])

    def _end(self) -> None:
        self._stopping.set()
        self._due.set()

    def _release(self, give_up: float) -> None:
        """Wait until `give_up`, a time.monotonic(), that nothing is done any more, and let another process begin."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, give_up - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            # The work may still be at it: nobody else is to begin before the lease has run out.
            return
        try:
            self._lease.release()
        except Exception:
            # It runs out by itself.
            log.warning("lease not released", work=self.name, domain=self.domain, exc_info=True)

    def _keep(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = self._lease.seconds / _LOOKS
            try:
                look = self._lease.take()
            except Exception:
                # Once for each outage.
                if not self._away:
                    log.warning("lease not renewed", work=self.name, domain=self.domain, exc_info=True)
                self._away = True
                continue
            self._away = False
            self.success_time = look.success_time
            if not look.mine:
                pause = min(pause, max(0.0, look.remaining) + _AFTER_EXPIRY)
            elif self._is_due(look):
                self._due.set()

    def _is_due(self, look: Look) -> bool:
        return look.since_success is None or look.since_success >= self.interval

    def _follow(self) -> None:
        while not self._stopping.is_set():
            self._due.wait()
            fence = self._lease.fence
            # It may have been called again for what it had just done.
            if fence is not None and time.monotonic() >= self._not_before:
                self._run(fence)
            self._due.clear()

    def _run(self, fence: int) -> None:
        held = Held(fence, lambda: self._lease.fence == fence and not self._stopping.is_set())
        outcome: Outcome = "FAILED"
        try:
            self._work(held)
            outcome = "OK" if held() and self._lease.done(fence) else "LOST"
        except Exception:
            log.exception("background work failed", work=self.name, domain=self.domain)
        self._not_before = time.monotonic() + (self.interval if outcome == "OK" else min(self.interval, _RETRY))
        for listener in self._listeners:
            listener(outcome)


def stop_all(works: Sequence[BackgroundWork]) -> None:
    """Stop all of them, in the time that one would take, also when PostgreSQL is away."""
    for work in works:
        work._end()  # noqa: SLF001  # of the same module
    give_up = time.monotonic() + _PATIENCE
    token = deadline.current.set(give_up + _RELEASING)
    try:
        for work in works:
            if deadline.remaining(_RELEASING) <= 0:
                log.warning("leases not released: they run out by themselves", first=work.name, domain=work.domain)
                return
            work._release(give_up)  # noqa: SLF001  # of the same module
    finally:
        deadline.current.reset(token)
