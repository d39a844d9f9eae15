"""Waits for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(
    condition: Callable[[], object], limit: float = 5.0, why: Callable[[], object] = str, pause: float = 0.002
) -> None:
    """Return when `condition` holds; fail after `limit` seconds, with what `why` says then.

    `pause` is how long to wait between two looks, for those that are dear.
    """
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, f"did not come true within {limit} s: {why()}"
        time.sleep(pause)
