"""What is counted in PostgreSQL: calendar use, and everything else while Redis is away."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from kronos_db.routes.quotas import Rule, as_uuid, expiry
from kronos_db.routes.store import QUERIES
from kronos_db.runtime import deadline, tracing
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.identifiers import uuid7

# The slots of counters that are of no calendar period.
_RATE, _CONCURRENCY = -1, -2
# Demands that are enough for one statement.
_ENOUGH = 512
_HIGH, _MASK = 64, (1 << 64) - 1


class Item(NamedTuple):
    """One quota that a demand consumes, by the name of its counter."""

    rule: Rule
    key: str


class Ask(NamedTuple):
    """A demand for all of `items` or none.

    `memory`, `print` and `lease` are 32 hexadecimal digits; the first two are "" when it cannot be repeated.
    `cost` is what is taken of rates and calendar quotas.
    """

    items: Sequence[Item]
    cost: int
    memory: str
    print: str
    lease: str


class Reply(NamedTuple):
    """What was decided: 0 denied, 1 allowed, 2 allowed before, 3 the memory is another demand's.

    `levels` has of each item whether it fits and its counter, as `state_of` takes it. `lease` is the one that counts.
    """

    verdict: int
    lease: str
    levels: Sequence[tuple[bool, int]]


class _Group:
    """What one thread asks, and what it is answered."""

    __slots__ = ("asks", "deadline", "error", "replies", "subject")

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.asks = asks
        self.deadline = deadline.current.get()
        self.subject = tracing.current.get()
        self.replies: list[Reply] | None = None
        self.error: Exception | None = None


class Counters:
    """Decides with one statement, which is one transaction; durable when it returns.

    One statement of a process at a time: whoever comes while it runs is decided in the next one, together. Statements
    at once would wait for each other's commits where they count in the same counters, each for a few.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "routes")
        self._turn = threading.Lock()
        self._waiting: deque[_Group] = deque()

    def consume(self, asks: Sequence[Ask], remember: float, *, dry: bool) -> list[Reply]:
        """Decide `asks` in order; remember what was allowed for so many seconds. `dry` writes nothing.

        Raises UnavailableError and the like; then nothing is known to be consumed.
        """
        if dry:
            return self._consume(asks, remember, dry=True)
        group = _Group(asks)
        self._waiting.append(group)
        with self._turn:
            if group.replies is None and group.error is None:
                self._consume_waiting(group, remember)
        if group.error is not None:
            raise group.error
        return group.replies or []

    def _consume_waiting(self, own: _Group, remember: float) -> None:
        """Decide all that waits, up to what is enough for one statement, `own` with it."""
        groups, count = [], 0
        while self._waiting and (count < _ENOUGH or own not in groups):
            groups.append(self._waiting.popleft())
            count += len(groups[-1].asks)
        # The latest one: nobody's short deadline is to end what others wait for.
        limits = [group.deadline for group in groups if group.deadline is not None]
        before = deadline.current.set(max(limits) if len(limits) == len(groups) else None)
        subject = tracing.current.set(tracing.together([group.subject for group in groups]))
        try:
            replies = iter(self._consume([ask for group in groups for ask in group.asks], remember, dry=False))
            for group in groups:
                group.replies = [next(replies) for _ in group.asks]
        except Exception as error:  # noqa: BLE001  # each of those who asked gets it
            for group in groups:
                group.error = error
        finally:
            deadline.current.reset(before)
            tracing.current.reset(subject)

    def _consume(self, asks: Sequence[Ask], remember: float, *, dry: bool) -> list[Reply]:
        items = [(item, ask.cost) for ask in asks for item in ask.items]
        places = {(as_uuid(item.key), _slot(item.rule)): item.rule for item, _ in items}
        ordered = {place: number for number, place in enumerate(sorted(places), 1)}
        params = {
            # A repeat of the statement, whose connection was lost, finds its answer.
            "statement": uuid7(),
            "counter_keys": _array(key for key, _ in ordered),
            "counter_slots": _array(slot for _, slot in ordered),
            "counter_expires": _array(expiry(places[place]).isoformat() for place in ordered),
            "demand_ids": _array(ask.memory or "NULL" for ask in asks),
            "prints": _array(ask.print or "NULL" for ask in asks),
            "leases": _array(ask.lease for ask in asks),
            "ends": _array(_running(len(ask.items) for ask in asks)),
            "item_counters": _array(ordered[as_uuid(item.key), _slot(item.rule)] for item, _ in items),
            "item_kinds": _array(item.rule.code for item, _ in items),
            "item_limits": _array(item.rule.most for item, _ in items),
            "item_costs": _array(_taken(item.rule, cost) for item, cost in items),
            "item_denies": _array(item.rule.denies for item, _ in items),
            "remember": remember,
            "dry": dry,
        }
        answer = self._database.run(self._queries["consume"], params, _only)[0]
        return list(_replies(answer, asks))

    def release(self, lease: str, keys: Sequence[str]) -> int:
        """Give the places of a lease back; return how many were held."""
        return self._database.execute(self._queries["release"], {"lease": lease, "keys": _array(keys)})

    def purge(self, query: str) -> int:
        """Remove some of what is over, by the query of that name; return how much that was."""
        return self._database.execute(self._queries[query], {})


def _only(answer: list[int]) -> list[int]:
    return answer


def _replies(answer: Sequence[int], asks: Sequence[Ask]) -> Iterator[Reply]:
    now, at = answer[0], 1
    for ask in asks:
        verdict, high, low = answer[at : at + 3]
        at += 3
        levels = []
        for item in ask.items:
            fits, level = answer[at : at + 2]
            at += 2
            levels.append((bool(fits), max(0, level - now) if item.rule.is_rate else level))
        lease = UUID(int=(high & _MASK) << _HIGH | (low & _MASK)).hex if high or low else ask.lease
        yield Reply(verdict, lease, levels)


def _slot(rule: Rule) -> int:
    if rule.is_calendar:
        return rule.period().slot
    return _RATE if rule.is_rate else _CONCURRENCY


def _taken(rule: Rule, cost: int) -> int:
    # Places are held for ticks here.
    return rule.lease_us * 8 if rule.is_concurrency and cost else rule.taken(cost)


def _running(counts: Iterator[int] | Any) -> Iterator[int]:
    total = 0
    for count in counts:
        total += count
        yield total


def _array(values: Any) -> str:
    return f"{{{','.join(map(str, values))}}}"
