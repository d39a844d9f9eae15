"""What is noted reaches the log, whatever happens to the database meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest

from kronos_db.admin.audit import Event
from kronos_db.admin.recording import Recording
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.identifiers import uuid7
from kronos_db.runtime.interceptors.audit import Entry, Phase
from tests.parts.eventually import eventually


class Log:
    """Adds events to a list, unless it is away."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.away = False
        self.attempts = 0

    def add(self, events: Sequence[Event]) -> None:
        self.attempts += 1
        if self.away:
            raise UnavailableError("away")
        self.events += events


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def recording(log: Log, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    monkeypatch.setattr("kronos_db.admin.recording._RETRY", 0.01)
    made = Recording(log.add)
    made.start()
    yield made
    made.stop()


def an_entry(phase: Phase = Phase.REFUSED, caller: str = "ann") -> Entry:
    return Entry(uuid7(), phase, datetime.now(UTC), caller, "s/M", "r", code="PERMISSION_DENIED", reason="WHY")


def test_what_is_recorded_is_there_at_once(log: Log, recording: Recording) -> None:
    entry = an_entry(Phase.BEGUN)
    recording.record(entry)
    [event] = log.events
    assert (event.call_id, event.caller, event.phase) == (entry.call_id, "ann", 1)


def test_what_cannot_be_recorded_fails(log: Log, recording: Recording) -> None:
    log.away = True
    with pytest.raises(UnavailableError):
        recording.record(an_entry(Phase.BEGUN))


def test_what_was_noted_while_the_database_was_away_is_written_in_order(log: Log, recording: Recording) -> None:
    log.away = True
    entries = [an_entry(caller=str(number)) for number in range(900)]
    for entry in entries:
        recording.note(entry)
    eventually(lambda: log.attempts > 2)
    assert recording.waiting
    log.away = False
    eventually(lambda: len(log.events) == len(entries))
    assert [event.caller for event in log.events] == [entry.caller for entry in entries]


def test_refusals_that_are_alike_are_counted_together_beyond_a_thousand(log: Log, recording: Recording) -> None:
    log.away = True
    for _ in range(50_000):
        recording.note(an_entry())
    ended = an_entry(Phase.ENDED)
    recording.note(ended)
    assert recording.waiting <= 1002
    log.away = False
    eventually(lambda: not recording.waiting and sum(event.call_count for event in log.events) == 50_001)
    # What ended stands for itself.
    assert [event.call_count for event in log.events if event.call_id == ended.call_id] == [1]


def test_what_waits_is_written_at_the_end(log: Log) -> None:
    recording = Recording(log.add)
    # Begins to write when it is told to stop.
    hold = threading.Event()
    add = log.add

    def add_late(events: Sequence[Event]) -> None:
        hold.wait(10)
        add(events)

    recording._add = add_late
    recording.start()
    for _ in range(3):
        recording.note(an_entry())
    hold.set()
    recording.stop()
    assert len(log.events) == 3
    assert not recording.waiting
