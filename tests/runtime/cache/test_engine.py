"""Kinds of copies in memory: answered from only while true, and read anew before they end."""

from __future__ import annotations

from typing import Any

import pytest

from kronos_db.runtime.cache import engine as module
from kronos_db.runtime.cache.board import Board
from kronos_db.runtime.cache.engine import Cache, Kind, Rules
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.errors import KronosError, StatementTimeoutError, UnavailableError
from tests.runtime.cache.copied import (
    Clock,
    Process,
    Source,
    begun,
    chance,
    in_redis,
    kind_of,
)

# In memory


def test_what_is_there_is_read_once(source: Source, board: Board) -> None:
    kind = kind_of(source, board)
    assert [kind.get("a") for _ in range(3)] == [b"old"] * 3
    assert source.loads == [["a"]]
    assert (kind.hits, kind.misses, kind.remote_hits) == (2, 1, 0)


def test_what_is_not_there_is_asked_for_each_time(source: Source, board: Board) -> None:
    kind = kind_of(source, board)
    assert kind.get("b") is None
    source.write("b", b"new", board)
    assert kind.get("b") == b"new"


def test_a_change_makes_the_copy_old_and_no_other(source: Source, board: Board) -> None:
    source.values["b"] = b"other"
    kind = kind_of(source, board)
    assert (kind.get("a"), kind.get("b")) == (b"old", b"other")
    source.write("a", b"new", board)
    assert (kind.get("a"), kind.get("b")) == (b"new", b"other")
    assert source.loads == [["a"], ["b"], ["a"]]


def test_many_are_read_in_one_go_where_they_are_missing(source: Source, board: Board) -> None:
    source.values |= {"b": b"B", "c": b"C"}
    kind = kind_of(source, board)
    assert kind.get_many(["a", "b", "no"]) == {"a": b"old", "b": b"B"}
    source.write("b", b"B2", board)
    assert kind.get_many(["a", "b", "c", "no"]) == {"a": b"old", "b": b"B2", "c": b"C"}
    assert source.loads == [["a", "b", "no"], ["b", "c", "no"]]
    assert kind.get_many(["a", "b", "c"]) == {"a": b"old", "b": b"B2", "c": b"C"}
    assert kind.get_many([]) == {}
    assert len(source.loads) == 2
    assert (kind.hits, kind.misses) == (4, 6)


@pytest.mark.parametrize("many", [True, False])
def test_what_is_asked_for_stays_when_others_give_way(source: Source, board: Board, many: bool) -> None:
    kind = Cache(board, Memory(3_000), None).kind(Rules("kind"), source.load)
    source.values |= {f"{number}": b"other" for number in range(20)}
    for number in range(20):
        kind.get_many(["a"]) if many else kind.get("a")
        kind.get(f"{number}")
    assert source.loads.count(["a"]) == 1


@pytest.mark.parametrize("many", [True, False])
def test_what_changed_while_it_was_read_is_never_answered_again(source: Source, board: Board, many: bool) -> None:
    kind = kind_of(source, board)
    source.after = lambda: source.write("a", b"new", board)
    assert (kind.get_many(["a"])["a"] if many else kind.get("a")) == b"old", "the read began before the write"
    source.after = int
    assert kind.get("a") == b"new"


def test_a_slow_reader_does_not_put_its_copy_over_a_newer_answer(source: Source, board: Board) -> None:
    """It read before the change and keeps its copy after another one was read, kept and answered."""
    kind = kind_of(source, board)

    def overtaken() -> None:
        source.after = int
        source.write("a", b"new", board)
        assert kind.get("a") == b"new"

    source.after = overtaken
    assert kind.get("a") == b"old"
    assert kind.get("a") == b"new"


def test_nothing_is_kept_and_nothing_answered_without_a_lease(source: Source, board: Board) -> None:
    kind = kind_of(source, board)
    kind.get("a")
    board.void()
    source.values["a"] = b"new"
    assert kind.get("a") == b"new"
    assert kind.get("a") == b"new"
    assert len(source.loads) == 3
    begun(source, board)
    source.values["a"] = b"newer"
    assert kind.get("a") == b"newer", "what was read without a lease was not kept"


def test_a_copy_that_is_read_while_everything_becomes_void_is_not_used(source: Source, board: Board) -> None:
    kind = kind_of(source, board)
    source.after = lambda: begun(source, board)
    assert kind.get("a") == b"old"
    source.after = int
    source.values["a"] = b"new"
    assert kind.get("a") == b"new"


def test_what_load_raises_is_raised_and_nothing_is_kept(source: Source, board: Board) -> None:
    kind = kind_of(source, board)

    def fail() -> None:
        raise UnavailableError("away", retry_after=1.0)

    source.after = fail
    with pytest.raises(UnavailableError):
        kind.get("a")
    source.after = int
    assert kind.get("a") == b"old"


# Ends


@pytest.mark.parametrize(("valid_for", "end"), [(None, 30.0), (5.0, 5.0), (300.0, 30.0), (0.0, 0.0), (-1.0, 0.0)])
def test_a_copy_ends_with_its_lifetime_or_with_what_it_is_true_for(
    source: Source, board: Board, clock: Clock, valid_for: float | None, end: float
) -> None:
    kind = kind_of(source, board, lifetime=30.0)
    source.valid_for = valid_for
    kind.get("a")
    loads = 1
    if end:
        clock.ahead = end - 1.0
        kind.get("a")
        assert len(source.loads) == loads
    clock.ahead = end
    kind.get("a")
    assert len(source.loads) == loads + 1


