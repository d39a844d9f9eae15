"""Waits for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], limit: float = 5.0) -> None:
    """Return when `condition` holds; fail after `limit` seconds."""
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, f"did not come true within {limit} s"
        time.sleep(0.002)
