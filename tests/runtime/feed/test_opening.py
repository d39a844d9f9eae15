"""Streams that begin with messages of their own: those first, and then every change since the position before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kronos_db.runtime.errors import TooManyStreamsError, UnavailableError
from tests.parts.eventually import eventually
from tests.runtime.feed.parts import MemoryOutlet, message
from tests.runtime.feed.test_feed import ALL, World, make_world

__all__ = ["make_world"]


def test_the_opening_comes_first_and_nothing_since_its_position_is_missed(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.log.append("before")

    def opening() -> Iterator[Any]:
        # Committed after the position was taken, and before all of the opening was sent.
        world.log.append("a", "b")
        return iter([(None, "page 1"), (None, "page 2")])

    outlet = MemoryOutlet(takes=False)
    world.feed.watch(outlet, "", ALL, message, opening=opening)
    eventually(lambda: outlet.messages)
    world.log.append("c")
    world.feed.wake()
    outlet.take_all()

    eventually(lambda: outlet.told == ["a", "b", "c"], why=lambda: outlet.messages)
    assert [token for _, token in outlet.messages[:2]] == ["page 1", "page 2"]
    assert outlet.messages[2][0] is None
    world.log.append("d")
    world.feed.wake()
    eventually(lambda: outlet.told == ["a", "b", "c", "d"])


def test_it_is_made_as_the_caller_takes_it(make_world: Callable[..., World]) -> None:
    made = []

    def pages() -> Iterator[Any]:
        for number in range(100):
            made.append(number)
            yield None, f"{number}"

    outlet = MemoryOutlet(takes=False)
    make_world().feed.watch(outlet, "", ALL, message, opening=pages)
    for count in range(1, 4):
        eventually(lambda: len(outlet.messages) == count)  # noqa: B023
        outlet.take()
    eventually(lambda: len(outlet.messages) == 4)

    assert len(made) == 4


def test_many_changes_meanwhile_are_told_in_order(make_world: Callable[..., World]) -> None:
    world = make_world()
    outlet = MemoryOutlet(takes=False)
    world.feed.watch(outlet, "", ALL, message, opening=lambda: iter([(None, "page")]))
    wanted = [str(number) for number in range(60)]
    for name in wanted:
        world.log.append(name)
        world.feed.wake()
    outlet.take_all()

    eventually(lambda: outlet.told == wanted, why=lambda: outlet.told)


def test_with_a_token_there_is_no_opening(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.log.append("a", "b")
    outlet = MemoryOutlet()

    world.feed.watch(outlet, world.token(1), ALL, message, opening=lambda: pytest.fail("not asked for"))

    eventually(lambda: outlet.told == ["b"])


def test_an_opening_that_fails_leaves_nothing_behind(make_world: Callable[..., World]) -> None:
    world = make_world(limit=1)

    def fails() -> Iterator[Any]:
        raise UnavailableError

    for _ in range(3):
        with pytest.raises(UnavailableError):
            world.feed.watch(MemoryOutlet(), "", ALL, message, opening=fails)
    world.watch()
    reads = world.log.reads
    with pytest.raises(TooManyStreamsError):
        world.feed.watch(MemoryOutlet(), "", ALL, message, opening=lambda: pytest.fail("refused before it is read"))
    assert world.log.reads <= reads + 1
