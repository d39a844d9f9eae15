"""Readiness: every part named, no check able to hang or break the report, and draining told at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from kronos_db.runtime.ops.readiness import OK, Readiness, State
from tests.parts.eventually import eventually


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that hung checks wait for; opened at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def test_a_report_names_every_part() -> None:
    readiness = Readiness()
    readiness.add("users database", lambda: None)
    readiness.add("migrations", lambda: "2 migrations of users are pending")
    assert readiness.report() == {
        "server": "ok",
        "users database": "ok",
        "migrations": "2 migrations of users are pending",
    }
    assert readiness.parts == {"server", "users database", "migrations"}


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ({"server": "ok", "database": "ok", "one": "ok", "other": "ok"}, State.READY),
        ({"server": "ok", "database": "ok", "one": "ok", "other": "is being started"}, State.DEGRADED),
        ({"server": "ok", "database": "ok", "one": "is away", "other": "is being started"}, State.NOT_READY),
        ({"server": "ok", "database": "is away", "one": "ok", "other": "is being started"}, State.NOT_READY),
        ({"server": "draining", "database": "ok", "one": "ok", "other": "ok"}, State.NOT_READY),
    ],
)
def test_of_what_is_spare_one_is_enough(report: dict[str, str], state: State) -> None:
    readiness = Readiness()
    readiness.add("database", lambda: None)
    for part in ("one", "other"):
        readiness.add(part, lambda: None, spare=True)
    assert readiness.state_of(report) is state


def test_a_check_that_raises_tells_its_class_alone() -> None:
    readiness = Readiness()

    def check() -> str | None:
        raise ConnectionRefusedError("password=sesame")

    readiness.add("redis", check)
    with capture_logs() as logs:
        assert readiness.report()["redis"] == "the check failed: ConnectionRefusedError"
    assert [(line["event"], line["part"]) for line in logs] == [("readiness check failed", "redis")]


def test_a_check_that_hangs_holds_one_thread_and_no_report(gate: threading.Event) -> None:
    readiness = Readiness(timeout=0.05)
    runs: list[int] = []

    def check() -> None:
        runs.append(1)
        gate.wait(30)

    readiness.add("hung", check)
    readiness.add("whole", lambda: None)
    begin = time.monotonic()
    for _ in range(3):
        assert readiness.report() == {"server": "ok", "hung": "no answer within 0.05 s", "whole": "ok"}
    assert time.monotonic() - begin < 5
    assert len(runs) == 1


def test_a_check_that_recovers_is_asked_anew(gate: threading.Event) -> None:
    readiness = Readiness(timeout=0.05)
    readiness.add("slow", lambda: None if gate.wait(30) else "never")
    assert readiness.report()["slow"] == "no answer within 0.05 s"
    gate.set()
    deadline = time.monotonic() + 10
    while readiness.report()["slow"] != "ok":
        assert time.monotonic() < deadline


def test_checks_run_side_by_side() -> None:
    readiness = Readiness(timeout=10)
    both = threading.Barrier(2, timeout=10)
    for part in ("a", "b"):
        readiness.add(part, lambda: None if both.wait() >= 0 else "never")
    assert set(readiness.report().values()) == {"ok"}


def test_draining_is_told_at_once_and_once() -> None:
    readiness = Readiness()
    told: list[bool] = []
    readiness.on_drain(lambda: told.append(readiness.draining))
    assert not readiness.draining
    readiness.drain()
    readiness.drain()
    assert told == [True]
    assert readiness.report() == {"server": "draining: takes no new work"}


@pytest.mark.parametrize("part", ["server", "twice"])
def test_a_part_has_one_check(part: str) -> None:
    readiness = Readiness()
    readiness.add("twice", lambda: None)
    with pytest.raises(ValueError, match="has a check already"):
        readiness.add(part, lambda: None)


def test_a_hung_check_does_not_keep_the_process_from_ending() -> None:
    program = (
        "import threading; from kronos_db.runtime.ops.readiness import Readiness; r = Readiness(timeout=0.01);"
        "r.add('hung', lambda: threading.Event().wait() and None); print(r.report()['hung'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "no answer within 0.01 s\n"


def test_what_was_seen_is_told_without_waiting(gate: threading.Event) -> None:
    readiness = Readiness(timeout=60.0)
    first = threading.Event()

    def slow() -> str | None:
        if first.is_set():
            gate.wait()
        first.set()
        return "is away"

    readiness.add("slow", slow)
    readiness.add("quick", lambda: None)
    readiness.report()
    assert readiness.seen() == {"server": OK, "slow": "is away", "quick": OK}


def test_a_check_that_takes_too_long_is_seen(gate: threading.Event) -> None:
    readiness = Readiness(timeout=0.01)
    readiness.add("hung", lambda: "never" if gate.wait() else None)
    eventually(lambda: readiness.seen()["hung"] == "no answer within 0.01 s")
