"""Keeps the threads of a serving process on one core, and moves them when that core is taken by somebody else.

Threads that share an interpreter lock run one at a time anyway. On one core the lock passes from thread to thread by
a plain switch of context; across cores each pass wakes another processor, which costs more than most of what the
threads do with the lock. A bare grpcio server answers twice as many calls this way.

They are under SCHED_BATCH (sched(7)): a thread that wakes does not push off the one that runs, which holds the lock
that it will ask for first. Otherwise gRPC's thread would do so at each answer that was sent, find the lock taken and
sleep again. docs/decisions/0003-workers.md has the measurements.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

_TASKS = Path("/proc/self/task")
# Seconds between two looks, and what they look for: threads that could have run on this core for more than so much of
# the time, while the process had less than so much of it.
_INTERVAL = 2.0
_WAITED = 0.3
_RAN = 0.7

_log = structlog.get_logger(__name__)


class OneCore:
    """The core of this process, which has `slot` among the `slots` of a supervisor, or is alone.

    Threads that need no interpreter lock for most of their work are freed by `release`, with all that they start.
    """

    def __init__(self, slot: int | None = None, slots: int = 1) -> None:
        self._all = os.sched_getaffinity(0)
        self._released: set[int] = set()
        # Another policy than that of every process was given to this one by somebody who knows why.
        self._batch = os.sched_getscheduler(0) == os.SCHED_OTHER
        self._stopped = threading.Event()
        cores = sorted(self._all)
        # Processes of one supervisor share the cores out: two that flee from each other would meet again and again.
        self._own = cores if slot is None else cores[slot::slots] or [cores[slot % len(cores)]]
        self._core = random.choice(self._own)
        self._thread = threading.Thread(target=self._follow, name="affinity", daemon=True)

    def start(self) -> None:
        """Gather the threads on one core; those that they start will be there too.

        What the system refuses, as a sandbox may, is said and done without.
        """
        ours = [task for task in self._tasks() if task not in self._released]
        if self._batch:
            with _unless_refused("SCHED_BATCH for threads that share the interpreter lock"):
                for task in ours:
                    _schedule(task, os.SCHED_BATCH)
        with _unless_refused("keeping threads on one core"):
            self._pin(ours)
            if len(self._own) > 1:
                self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()

    def release(self) -> None:
        """Let the calling thread run on every core, whoever else wants it."""
        self._released.add(threading.get_native_id())
        # What is refused here was refused to `start` too, which said so.
        with suppress(PermissionError):
            os.sched_setaffinity(0, self._all)
        if self._batch:
            with suppress(PermissionError):
                _schedule(0, os.SCHED_OTHER)

    def _follow(self) -> None:
        ran, waited = self._times()
        while not self._stopped.wait(_INTERVAL):
            ran_before, waited_before = ran, waited
            ran, waited = self._times()
            if is_crowded((ran - ran_before) / _INTERVAL, (waited - waited_before) / _INTERVAL):
                ours = self._gathered()
                self._core = random.choice([core for core in self._own if core != self._core])
                self._pin(ours)
                _log.info("moved to another core", core=self._core)

    def _pin(self, tasks: Iterable[int]) -> None:
        for task in tasks:
            # Threads end while we look.
            with suppress(ProcessLookupError):
                os.sched_setaffinity(task, {self._core})

    def _times(self) -> tuple[float, float]:
        """Return the seconds for which our threads ran, and for which they could have run but had no core."""
        ran = waited = 0
        for task in self._gathered():
            with suppress(OSError):
                on_core, in_queue, _ = (_TASKS / str(task) / "schedstat").read_text().split()
                ran, waited = ran + int(on_core), waited + int(in_queue)
        return ran / 1e9, waited / 1e9

    def _gathered(self) -> list[int]:
        """Return the threads that are on our core: those that were let go, and what these have started, are not."""
        found = []
        for task in self._tasks():
            with suppress(ProcessLookupError):
                if os.sched_getaffinity(task) == {self._core}:
                    found.append(task)
        return found

    def _tasks(self) -> list[int]:
        return [int(entry.name) for entry in _TASKS.iterdir()]


def _schedule(task: int, policy: int) -> None:
    with suppress(ProcessLookupError):
        os.sched_setscheduler(task, policy, os.sched_param(0))


@contextmanager
def _unless_refused(what: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        _log.warning("the system does not allow what makes calls cheaper", what=what, error=str(error))


def is_crowded(ran: float, waited: float) -> bool:
    """Tell whether somebody else takes the core: our threads wait for it, and not for each other.

    Both are shares of the time that passed.
    """
    return waited > _WAITED and ran < _RAN
