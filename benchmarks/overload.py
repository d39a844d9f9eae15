"""The rows of overload: one domain is flooded, another wants its latency."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from benchmarks.flood import Answers, Job
from benchmarks.stand import Row, at_most, settle
from benchmarks.two_domains import CAPACITY, PEACEFUL, SLOW

TIMES_CAPACITY = 10
_ROUNDS = 5
_PEACEFUL_RATE = 200.0
# Seconds of a flood before anything is measured: the queue is full by then.
_ONSET = 1.0


@dataclass(frozen=True)
class Round:
    """What a flood did: answers of the flooded method by code, and of the other domain, without and under it."""

    flooded: dict[str, Answers]
    undisturbed: Answers
    disturbed: Answers

    @property
    def refusals(self) -> Answers:
        """The calls of the flood that found no room."""
        return self.flooded["RESOURCE_EXHAUSTED"]

    @property
    def ratio(self) -> float:
        """The other domain's p99 under the flood, of that without it."""
        return self.disturbed.p99_ms / self.undisturbed.p99_ms


class Target:
    """A server with two domains, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._address, token = process.stdout.readline().split()
        self._metadata = [("authorization", f"Bearer {token}")]

    def flood(self, seconds: float = 3.0) -> Round:
        """Measure the one domain alone for `seconds`, then flood the other and measure it again."""
        undisturbed = self._answers(self._start(PEACEFUL, _PEACEFUL_RATE, seconds))
        flood = self._start(SLOW, TIMES_CAPACITY * CAPACITY, _ONSET + seconds + 1.0)
        time.sleep(_ONSET)
        disturbed = self._answers(self._start(PEACEFUL, _PEACEFUL_RATE, seconds))
        return Round(self._answers(flood), undisturbed["OK"], disturbed["OK"])

    def _start(self, method: str, rate: float, seconds: float) -> subprocess.Popen[str]:
        job = Job(self._address, f"/{method}", rate, seconds, metadata=self._metadata)
        process = _python("benchmarks.flood")
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(job)))
        process.stdin.close()
        return process

    def _answers(self, process: subprocess.Popen[str]) -> dict[str, Answers]:
        with process:
            assert process.stdout is not None
            return {code: Answers(**answers) for code, answers in json.load(process.stdout).items()}


@contextmanager
def target() -> Iterator[Target]:
    """Start the server."""
    with _python("benchmarks.two_domains") as process:
        assert process.stdin is not None
        try:
            yield Target(process)
        finally:
            process.stdin.close()


def rows() -> Iterator[Row]:
    """Measure; of several rounds, the one in the middle."""
    rounds = []
    with target() as on:
        for _ in range(_ROUNDS):
            rounds.append(on.flood())
            settle()
    middle = sorted(rounds, key=lambda found: found.ratio)[_ROUNDS // 2]
    refusals = middle.refusals.p99_ms
    flood = f"a flood of {TIMES_CAPACITY} × capacity"
    yield Row(f"overload: refusals' p99 under {flood}", refusals, "ms", bar="≤ 50 ms", met=refusals <= 50)
    yield at_most(
        "overload: p99 of another domain under the flood", middle.disturbed.p99_ms, "ms", middle.undisturbed.p99_ms, 2
    )


def _python(module: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
