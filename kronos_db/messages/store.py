"""Messages on their way in PostgreSQL: leased, removed, given back. Ids are the canonical text of a UUID."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from uuid import uuid4

from kronos_db.messages.low_water import LowWater
from kronos_db.messages.model import (
    RANKS,
    Astir,
    Extended,
    Leased,
    Message,
    Outcome,
    Queue,
    Receipt,
    Return,
    Wish,
)
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.workers import Gatherer

QUERIES = Path(__file__).with_name("queries.sql")
Reply = TypeVar("Reply")

# All ranks as PostgreSQL takes them; see `as_array`.
RANKS_ARRAY = f"{{{','.join(map(str, RANKS))}}}"
# How many messages whose time has come are made ready at once.
_MOST_REVIVED = 500


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

    def __init__(self, database: Database, low_water: LowWater) -> None:
        self.database = database
        self.queries = load_queries(QUERIES, "messages")
        self.low_water = low_water
        self.on_ready: Callable[[Queue], None] = _nobody_waits
        self._acks: Gatherer[_Ack, Any] = Gatherer(self._ack_together)

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
            params = {"bin": queue.bin, "ids": as_array(reply.ids), "token": reply.token}
            return _as_leased(self.database.fetch_all(self.queries["leased_under"], params, as_row))
        return reply

    def revive(self, queue: Queue) -> int:
        """Make messages ready whose time has come, some at a time; return how many that were."""
        params = {
            "bin": queue.bin,
            "low": self.low_water.due(queue.bin),
            "max_attempts": queue.max_attempts,
            "limit": _MOST_REVIVED,
        }
        count, moment = self.database.fetch_all(self.queries["revive"], params, as_row)[0]
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
            "ids": as_array(receipt.id for receipt in receipts),
            "tokens": as_array(receipt.token for receipt in receipts),
        }
        self.database.execute(self.queries["release"], params)
        self.on_ready(queue)

    def cancel(self, queue: Queue, ids: Sequence[str], mutation: Mutation[list[int], Reply]) -> Reply:
        """Remove messages that are not leased; the result tells of each."""

        def work(tx: Transaction) -> list[int]:
            self.lock_lanes_of(tx, queue, ids)
            params = {"bin": queue.bin, "ids": as_array(ids)}
            rows = tx.fetch_all(self.queries["cancel"], params, as_row)
            self.promote(tx, [(queue.bin, key, number) for _, _, key, number in rows if key is not None])
            return [outcome for _, outcome, _, _ in sorted(rows)]

        reply = self.database.write(work, mutation)
        self._after_removal(queue)
        return reply

    def promote(self, tx: Transaction, gone: Sequence[tuple[str, str, int]]) -> None:
        """Let the next messages of keys be delivered whose first one, of that bin, key and number, is gone."""
        if gone:
            bins, keys, numbers = zip(*gone, strict=True)
            tx.execute(self.queries["promote"], {"bins": as_array(bins), "keys": list(keys), "numbers": list(numbers)})

    def lock_lanes(self, tx: Transaction, lanes: Iterable[tuple[str, str]]) -> None:
        """Lock keys of bins, until the transaction ends."""
        wanted = sorted(set(lanes))
        if wanted:
            params = {"bins": as_array(bin_id for bin_id, _ in wanted), "keys": [key for _, key in wanted]}
            tx.execute(self.queries["lock_lanes"], params)

    def lock_lanes_of(self, tx: Transaction, queue: Queue, ids: Sequence[str]) -> None:
        """Lock the keys of messages, until the transaction ends."""
        if queue.ordered:
            tx.execute(self.queries["lock_lanes_of"], {"bins": as_array([queue.bin] * len(ids)), "ids": as_array(ids)})

    def astir(self, bins: Sequence[str], due_lows: Sequence[datetime]) -> list[Astir]:
        """Return what there is to do for bins; each is looked at for what is due from one time on."""
        params = {
            "bins": list(bins),
            "ranks": RANKS_ARRAY,
            "lows": [min(self.low_water.places(bin_id)) for bin_id in bins],
            "due_lows": list(due_lows),
        }
        return self.database.fetch_all(self.queries["astir"], params, Astir)

    def _after_removal(self, queue: Queue) -> None:
        # The next ones of their keys may be ready now.
        if queue.ordered:
            self.on_ready(queue)

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
            "lows": as_array(map(str, self.low_water.places(queue.bin))),
            "limit": wish.limit,
            "bytes": wish.max_bytes,
            "seconds": wish.seconds,
            "token": token,
        }
        rows = tx.fetch_all(self.queries["lease"], params, as_row)
        return _as_leased(rows), rows[0][-1] if rows else 0

    def _look(self, queue: Queue, xid: int) -> None:
        """Now and then, look from where on there are ready messages. The transaction `xid` of ours is committed."""
        look = self.low_water.look(queue.bin)
        if look is None:
            return
        params = {"bin": queue.bin, "ranks": RANKS_ARRAY, "lows": as_array(map(str, look.lows))}
        rows = self.database.fetch_all(self.queries["lowest"], params, as_row)
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
            "bins": as_array(bin_id for bin_id, _ in items),
            "ids": as_array(receipt.id for _, receipt in items),
            "tokens": as_array(receipt.token for _, receipt in items),
        }
        if any(queue.ordered for queue, _ in asked):
            tx.execute(self.queries["lock_lanes_of"], {"bins": params["bins"], "ids": params["ids"]})
            rows = tx.fetch_all(self.queries["ack_in_order"], params, as_row)
            self.promote(tx, [(row[2], row[3], row[4]) for row in rows if row[3] is not None])
            missed = {row[0]: row[1] for row in rows if row[0] is not None}
        else:
            missed = dict(tx.fetch_all(self.queries["ack"], params, as_row))
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
            "ids": as_array(each.id for each in returns),
            "tokens": as_array(each.token for each in returns),
            "delays": [each.delay for each in returns],
            "reasons": [each.reason for each in returns],
            "rejected": [each.rejected for each in returns],
        }
        rows = tx.fetch_all(self.queries["nack"], params, as_row)
        self.promote(tx, [(row[2], row[3], row[4]) for row in rows if row[3] is not None])
        missed = {row[0]: row[1] for row in rows if row[0] is not None}
        return [missed.get(place, int(Outcome.OK)) for place in range(1, len(returns) + 1)]

    def _extended(self, tx: Transaction, queue: Queue, receipts: Sequence[Receipt], seconds: float) -> Extended:
        params = {
            "bin": queue.bin,
            "ids": as_array(receipt.id for receipt in receipts),
            "tokens": as_array(receipt.token for receipt in receipts),
            "seconds": seconds,
        }
        rows = sorted(tx.fetch_all(self.queries["extend"], params, as_row), key=itemgetter(0))
        missed = {place: outcome for place, outcome, _ in rows[1:]}
        return Extended([missed.get(place, int(Outcome.OK)) for place in range(1, len(receipts) + 1)], rows[0][2])


def as_message(columns: Sequence[Any]) -> Message:
    """Return the message of a row's columns."""
    return Message(*columns)


def _as_leased(rows: list[tuple[Any, ...]]) -> list[Leased]:
    rows.sort(key=itemgetter(0, 1))
    return [Leased(Message(*row[4:13]), row[2], row[3]) for row in rows]


def as_array(values: Iterable[str]) -> str:
    """Return values as one text, which PostgreSQL takes apart: psycopg would look at each to make an array of them."""
    return f"{{{','.join(values)}}}"


def _shared_out(values: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """Return consecutive parts of `values`, of so many each."""
    parts, begin = [], 0
    for count in counts:
        parts.append(list(values[begin : begin + count]))
        begin += count
    return parts


def _nobody_waits(queue: Queue) -> None:
    """Tell nobody."""
