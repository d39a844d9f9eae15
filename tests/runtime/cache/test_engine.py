"""Kinds of copies: answered from memory and Redis only while true, read by one, and read anew before they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.cache import board as board_module
from kronos_db.runtime.cache import engine as module
from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.cache.engine import Cache, Kind, Loaded, Rules
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.cache.remote import Remote
from kronos_db.runtime.errors import KronosError, StatementTimeoutError, UnavailableError
from kronos_db.runtime.redis import RedisServer
from tests.parts.eventually import eventually

LIMIT = 20.0
NANO = 1_000_000_000
LATER = 24 * 3600 * NANO
IDENTITY = 7


class Source:
    """A database of values by key, and its moments. What its loads do on the way is set by the test."""

    def __init__(self) -> None:
        self.moment = 100
        self.values: dict[str, bytes] = {}
        self.valid_for: float | None = None
        self.loads: list[list[str]] = []
        self.before: Callable[[], object] = int
        self.after: Callable[[], object] = int

    def load(self, keys: Sequence[str]) -> dict[str, Loaded]:
        self.loads.append(list(keys))
        self.before()
        read = {key: Loaded(self.values[key], [key], self.valid_for) for key in keys if key in self.values}
        self.after()
        return read

    def write(self, key: str, value: bytes, *boards: Board) -> None:
        """Commit a value, and acknowledge it when `boards`, all of those in use, know of it."""
        self.values[key] = value
        self.moment += 1
        for board in boards:
            board.change([key], self.moment, 1)


def begun(source: Source, board: Board, timeline: int = 1) -> Board:
    assert board.extend(board.begin(source.moment, IDENTITY, timeline), now() + LATER)
    return board


class Clock:
    """Stands in for `now` and for the wall clock: real time, and as far ahead as the test says."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.wall_ahead = 0.0
        self._real = now
        self._wall = time.time

    def now(self) -> int:
        return self._real() + int(self.ahead * NANO)

    def time(self) -> float:
        return self._wall() + self.ahead + self.wall_ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(board_module, "now", clock.now)
    monkeypatch.setattr(module, "now", clock.now)
    monkeypatch.setattr(module.time, "time", clock.time)
    return clock


@pytest.fixture
def source() -> Source:
    source = Source()
    source.values["a"] = b"old"
    return source


@pytest.fixture
def board(source: Source) -> Board:
    return begun(source, Board())


@pytest.fixture
def raw(redis_server: EmbeddedRedis) -> Iterator[Any]:
    """The Redis of the tests, empty."""
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


Process = Callable[..., Kind]


@pytest.fixture
def process(source: Source, raw: Any, redis_server: EmbeddedRedis) -> Iterator[Process]:
    """Makes a kind as another process has it: with memory and a way to Redis of its own."""
    remotes = []

    def make(board: Board, **rules: Any) -> Kind:
        remote = Remote(RedisServer(redis_server.url), b"k" * 32)
        remotes.append(remote)
        return Cache(board, Memory(1 << 20), remote).kind(Rules("kind", **{"remote": True, **rules}), source.load)

    yield make
    for remote in remotes:
        remote.close()
        remote.server.close()


def kind_of(source: Source, board: Board, **rules: Any) -> Kind:
    return Cache(board, Memory(1 << 20), None).kind(Rules("kind", **rules), source.load)


def in_redis(raw: Any, count: int = 1) -> None:
    """Wait until Redis has as many copies."""
    eventually(lambda: raw.dbsize() == count, why=raw.dbsize)


