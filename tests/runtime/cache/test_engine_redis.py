"""Kinds of copies in Redis: answered from only while true, by every process, and read by one of them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.cache import engine as module
from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.errors import StatementTimeoutError
from tests.runtime.cache.copied import (
    IDENTITY,
    LATER,
    LIMIT,
    Process,
    Source,
    begun,
    in_redis,
    kind_of,
)

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
