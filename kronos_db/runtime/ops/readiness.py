"""Tells whether a serving process can do its work, part by part, and never hangs in telling it."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import structlog

# A check returns None when its part is ready, else one sentence why not, fit to be shown.
Check = Callable[[], str | None]

OK = "ok"
# Seconds that are waited for checks where the answer must come at once.
_SOON = 0.2
# The part that stands for the process itself.
SERVER = "server"

log = structlog.get_logger(__name__)


class State(enum.Enum):
    """What a report comes to."""

    READY = OK
    # Works, with less than it should have.
    DEGRADED = "degraded"
    NOT_READY = "not ready"


class Readiness:
    """The named checks of a process, and whether it is draining. `timeout` in seconds bounds a report."""

    def __init__(self, *, timeout: float = 2.0) -> None:
        self._timeout = timeout
        self._probes: dict[str, _Probe] = {}
        self._spares: set[str] = set()
        self._draining = threading.Event()
        self._on_drain: list[Callable[[], None]] = []

    def add(self, part: str, check: Check, *, spare: bool = False) -> None:
        """Add the check of a part; of those that are `spare` one is enough. All before the first report."""
        if part == SERVER or part in self._probes:
            raise ValueError(f"{part} has a check already")
        self._probes[part] = _Probe(part, check)
        if spare:
            self._spares.add(part)

    @property
    def parts(self) -> frozenset[str]:
        """The names of all parts that a report speaks of."""
        return frozenset({SERVER, *self._probes})

    @property
    def draining(self) -> bool:
        """Whether the process has stopped to take new work."""
        return self._draining.is_set()

    def on_drain(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, once, when draining begins."""
        self._on_drain.append(listener)

    def drain(self) -> None:
        """Say from now on that the process is not ready; returns when every listener knows."""
        if not self._draining.is_set():
            self._draining.set()
            for listener in self._on_drain:
                listener()

    def report(self) -> dict[str, str]:
        """Return each part with OK, or with one sentence why it is not ready."""
        report = {SERVER: "draining: takes no new work" if self.draining else OK}
        deadline = time.monotonic() + self._timeout
        runs = {part: probe.run() for part, probe in self._probes.items()}
        for part, run in runs.items():
            try:
                report[part] = run.result(max(0.0, deadline - time.monotonic())) or OK
            except TimeoutError:
                report[part] = f"no answer within {self._timeout:g} s"
        return report

    def seen(self) -> dict[str, str]:
        """Return the same at once: of a check that is not done soon, what it said last, unless it takes too long."""
        report = {SERVER: "draining: takes no new work" if self.draining else OK}
        give_up = time.monotonic() + _SOON
        for part, probe in self._probes.items():
            run = probe.run()
            try:
                report[part] = run.result(max(0.0, give_up - time.monotonic())) or OK
            except TimeoutError:
                hangs = probe.running_for > self._timeout
                report[part] = f"no answer within {self._timeout:g} s" if hangs else probe.said or OK
        return report

    def state_of(self, report: Mapping[str, str]) -> State:
        """Return what a report comes to."""
        missing = {part for part, state in report.items() if state != OK}
        if not missing:
            return State.READY
        return State.DEGRADED if missing < self._spares else State.NOT_READY


class _Probe:
    """Runs one check, at most once at a time: a check that hangs holds one thread, however often it is asked for."""

    def __init__(self, part: str, check: Check) -> None:
        self._part = part
        self._check = check
        self._lock = threading.Lock()
        self._running: Future[str | None] | None = None
        self._begun = 0.0
        # What it said last.
        self.said: str | None = "not checked yet"

    @property
    def running_for(self) -> float:
        """Seconds since the run that is under way began, or the last one did."""
        return time.monotonic() - self._begun

    def run(self) -> Future[str | None]:
        """Start the check, or join the run that is under way."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = Future()
                self._begun = time.monotonic()
                # Not an executor: the interpreter would wait for a hung check when it exits.
                thread = threading.Thread(target=self._work, args=(self._running,), name=f"ready-{self._part}")
                thread.daemon = True
                thread.start()
            return self._running

    def _work(self, run: Future[str | None]) -> None:
        try:
            self.said = self._check()
        except Exception as error:
            log.warning("readiness check failed", part=self._part, exc_info=True)
            self.said = f"the check failed: {type(error).__name__}"
        run.set_result(self.said)
