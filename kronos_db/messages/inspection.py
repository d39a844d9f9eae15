"""What a queue holds: messages at rest, dead letters and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from kronos_db.messages.model import RANKS, DeadLetter, Message, Queue, State, Stats
from kronos_db.messages.store import MessagesStore, as_message
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.transaction import Transaction, as_row

Reply = TypeVar("Reply")
# Sort keys of a page, and what comes before each of all.
Key = Sequence[str]
# Bytes of payload on a page, before its last row.
PAGE_BYTES = 1 << 20
_NO_ID = "00000000-0000-0000-0000-000000000000"


class Inspection:
    """Looks into queues, and brings dead letters back."""

    def __init__(self, store: MessagesStore) -> None:
        self._store = store
        self._database = store.database
        self._queries = store.queries

    def peek(self, queue: Queue, state: State, after: Key | None, limit: int) -> list[tuple[Key, Message]]:
        """Return at most `limit` messages in a state, each with its sort key.

        Those behind as many bytes as a page may have come without payload: None.
        """
        name, params = _page_of(state, after)
        rows = self._database.fetch_all(
            self._queries[name],
            {"bin": queue.bin, "limit": limit, "bytes": PAGE_BYTES, **params},
            as_row,
        )
        return [(_key_of(state, row), as_message(row[2:])) for row in rows]

    def dead_letters(self, queue: Queue, after: Key | None, limit: int) -> list[DeadLetter]:
        """Return at most `limit` dead letters, the oldest first; those behind a page's bytes without payload: None."""
        after_time, after_id = after or ("-infinity", _NO_ID)
        params: dict[str, Any] = {"bin": queue.dead_bin, "after_time": after_time, "after_id": after_id, "limit": limit}
        params["bytes"] = PAGE_BYTES
        rows = self._database.fetch_all_aside(self._queries["list_dead_letters"], params, as_row)
        return [DeadLetter(as_message(row[2:]), row[0], row[1]) for row in rows]

    def replay(self, queue: Queue, ids: Sequence[str], limit: int, mutation: Mutation[list[str], Reply]) -> Reply:
        """Make dead letters messages again: those of `ids`, or the `limit` oldest. The result has the ids of those."""

        def work(tx: Transaction) -> list[str]:
            params = {"bin": queue.dead_bin, "ids": list(ids) or None, "limit": limit}
            picked: dict[str, tuple[Any, str | None]] = {}
            for message_id, dead_time, key in tx.fetch_all(self._queries["pick_dead_letters"], params, as_row):
                picked.setdefault(message_id, (dead_time, key))
            if not picked:
                return []
            self._store.lock_lanes(tx, [(queue.bin, key) for _, key in picked.values() if key is not None])
            params = {
                "bin": queue.bin,
                "dead_bin": queue.dead_bin,
                "ids": list(picked),
                "dead_times": [dead_time for dead_time, _ in picked.values()],
            }
            return tx.fetch_all(self._queries["replay"], params, str)

        reply = self._database.write(work, mutation)
        self._store.on_ready(queue)
        return reply

    def stats(self, queue: Queue) -> Stats:
        """Return how a queue is."""
        params = {
            "bin": queue.bin,
            "dead_bin": queue.dead_bin,
            "bins": [queue.bin, queue.dead_bin],
            "ranks": list(RANKS),
            "lows": self._store.low_water.places(queue.bin),
        }
        found = self._database.fetch_one(self._queries["stats"], params, Stats)
        # The queue may have been emptied or deleted since it was looked up.
        return found or Stats(0, 0, 0, 0, 0, None, 0, 0, 0, 0.0, 0.0, 0.0)


def _page_of(state: State, after: Key | None) -> tuple[str, dict[str, Any]]:
    """Return the query of a page, and its own parameters."""
    if state is State.READY:
        rank, position, message_id = after or ("-1", "0", _NO_ID)
        return "peek_ready", {"after_rank": int(rank), "after_position": int(position), "after_id": message_id}
    if state is State.BLOCKED:
        key, number = after or ("", "0")
        return "peek_blocked", {"after_key": key, "after_number": int(number)}
    time, message_id = after or ("-infinity", _NO_ID)
    return "peek_due", {"state": int(state), "after_time": time, "after_id": message_id}


def _key_of(state: State, row: Sequence[Any]) -> Key:
    if state is State.READY:
        return [str(row[0]), str(row[1]), row[2]]
    if state is State.BLOCKED:
        return [row[0], str(row[1])]
    return [row[0].isoformat(), row[2]]
