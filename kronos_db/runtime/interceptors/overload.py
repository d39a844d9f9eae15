"""Fifth in the chain: refuses what cannot be served in time, and keeps one domain from crowding out the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc

from kronos_db.runtime import deadline, issuer
from kronos_db.runtime.errors import DeadlineTooShortError, OverloadedError
from kronos_db.runtime.interceptors.call import Call, Step
from kronos_db.runtime.interceptors.chain import Begin, End, Message
from kronos_db.runtime.interceptors.method import Method, Room
from kronos_db.runtime.interceptors.pace import Pace
from kronos_db.runtime.reception import Lane

_RETRY_AFTER = 0.1
# Seconds. For a caller that never stops waiting gRPC says some hundred thousand million years.
_FOREVER = 1e9

# Counts a refusal of a domain for a reason: `limit`, `deadline`, or `expired` when it passed while the call waited.
CountRefusal = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls of one domain may be in the server, waiting or running, by what they take up there.

    `minimum` is the seconds that a call must have left to be begun.
    """

    calls: int = 256
    compute: int = 32
    streams: int = 32
    pushes: int = 10_000
    minimum: float = 0.002

    def of(self, room: Room) -> int:
        """Return the limit of one kind."""
        return {"call": self.calls, "compute": self.compute, "stream": self.streams, "push": self.pushes}[room]


class Overload:
    """Bounds the calls of each domain, and refuses those that cannot be answered within their deadline.

    `expected_wait` tells for how many seconds a call would wait for a thread.
    """

    def __init__(self, limits: Limits, expected_wait: Callable[[Lane], float], refused: CountRefusal) -> None:
        self._limits = limits
        self._expected_wait = expected_wait
        self._refused = refused
        self._occupied: dict[tuple[str, Room], _Occupancy] = {}
        self._paces: dict[str, Pace] = {}

    def begin(self, method: Method) -> Begin:
        """Refuse, or take up room and make the deadline known to whatever waits for this call."""
        occupied, pace = self._of(method), self._pace_of(method)
        minimum, wait, lane = self._limits.minimum, self._expected_wait, method.lane
        standby = self._standby_of(method) if method.room == "call" else None
        path = method.path

        def begin(call: Call) -> None:
            left = call.context.time_remaining()
            if left < _FOREVER:
                now = time.monotonic()
                expected = wait(lane)
                if left < max(minimum, expected + pace.shortest(now)):
                    self._refused(lane.domain, "deadline")
                    raise _too_short(f"{left:.4f} s left", expected)
                call.deadline = now + left
            if not occupied.enter():
                self._refused(lane.domain, "limit")
                raise OverloadedError("the domain is at its limit", retry_after=max(_RETRY_AFTER, wait(lane)))
            call.standby = standby
            deadline.current.set(call.deadline)
            issuer.current.set(path)

        return begin

    def end(self, method: Method) -> End:
        """Make room, and learn how long the call took."""
        occupied = self._of(method)
        pace = self._pace_of(method) if method.room in {"call", "compute"} else None

        def end(call: Call, _error: BaseException | None) -> None:
            deadline.current.set(None)
            issuer.current.set("")
            occupied.leave()
            if pace is not None and call.taken:
                now = time.monotonic()
                pace.note(now - call.taken, now)

        return end

    def request(self, method: Method) -> Step | None:
        """Drop a call whose caller stopped waiting while it was queued."""
        if method.descriptor.client_streaming:
            return None

        def request(message: Message, call: Call) -> Message:
            now = time.monotonic()
            if call.deadline is not None and call.deadline <= now:
                self._refused(method.domain, "expired")
                raise _too_short("the deadline passed while the call waited for a thread", 0.0)
            if not call.context.is_active():
                raise grpc.RpcError("the caller left while the call waited for a thread")
            call.taken = now
            return message

        return request

    def response(self, _method: Method) -> None:
        """Nothing to do with responses."""

    def running(self) -> Mapping[str, int]:
        """Return how many calls of each domain are in the server, streams included."""
        counts: dict[str, int] = {}
        for (domain, _room), occupied in self._occupied.items():
            counts[domain] = counts.get(domain, 0) + occupied.count
        return counts

    def _of(self, method: Method) -> _Occupancy:
        return self._occupied.setdefault((method.domain, method.room), _Occupancy(self._limits.of(method.room)))

    def _standby_of(self, method: Method) -> _Standby:
        # Those that wait cost memory alone, as idle streams do.
        waiting = self._occupied.setdefault((method.domain, "push"), _Occupancy(self._limits.of("push")))
        return _Standby(self._of(method), waiting)

    def _pace_of(self, method: Method) -> Pace:
        return self._paces.setdefault(method.path, Pace())


def _too_short(detail: str, expected: float) -> DeadlineTooShortError:
    return DeadlineTooShortError(detail, retry_after=max(_RETRY_AFTER, expected))


class _Occupancy:
    """Counts calls against a limit."""

    def __init__(self, limit: int) -> None:
        self.count = 0
        self._limit = limit
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Count a call; return False when there is no room."""
        with self._lock:
            if self.count >= self._limit:
                return False
            self.count += 1
            return True

    def enter_again(self) -> None:
        """Count a call that was let in before, whether there is room or not."""
        with self._lock:
            self.count += 1

    def leave(self) -> None:
        with self._lock:
            self.count -= 1


class _Standby:
    """Moves calls between those that run and those that wait without a thread."""

    def __init__(self, running: _Occupancy, waiting: _Occupancy) -> None:
        self._running = running
        self._waiting = waiting

    def leave(self) -> bool:
        if not self._waiting.enter():
            return False
        self._running.leave()
        return True

    def back(self) -> None:
        self._running.enter_again()
        self._waiting.leave()
