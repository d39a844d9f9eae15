"""Calls that are written together, and those without `request_id`: a lost COMMIT is settled by their receipt."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from kronos_db.runtime.database.changes import Change
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import KronosError, RequestIdReusedError, UnavailableError
from kronos_db.runtime.workers import Gatherer
from tests.faults.conftest import World, effect
from tests.faults.test_commit import ATTEMPTS, FAULTS, begun
from tests.faults.test_retries import DOUBLE, Failing
from tests.faults.wire import Moment, Wire
from tests.parts.domain import LIMIT, mutation, unnamed


class RefusedError(KronosError):
    """The domain says no."""


def both(tx: Transaction) -> list[str]:
    return [effect("a")(tx), effect("b")(tx)]


def numbered() -> Callable[[Transaction], list[str]]:
    """Return a work whose answer is another one in each attempt: that of the attempt which counts is wanted."""
    attempt = count(1)

    def work(tx: Transaction) -> list[str]:
        return [effect(f"attempt {next(attempt)}")(tx)]

    return work


def receipts(world: World) -> list[tuple[str, bytes]]:
    found = world.admin.execute("SELECT caller, fingerprint FROM users.idempotency ORDER BY caller, fingerprint")
    return [(caller, bytes(fingerprint)) for caller, fingerprint in found]


@pytest.fixture(params=["without ids", "one with an id", "all with ids"])
def calls(request: pytest.FixtureRequest) -> list[Mutation[Any, Any]]:
    """Two calls that are written together."""
    makers = {
        "without ids": [unnamed(), unnamed()],
        "one with an id": [unnamed(), mutation()],
        "all with ids": [mutation(), mutation()],
    }
    return makers[request.param]


@pytest.mark.parametrize("at", FAULTS)
def test_one_fault_is_not_noticed(
    world: World, wire: Wire, users: Database, calls: list[Mutation[Any, Any]], at: tuple[str, Moment]
) -> None:
    fault, before = wire.arm(*at), begun(wire)
    assert users.write_together(both, calls) == ["a", "b"]
    assert fault.struck.is_set()
    # What was committed is not written anew to find that out.
    assert begun(wire) - before == (1 if at[1] in {Moment.CUT_AFTER, Moment.ROLLBACK_TAG} else 2)
    assert world.effects() == ["a", "b"]


def test_those_with_an_id_are_answered_again(
    world: World, wire: Wire, users: Database, calls: list[Mutation[Any, Any]]
) -> None:
    wire.arm("COMMIT", Moment.CUT_AFTER)
    users.write_together(both, calls)
    for call, answer in zip(calls, "ab", strict=True):
        if call.request_id is not None:
            assert users.write(effect("never"), call) == answer
            with pytest.raises(RequestIdReusedError):
                users.write(effect("never"), call._replace(fingerprint=b"another body"))
    assert world.effects() == ["a", "b"]


def test_calls_without_an_id_leave_one_row(world: World, users: Database) -> None:
    users.write_together(both, [unnamed(), unnamed()])
    assert receipts(world) == [("", b"")]
    users.write(effect(), unnamed())
    assert receipts(world) == [("", b"")] * 2
    users.write_together(both, [unnamed(), mutation()])
    assert receipts(world) == [("", b"")] * 3 + [("test", b"one body")]


def test_a_receipt_is_purged_when_no_attempt_can_ask_for_it(world: World, users: Database) -> None:
    users.write(effect(), unnamed(window=7200.0))
    kept = "SELECT round(extract(epoch FROM expire_time - now()) / 60)::int FROM users.idempotency"
    assert world.admin.execute(kept).fetchone() == (10,)


@pytest.mark.parametrize("moment", [Moment.CUT_BEFORE, Moment.CUT_AFTER])
def test_the_answer_is_of_the_attempt_that_was_committed(
    world: World, wire: Wire, users: Database, moment: Moment
) -> None:
    wire.arm("COMMIT", moment)
    answer = users.write_together(numbered(), [unnamed()])
    assert answer == world.effects() == ["attempt 1" if moment is Moment.CUT_AFTER else "attempt 2"]


def test_the_settling_may_be_lost_too(world: World, wire: Wire, users: Database) -> None:
    wire.arm("COMMIT", Moment.CUT_AFTER)
    for moment in (Moment.CUT_BEFORE, Moment.CUT_AFTER):
        wire.arm("users:settle", moment)
    assert users.write_together(numbered(), [unnamed()]) == ["attempt 1"]

    wire.arm("COMMIT", Moment.CUT_BEFORE)
    for moment in (Moment.CUT_BEFORE, Moment.CUT_AFTER):
        wire.arm("users:settle", moment)
    assert users.write_together(numbered(), [unnamed()]) == ["attempt 2"]
    assert world.effects() == ["attempt 1", "attempt 2"]


def test_each_attempt_may_be_lost(world: World, wire: Wire, users: Database) -> None:
    """Those before the last one are settled, that they never will be; the last one is."""
    for moment in (Moment.CUT_BEFORE, Moment.CUT_BEFORE, Moment.CUT_AFTER):
        wire.arm("COMMIT", moment)
    assert users.write_together(numbered(), [unnamed()]) == ["attempt 3"]
    assert world.effects() == ["attempt 3"]
    assert receipts(world) == [("", b""), ("", b"void"), ("", b"void")]


def test_a_late_commit_is_waited_for(world: World, wire: Wire, users: Database) -> None:
    """The server has the receipt of the lost attempt, not yet its COMMIT: who settles it waits for that row."""
    fault = wire.arm("COMMIT", Moment.LATE)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(users.write_together, numbered(), [unnamed()])
        assert fault.struck.wait(LIMIT)
        world.wait_for("wait_event_type = 'Lock'")
        assert world.effects() == []
        fault.release()
        assert answer.result(LIMIT) == ["attempt 1"]
    assert world.effects() == ["attempt 1"]


def test_a_late_commit_after_the_settling_fails(world: World, wire: Wire, users: Database) -> None:
    """Neither receipt nor COMMIT had come when it was settled: what stands in the receipt's place refuses it."""
    fault = wire.arm("users:keep", Moment.LATE)
    assert users.write_together(numbered(), [unnamed()]) == ["attempt 2"]
    assert fault.struck.is_set()
    assert not fault.done.is_set()
    fault.release()
    assert world.effects() == ["attempt 2"]


