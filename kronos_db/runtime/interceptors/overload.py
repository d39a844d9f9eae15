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
# Seconds. For a caller that never stops waiting gRPC says some hundred thousand million years.
_FOREVER = 1e9


class Overload:
    """Bounds the calls of each domain; `minimum` is the seconds that a call must have left to be begun.

    Calls whose answer is a stream are counted apart, against `stream_limit`: they last, and most of the time they are
    idle, so a few hundred watchers must not use up the room of all other calls.
    """

    def __init__(self, domain_limit: int, stream_limit: int, minimum: float) -> None:
        self._domain_limit = domain_limit
        self._stream_limit = stream_limit
        self._minimum = minimum
        self._running: dict[tuple[str, bool], _Running] = {}

    def begin(self, method: Method) -> Begin:
        """Check deadline and limit, and make the deadline known to whatever waits for this call."""
        running = self._of(method)

        def begin(call: Call) -> None:
            left = call.context.time_remaining()
            if left < self._minimum:
                raise DeadlineTooShortError(f"{left:.4f} s left")
            call.deadline = time.monotonic() + left if left < _FOREVER else None
            running.enter()
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
        streams = method.descriptor.server_streaming
        limit = self._stream_limit if streams else self._domain_limit
        return self._running.setdefault((method.domain, streams), _Running(limit))

    def running(self) -> dict[str, int]:
        """Return how many calls of each domain are in the server, streams included."""
        counts: dict[str, int] = {}
        for (domain, _streams), running in self._running.items():
            counts[domain] = counts.get(domain, 0) + running.count
        return counts


class _Running:
    """Counts calls against a limit."""

    def __init__(self, limit: int) -> None:
        self.count = 0
        self._limit = limit
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            if self.count >= self._limit:
                raise OverloadedError("the domain is at its limit", retry_after=_RETRY_AFTER)
            self.count += 1

    def leave(self) -> None:
        with self._lock:
            self.count -= 1
