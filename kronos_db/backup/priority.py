"""Lets whoever serves go first: what makes a backup takes the processor time that nobody else wants."""

from __future__ import annotations

import os
from contextlib import suppress

# The lowest priority of a thread that still gets its turn.
_LOWEST = 19


def step_back(task: int) -> None:
    """Give a process, or a thread by its native id, the lowest priority, and so all that it starts from now on.

    Linux knows priorities of threads; where nothing does, nothing changes.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, task, _LOWEST)
