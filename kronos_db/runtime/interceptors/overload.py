"""Fifth in the chain: refuses what cannot be served in time, and keeps one domain from crowding out the others."""

from __future__ import annotations

import threading
import time

from kronos_db.runtime import deadline
from kronos_db.runtime.errors import DeadlineTooShortError, OverloadedError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import Begin, End
from kronos_db.runtime.interceptors.method import Method

_RETRY_AFTER = 0.1


class Overload:
    """Bounds the calls of each domain; `minimum` is the seconds that a call must have left to be begun."""

    def __init__(self, domain_limit: int, minimum: float) -> None:
        self._limit = domain_limit
        self._minimum = minimum
        self._running: dict[str, _Running] = {}

    def begin(self, method: Method) -> Begin:
        """Check deadline and limit, and make the deadline known to whatever waits for this call."""
        running = self._of(method)

        def begin(call: Call) -> None:
            left = call.context.time_remaining()
            if left is not None:
                if left < self._minimum:
                    raise DeadlineTooShortError(f"{left:.4f} s left")
                call.deadline = time.monotonic() + left
            running.enter(self._limit)
            deadline.current.set(call.deadline)

        return begin

    def end(self, method: Method) -> End:
        """Make room."""
        running = self._of(method)

        def end(_call: Call, _error: BaseException | None) -> None:
            deadline.current.set(None)
            running.leave()

        return end

    def _of(self, method: Method) -> _Running:
        return self._running.setdefault(method.domain, _Running())

    def running(self) -> dict[str, int]:
        """Return how many calls of each domain are in the server."""
        return {domain: running.count for domain, running in self._running.items()}


class _Running:
    """Counts the calls of one domain."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def enter(self, limit: int) -> None:
        with self._lock:
            if self.count >= limit:
                raise OverloadedError("the domain is at its limit", retry_after=_RETRY_AFTER)
            self.count += 1

    def leave(self) -> None:
        with self._lock:
            self.count -= 1
