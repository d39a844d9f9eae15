"""Decides on quotas: rates and concurrent requests in Redis, calendar use in PostgreSQL, each in one round trip.

Redis comes first, since giving back there costs less: what PostgreSQL then denies is given back. Demands that come
together are decided together. In a Redis Cluster the counters of a demand may be in several rooms, each of which
decides for itself: what one allowed and another did not is given back too. docs/decisions/0014-routes.md says what
holds when one of them fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kronos_db.routes.counters import Ask, Counters, Item, Reply
from kronos_db.routes.demands import Demand, Outcome, Part, Work, read_lease
from kronos_db.routes.quotas import Rule
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.redis import Invocation, RedisAwayError, RedisServer, Script
from kronos_db.runtime.workers import Gatherer

# Seconds for which it is remembered what was allowed.
REMEMBERED = 300.0
# And that a subject was reset.
_RESET_REMEMBERED = 86_400
# Demands in one script and one statement: some milliseconds of a Redis that serves nobody else meanwhile.
_MOST_AT_ONCE = 256
_NAME = "kronos-db:q:"


class _Asked:
    """Demands of one call: what the gatherer knows them by."""

    __slots__ = ("demands", "dry")

    def __init__(self, demands: Sequence[Demand], dry: bool) -> None:
        self.demands = demands
        self.dry = dry


class Limiter:
    """Decides with Redis, None for none, and PostgreSQL."""

    def __init__(self, redis: RedisServer | None, counters: Counters) -> None:
        self._redis = redis
        self._counters = counters
        folder = Path(__file__).parent
        self._consume = Script.of((folder / "consume.lua").read_text(encoding="utf-8"))
        self._refund = Script.of((folder / "refund.lua").read_text(encoding="utf-8"))
        self._gatherer: Gatherer[_Asked, Any] = Gatherer(self._decide_together)
        # Decisions by outcome, for metrics.
        self.allowed = 0
        self.denied = 0
        self.unavailable = 0
        self.shadow_denials = 0

    def decide(self, demands: Sequence[Demand], *, dry: bool = False) -> list[Outcome]:
        """Decide each of `demands`, in order; `dry` consumes nothing. Concurrent calls are decided together.

        Raises UnavailableError when PostgreSQL is needed and away, ConsumptionReusedError.
        """
        outcomes = self._gatherer.get(_Asked(demands, dry))
        if isinstance(outcomes, Exception):
            raise outcomes
        return outcomes or []

    def is_degraded(self, rule: Rule, key: str) -> bool:
        """Whether Redis should count a quota under `key`, and does not."""
        return not rule.is_calendar and (self._redis is None or self._redis.is_away_for(self._name(key)))

    def release(self, lease: str, *, dry: bool = False) -> int:
        """Give the places of a lease back; return how many were held. `dry` only looks at the lease.

        Raises LeaseInvalidError or UnavailableError.
        """
        name, here, there = read_lease(lease)
        if dry:
            return 0
        released = self._counters.release(name, here) if here else 0
        if not there:
            return released
        try:
            return released + self._release_in_redis(there, name)
        except RedisAwayError:
            raise UnavailableError("Redis holds the places and is away", retry_after=1.0) from None

    def reset(self, key: str, once: str) -> None:
        """Forget what Redis counts under `key`, once for each `once`. Raises UnavailableError."""
        if self._redis is None:
            return
        try:
            counter, reset = self._name(key), f"{_NAME}reset:{once}"
            if self._redis.ask("SET", lambda redis: redis.set(reset, "", nx=True, ex=_RESET_REMEMBERED), reset):
                self._redis.ask("DEL", lambda redis: redis.delete(counter), counter)
        except RedisAwayError:
            raise UnavailableError("Redis counts the quota and is away", retry_after=1.0) from None

    def _name(self, key: str) -> str:
        """Return the name of a counter in Redis."""
        return _NAME + (self._redis.room_of(key) if self._redis is not None else "") + key

    def _release_in_redis(self, keys: Sequence[str], lease: str) -> int:
        """Return how many places of a lease there were under `keys`. Raises RedisAwayError."""
        if self._redis is None:
            raise RedisAwayError
        released = 0
        for names in self._redis.by_node(map(self._name, keys)).values():
            removed = self._redis.ask("ZREM", lambda redis: _remove(redis, names, lease), names[0])  # noqa: B023  # at once
            released += sum(removed)
        return released

    def _decide_together(self, asked: Sequence[_Asked]) -> Mapping[_Asked, Any]:
        """Decide for several calls. What fails is returned and not raised: asking again would consume again."""
        found: dict[_Asked, Any] = {}
        for dry in {each.dry for each in asked}:
            calls = [each for each in asked if each.dry == dry]
            works = [[Work(demand, redis=self._redis is not None) for demand in each.demands] for each in calls]
            try:
                together = [work for of_call in works for work in of_call]
                for start in range(0, len(together), _MOST_AT_ONCE):
                    self._decide(together[start : start + _MOST_AT_ONCE], dry=dry)
            except Exception as error:  # noqa: BLE001  # see above
                found |= dict.fromkeys(calls, error)
                continue
            for each, of_call in zip(calls, works, strict=True):
                errors = [work.error for work in of_call if work.error is not None]
                found[each] = errors[0] if errors else [work.outcome() for work in of_call]
                if not dry:
                    self._tally(of_call)
        return found

    def _tally(self, works: Sequence[Work]) -> None:
        for work in works:
            self.shadow_denials += sum(
                1 for state in work.states if state is not None and not state.fits and not state.rule.denies
            )
            if work.allowed:
                self.allowed += 1
            elif work.unavailable:
                self.unavailable += 1
            else:
                self.denied += 1

    def _decide(self, works: Sequence[Work], *, dry: bool) -> None:
        remote = [work for work in works if work.remote]
        if remote:
            self._decide_in_redis(remote, dry=dry)
            self._give_back([work for work in remote if not work.allowed and not dry])
        local = [work for work in works if work.local and work.allowed]
        if not local:
            return
        try:
            self._decide_here(local, dry=dry)
        except Exception:
            self._give_back([work for work in local if not dry])
            raise
        self._give_back([work for work in local if not work.allowed and not dry])

    def _decide_here(self, works: Sequence[Work], *, dry: bool) -> None:
        asks = [
            Ask(
                [Item(work.demand.rules[index], work.demand.keys[index]) for index in work.local],
                work.demand.cost,
                work.demand.memory,
                work.demand.print,
                work.lease,
            )
            for work in works
        ]
        for work, reply in zip(works, self._counters.consume(asks, REMEMBERED, dry=dry), strict=True):
            work.take(work.local, reply, "p")

    def _decide_in_redis(self, works: Sequence[Work], *, dry: bool) -> None:
        rooms = self._by_room([part for work in works for part in work.parts(self._server)])
        calls = []
        for room, parts in rooms.items():
            keys = _Keys(room)
            demands = [[*_head(keys, part), part.lease, *_items(keys, part)] for part in parts]
            args = ["1" if dry else "", int(REMEMBERED * 1000), json.dumps(demands, separators=(",", ":"))]
            calls.append(Invocation(keys.names, args))
        for parts, answer in zip(rooms.values(), self._server.run(self._consume, calls), strict=True):
            if answer is None:
                for part in parts:
                    part.work.go_without_redis(part.indexes)
                continue
            for part, reply in zip(parts, _replies(answer, parts), strict=True):
                part.work.take_part(part, reply)

    def _give_back(self, works: Sequence[Work]) -> None:
        """Give back what Redis counted; if it is away by now, that stays consumed: never over the limit."""
        rooms = self._by_room([part for work in works for part in work.consumed])
        if not rooms:
            return
        calls = []
        for room, parts in rooms.items():
            keys = _Keys(room)
            demands = [[_head(keys, part)[0], part.lease, *_taken(keys, part)] for part in parts]
            calls.append(Invocation(keys.names, [json.dumps(demands, separators=(",", ":"))]))
        for parts, answer in zip(rooms.values(), self._server.run(self._refund, calls), strict=True):
            for part in parts if answer is not None else ():
                part.work.forget(part)
        for work in works:
            work.consumed.clear()

    @property
    def _server(self) -> RedisServer:
        """The Redis of demands that have something for it to count."""
        assert self._redis is not None  # noqa: S101  # else they have nothing
        return self._redis

    @staticmethod
    def _by_room(parts: Sequence[Part]) -> Mapping[str, list[Part]]:
        rooms: dict[str, list[Part]] = {}
        for part in parts:
            rooms.setdefault(part.room, []).append(part)
        return rooms


class _Keys:
    """The keys of a script, which are all in one room, by place."""

    def __init__(self, room: str) -> None:
        self._prefix = _NAME + room
        self._places: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """All keys, in their places."""
        return list(self._places)

    def place(self, name: str) -> int:
        """Return the place of a key, from 1."""
        return self._places.setdefault(self._prefix + name, len(self._places) + 1)


def _head(keys: _Keys, part: Part) -> tuple[int, str]:
    demand = part.work.demand
    return keys.place("a:" + demand.memory) if demand.memory else 0, demand.print


def _items(keys: _Keys, part: Part) -> Iterator[int]:
    demand = part.work.demand
    for index in part.indexes:
        rule = demand.rules[index]
        yield keys.place(demand.keys[index])
        yield rule.code
        yield rule.most
        yield rule.taken(demand.cost)
        yield 1 if rule.denies else 0


def _taken(keys: _Keys, part: Part) -> Iterator[int]:
    """Say of the items that Redis counted what to give back: a shadow quota that did not fit took nothing of a rate."""
    demand = part.work.demand
    for index in part.indexes:
        rule, state = demand.rules[index], part.work.states[index]
        if rule.is_concurrency or (state is not None and state.fits):
            yield keys.place(demand.keys[index])
            yield rule.code
            yield rule.taken(demand.cost)


def _replies(answer: Sequence[Any], parts: Sequence[Part]) -> Iterator[Reply]:
    at = 1
    for part in parts:
        verdict, earlier = answer[at], answer[at + 1]
        end = at + 2 + 2 * len(part.indexes)
        levels = [(bool(fits), int(level)) for fits, level in zip(answer[at + 2 : end : 2], answer[at + 3 : end : 2])]  # noqa: B905
        at = end
        yield Reply(verdict, earlier.decode() if earlier else part.lease, levels)


def _remove(redis: Any, keys: Sequence[str], name: str) -> list[int]:
    pipeline = redis.pipeline(transaction=False)
    for key in keys:
        pipeline.zrem(key, name)
    removed: list[int] = pipeline.execute()
    return removed