def test_what_it_is_true_for_counts_from_before_the_reading(source: Source, board: Board, clock: Clock) -> None:
    kind = kind_of(source, board)
    source.valid_for = 10.0

    def take_seven_seconds() -> None:
        clock.ahead += 7.0

    source.after = take_seven_seconds
    kind.get("a")
    source.after = int
    clock.ahead += 3.0
    kind.get("a")
    assert len(source.loads) == 2


@pytest.mark.parametrize("apart", [-0.9, 0.0, 0.9])
def test_a_copy_from_redis_ends_no_later_where_clocks_are_apart(
    source: Source, board: Board, *, clock: Clock, process: Process, raw: Any, apart: float
) -> None:
    one, other = process(board), process(board)
    source.valid_for = 60.0
    one.get("a")
    in_redis(raw)
    clock.wall_ahead = apart
    clock.ahead = 30.0
    assert other.get("a") == b"old"
    assert (len(source.loads), other.remote_hits) == (1, 1)
    clock.ahead = 60.0
    other.get("a")
    assert len(source.loads) == 2


def test_a_copy_that_has_ended_by_our_clock_is_not_taken_from_redis(
    source: Source, board: Board, clock: Clock, process: Process, raw: Any
) -> None:
    one, other = process(board), process(board)
    source.valid_for = 60.0
    one.get("a")
    in_redis(raw)
    clock.ahead = 60.0
    other.get("a")
    assert (len(source.loads), other.remote_hits) == (2, 0)


# Read anew before the end


@pytest.fixture
def expensive(source: Source, board: Board, clock: Clock) -> Kind:
    """A kind with a copy of `a` whose reading took a second and that ends five seconds from now."""
    return expiring(source, clock, kind_of(source, board, lifetime=20.0))


def expiring(source: Source, clock: Clock, kind: Kind) -> Kind:
    def take_a_second() -> None:
        clock.ahead += 1.0

    source.after = take_a_second
    kind.get("a")
    source.after = int
    clock.ahead += 14.0
    source.values["a"] = b"anew"
    return kind


def test_chance_decides_who_reads_a_copy_anew(source: Source, expensive: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    chance(monkeypatch, 1 - 2.718**-4.9)
    assert expensive.get("a") == b"old"
    chance(monkeypatch, 1 - 2.719**-5.1)
    assert expensive.get("a") == b"anew"
    chance(monkeypatch, 0.0)
    assert expensive.get("a") == b"anew"
    assert len(source.loads) == 2


def test_chance_is_not_asked_long_before_the_end(
    source: Source, expensive: Kind, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.ahead -= 6.0
    monkeypatch.setattr(module.random, "random", lambda: pytest.fail("asked"))
    assert expensive.get("a") == b"old"


def test_one_reads_anew_while_the_others_are_answered(
    source: Source, expensive: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance(monkeypatch, 1 - 1e-9)
    others = []

    def meanwhile() -> None:
        others.extend(expensive.get("a") for _ in range(3))

    source.before = meanwhile
    assert expensive.get("a") == b"anew"
    assert others == [b"old"] * 3
    assert len(source.loads) == 2


@pytest.mark.parametrize("error", [UnavailableError("away", retry_after=1.0), StatementTimeoutError()])
def test_who_fails_to_read_anew_answers_from_the_copy(
    source: Source, expensive: Kind, monkeypatch: pytest.MonkeyPatch, error: KronosError
) -> None:
    chance(monkeypatch, 1 - 1e-9)

    def fail() -> None:
        raise error

    source.before = fail
    assert expensive.get("a") == b"old"
    assert len(source.loads) == 2


@pytest.mark.parametrize("ended_by", ["time", "change", "lease"])
def test_who_fails_to_read_anew_does_not_answer_from_a_copy_that_ended_meanwhile(
    source: Source, board: Board, *, expensive: Kind, clock: Clock, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    chance(monkeypatch, 1 - 1e-9)

    def fail() -> None:
        if ended_by == "time":
            clock.ahead += 5.0
        elif ended_by == "change":
            source.write("a", b"new", board)
        else:
            board.void()
        raise UnavailableError("away", retry_after=1.0)

    source.before = fail
    with pytest.raises(UnavailableError):
        expensive.get("a")


@pytest.mark.parametrize("exclusive", [True, False])
def test_reading_anew_does_not_find_the_same_copy_in_redis(
    source: Source,
    board: Board,
    *,
    clock: Clock,
    process: Process,
    raw: Any,
    monkeypatch: pytest.MonkeyPatch,
    exclusive: bool,
) -> None:
    kind = expiring(source, clock, process(board, lifetime=20.0, exclusive=exclusive))
    in_redis(raw)
    chance(monkeypatch, 1 - 1e-9)
    assert kind.get("a") == b"anew"
    chance(monkeypatch, 0.0)
    clock.ahead += 10.0
    assert kind.get("a") == b"anew"
    assert len(source.loads) == 2


def test_two_processes_do_not_read_the_same_anew(
    source: Source, board: Board, clock: Clock, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = expiring(source, clock, process(board, lifetime=20.0, exclusive=True))
    assert kind._remote is not None
    token = kind._remote.lock(f"{kind._name('a')}:filling", 60.0)
    chance(monkeypatch, 1 - 1e-9)
    assert kind.get("a") == b"old", "another process does"
    assert (token is not None, len(source.loads)) == (True, 1)
