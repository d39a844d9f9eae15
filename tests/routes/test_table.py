"""The table of a process: current or read anew, changed step by step, and made before a write is acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kronos_db.routes.model import Kind, Route
from kronos_db.routes.store import TableChange
from kronos_db.routes.table import Table
from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.database.changes import Instant, moment
from kronos_db.runtime.errors import UnavailableError
from tests.parts.eventually import eventually
from tests.routes.population import route, stored_quota

_MINUTE = 60 * 1_000_000_000


class World:
    """A database of routes in memory, in which each change is a transaction, and a board that is told of them."""

    def __init__(self) -> None:
        self.board = Board()
        self.number = 10
        self.history = ("cluster/1", "00000001", "start")
        self.versions: dict[str, tuple[int, Route | None]] = {}
        self.version = 1
        self.asked: list[int] = []
        self.away = False
        self.gate = threading.Event()
        self.gate.set()
        self.table = Table(self, self.instant, self.board)
        self.lease()

    def lease(self) -> None:
        epoch = self.board.begin(moment(self.instant().snapshot), 1, 1)
        self.board.extend(epoch, now() + _MINUTE)

    def instant(self) -> Instant:
        return Instant(f"{self.number + 1}:{self.number + 1}:", *self.history)

    def commit(self, name: str, each: Route | None) -> None:
        self.number += 1
        self.version += 1
        self.versions[f"id of {name}"] = (self.version, each)

    def acknowledge(self) -> None:
        self.board.change(["route"], moment(self.instant().snapshot), 1)

    def table_since(self, version: int) -> TableChange:
        self.asked.append(version)
        self.gate.wait(10)
        if self.away:
            raise UnavailableError
        newer = {each: of for each, (at, of) in self.versions.items() if at > version}
        return TableChange(
            self.version,
            version == 0,
            [of for of in newer.values() if of is not None],
            [stored_quota(Kind.RATE, {"limit": 1, "period_us": 1000, "burst": 1})] if version == 0 else [],
            [each for each, of in newer.items() if of is None],
        )

    def names(self) -> list[str]:
        entries = self.table.current().matcher.entries
        return sorted(entry.route.name for entry in entries.values())


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.gate.set()
    made.table.stop()


def test_it_is_read_once_and_then_what_changed_alone(world: World) -> None:
    world.commit("a", route("a", "/a"))
    assert world.names() == ["a"]
    assert world.names() == ["a"]
    assert world.asked == [0]
    world.commit("b", route("b", "/b"))
    assert world.names() == ["a"], "not acknowledged yet"
    world.acknowledge()
    assert world.names() == ["a", "b"]
    world.commit("a", None)
    world.acknowledge()
    assert world.names() == ["b"]
    assert world.asked == [0, 2, 3]
    assert list(world.table.current().rules) == ["some"]


def test_without_a_lease_every_call_reads(world: World) -> None:
    assert world.names() == []
    world.board.void()
    world.commit("a", route("a", "/a"))
    assert world.names() == ["a"]
    asked = len(world.asked)
    world.names()
    assert len(world.asked) == asked + 1
    world.away = True
    with pytest.raises(UnavailableError):
        world.names()


def test_in_another_history_all_is_read(world: World) -> None:
    """The same version may say something else after a failover that lost some changes."""
    world.commit("a", route("a", "/a"))
    assert world.names() == ["a"]
    world.versions = {"id of b": (2, route("b", "/b"))}
    world.history = ("cluster/1", "00000002", "start")
    world.lease()

    assert world.names() == ["b"]
    assert world.asked == [0, 0]


def test_a_write_waits_until_the_table_is_made_and_look_ups_do_not(world: World) -> None:
    world.table.start()
    world.table.prepare(["route"])
    world.commit("a", route("a", "/a"))
    world.gate.clear()
    prepared = threading.Event()
    writer = threading.Thread(target=lambda: (world.table.prepare(["route:x", "route"]), prepared.set()))
    asked = len(world.asked)
    writer.start()
    eventually(lambda: len(world.asked) > asked)
    assert world.names() == [], "answered from the table before, while the next one is being made"
    assert not prepared.is_set()
    world.gate.set()
    writer.join(10)
    assert prepared.is_set()

    asked = len(world.asked)
    world.acknowledge()
    assert world.names() == ["a"]
    assert len(world.asked) == asked, "what was made before the acknowledgement is valid after it"
    assert world.table.waits == 0


def test_a_write_of_something_else_waits_for_nothing(world: World) -> None:
    world.gate.clear()
    world.table.start()
    world.table.prepare(["something", "something:else"])


def test_the_thread_goes_on_when_the_database_is_away(world: World) -> None:
    world.away = True
    world.table.start()
    world.table.prepare(["route"])
    world.away = False
    world.commit("a", route("a", "/a"))
    world.acknowledge()
    assert world.names() == ["a"]
