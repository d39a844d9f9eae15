"""What is done in the background: counts added up, due messages made ready, the dead buried, the old removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.messages.backlog import Backlogs
from kronos_db.messages.enqueuing import Enqueuing
from kronos_db.messages.inspection import Inspection
from kronos_db.messages.keeper import Keeper
from kronos_db.messages.low_water import LowWater
from kronos_db.messages.model import NewMessage, Queue, Receipt, Rules, Stats, Wish
from kronos_db.messages.queues import QueuesStore
from kronos_db.messages.store import MessagesStore
from kronos_db.runtime.identifiers import uuid7_text
from tests.parts.domain import mutation, new_database, opened, settings_of


class World:
    """A store without a server: nothing is done but what the test does."""

    def __init__(self, store: MessagesStore, admin: psycopg.Connection[Any]) -> None:
        self.store = store
        self.admin = admin
        self.queues = QueuesStore(store.database, store.queries)
        self.keeper = Keeper(store, self.queues)

    def queue(self, name: str = "q", ordered: bool = False, **rules: Any) -> Queue:
        return self.queues.create(name, ordered, Rules(**rules), mutation())

    def enqueue(self, queue: Queue, count: int, **fields: Any) -> None:
        plain: dict[str, Any] = dict.fromkeys(NewMessage._fields)
        plain |= {"payload": b"x", "rank": 9, "deduplication_window": 300.0, **fields}
        Enqueuing(self.store, Backlogs()).enqueue(
            queue, [NewMessage(**{**plain, "id": uuid7_text()}) for _ in range(count)], mutation()
        )

    def lease(self, queue: Queue, count: int) -> list[Receipt]:
        leased = self.store.lease(queue, Wish(count, 1 << 20, 60.0))
        return [Receipt(each.message.id, each.token) for each in leased]

    def stats(self, queue: Queue) -> Stats:
        return Inspection(self.store).stats(queue)

    def counts(self, queue: Queue) -> tuple[int, int, int, int, int]:
        return self.stats(queue)[:5]

    def rows(self, table: str) -> int:
        (count,) = self.admin.execute(f"SELECT count(*) FROM messages.{table}").fetchone() or (0,)
        return int(count)

    def age(self, columns: str, table: str = "message") -> None:
        assignments = ", ".join(f"{column} = {column} - interval '400 days'" for column in columns.split())
        self.admin.execute(f"UPDATE messages.{table} SET {assignments}")

    def move(self) -> None:
        # Times were set back further than a transaction could take.
        self.store.low_water = LowWater()
        self.keeper.move(lambda: True)

    def clear(self) -> None:
        self.keeper.clear(lambda: True)


@pytest.fixture
def world(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[World]:
    with (
        new_database(postgres) as dsn,
        opened(settings_of(tmp_path, dsn), "messages") as database,
        psycopg.connect(dsn, autocommit=True) as admin,
    ):
        yield World(MessagesStore(database, LowWater()), admin)


def test_counts_stay_the_same_when_they_are_added_up(world: World) -> None:
    queue, other = world.queue(), world.queue("other")
    for _ in range(5):
        world.enqueue(queue, 3)
        world.enqueue(other, 1, delay=60.0)
    world.store.ack(queue, world.lease(queue, 4), mutation())
    before = world.stats(queue)
    assert world.rows("tally") > 8

    world.keeper.move(lambda: True)

    assert world.rows("tally") == 0
    assert world.stats(queue)[:9] == before[:9]
    assert world.counts(other) == (0, 5, 0, 0, 0)
    world.enqueue(queue, 1)
    assert world.stats(queue).enqueued_total == 16


def test_an_open_transaction_is_added_up_later(world: World) -> None:
    queue = world.queue()
    world.enqueue(queue, 2)
    assert world.store.database.pool.stats()
    with psycopg.connect(world.admin.info.dsn, password=world.admin.info.password) as slow:
        slow.execute("INSERT INTO messages.tally (bin, ready) VALUES (%s, 5)", [queue.bin])
        world.enqueue(queue, 1)
        world.keeper.move(lambda: True)
        assert world.counts(queue)[0] == 3
        slow.commit()
    assert world.counts(queue)[0] == 8
    world.keeper.move(lambda: True)
    assert world.counts(queue)[0] == 8


def test_rates_rise_and_fall(world: World) -> None:
    queue = world.queue()
    world.enqueue(queue, 1000)
    world.keeper.move(lambda: True)
    world.admin.execute("UPDATE messages.total SET sample_time = now() - interval '10 s'")
    world.keeper.move(lambda: True)
    assert 50 < world.stats(queue).enqueue_rate <= 100
    world.admin.execute("UPDATE messages.total SET sample_time = now() - interval '10 s'")
    world.keeper.move(lambda: True)
    assert world.stats(queue).enqueue_rate == 0


def test_what_is_due_becomes_ready_and_the_exhausted_die(world: World) -> None:
    queue = world.queue(max_attempts=2)
    world.enqueue(queue, 700)
    world.enqueue(queue, 600, delay=60.0)
    world.lease(queue, 700)
    world.age("due_time")

    world.move()
    assert world.counts(queue) == (1300, 0, 0, 0, 0)
    assert len(world.lease(queue, 1300)) == 1300
    world.age("due_time")
    world.move()

    # 700 had two attempts, 600 one.
    assert world.counts(queue) == (600, 0, 0, 0, 700)
    assert world.rows("dead_letter") == 700


def test_messages_past_their_time_are_removed(world: World) -> None:
    queue = world.queue(message_retention=3600.0)
    ordered = world.queue("ordered", ordered=True)
    world.enqueue(queue, 600, life=60.0)
    world.enqueue(queue, 5, life=60.0, delay=60.0)
    world.enqueue(queue, 600)
    world.enqueue(ordered, 1, life=60.0, ordering_key="k")
    world.enqueue(ordered, 2, ordering_key="k")
    world.age("expire_time")
    world.move()
    assert world.counts(queue) == (600, 0, 0, 0, 0)
    assert world.counts(ordered) == (1, 0, 0, 1, 0)

    world.age("enqueue_time")
    world.clear()

    assert world.counts(queue) == (0, 0, 0, 0, 0)
    assert world.counts(ordered) == (0, 0, 0, 0, 0)
    assert world.rows("message") == 0


def test_dead_letters_and_keys_are_kept_for_their_time(world: World) -> None:
    queue = world.queue(max_attempts=1)
    world.enqueue(queue, 1, deduplication_key="a")
    world.enqueue(queue, 3)
    world.lease(queue, 4)
    world.age("due_time")
    world.move()
    world.clear()
    assert (world.rows("dead_letter"), world.rows("deduplication")) == (4, 1)

    world.age("dead_time", "dead_letter")
    world.age("expire_time", "deduplication")
    world.clear()

    assert (world.rows("dead_letter"), world.rows("deduplication")) == (0, 0)
    assert world.counts(queue) == (0, 0, 0, 0, 0)


def test_keys_without_messages_are_dropped(world: World) -> None:
    queue = world.queue(ordered=True)
    for key in ("a", "b"):
        world.enqueue(queue, 1, ordering_key=key)
    world.store.ack(queue, world.lease(queue, 1), mutation())
    world.clear()
    assert world.rows("lane") == 1
    world.enqueue(queue, 1, ordering_key="a")
    assert world.rows("lane") == 2


def test_abandoned_bins_are_emptied_and_then_forgotten(world: World) -> None:
    queue, kept = world.queue(ordered=True), world.queue("kept")
    world.enqueue(queue, 1500, ordering_key="k", deduplication_key=None)
    world.enqueue(queue, 1, deduplication_key="d")
    world.enqueue(kept, 2)
    world.store.nack(queue, [], mutation())
    world.queues.purge("q", True, True, mutation())
    # A call that had begun before.
    world.enqueue(queue, 1)
    world.clear()
    assert (world.rows("message"), world.rows("lane"), world.rows("deduplication")) == (2, 0, 0)
    assert world.rows("abandoned_bin") == 2

    world.queues.delete("q", None, mutation())
    world.age("abandon_time", "abandoned_bin")
    world.clear()

    assert world.rows("abandoned_bin") == 0
    assert world.rows("total") == 2
    assert world.counts(kept) == (2, 0, 0, 0, 0)


def test_it_stops_when_it_is_told_to(world: World) -> None:
    queue = world.queue()
    world.enqueue(queue, 10, delay=60.0)
    world.age("due_time")
    world.keeper.move(lambda: False)
    assert world.counts(queue) == (0, 10, 0, 0, 0)
