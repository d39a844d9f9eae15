"""The board: shared by objects and processes, monotonous within an epoch, valid for as long as its lease."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kronos_db.runtime.cache import board as module
from kronos_db.runtime.cache.board import Board, Mark, now
from tests.parts.eventually import eventually

LIMIT = 20.0
LATER = 3600 * 1_000_000_000
TAGS = ("user:a", "user:b", "user")
_spawn = multiprocessing.get_context("spawn")


def begun(board: Board, moment: int = 10, timeline: int = 1) -> Board:
    """Begin and let copies be answered from for an hour."""
    assert board.extend(board.begin(moment, identity=7, timeline=timeline), now() + LATER)
    return board


def is_current(board: Board, mark: Mark, *tags: str) -> bool:
    return board.is_current(mark, board.places(tags), now())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.board"


@pytest.fixture
def quick_turns() -> Iterator[None]:
    """Threads take turns so often that what is not locked shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def process() -> Iterator[Callable[..., tuple[Any, Connection]]]:
    """Starts processes that get one end of a pipe and what else is given; they are killed afterwards."""
    started = []

    def start(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
        ours, theirs = _spawn.Pipe()
        child = _spawn.Process(target=target, args=(theirs, *arguments))
        child.start()
        started.append(child)
        return child, ours

    yield start
    for child in started:
        child.kill()
        child.join(LIMIT)


def receive(connection: Connection) -> Any:
    assert connection.poll(LIMIT), "the process says nothing"
    return connection.recv()


def mirror(connection: Connection, path: Path) -> None:
    """Tell what a second process sees, each time it is asked; change something when told so."""
    board = Board(path)
    while True:
        change = connection.recv()
        if change is not None:
            board.change(*change)
        connection.send((board.epoch, board.mark(), board.identity, board.since, board.holder))


def test_nothing_may_be_kept_before_somebody_begins(path: Path) -> None:
    board = Board(path)
    assert board.mark() is None
    epoch = board.begin(10, 7, 1)
    assert board.mark() is None
    assert not board.is_current(Mark(epoch, 10), (), now())
    assert board.extend(epoch, now() + LATER)
    assert board.mark() == Mark(epoch, 10)
    assert (board.since, board.identity) == (10, (7, 1))


def test_a_copy_is_current_until_what_it_depends_on_changes(path: Path) -> None:
    board = begun(Board(path))
    mark = board.mark()
    assert mark is not None
    board.change(["user:a", "user"], 12, 1)
    assert not is_current(board, mark, "user:a")
    assert not is_current(board, mark, "user:b", "user"), "one of several"
    assert is_current(board, mark, "user:b")
    later = board.mark()
    assert later == Mark(mark.epoch, 12)
    assert is_current(board, later, "user:a", "user")


def test_a_mark_is_the_latest_moment_known(path: Path) -> None:
    board = begun(Board(path))
    for act, expected in (
        (lambda: board.advance(15), 15),
        (lambda: board.advance(14), 15),
        (lambda: board.change(["user:a"], 13, 1), 15),
        (lambda: board.change(["user:a"], 16, 1), 16),
    ):
        act()
        assert board.mark() == Mark(board.epoch, expected)


def test_an_earlier_change_told_later_does_not_take_back_a_later_one(path: Path) -> None:
    board = begun(Board(path))
    board.change(["user:a"], 20, 1)
    board.change(["user:a"], 15, 1)
    assert not is_current(board, Mark(board.epoch, 19), "user:a")
    assert is_current(board, Mark(board.epoch, 20), "user:a")


def test_two_objects_on_one_file_are_one_board(path: Path) -> None:
    one, other = begun(Board(path)), Board(path)
    assert one.holder == other.holder
    mark = other.mark()
    assert mark is not None
    one.change(["user:a"], 12, 1)
    assert not is_current(other, mark, "user:a")
    other.void()
    assert one.mark() is None


def test_boards_without_a_file_are_each_alone() -> None:
    one, other = begun(Board()), Board()
    assert one.holder != other.holder
    assert other.mark() is None
    assert one.try_keep()
    assert other.try_keep()


def test_a_process_sees_what_another_does(path: Path, process: Any) -> None:
    board = Board(path)
    _child, pipe = process(mirror, path)
    pipe.send(None)
    assert receive(pipe) == (0, None, (0, 0), 0, board.holder)
    begun(board)
    pipe.send((["user:a"], 12, 1))
    assert receive(pipe) == (1, Mark(1, 12), (7, 1), 10, board.holder)
    assert not is_current(board, Mark(1, 11), "user:a")
    board.void()
    pipe.send(None)
    assert receive(pipe)[:2] == (2, None)


def test_places_are_the_same_in_every_process() -> None:
    tags = ["user", *(f"user:{number}" for number in range(50)), "Ünïcode:✓"]
    program = f"from kronos_db.runtime.cache.board import Board; print(Board.places({tags!r}))"
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
            timeout=LIMIT,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert told == {str(Board.places(tags))}
    assert min(Board.places(tags)) >= module._HEADER
    assert max(Board.places(tags)) < module._HEADER + module.PLACES


def test_the_lease_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = begun(Board(path))
    mark = board.mark()
    assert mark is not None
    at = now()
    assert board.extend(board.epoch, at + 100)
    assert board.is_current(mark, (), at + 99)
    assert not board.is_current(mark, (), at + 100)
    monkeypatch.setattr(module, "now", lambda: at + 99)
    assert board.mark() == mark
    monkeypatch.setattr(module, "now", lambda: at + 100)
    assert board.mark() is None


def test_only_the_present_epoch_is_extended(path: Path) -> None:
    board = begun(Board(path))
    old = board.epoch
    board.void()
    assert not board.extend(old, now() + LATER)
    assert board.mark() is None
    assert board.extend(board.epoch, now() + LATER)
    assert board.mark() is not None


def test_copies_of_an_earlier_epoch_are_void_whatever_their_moment(path: Path) -> None:
    board = begun(Board(path))
    old = Mark(board.epoch, 1_000)
    begun(board, moment=20)
    assert not is_current(board, old, "user:a")
    assert is_current(board, Mark(board.epoch, 20), "user:a")


def test_beginning_anew_clears_what_was_changed(path: Path) -> None:
    """The new history may count from less."""
    board = begun(Board(path), moment=1_000)
    board.change(TAGS, 2_000, 1)
    begun(board, moment=30, timeline=2)
    assert board.mark() == Mark(board.epoch, 30)
    assert is_current(board, Mark(board.epoch, 30), *TAGS)
    assert (board.since, board.identity) == (30, (7, 2))


def test_a_change_on_another_timeline_voids_everything(path: Path) -> None:
    board = begun(Board(path))
    mark = board.mark()
    assert mark is not None
    board.change(["user:a"], 5, 2)
    assert board.mark() is None
    assert not is_current(board, mark, "user:b")
    assert not board.extend(mark.epoch, now() + LATER), "nor does the keeper's next sign of life help"


def test_a_board_that_begins_anew_while_a_copy_is_looked_at_refuses_it(path: Path) -> None:
    board = begun(Board(path))
    mark = board.mark()
    assert mark is not None
    board.change(["user:a"], 12, 1)

    class Places(tuple[int, ...]):
        """Places that are looked at when the board has just begun anew: they are empty."""

        __slots__ = ()

        def __iter__(self) -> Iterator[int]:
            begun(board, moment=5)
            return super().__iter__()

    assert not board.is_current(mark, Places(board.places(["user:a"])), now())


def test_a_board_that_begins_anew_while_a_mark_is_taken_gives_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = begun(Board(path))

    def then() -> int:
        monkeypatch.undo()
        begun(board, moment=99)
        return now()

    monkeypatch.setattr(module, "now", then)
    assert board.mark() is None
    assert board.mark() == Mark(board.epoch, 99)


def change_often(connection: Connection, path: Path, number: int, rounds: int) -> None:
    """Make growing changes, and tell whether any of them was lost at once."""
    board = Board(path)
    places = board.places(TAGS)
    connection.send("ready")
    connection.recv()
    lost = 0
    for turn in range(rounds):
        moment = 100 + turn * 4 + number
        board.change(TAGS, moment, 1)
        lost += sum(board._words[place] < moment for place in (*places, module._LATEST))
    connection.send(lost)


def test_no_process_takes_back_the_greater_moment_of_another(path: Path, process: Any) -> None:
    board, rounds = begun(Board(path)), 3_000
    pipes = [process(change_often, path, number, rounds)[1] for number in range(3)]
    for pipe in pipes:
        assert receive(pipe) == "ready"
    for pipe in pipes:
        pipe.send("go")
    assert [receive(pipe) for pipe in pipes] == [0, 0, 0]
    assert board.mark() == Mark(board.epoch, 100 + (rounds - 1) * 4 + 2)


@pytest.mark.usefixtures("quick_turns")
@pytest.mark.parametrize("shared", [True, False])
def test_no_thread_takes_back_the_greater_moment_of_another(path: Path, shared: bool) -> None:
    board = begun(Board(path if shared else None))
    places, lost = board.places(TAGS), []

    def run(number: int) -> None:
        for turn in range(500):
            moment = 100 + turn * 4 + number
            board.change(TAGS, moment, 1)
            lost.extend(place for place in (*places, module._LATEST) if board._words[place] < moment)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not lost


def hold(connection: Connection, path: Path, what: str) -> None:
    """Hold the board's lock, or keep it, until killed."""
    board = Board(path)
    if what == "keep":
        assert board.try_keep()
        connection.send("held")
        connection.recv()
    with board._locked():
        connection.send("held")
        connection.recv()


def test_one_keeps_the_board_until_it_resigns(path: Path) -> None:
    one, other = Board(path), Board(path)
    assert one.try_keep()
    assert one.try_keep(), "it does already"
    assert not other.try_keep()
    one.resign()
    assert other.try_keep()
    assert not one.try_keep()


def test_who_is_killed_keeps_the_board_no_longer(path: Path, process: Any) -> None:
    board = Board(path)
    child, pipe = process(hold, path, "keep")
    assert receive(pipe) == "held"
    assert not board.try_keep()
    os.kill(child.pid, signal.SIGKILL)
    eventually(board.try_keep, LIMIT)


def test_who_is_killed_while_it_writes_does_not_stop_the_others(path: Path, process: Any) -> None:
    board = begun(Board(path))
    child, pipe = process(hold, path, "lock")
    assert receive(pipe) == "held"
    writer = threading.Thread(target=board.change, args=(["user:a"], 12, 1), daemon=True)
    writer.start()
    os.kill(child.pid, signal.SIGKILL)
    writer.join(LIMIT)
    assert not writer.is_alive()
    assert board.mark() == Mark(board.epoch, 12)


def test_a_changing_process_waits_for_another_that_changes(path: Path, process: Any) -> None:
    board = begun(Board(path))
    _child, pipe = process(mirror, path)
    with board._locked():
        pipe.send((["user:a"], 12, 1))
        assert not pipe.poll(0.5)
    assert receive(pipe)[1] == Mark(board.epoch, 12)
