"""What is known of how long the calls of a method take: enough to refuse those that cannot end in time."""

from __future__ import annotations

# Fewer calls than this say nothing.
_ENOUGH = 8
_NOTHING = (0, 0.0)


class Pace:
    """The shortest time that a method took of late: no call of it ends sooner.

    The shortest, since one slow call says nothing of the next; of at least 8 calls in this second and the last, so
    that a method which was slow is tried again. All times in seconds, `now` of time.monotonic(). Used by several
    threads without a lock: the worst of a race is a call that does not count.
    """

    def __init__(self) -> None:
        self._second = 0
        # How many calls, and the shortest of them: in this second, and in the one before.
        self._current = self._previous = _NOTHING

    def note(self, seconds: float, now: float) -> None:
        """Count a call that took `seconds`."""
        self._turn(int(now))
        count, shortest = self._current
        self._current = (count + 1, min(shortest, seconds) if count else seconds)

    def shortest(self, now: float) -> float:
        """Return the shortest time; 0 when too few calls are known."""
        self._turn(int(now))
        (count, shortest), (count_before, shortest_before) = self._current, self._previous
        if count + count_before < _ENOUGH:
            return 0.0
        if not count or (count_before and shortest_before < shortest):
            return shortest_before
        return shortest

    def _turn(self, second: int) -> None:
        if second == self._second:
            return
        self._previous = self._current if second == self._second + 1 else _NOTHING
        self._current = _NOTHING
        self._second = second
