"""A write whose connection fails at a chosen moment: one effect and a right answer, or UNAVAILABLE and no effect."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kronos_db.runtime import deadline
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import DeadlineTooShortError, UnavailableError
from tests.faults.conftest import COUNT, EFFECT, World, effect
from tests.faults.wire import Moment, Wire
from tests.parts.domain import LIMIT, mutation

ATTEMPTS = 6
# Where a write may be cut, and how.
FAULTS = [
    ("BEGIN", Moment.CUT_BEFORE),
    ("users:effect", Moment.CUT_BEFORE),
    ("users:keep", Moment.CUT_BEFORE),
    ("COMMIT", Moment.CUT_BEFORE),
    ("COMMIT", Moment.CUT_AFTER),
    ("COMMIT", Moment.ROLLBACK_TAG),
]


def begun(wire: Wire) -> int:
    return sum(statement == "BEGIN" for statement in wire.statements)


@pytest.mark.parametrize(("statement", "moment"), FAULTS)
def test_one_fault_is_not_noticed(world: World, wire: Wire, users: Database, statement: str, moment: Moment) -> None:
    fault, before = wire.arm(statement, moment), begun(wire)
    call = mutation()
    assert users.write(effect(), call) == "a"
    assert fault.struck.is_set()
    assert begun(wire) - before == 2
    assert world.effects() == ["a"]
    assert world.answers() == 1
    assert users.write(effect(), call) == "a", "a repeat of the caller's own"
    assert world.effects() == ["a"]


def test_faults_at_every_attempt_are_unavailable_and_write_nothing(world: World, wire: Wire, users: Database) -> None:
    wire.arm("COMMIT", Moment.CUT_BEFORE, times=ATTEMPTS)
    call = mutation()
    with pytest.raises(UnavailableError):
        users.write(effect(), call)
    assert (world.effects(), world.answers()) == ([], 0)
    assert users.write(effect(), call) == "a"
    assert world.effects() == ["a"]


def test_an_outcome_that_stays_unknown_is_resolved_by_the_callers_repeat(
    world: World, wire: Wire, users: Database
) -> None:
    wire.arm("COMMIT", Moment.CUT_AFTER)
    call, attempts = mutation(), []

    def work(tx: Transaction) -> str:
        attempts.append(1)
        if len(attempts) == 2:
            wire.arm("users:effect", Moment.CUT_BEFORE, times=ATTEMPTS)
        return effect()(tx)

    with pytest.raises(UnavailableError):
        users.write(work, call)
    wire.disarm()
    assert world.effects() == ["a"]
    assert users.write(effect("never"), call) == "a"
    assert world.effects() == ["a"]


def test_a_late_commit_of_a_lost_attempt_answers_its_repeat(world: World, wire: Wire, users: Database) -> None:
    """The server has the row of the lost attempt, not yet its COMMIT: the next attempt waits for that row."""
    fault = wire.arm("COMMIT", Moment.LATE)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(users.write, effect(), mutation())
        assert fault.struck.wait(LIMIT)
        world.wait_for("wait_event_type = 'Lock'")
        assert world.effects() == []
        fault.release()
        assert answer.result(LIMIT) == "a"
    assert (world.effects(), world.answers()) == (["a"], 1)


def test_a_late_commit_after_its_repeat_fails(world: World, wire: Wire, users: Database) -> None:
    """Neither row nor COMMIT of the lost attempt came before the next attempt was done: the row refuses it."""
    fault = wire.arm("users:keep", Moment.LATE)
    assert users.write(effect(), mutation()) == "a"
    assert fault.struck.is_set()
    assert not fault.done.is_set()
    assert len(world.backends("state = 'idle in transaction' OR state = 'active'")) == 1, "the lost attempt stands"
    fault.release()
    assert (world.effects(), world.answers()) == (["a"], 1)


def test_a_silent_server_is_given_up(world: World, wire: Wire, users: Database) -> None:
    users.pool.limits = replace(users.pool.limits, silence=0.3)
    users.pool._pool.drain()
    silences = [wire.arm("users:effect", Moment.SILENCE), wire.arm("users:count", Moment.SILENCE)]
    started = time.monotonic()
    assert users.write(effect(), mutation()) == "a"
    assert users.fetch_one(COUNT, {}, int) == 1
    assert 0.6 <= time.monotonic() - started < LIMIT
    for silence in silences:
        assert silence.struck.is_set()
        silence.released.set()
    assert world.effects() == ["a"]


@pytest.mark.parametrize("moment", [Moment.CUT_BEFORE, Moment.CUT_AFTER])
def test_reads_are_repeated(wire: Wire, users: Database, moment: Moment) -> None:
    wire.arm("users:count", moment, times=2)
    assert users.fetch_one(COUNT, {}, int) == 0


def test_validate_only_with_a_fault_leaves_nothing(world: World, wire: Wire, users: Database) -> None:
    wire.arm("users:effect", Moment.CUT_BEFORE)
    wire.arm("ROLLBACK", Moment.CUT_BEFORE)
    assert users.write(effect(), mutation(validate_only=True)) == "a"
    assert (world.effects(), world.answers()) == ([], 0)


def test_attempts_end_with_the_deadline(world: World, wire: Wire, users: Database) -> None:
    wire.arm("COMMIT", Moment.CUT_BEFORE, times=ATTEMPTS)
    before = begun(wire)
    token = deadline.current.set(time.monotonic() + 0.05)
    try:
        with pytest.raises((UnavailableError, DeadlineTooShortError)):
            users.write(effect(), mutation())
    finally:
        deadline.current.reset(token)
    assert begun(wire) - before < ATTEMPTS
    assert world.effects() == []


def test_nothing_begins_after_the_deadline(wire: Wire, users: Database) -> None:
    before = begun(wire)
    token = deadline.current.set(time.monotonic() - 1)
    try:
        with pytest.raises(DeadlineTooShortError):
            users.write(effect(), mutation())
    finally:
        deadline.current.reset(token)
    assert begun(wire) == before


def test_concurrent_repeats_under_cuts_make_one_effect(world: World, wire: Wire, users: Database) -> None:
    call, answers = mutation(uuid.uuid4()), []
    for moment in (Moment.CUT_BEFORE, Moment.CUT_AFTER, Moment.CUT_BEFORE, Moment.CUT_AFTER):
        wire.arm("COMMIT", moment)
    threads = [threading.Thread(target=lambda: answers.append(users.write(effect(), call))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert answers == ["a"] * 4
    assert world.effects() == ["a"]


def test_a_statement_between_is_not_run_twice_in_one_commit(world: World, wire: Wire, users: Database) -> None:
    def work(tx: Transaction) -> str:
        tx.execute(EFFECT, {"note": "queued"})
        return effect("fetched")(tx)

    wire.arm("users:effect", Moment.CUT_BEFORE)
    wire.arm("COMMIT", Moment.CUT_AFTER)
    assert users.write(work, mutation()) == "fetched"
    assert world.effects() == ["fetched", "queued"]
