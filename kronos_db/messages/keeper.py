"""What is done for queues in the background, in one process of the fleet: moves, counts and removes, in small steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from kronos_db.messages.model import RANKS, Queue
from kronos_db.messages.queues import QueuesStore
from kronos_db.messages.store import MessagesStore
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.transaction import Transaction, as_row

# Seconds between two rounds: of what callers notice, and of what takes room alone.
_MOVING, _CLEARING = 1.0, 60.0
# The lease is looked at three times in its duration: so often a round can begin.
_LEASE = 3.0
# How many rows one statement takes, how many queues are looked at together, and how many rows `queries.sql` removes.
_STEP, _QUEUES = 500, 500
_NO_ID = "00000000-0000-0000-0000-000000000000"
# What a bin holds, by the queries that remove some of it.
_CLEARED = ("clear_messages", "clear_dead_letters", "clear_keys", "clear_lanes", "clear_tallies")


class Keeper:
    """The background work of the domain; each step may be repeated, and may overlap with one of another process."""

    def __init__(self, store: MessagesStore, queues: QueuesStore) -> None:
        self._store = store
        self._database = store.database
        self._queries = store.queries
        self._queues = queues
        # Where the search for keys without messages goes on.
        self._lane = (_NO_ID, "")

    def works(self) -> list[BackgroundWork]:
        """Return what is to be done."""
        return [
            BackgroundWork(self._database, "move-messages", _MOVING, self.move, lease_seconds=_LEASE),
            BackgroundWork(self._database, "clear-messages", _CLEARING, self.clear),
        ]

    def move(self, held: Held | Callable[[], bool]) -> None:
        """Add up counts; make ready what is due, bury whose attempts are used up, remove whose time to live is over."""
        self._database.execute(self._queries["fold"], {})
        self._database.execute(self._queries["sample"], {})
        by_bin = {queue.bin: queue for queue in self._queues.every()}
        for bins in _chunks(list(by_bin), _QUEUES):
            lows = [self._store.low_water.exhausted(bin_id) for bin_id in bins]
            for astir in self._store.astir(bins, lows):
                queue = by_bin[astir.bin]
                if astir.due:
                    self._revive(queue, held)
                    self._bury(queue, held)
                if astir.expired:
                    self._remove_overdue(queue, held)

    def clear(self, held: Held | Callable[[], bool]) -> None:
        """Remove what is kept no longer, and what is in bins that no queue has any more."""
        for queue in self._queues.every():
            self._remove_overdue(queue, held)
        while held() and self._database.execute(self._queries["purge_keys"], {}):
            pass
        while held() and self._database.fetch_all(self._queries["purge_dead_letters"], {}, int) != [0]:
            pass
        while held() and self._drop_idle_lanes():
            pass
        for bin_id, final in self._database.fetch_all(self._queries["abandoned"], {}, as_row):
            self._clear_bin(bin_id, final, held)

    def _revive(self, queue: Queue, held: Callable[[], bool]) -> None:
        while held() and self._store.revive(queue):
            self._store.on_ready(queue)

    def _bury(self, queue: Queue, held: Callable[[], bool]) -> None:
        """Make dead letters of messages whose last lease ran out."""
        params = {
            "bin": queue.bin,
            "low": self._store.low_water.exhausted(queue.bin),
            "max_attempts": queue.max_attempts,
            "limit": _STEP,
        }
        rules = {
            "dead_bin": queue.dead_bin,
            "dead_letter_queue": queue.dead_letter_queue,
            "max_attempts": queue.max_attempts,
        }
        while held() and (ids := self._database.fetch_all(self._queries["exhausted"], params, str)):
            self._take_away("bury", queue, ids, rules)
        self._store.low_water.buried(queue.bin)

    def _remove_overdue(self, queue: Queue, held: Callable[[], bool]) -> None:
        params = {
            "bin": queue.bin,
            "ranks": list(RANKS),
            "lows": self._store.low_water.places(queue.bin),
            "retention": queue.message_retention,
            "limit": _STEP,
        }
        while held() and (ids := self._database.fetch_all(self._queries["overdue"], params, str)):
            self._take_away("remove_overdue", queue, ids, {"retention": queue.message_retention})

    def _take_away(self, query: str, queue: Queue, ids: Sequence[str], params: dict[str, Any]) -> None:
        """Run a query that takes messages away, with their keys locked, and let those behind them be delivered."""

        def work(tx: Transaction) -> None:
            self._store.lock_lanes_of(tx, queue, ids)
            gone = tx.fetch_all(self._queries[query], {"bin": queue.bin, "ids": list(ids), **params}, as_row)
            self._store.promote(tx, [(bin_id, key, number) for bin_id, key, number in gone if key is not None])

        self._database.transact(work)
        if queue.ordered:
            self._store.on_ready(queue)

    def _drop_idle_lanes(self) -> bool:
        """Remove some keys that no message has; tell whether there are more to look at."""

        def work(tx: Transaction) -> tuple[str, str] | None:
            params = {"after_bin": self._lane[0], "after_key": self._lane[1]}
            found = tx.fetch_all(self._queries["idle_lanes"], params, as_row)
            if found:
                # A statement of its own: it sees what was committed before the locks were had.
                lanes = {"bins": [bin_id for bin_id, _ in found], "keys": [key for _, key in found]}
                tx.execute(self._queries["drop_lanes"], lanes)
            return found[-1] if found else None

        last = self._database.transact(work)
        self._lane = last or (_NO_ID, "")
        return last is not None

    def _clear_bin(self, bin_id: str, final: bool, held: Callable[[], bool]) -> None:
        for query in _CLEARED:
            while held() and self._database.execute(self._queries[query], {"bin": bin_id}):
                pass
        if final and held():
            self._database.execute(self._queries["forget_bin"], {"bin": bin_id})


def _chunks(values: Sequence[str], size: int) -> Iterator[list[str]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk
