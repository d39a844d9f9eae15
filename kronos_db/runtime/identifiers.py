"""Makes and checks the ids of records: UUIDs as RFC 9562 describes them."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from uuid import UUID

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

_COUNTER_BITS = 42
_LOW_COUNTER_BITS = 30
_TAIL_BITS = 32
_RANDOM_BYTES = 10
_DRAWN_AT_ONCE = 256


def canonical_uuid(text: str) -> str | None:
    """Return `text` as lower-case hyphenated UUID (36 characters), or None when it is no hyphenated UUID."""
    lowered = text.lower()
    return lowered if _CANONICAL.fullmatch(lowered) else None


class Uuid7Source:
    """Makes UUIDv7s (RFC 9562 section 5.7), each greater than the one before, from any thread.

    48 bits of Unix milliseconds, a counter of 42 bits (section 6.2, method 1) and 32 random bits. The counter starts
    each millisecond at a random value below half its range. While `clock` (nanoseconds) stands still or runs backwards
    the counter goes on; should it run out, the timestamp goes one millisecond ahead of the clock.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._milliseconds = -1
        self._counter = 0
        self._random = b""
        self._used = 0

    def __call__(self) -> UUID:
        """Return the next UUID."""
        return UUID(int=self._next())

    def text(self) -> str:
        """Return the next UUID as text; a third of the time that making a UUID of it first would take."""
        digits = f"{self._next():032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def forget(self) -> None:
        """Draw anew: for a forked child, which must not make the ids of its parent."""
        self._lock = threading.Lock()
        self._random = b""
        self._used = 0

    def _next(self) -> int:
        now = self._clock() // 1_000_000
        with self._lock:
            random = int.from_bytes(self._drawn(), "big")
            milliseconds, counter = self._advance(now, random >> _TAIL_BITS)
        return (
            milliseconds << 80
            | 0x7 << 76
            | counter >> _LOW_COUNTER_BITS << 64
            | 0b10 << 62
            | (counter & (1 << _LOW_COUNTER_BITS) - 1) << _TAIL_BITS
            | random & (1 << _TAIL_BITS) - 1
        )

    def _drawn(self) -> bytes:
        """Return fresh random bytes. The kernel is asked for many at once: a system call costs more than an id."""
        if self._used >= len(self._random):
            self._random, self._used = os.urandom(_RANDOM_BYTES * _DRAWN_AT_ONCE), 0
        start = self._used
        self._used += _RANDOM_BYTES
        return self._random[start : self._used]

    def _advance(self, now: int, random: int) -> tuple[int, int]:
        self._counter += 1
        if now > self._milliseconds:
            self._milliseconds = now
        elif self._counter < 1 << _COUNTER_BITS:
            return self._milliseconds, self._counter
        else:
            self._milliseconds += 1
        self._counter = random & (1 << _COUNTER_BITS - 1) - 1
        return self._milliseconds, self._counter


uuid7 = Uuid7Source()
os.register_at_fork(after_in_child=uuid7.forget)
