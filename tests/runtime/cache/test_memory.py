"""Copies in memory: never more bytes than allowed, and those asked for of late stay."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator

import pytest

from kronos_db.runtime.cache.board import Mark
from kronos_db.runtime.cache.memory import _OVERHEAD, Entry, Memory, Shelf

# What an entry under a key of one character costs beside its value.
EACH = _OVERHEAD + 1


def entry(size: int = 0) -> Entry:
    return Entry(bytes(size), Mark(1, 1), (), 1, 1, 0)


def cost(*shelves: Shelf) -> int:
    return sum(len(entry.value) + len(key) + _OVERHEAD for shelf in shelves for key, entry in shelf.items())


@pytest.fixture
def quick_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_ten_times_as_much_does_not_make_it_larger() -> None:
    memory = Memory(100 * 1_000)
    number, shelf = memory.shelf()
    for key in range(1_000):
        memory.put(number, {f"{key:04}": entry(1_000 - _OVERHEAD - 4)})
        assert memory.size == cost(shelf) <= 100_000
    assert len(memory) == len(shelf) == 100
    assert memory.evictions == 900
    assert set(shelf) == {f"{key:04}" for key in range(900, 1_000)}, "the oldest give way"


def test_what_was_asked_for_gets_a_second_chance_and_no_third() -> None:
    memory = Memory(3 * EACH)
    number, shelf = memory.shelf()
    for key in "abc":
        memory.put(number, {key: entry()})
    shelf["a"].used = True
    memory.put(number, {"d": entry()})
    assert set(shelf) == {"a", "c", "d"}
    memory.put(number, {"e": entry()})
    assert set(shelf) == {"a", "d", "e"}
    memory.put(number, {"f": entry()})
    assert set(shelf) == {"d", "e", "f"} or set(shelf) == {"a", "e", "f"}
    memory.put(number, {"g": entry()})
    assert "a" not in shelf


def test_of_copies_that_come_together_the_last_ones_stay() -> None:
    memory = Memory(3 * EACH)
    number, shelf = memory.shelf()
    memory.put(number, {key: entry() for key in "abcde"})
    assert set(shelf) == {"c", "d", "e"}
    assert memory.size == 3 * EACH


def test_when_all_were_asked_for_the_oldest_gives_way() -> None:
    memory = Memory(3 * EACH)
    number, shelf = memory.shelf()
    for key in "abc":
        memory.put(number, {key: entry()})
        shelf[key].used = True
    new = entry()
    new.used = True
    memory.put(number, {"d": new})
    assert set(shelf) == {"b", "c", "d"}


def test_a_copy_takes_the_place_of_its_former_one() -> None:
    memory = Memory(10 * EACH)
    number, shelf = memory.shelf()
    for size in (0, 2_000, 3, 700):
        memory.put(number, {"a": entry(size)})
        memory.put(number, {"b": entry()})
        assert memory.size == cost(shelf) == 2 * EACH + size
        assert len(memory) == 2
    assert memory.evictions == 0


def test_what_is_larger_than_all_the_room_is_not_kept() -> None:
    memory = Memory(5 * EACH)
    number, shelf = memory.shelf()
    memory.put(number, {"a": entry()})
    memory.put(number, {"b": entry(4 * EACH + 1)})
    assert (set(shelf), memory.size) == ({"a"}, EACH)
    memory.put(number, {"b": entry(4 * EACH)})
    assert (set(shelf), memory.size) == ({"b"}, 5 * EACH)


def test_kinds_share_the_room_and_nothing_else() -> None:
    memory = Memory(4 * EACH)
    (one, users), (other, groups) = memory.shelf(), memory.shelf()
    memory.put(one, {"a": entry(1)})
    memory.put(other, {"a": entry(2)})
    assert (len(users["a"].value), len(groups["a"].value)) == (1, 2)
    for key in "bcdef":
        memory.put(other, {key: entry()})
    assert not users
    assert memory.size == cost(users, groups) <= 4 * EACH


@pytest.mark.usefixtures("quick_turns")
def test_threads_lose_no_count() -> None:
    memory = Memory(20 * EACH)
    shelves = [memory.shelf() for _ in range(2)]
    failed = []

    def run(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(2_000):
                number, shelf = chance.choice(shelves)
                key = chance.choice("abcdefghijklmnopqrst")
                found = shelf.get(key)
                if found is not None:
                    found.used = True
                memory.put(number, {key: entry(chance.randrange(300))})
        except Exception as error:  # noqa: BLE001  # told below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed
    assert memory.size == cost(*(shelf for _, shelf in shelves)) <= 20 * EACH
    assert len(memory) == sum(len(shelf) for _, shelf in shelves)
