"""Messages on their way in PostgreSQL: stored, leased, removed, given back. Ids are the canonical text of a UUID."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from uuid import uuid4

from kronos_db.messages.backlog import Backlogs
from kronos_db.messages.low_water import LowWater
from kronos_db.messages.model import (
    RANKS,
    Astir,
    BacklogFullError,
    Extended,
    Leased,
    Message,
    MessageExistsError,
    NewMessage,
    Outcome,
    Queue,
    Receipt,
    Return,
    Stored,
    Wish,
)
from kronos_db.runtime.database.database import Database, Transaction
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.errors import ConflictError
from kronos_db.runtime.workers import Gatherer

QUERIES = Path(__file__).with_name("queries.sql")
Reply = TypeVar("Reply")

# Calls with more messages than this are written alone: together they would hold each other up. Of one transaction there
# must be fewer than 2^16.
_MOST_TOGETHER = 64
# All ranks as PostgreSQL takes them; see `_array`.
RANKS_ARRAY = f"{{{','.join(map(str, RANKS))}}}"
# How many messages whose time has come are made ready at once.
_MOST_REVIVED = 500
_RETRY_AFTER = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Enqueue:
    """Messages that one call wants stored."""

    queue: Queue
    messages: Sequence[NewMessage]
    mutation: Mutation[list[Stored], Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Ack:
    """Messages that one call has processed."""

    queue: Queue
    receipts: Sequence[Receipt]
    mutation: Mutation[list[int], Any]


class LeasedEarlier(NamedTuple):
    """What an earlier attempt of a call leased: the token, and the ids of the messages."""

    token: str
    ids: Sequence[str]


class NothingReadyError(Exception):
    """No message is ready: nothing is to be remembered of the call."""


class MessagesStore:
    """Every method is one transaction. `on_ready` is told which queue got messages that may be leased."""

    def __init__(self, database: Database, low_water: LowWater, backlogs: Backlogs) -> None:
        self.database = database
        self.queries = load_queries(QUERIES, "messages")
        self.low_water = low_water
        self.on_ready: Callable[[Queue], None] = _nobody_waits
        self._backlogs = backlogs
        self._enqueues: Gatherer[_Enqueue, Any] = Gatherer(self._enqueue_together)
        self._acks: Gatherer[_Ack, Any] = Gatherer(self._ack_together)

    def enqueue(self, queue: Queue, messages: Sequence[NewMessage], mutation: Mutation[list[Stored], Reply]) -> Reply:
        """Store all of `messages` or none. Small calls that come together share a transaction.

        Raises BacklogFullError or MessageExistsError.
        """
        call = _Enqueue(queue, messages, mutation)
        if len(messages) > _MOST_TOGETHER or mutation.validate_only:
            return cast("Reply", self._enqueue_alone(call))
        return cast("Reply", self._enqueues.get(call))

    def lease(self, queue: Queue, wish: Wish) -> list[Leased]:
        """Lease messages that are ready, or whose time has come."""
        leased = self._lease(queue, wish)
        if not leased:
            return self._lease(queue, wish) if self.revive(queue) else []
        # What is due is not to starve behind a trickle of others.
        if len(leased) < wish.limit and self.low_water.may_revive(queue.bin):
            self.revive(queue)
        return leased

    def lease_once(self, queue: Queue, wish: Wish, mutation: Mutation[list[Leased], list[Leased]]) -> list[Leased]:
        """Lease messages for a call that may be repeated: then those that it holds still are returned.

        The mutation has to keep its reply as `LeasedEarlier`.
        """

        def work(tx: Transaction) -> list[Leased]:
            leased, _ = self._leased(tx, queue, wish, str(uuid4()))
            if not leased and not mutation.validate_only:
                raise NothingReadyError
            return leased

        self.revive(queue)
        try:
            reply: list[Leased] | LeasedEarlier = self.database.write(work, mutation)
        except NothingReadyError:
            return []
        if isinstance(reply, LeasedEarlier):
            params = {"bin": queue.bin, "ids": _array(reply.ids), "token": reply.token}
            return _as_leased(self.database.fetch_all(self.queries["leased_under"], params, _row))
        return reply

    def revive(self, queue: Queue) -> int:
        """Make messages ready whose time has come, some at a time; return how many that were."""
        params = {
            "bin": queue.bin,
            "low": self.low_water.due(queue.bin),
            "max_attempts": queue.max_attempts,
            "limit": _MOST_REVIVED,
        }
        count, moment = self.database.fetch_all(self.queries["revive"], params, _row)[0]
        if count < _MOST_REVIVED:
            self.low_water.revived_until(queue.bin, moment)
        return int(count)

    def ack(self, queue: Queue, receipts: Sequence[Receipt], mutation: Mutation[list[int], Reply]) -> Reply:
        """Remove messages, each under the lease that holds; the result tells of each. Calls share transactions."""
        call = _Ack(queue, receipts, mutation)
        if mutation.validate_only:
            return cast("Reply", self._ack_alone(call))
        return cast("Reply", self._acks.get(call))

    def nack(self, queue: Queue, returns: Sequence[Return], mutation: Mutation[list[int], Reply]) -> Reply:
        """Take messages back, each under the lease that holds; the result tells of each."""
        reply = self.database.write(lambda tx: self._returned(tx, queue, returns), mutation)
        self.on_ready(queue)
        return reply

    def extend(
        self, queue: Queue, receipts: Sequence[Receipt], seconds: float, mutation: Mutation[Extended, Reply]
    ) -> Reply:
        """Make leases last until so many seconds from now."""
        return self.database.write(lambda tx: self._extended(tx, queue, receipts, seconds), mutation)

    def renew(self, queue: Queue, receipts: Sequence[Receipt], seconds: float) -> None:
        """Make leases last for messages that are on their way still."""
        self.database.transact(lambda tx: self._extended(tx, queue, receipts, seconds))

    def release(self, queue: Queue, receipts: Sequence[Receipt]) -> None:
        """Make messages ready again that were leased and not sent."""
        params = {
            "bin": queue.bin,
            "ids": _array(receipt.id for receipt in receipts),
            "tokens": _array(receipt.token for receipt in receipts),
        }
        self.database.execute(self.queries["release"], params)
        self.on_ready(queue)

    def cancel(self, queue: Queue, ids: Sequence[str], mutation: Mutation[list[int], Reply]) -> Reply:
        """Remove messages that are not leased; the result tells of each."""

        def work(tx: Transaction) -> list[int]:
            self.lock_lanes_of(tx, queue, ids)
            params = {"bin": queue.bin, "ids": _array(ids)}
            rows = tx.fetch_all(self.queries["cancel"], params, _row)
            self.promote(tx, [(queue.bin, key, number) for _, _, key, number in rows if key is not None])
            return [outcome for _, outcome, _, _ in sorted(rows)]

        reply = self.database.write(work, mutation)
        self._after_removal(queue)
        return reply

    def promote(self, tx: Transaction, gone: Sequence[tuple[str, str, int]]) -> None:
        """Let the next messages of keys be delivered whose first one, of that bin, key and number, is gone."""
        if gone:
            bins, keys, numbers = zip(*gone, strict=True)
            tx.execute(self.queries["promote"], {"bins": _array(bins), "keys": list(keys), "numbers": list(numbers)})

    def lock_lanes(self, tx: Transaction, lanes: Iterable[tuple[str, str]]) -> None:
        """Lock keys of bins, until the transaction ends."""
        wanted = sorted(set(lanes))
        if wanted:
            params = {"bins": _array(bin_id for bin_id, _ in wanted), "keys": [key for _, key in wanted]}
            tx.execute(self.queries["lock_lanes"], params)

    def lock_lanes_of(self, tx: Transaction, queue: Queue, ids: Sequence[str]) -> None:
        """Lock the keys of messages, until the transaction ends."""
        if queue.ordered:
            tx.execute(self.queries["lock_lanes_of"], {"bins": _array([queue.bin] * len(ids)), "ids": _array(ids)})

    def astir(self, bins: Sequence[str], due_lows: Sequence[datetime]) -> list[Astir]:
        """Return what there is to do for bins; each is looked at for what is due from one time on."""
        params = {
            "bins": list(bins),
            "ranks": RANKS_ARRAY,
            "lows": [min(self.low_water.places(bin_id)) for bin_id in bins],
            "due_lows": list(due_lows),
        }
        return self.database.fetch_all(self.queries["astir"], params, Astir)

    def _enqueue_alone(self, call: _Enqueue) -> Any:
        try:
            reply = self.database.write(lambda tx: self._stored(tx, [call])[0], call.mutation)
        except ConstraintError as error:
            raise self._existing(call) from error
        if not call.mutation.validate_only:
            self._after_enqueue([call])
        return reply

    def _enqueue_together(self, calls: Sequence[_Enqueue]) -> Mapping[_Enqueue, Any]:
        if len(calls) == 1:
            return {calls[0]: self._enqueue_alone(calls[0])}
        replies = self.database.write_together(lambda tx: self._stored(tx, calls), [call.mutation for call in calls])
        self._after_enqueue(calls)
        return dict(zip(calls, replies, strict=True))

    def _after_enqueue(self, calls: Sequence[_Enqueue]) -> None:
        for call in calls:
            self._backlogs.added(call.queue, len(call.messages))
        for queue in dict.fromkeys(call.queue for call in calls):
            self.on_ready(queue)

    def _after_removal(self, queue: Queue) -> None:
        # The next ones of their keys may be ready now.
        if queue.ordered:
            self.on_ready(queue)

    def _stored(self, tx: Transaction, calls: Sequence[_Enqueue]) -> list[list[Stored]]:
        self._check_backlogs(tx, calls)
        items = [(call.queue.bin, message) for call in calls for message in call.messages]
        known = self._remember(tx, items)
        new = [(bin_id, message) for bin_id, message in items if message.id not in known] if known else items
        if new:
            self._insert(tx, new)
        return [
            [Stored(known.get(message.id, message.id), message.id in known) for message in call.messages]
            for call in calls
        ]

    def _check_backlogs(self, tx: Transaction, calls: Sequence[_Enqueue]) -> None:
        wanted: Counter[Queue] = Counter()
        for call in calls:
            wanted[call.queue] += len(call.messages)
        to_ask = self._backlogs.to_ask(wanted)
        if not to_ask:
            return
        counts = self._backlogs.learn(tx.fetch_all(self.queries["backlogs"], {"bins": to_ask}, _row))
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
        new = set(tx.fetch_all(self.queries["remember"], params, _row))
        old = [lane for lane in first if lane not in new]
        if old:
            params = {"bins": [bin_id for bin_id, _ in old], "keys": [key for _, key in old]}
            known = {(row[0], row[1]): row[2] for row in tx.fetch_all(self.queries["remembered"], params, _row)}
            if len(known) < len(old):
                raise ConflictError("a deduplication key was removed in between", retry_after=0.1)
            stands_for = {first[lane].id: known[lane] for lane in old}
            repeated = {message: stands_for.get(earlier, earlier) for message, earlier in repeated.items()}
            repeated |= stands_for
        return repeated

    def _insert(self, tx: Transaction, new: Sequence[tuple[str, NewMessage]]) -> None:
        lanes = [(bin_id, message.ordering_key) for bin_id, message in new if message.ordering_key is not None]
        self.lock_lanes(tx, lanes)
        tx.execute(self.queries["enqueue_in_order" if lanes else "enqueue"], _columns(new))

    def _existing(self, call: _Enqueue) -> Exception:
        params = {"bin": call.queue.bin, "ids": [message.id for message in call.messages]}
        place = self.database.fetch_one(self.queries["find_existing"], params, int)
        if place is None:
            return ConflictError("the message in the way was removed in between", retry_after=0.1)
        return MessageExistsError(place - 1)

    def _lease(self, queue: Queue, wish: Wish) -> list[Leased]:
        def work(tx: Transaction) -> tuple[list[Leased], int]:
            return self._leased(tx, queue, wish, str(uuid4()))

        leased, xid = self.database.read(work)
        if leased:
            self._look(queue, xid)
        return leased

    def _leased(self, tx: Transaction, queue: Queue, wish: Wish, token: str) -> tuple[list[Leased], int]:
        params = {
            "bin": queue.bin,
            "ranks": RANKS_ARRAY,
            "lows": _array(map(str, self.low_water.places(queue.bin))),
            "limit": wish.limit,
            "bytes": wish.max_bytes,
            "seconds": wish.seconds,
            "token": token,
        }
        rows = tx.fetch_all(self.queries["lease"], params, _row)
        return _as_leased(rows), rows[0][-1] if rows else 0

    def _look(self, queue: Queue, xid: int) -> None:
        """Now and then, look from where on there are ready messages. The transaction `xid` of ours is committed."""
        look = self.low_water.look(queue.bin)
        if look is None:
            return
        params = {"bin": queue.bin, "ranks": RANKS_ARRAY, "lows": _array(map(str, look.lows))}
        rows = self.database.fetch_all(self.queries["lowest"], params, _row)
        first = {rank: place for rank, place, _ in rows}
        self.low_water.looked(look, [first[rank] for rank in RANKS], rows[0][2], xid << 16)

    def _ack_alone(self, call: _Ack) -> Any:
        reply = self.database.write(lambda tx: self._acknowledged(tx, [(call.queue, call.receipts)])[0], call.mutation)
        self._after_removal(call.queue)
        return reply

    def _ack_together(self, calls: Sequence[_Ack]) -> Mapping[_Ack, Any]:
        if len(calls) == 1:
            return {calls[0]: self._ack_alone(calls[0])}
        asked = [(call.queue, call.receipts) for call in calls]
        replies = self.database.write_together(
            lambda tx: self._acknowledged(tx, asked), [call.mutation for call in calls]
        )
        for queue in dict.fromkeys(call.queue for call in calls):
            self._after_removal(queue)
        return dict(zip(calls, replies, strict=True))

    def _acknowledged(self, tx: Transaction, asked: Sequence[tuple[Queue, Sequence[Receipt]]]) -> list[list[int]]:
        items = [(queue.bin, receipt) for queue, receipts in asked for receipt in receipts]
        params = {
            "bins": _array(bin_id for bin_id, _ in items),
            "ids": _array(receipt.id for _, receipt in items),
            "tokens": _array(receipt.token for _, receipt in items),
        }
        if any(queue.ordered for queue, _ in asked):
            tx.execute(self.queries["lock_lanes_of"], {"bins": params["bins"], "ids": params["ids"]})
            rows = tx.fetch_all(self.queries["ack_in_order"], params, _row)
            self.promote(tx, [(row[2], row[3], row[4]) for row in rows if row[3] is not None])
            missed = {row[0]: row[1] for row in rows if row[0] is not None}
        else:
            missed = dict(tx.fetch_all(self.queries["ack"], params, _row))
        outcomes = [missed.get(place, int(Outcome.OK)) for place in range(1, len(items) + 1)]
        return _shared_out(outcomes, [len(receipts) for _, receipts in asked])

    def _returned(self, tx: Transaction, queue: Queue, returns: Sequence[Return]) -> list[int]:
        self.lock_lanes_of(tx, queue, [each.id for each in returns])
        params = {
            "bin": queue.bin,
            "dead_bin": queue.dead_bin,
            "dead_letter_queue": queue.dead_letter_queue,
            "max_attempts": queue.max_attempts,
            "min_backoff": queue.min_backoff,
            "max_backoff": queue.max_backoff,
            "ids": _array(each.id for each in returns),
            "tokens": _array(each.token for each in returns),
            "delays": [each.delay for each in returns],
            "reasons": [each.reason for each in returns],
            "rejected": [each.rejected for each in returns],
        }
        rows = tx.fetch_all(self.queries["nack"], params, _row)
        self.promote(tx, [(row[2], row[3], row[4]) for row in rows if row[3] is not None])
        missed = {row[0]: row[1] for row in rows if row[0] is not None}
        return [missed.get(place, int(Outcome.OK)) for place in range(1, len(returns) + 1)]

    def _extended(self, tx: Transaction, queue: Queue, receipts: Sequence[Receipt], seconds: float) -> Extended:
        params = {
            "bin": queue.bin,
            "ids": _array(receipt.id for receipt in receipts),
            "tokens": _array(receipt.token for receipt in receipts),
            "seconds": seconds,
        }
        rows = sorted(tx.fetch_all(self.queries["extend"], params, _row), key=itemgetter(0))
        missed = {place: outcome for place, outcome, _ in rows[1:]}
        return Extended([missed.get(place, int(Outcome.OK)) for place in range(1, len(receipts) + 1)], rows[0][2])


def as_message(columns: Sequence[Any]) -> Message:
    """Return the message of a row's columns."""
    return Message(*columns)


