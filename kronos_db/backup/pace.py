"""How fast a long piece of work goes, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable

from kronos_db.backup.model import Progress, Step


class Pace:
    """Makes the progress of one step that begins now."""

    def __init__(self, step: Step, backup_id: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._step = step
        self._backup_id = backup_id
        self._clock = clock
        self._began = clock()

    def at(self, done: int, total: int | None) -> Progress:
        """Return the progress after `done` bytes of `total`; an estimate that was too low is raised."""
        seconds = self._clock() - self._began
        rate = done / seconds if seconds > 0 and done else None
        total = None if total is None else max(total, done)
        left = (total - done) / rate if rate and total is not None else None
        return Progress(self._step, done, total, rate, left, self._backup_id)