def chance(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(module.random, "random", lambda: value)


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


# In Redis


def test_what_another_process_read_is_found_in_redis(source: Source, board: Board, process: Process, raw: Any) -> None:
    one, other = process(board), process(board)
    one.get("a")
    in_redis(raw)
    assert other.get("a") == b"old"
    assert other.get("a") == b"old"
    assert (len(source.loads), other.remote_hits, other.hits) == (1, 1, 1)


def test_a_kind_that_is_not_for_redis_is_not_there(source: Source, board: Board, process: Process, raw: Any) -> None:
    one = process(board, remote=False)
    one.get("a")
    assert one._remote is None
    assert raw.dbsize() == 0


def test_a_changed_copy_is_not_taken_from_redis(source: Source, board: Board, process: Process, raw: Any) -> None:
    one, other = process(board), process(board)
    one.get("a")
    in_redis(raw)
    source.write("a", b"new", board)
    assert other.get("a") == b"new"
    assert other.remote_hits == 0


def test_a_slow_reader_cannot_deceive_other_processes_through_redis(source: Source, process: Process, raw: Any) -> None:
    """Another machine's, too: the two have boards of their own."""
    ours, theirs = begun(source, Board()), begun(source, Board())
    one, other = process(ours), process(theirs)
    source.after = lambda: source.write("a", b"new", ours, theirs)
    assert one.get("a") == b"old"
    source.after = int
    in_redis(raw)
    assert other.get("a") == b"new"
    assert one.get("a") == b"new"


def test_a_copy_of_before_a_board_began_is_not_taken_from_redis(source: Source, process: Process, raw: Any) -> None:
    """The change came when nobody told this board of it."""
    ours = begun(source, Board())
    process(ours).get("a")
    in_redis(raw)
    source.write("a", b"new", ours)
    theirs = begun(source, Board())
    assert process(theirs).get("a") == b"new"


@pytest.mark.parametrize("other", ["timeline", "identity"])
def test_copies_of_another_history_are_not_found(
    source: Source, board: Board, process: Process, raw: Any, other: str
) -> None:
    process(board).get("a")
    in_redis(raw)
    source.values["a"] = b"of another history"
    changed = Board()
    epoch = changed.begin(1, IDENTITY + (other == "identity"), 1 + (other == "timeline"))
    assert changed.extend(epoch, now() + LATER)
    assert process(changed).get("a") == b"of another history"


def test_what_was_read_before_a_new_history_is_not_kept_under_its_name(
    source: Source, board: Board, process: Process, raw: Any
) -> None:
    # Exclusive: what is read is in Redis before it is answered.
    one, other = process(board, exclusive=True), process(board, exclusive=True)

    def restore() -> None:
        source.moment = 1
        begun(source, board, timeline=2)

    source.after = restore
    assert one.get("a") == b"old"
    source.after = int
    source.values["a"] = b"of another history"
    assert other.get("a") == b"of another history"


def test_a_redis_rolled_back_never_gives_an_old_answer(source: Source, process: Process, raw: Any) -> None:
    ours, theirs = begun(source, Board()), begun(source, Board())
    source.values["b"] = b"unchanged"
    # Exclusive: what is read is in Redis before it is answered, and nothing is written later.
    process(ours, exclusive=True).get_many(["a", "b"])
    dump = {name: raw.dump(name) for name in raw.scan_iter()}
    source.write("a", b"new", ours, theirs)
    process(ours, exclusive=True).get("a")
    for board in (ours, theirs):
        raw.flushall()
        assert process(board, exclusive=True).get("a") == b"new", "wiped"
        for name, value in dump.items():
            raw.restore(name, 0, value, replace=True)
        late = process(board, exclusive=True)
        assert late.get_many(["a", "b"]) == {"a": b"new", "b": b"unchanged"}, "rolled back"
        assert late.remote_hits == 1, "what did not change since may be used"


def test_a_redis_that_dies_costs_nothing_but_speed(
    source: Source, board: Board, process: Process, redis_server: EmbeddedRedis
) -> None:
    one = process(board, exclusive=True)
    redis_server.kill()
    try:
        assert one.get("a") == b"old"
        assert one.get("a") == b"old"
        source.write("a", b"new", board)
        assert one.get("a") == b"new"
        assert len(source.loads) == 2
    finally:
        redis_server.start()


# One filler


@pytest.mark.parametrize("way", ["get", "get_many"])
@pytest.mark.parametrize("redis_there", [True, False])
def test_fifty_threads_of_two_processes_read_once(
    source: Source, tmp_path: Path, process: Process, redis_there: bool, way: str
) -> None:
    path = tmp_path / "users.board"
    boards = [begun(source, Board(path)), Board(path)] if redis_there else [begun(source, Board())]
    kinds = [
        process(board, exclusive=True) if redis_there else kind_of(source, board, exclusive=True) for board in boards
    ]
    arrived = threading.Semaphore(0)

    def when_all_have_asked() -> None:
        source.before = int
        for _ in range(50):
            assert arrived.acquire(timeout=LIMIT)

    source.before = when_all_have_asked

    def ask(number: int) -> bytes | None:
        arrived.release()
        kind = kinds[number % len(kinds)]
        return kind.get("a") if way == "get" else kind.get_many(["a"]).get("a")

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(ask, range(50))) == [b"old"] * 50
    assert source.loads == [["a"]]


