"""Messages that are stored: checked against the limit of their queue, without those that repeat others, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from kronos_db.messages.backlog import Backlogs
from kronos_db.messages.model import BacklogFullError, MessageExistsError, NewMessage, Queue, Stored
from kronos_db.messages.store import MessagesStore, as_array
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.errors import ConflictError
from kronos_db.runtime.workers import Gatherer

Reply = TypeVar("Reply")

# Calls with more messages, or more bytes of payload, than this are written alone: together they would hold each other
# up, and be one huge statement. Of one transaction there must be fewer than 2^16 messages.
_MOST_TOGETHER, _MOST_BYTES_TOGETHER = 128, 256 * 1024
_RETRY_AFTER = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Enqueue:
    """Messages that one call wants stored."""

    queue: Queue
    messages: Sequence[NewMessage]
    mutation: Mutation[list[Stored], Any]


class Enqueuing:
    """Stores messages in the tables of a `MessagesStore`."""

    def __init__(self, store: MessagesStore, backlogs: Backlogs) -> None:
        self._store = store
        self._database = store.database
        self._queries = store.queries
        self._backlogs = backlogs
        self._enqueues: Gatherer[_Enqueue, Any] = Gatherer(self._enqueue_together)

    def enqueue(self, queue: Queue, messages: Sequence[NewMessage], mutation: Mutation[list[Stored], Reply]) -> Reply:
        """Store all of `messages` or none. Small calls that come together share a transaction.

        Raises BacklogFullError or MessageExistsError.
        """
        call = _Enqueue(queue, messages, mutation)
        if _is_small(messages) and not mutation.validate_only:
            return cast("Reply", self._enqueues.get(call))
        return cast("Reply", self._enqueue_alone(call))

    def _enqueue_alone(self, call: _Enqueue) -> Any:
        try:
            reply = self._database.write(lambda tx: self._stored(tx, [call])[0], call.mutation)
        except ConstraintError as error:
            raise self._existing(call) from error
        if not call.mutation.validate_only:
            self._after_enqueue([call])
        return reply

    def _enqueue_together(self, calls: Sequence[_Enqueue]) -> Mapping[_Enqueue, Any]:
        if len(calls) == 1:
            return {calls[0]: self._enqueue_alone(calls[0])}
        replies = self._database.write_together(lambda tx: self._stored(tx, calls), [call.mutation for call in calls])
        self._after_enqueue(calls)
        return dict(zip(calls, replies, strict=True))

    def _after_enqueue(self, calls: Sequence[_Enqueue]) -> None:
        for call in calls:
            self._backlogs.added(call.queue, len(call.messages))
        for queue in dict.fromkeys(call.queue for call in calls):
            self._store.on_ready(queue)

    def _stored(self, tx: Transaction, calls: Sequence[_Enqueue]) -> list[list[Stored]]:
        self._check_backlogs(tx, calls)
        items = [(call.queue.bin, message) for call in calls for message in call.messages]
        known = self._remember(tx, items)
        new = [(bin_id, message) for bin_id, message in items if message.id not in known] if known else items
        if new:
            self._insert(tx, new)
        return [
            [(known.get(message.id, message.id), message.id in known) for message in call.messages] for call in calls
        ]

    def _check_backlogs(self, tx: Transaction, calls: Sequence[_Enqueue]) -> None:
        wanted: Counter[Queue] = Counter()
        for call in calls:
            wanted[call.queue] += len(call.messages)
        to_ask = self._backlogs.to_ask(wanted)
        if not to_ask:
            return
        counts = self._backlogs.learn(tx.fetch_all(self._queries["backlogs"], {"bins": to_ask}, as_row))
        for queue, count in wanted.items():
            if counts.get(queue.bin, 0) + count > queue.max_backlog:
                raise BacklogFullError(metadata={"limit": str(queue.max_backlog)}, retry_after=_RETRY_AFTER)

    def _remember(self, tx: Transaction, items: Sequence[tuple[str, NewMessage]]) -> dict[str, str]:
        """Remember deduplication keys; return for each message that repeats another the id of that one."""
        first: dict[tuple[str, str], NewMessage] = {}
        repeated: dict[str, str] = {}
        for bin_id, message in items:
            if message.deduplication_key is not None:
                earlier = first.setdefault((bin_id, message.deduplication_key), message)
                if earlier is not message:
                    repeated[message.id] = earlier.id
        if not first:
            return repeated
        params = {
            "bins": [bin_id for bin_id, _ in first],
            "keys": [key for _, key in first],
            "ids": [message.id for message in first.values()],
            "spans": [message.deduplication_window for message in first.values()],
        }
        new = set(tx.fetch_all(self._queries["remember"], params, as_row))
        old = [lane for lane in first if lane not in new]
        if old:
            params = {"bins": [bin_id for bin_id, _ in old], "keys": [key for _, key in old]}
            known = {(row[0], row[1]): row[2] for row in tx.fetch_all(self._queries["remembered"], params, as_row)}
            if len(known) < len(old):
                raise ConflictError("a deduplication key was removed in between", retry_after=0.1)
            stands_for = {first[lane].id: known[lane] for lane in old}
            repeated = {message: stands_for.get(earlier, earlier) for message, earlier in repeated.items()}
            repeated |= stands_for
        return repeated

    def _insert(self, tx: Transaction, new: Sequence[tuple[str, NewMessage]]) -> None:
        lanes = [(bin_id, message.ordering_key) for bin_id, message in new if message.ordering_key is not None]
        self._store.lock_lanes(tx, lanes)
        tx.execute(self._queries["enqueue_in_order" if lanes else "enqueue"], _columns(new))

    def _existing(self, call: _Enqueue) -> Exception:
        params = {"bin": call.queue.bin, "ids": [message.id for message in call.messages]}
        place = self._database.fetch_one(self._queries["find_existing"], params, int)
        if place is None:
            return ConflictError("the message in the way was removed in between", retry_after=0.1)
        return MessageExistsError(place - 1)


def _is_small(messages: Sequence[NewMessage]) -> bool:
    within = len(messages) <= _MOST_TOGETHER
    return within and sum(len(message.payload) for message in messages) <= _MOST_BYTES_TOGETHER


def _columns(new: Sequence[tuple[str, NewMessage]]) -> dict[str, Any]:
    """Return the columns of new messages; those of which no message has a value are empty."""
    ids, payloads, headers, ranks, keys, delays, due_times, lives, _, _ = zip(
        *(message for _, message in new), strict=True
    )
    return {
        "bins": as_array(bin_id for bin_id, _ in new),
        "ids": as_array(ids),
        "ranks": as_array(map(str, ranks)),
        "payloads": list(payloads),
        "headers": _unless_empty(headers),
        "delays": _unless_empty(delays),
        "due_times": _unless_empty(due_times),
        "lives": _unless_empty(lives),
        "keys": _unless_empty(keys),
    }


def _unless_empty(values: Sequence[Any]) -> list[Any]:
    return list(values) if values.count(None) < len(values) else []
