"""Waits for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

_SHORTEST, _LONGEST = 0.002, 0.3  # pauses in seconds


def eventually(condition: Callable[[], object], limit: float = 20.0, why: Callable[[], object] = str) -> None:
    """Return when `condition` holds; fail after `limit` seconds, with what `why` says then.

    The pause between two looks is nine times as long as the last one took: whom we wait for needs the processor too.
    """
    until = time.monotonic() + limit
    while True:
        looked = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < until, f"did not come true within {limit} s: {why()}"
        time.sleep(min(max(_SHORTEST, 9 * (now - looked)), _LONGEST))
