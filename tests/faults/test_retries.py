"""What is tried again, what is not, and what its caller is told."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import QUERIES
from kronos_db.runtime.database.queries import Query, load_queries
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import ConflictError, KronosError, StatementTimeoutError, UnavailableError
from tests.faults.conftest import COUNT, World, effect
from tests.parts.domain import LIMIT, mutation

ATTEMPTS = 6
FAIL = Query("fail", "SELECT users.fail(%(times)s, %(code)s)", "", True)
SLEEP = Query("sleep", "SELECT 1 FROM pg_sleep(30)", "", False)
DOUBLE = Query("double", "INSERT INTO users.counter (name) VALUES (%(name)s), (%(name)s)", "", True)
PURGE = load_queries(QUERIES, "users")["purge"]
RAISE = Query("raise", "UPDATE users.counter SET value = value + 1 WHERE name = %(name)s RETURNING value", "", True)


class Failing:
    """A write that fails in PostgreSQL with `code` in its first `times` attempts, and counts its attempts."""

    def __init__(self, times: int, code: str) -> None:
        self._params = {"times": times, "code": code}
        self.attempts = 0

    def __call__(self, tx: Transaction) -> str:
        self.attempts += 1
        written = effect()(tx)
        tx.fetch_one(FAIL, self._params, int)
        return written


@pytest.mark.parametrize("code", ["40001", "40P01", "57P01", "57P03", "25006", "08006", "08P01"])
def test_what_may_succeed_next_time_is_tried_again(world: World, users: Database, code: str) -> None:
    work = Failing(2, code)
    assert users.write(work, mutation()) == "a"
    assert work.attempts == 3
    assert world.effects() == ["a"]


@pytest.mark.parametrize(
    ("code", "error"), [("40001", ConflictError), ("40P01", ConflictError), ("57P03", UnavailableError)]
)
def test_attempts_are_used_up(world: World, users: Database, code: str, error: type[KronosError]) -> None:
    work = Failing(ATTEMPTS, code)
    with pytest.raises(error) as caught:
        users.write(work, mutation())
    assert caught.value.retry_after
    assert work.attempts == ATTEMPTS
    assert (world.effects(), world.answers()) == ([], 0)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("57014", StatementTimeoutError),
        ("55P03", ConflictError),
        ("53300", UnavailableError),
        ("22P02", psycopg.errors.InvalidTextRepresentation),
        ("42501", psycopg.errors.InsufficientPrivilege),
        ("23505", psycopg.errors.UniqueViolation),
        ("XX000", psycopg.errors.InternalError_),
        ("P0001", psycopg.errors.RaiseException),
    ],
)
def test_what_fails_again_is_not_tried_again(world: World, users: Database, code: str, error: type[Exception]) -> None:
    work = Failing(1, code)
    with pytest.raises(error):
        users.write(work, mutation())
    assert work.attempts == 1
    assert (world.effects(), world.answers()) == ([], 0)


def test_a_refusal_of_the_domain_is_not_tried_again(world: World, users: Database) -> None:
    attempts = []

    class RefusedError(KronosError):
        """The domain says no."""

    def work(tx: Transaction) -> str:
        attempts.append(effect()(tx))
        raise RefusedError

    with pytest.raises(RefusedError):
        users.write(work, mutation())
    assert attempts == ["a"]
    assert (world.effects(), world.answers()) == ([], 0)


def test_a_constraint_is_named(world: World, users: Database) -> None:
    with pytest.raises(ConstraintError) as caught:
        users.write(lambda tx: tx.execute(DOUBLE, {"name": "a"}), mutation())
    assert caught.value.constraint == "counter_pkey"


def test_a_constraint_at_the_end_of_the_pipeline_is_named(world: World, users: Database) -> None:
    """The statement is only queued by the work; its error comes with the answer to COMMIT."""
    call = mutation()
    with pytest.raises(ConstraintError):
        users.write(lambda tx: tx.execute(DOUBLE, {"name": "a"}), call)
    for _ in range(3):
        assert users.write(effect(), mutation()) == "a", "the connection goes on"
        assert users.fetch_one(COUNT, {}, int) is not None


def test_a_real_statement_timeout(world: World, users: Database) -> None:
    def work(tx: Transaction) -> str:
        tx.execute(Query("limit", "SET LOCAL statement_timeout = 100", "", False), {})
        effect()(tx)
        tx.fetch_one(SLEEP, {}, int)
        raise AssertionError("it slept")

    with pytest.raises(StatementTimeoutError):
        users.write(work, mutation())
    assert world.effects() == []


def test_a_real_lock_timeout(world: World, users: Database) -> None:
    world.admin.execute("INSERT INTO users.counter VALUES ('a')")

    def work(tx: Transaction) -> int | None:
        tx.execute(Query("limit", "SET LOCAL lock_timeout = 100", "", False), {})
        return tx.fetch_one(RAISE, {"name": "a"}, int)

    with world.admin.transaction():
        world.admin.execute("UPDATE users.counter SET value = 5")
        with pytest.raises(ConflictError):
            users.write(work, mutation())
    assert users.write(work, mutation()) == 6


def test_a_real_deadlock_lets_both_through(world: World, users: Database) -> None:
    world.admin.execute("INSERT INTO users.counter VALUES ('a'), ('b')")
    meeting = threading.Barrier(2)
    met = threading.Event()
    attempts: list[str] = []

    def writer(first: str, second: str) -> Any:
        def work(tx: Transaction) -> str:
            attempts.append(first)
            tx.fetch_one(RAISE, {"name": first}, int)
            if not met.is_set():
                meeting.wait(LIMIT)
                met.set()
            tx.fetch_one(RAISE, {"name": second}, int)
            return effect(first)(tx)

        return users.write(work, mutation())

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(writer, "ab", "ba")) == ["a", "b"]
    # The one that gave way may be back at the row before the other one has woken up.
    assert len(attempts) >= 3
    assert world.effects() == ["a", "b"]
    counted = world.admin.execute("SELECT DISTINCT value FROM users.counter").fetchall()
    assert counted == [(2,)]


def test_a_real_serialization_failure_is_tried_again(world: World, users: Database) -> None:
    world.admin.execute("INSERT INTO users.counter VALUES ('a')")
    attempts: list[int] = []

    def work(tx: Transaction) -> int | None:
        tx.execute(Query("level", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "", False), {})
        tx.fetch_one(COUNT, {}, int)
        if not attempts:
            world.admin.execute("UPDATE users.counter SET value = 10")
        attempts.append(1)
        return tx.fetch_one(RAISE, {"name": "a"}, int)

    assert users.write(work, mutation()) == 11
    assert len(attempts) == 2


def test_a_terminated_backend_is_replaced(world: World, users: Database) -> None:
    attempts: list[int] = []

    def work(tx: Transaction) -> str:
        written = effect()(tx)
        if not attempts:
            # The pool may have opened a second one by then.
            assert world.terminate_all() >= 1
        attempts.append(1)
        return written

    assert users.write(work, mutation()) == "a"
    assert world.effects() == ["a"]


# Answers that are kept


def fill(world: World, expired: int, valid: int) -> None:
    for count, interval in ((expired, "-1 minute"), (valid, "1 hour")):
        world.admin.execute(
            "INSERT INTO users.idempotency SELECT 'test', gen_random_uuid(), '', '', now() + %s::interval"
            " FROM generate_series(1, %s)",
            [interval, count],
        )


def test_expired_answers_are_purged_and_others_stay(world: World, users: Database) -> None:
    fill(world, expired=6000, valid=5)
    assert [users.execute(PURGE, {}) for _ in range(3)] == [5000, 1000, 0]
    assert world.answers() == 5


def test_two_that_purge_at_once_do_not_wait_for_each_other(world: World, users: Database) -> None:
    fill(world, expired=6000, valid=0)
    with world.admin.transaction():
        assert world.admin.execute(PURGE.text).rowcount == 5000
        assert users.execute(PURGE, {}) == 1000


def test_an_answer_is_kept_for_its_window(world: World, users: Database) -> None:
    users.write(effect(), mutation(uuid.uuid4(), window=7200.0))
    kept = "SELECT round(extract(epoch FROM expire_time - now()) / 60)::int FROM users.idempotency"
    assert world.admin.execute(kept).fetchone() == (120,)