@pytest.mark.parametrize("named", [False, True])
def test_what_the_second_attempt_finds_in_its_way_is_the_first(
    world: World, wire: Wire, users: Database, named: bool
) -> None:
    """A domain that refuses what is there already would refuse its own row: it is not even asked."""
    wire.arm("COMMIT", Moment.CUT_AFTER)

    def work(tx: Transaction) -> list[str]:
        if world.effects():
            raise RefusedError
        return [effect()(tx)]

    assert users.write_together(work, [mutation() if named else unnamed()]) == ["a"]
    assert world.effects() == ["a"]


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_what_the_server_refused_is_not_in_doubt(world: World, wire: Wire, users: Database, code: str) -> None:
    work = Failing(2, code)
    assert users.write_together(lambda tx: [work(tx)], [unnamed()]) == ["a"]
    assert not any("users:settle" in statement for statement in wire.statements)
    assert world.effects() == ["a"]


def test_a_constraint_at_the_end_of_the_pipeline_is_not_in_doubt(world: World, users: Database) -> None:
    with pytest.raises(ConstraintError):
        users.write_together(lambda tx: [tx.execute(DOUBLE, {"name": "a"})], [unnamed()])
    assert receipts(world) == []


@pytest.mark.parametrize("moment", [Moment.CUT_BEFORE, Moment.CUT_AFTER])
def test_what_stays_in_doubt_is_unavailable(world: World, wire: Wire, users: Database, moment: Moment) -> None:
    wire.arm("COMMIT", moment)
    wire.arm("users:settle", Moment.CUT_BEFORE, times=ATTEMPTS)
    with pytest.raises(UnavailableError) as caught:
        users.write_together(both, [unnamed(), unnamed()])
    wire.disarm()
    assert caught.value.retry_after
    assert world.effects() == (["a", "b"] if moment is Moment.CUT_AFTER else [])


@pytest.fixture
def unsettled(world: World) -> Iterator[None]:
    """Settling fails for good, and not as if PostgreSQL were away."""
    world.admin.execute(
        "CREATE FUNCTION users.refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE EXCEPTION 'made to fail'; END $$"
    )
    world.admin.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON users.idempotency"
        " FOR EACH ROW WHEN (NEW.fingerprint = 'void') EXECUTE FUNCTION users.refuse()"
    )
    yield
    world.admin.execute("DROP FUNCTION users.refuse CASCADE")


@pytest.mark.usefixtures("unsettled")
@pytest.mark.parametrize("moment", [Moment.CUT_BEFORE, Moment.CUT_AFTER])
def test_what_stays_in_doubt_is_not_written_one_by_one(
    world: World, wire: Wire, users: Database, moment: Moment
) -> None:
    """After other failures a gatherer writes each alone: what was committed would be written twice."""

    def write(notes: Sequence[str]) -> Mapping[str, Any]:
        replies = users.write_together(lambda tx: [effect(note)(tx) for note in notes], [unnamed() for _ in notes])
        return dict(zip(notes, replies, strict=True))

    wire.arm("COMMIT", moment)
    answers = Gatherer(write).resolve(["a", "b"])
    assert {type(answer) for answer in answers.values()} == {UnavailableError}
    assert world.effects() == (["a", "b"] if moment is Moment.CUT_AFTER else [])


def test_copies_are_dropped_by_who_settles(world: World, wire: Wire, users: Database) -> None:
    dropped: list[Sequence[str]] = []

    class Copies:
        holder = uuid.uuid4()

        def outdate(self, tags: Sequence[str], snapshot: str, timeline: str, others: bool) -> None:
            assert snapshot
            dropped.append(tags)

    told: list[str] = []
    users.copies, users.on_changed = Copies(), lambda: told.append("changed")

    def work(tx: Transaction) -> list[str]:
        tx.note(Change("user", "of-a", {}))
        return [effect()(tx)]

    wire.arm("COMMIT", Moment.CUT_AFTER)
    assert users.write_together(work, [unnamed()]) == ["a"]
    assert (len(dropped), told, world.effects()) == (1, ["changed"], ["a"])
    assert dropped[0]