def test_what_is_in_redis_is_not_read_even_by_who_may(source: Source, board: Board, process: Process) -> None:
    process(board, exclusive=True).get("a")
    assert process(board, exclusive=True).get("a") == b"old"
    assert source.loads == [["a"]]


def test_who_gets_the_lock_right_after_the_filler_does_not_read_again(
    source: Source, board: Board, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filler is done between the last look into Redis and the next try for the lock."""
    filler, late = process(board, exclusive=True), process(board, exclusive=True)
    assert filler._remote is not None
    lock = f"{filler._name('a')}:filling"
    token = filler._remote.lock(lock, 60.0)
    assert token is not None

    def finish(_seconds: float) -> None:
        monkeypatch.undo()
        assert filler._remote is not None
        filler._remote.unlock(lock, token)
        assert filler.get("a") == b"old"

    monkeypatch.setattr(module.time, "sleep", finish)
    assert late.get("a") == b"old"
    assert source.loads == [["a"]]


def test_another_takes_over_from_a_filler_that_was_killed(
    source: Source, board: Board, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FILLING", 0.3)
    monkeypatch.setattr(module, "_LOOK", 0.005)
    killed, other = process(board, exclusive=True), process(board, exclusive=True)
    assert killed._remote is not None
    started = time.monotonic()
    killed._remote.lock(f"{killed._name('a')}:filling", 0.3)
    assert other.get("a") == b"old"
    assert 0.25 < time.monotonic() - started < LIMIT
    assert killed.get("a") == b"old"
    assert source.loads == [["a"]]


def test_who_waits_too_long_for_a_filler_reads_for_itself(
    source: Source, board: Board, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FILLING", 0.05)
    slow, other = process(board, exclusive=True), process(board, exclusive=True)
    assert slow._remote is not None
    assert slow._remote.lock(f"{slow._name('a')}:filling", 60.0) is not None
    assert other.get("a") == b"old"
    assert source.loads == [["a"]]


def test_a_filler_that_fails_lets_the_next_one_try_at_once(source: Source, board: Board, process: Process) -> None:
    one, other = process(board, exclusive=True), process(board, exclusive=True)

    def fail() -> None:
        raise StatementTimeoutError

    source.after = fail
    with pytest.raises(StatementTimeoutError):
        one.get("a")
    source.after = int
    started = time.monotonic()
    assert other.get("a") == b"old"
    assert time.monotonic() - started < module._FILLING / 2


def test_a_waiting_process_is_not_answered_from_before_a_write(
    source: Source, board: Board, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filler read before the write that was acknowledged before the other one asked."""
    monkeypatch.setattr(module, "_LOOK", 0.005)
    one, other = process(board, exclusive=True), process(board, exclusive=True)
    asked = []

    with ThreadPoolExecutor(1) as threads:

        def overtaken() -> None:
            source.after = int
            source.write("a", b"new", board)
            asked.append(threads.submit(other.get, "a"))

        source.after = overtaken
        assert one.get("a") == b"old"
        assert asked[0].result(LIMIT) == b"new"