def _as_leased(rows: list[tuple[Any, ...]]) -> list[Leased]:
    rows.sort(key=itemgetter(0, 1))
    return [Leased(Message(*row[4:13]), row[2], row[3]) for row in rows]


def _row(*columns: Any) -> tuple[Any, ...]:
    return columns


def _array(values: Iterable[str]) -> str:
    # Ids as one text, which PostgreSQL takes apart: psycopg would look at each to make an array of them.
    return f"{{{','.join(values)}}}"


def _shared_out(values: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """Return consecutive parts of `values`, of so many each."""
    parts, begin = [], 0
    for count in counts:
        parts.append(list(values[begin : begin + count]))
        begin += count
    return parts


def _columns(new: Sequence[tuple[str, NewMessage]]) -> dict[str, Any]:
    """Return the columns of new messages; those of which no message has a value are empty."""
    ids, payloads, headers, ranks, keys, delays, due_times, lives, _, _ = zip(
        *(message for _, message in new), strict=True
    )
    return {
        "bins": _array(bin_id for bin_id, _ in new),
        "ids": _array(ids),
        "ranks": _array(map(str, ranks)),
        "payloads": list(payloads),
        "headers": _unless_empty(headers),
        "delays": _unless_empty(delays),
        "due_times": _unless_empty(due_times),
        "lives": _unless_empty(lives),
        "keys": _unless_empty(keys),
    }


def _unless_empty(values: Sequence[Any]) -> list[Any]:
    return list(values) if any(value is not None for value in values) else []


def _nobody_waits(queue: Queue) -> None:
    """Tell nobody."""
