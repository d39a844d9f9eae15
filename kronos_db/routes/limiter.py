"""Decides on quotas: rates and concurrent requests in Redis, calendar use in PostgreSQL, each in one round trip.

Redis comes first, since giving back there costs less: what PostgreSQL then denies is given back. Demands that come
together are decided together. docs/decisions/0014-routes.md says what holds when one of the two fails.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from kronos_db.routes.counters import Ask, Counters, Item, Reply
from kronos_db.routes.model import ConsumptionReusedError, Failure, LeaseInvalidError
from kronos_db.routes.quotas import Rule, State, state_of
from kronos_db.runtime.errors import FieldViolation, UnavailableError
from kronos_db.runtime.redis import RedisAwayError, RedisServer
from kronos_db.runtime.workers import Gatherer

# Seconds for which it is remembered what was allowed.
REMEMBERED = 300.0
# And that a subject was reset.
_RESET_REMEMBERED = 86_400
# Demands in one script and one statement: some milliseconds of a Redis that serves nobody else meanwhile.
_MOST_AT_ONCE = 256
_NAME = "kronos-db:q:"
_DENIED, _ALLOWED, _REPEATED, _REUSED = range(4)
_DIGITS = 16
_NO_LEASE = "0" * 32


class Demand(NamedTuple):
    """What a request consumes, all or nothing: `keys` are the counters of `rules`.

    `memory` names the request among all callers', "" when it cannot be repeated; `print` tells it from others that are
    named alike. Both are 32 hexadecimal digits.
    """

    rules: Sequence[Rule]
    keys: Sequence[str]
    cost: int = 1
    memory: str = ""
    print: str = "0" * 32


class Outcome(NamedTuple):
    """What was decided. `unavailable` when a quota refused because Redis is away. `lease` is "" without places."""

    allowed: bool
    states: Sequence[State]
    lease: str = ""
    unavailable: bool = False


class _Asked:
    """Demands of one call: what the gatherer knows them by."""

    __slots__ = ("demands", "dry")

    def __init__(self, demands: Sequence[Demand], dry: bool) -> None:
        self.demands = demands
        self.dry = dry


class _Work:
    """A demand on its way: what is left to ask of whom, and what is known of each of its items."""

    __slots__ = ("allowed", "counted_in", "demand", "error", "lease", "local", "remote", "states", "unavailable")

    def __init__(self, demand: Demand, *, redis: bool) -> None:
        self.demand = demand
        self.allowed = True
        self.unavailable = False
        self.error: Exception | None = None
        self.lease = _NO_LEASE
        self.states: list[State | None] = [None] * len(demand.rules)
        self.remote: list[int] = []
        self.local: list[int] = []
        # Where the place of each item is held: "r" Redis, "p" PostgreSQL.
        self.counted_in: dict[int, str] = {}
        for index, rule in enumerate(demand.rules):
            if rule.is_calendar:
                self.local.append(index)
            else:
                self.remote.append(index)
                if rule.is_concurrency and self.lease is _NO_LEASE:
                    self.lease = uuid4().hex
        if not redis:
            self.go_without_redis()

    def go_without_redis(self) -> None:
        """Have each quota that Redis should count do what it does without."""
        for index in self.remote:
            rule = self.demand.rules[index]
            if rule.failure is Failure.COUNT:
                self.local.append(index)
                continue
            refuses = rule.failure is Failure.REFUSE and rule.denies
            self.states[index] = State(rule, not refuses, counted=False)
            if refuses:
                self.allowed, self.unavailable = False, True
        self.local.sort()
        self.remote = []

    def take(self, indexes: Sequence[int], reply: Reply, where: str) -> None:
        """Take what was decided about the items at `indexes`."""
        demand = self.demand
        if reply.verdict == _REUSED:
            self.error = ConsumptionReusedError(
                violations=[FieldViolation("request_id", "was used for another consumption")]
            )
        for index, (fits, level) in zip(indexes, reply.levels, strict=True):
            rule = demand.rules[index]
            # What was allowed before is not looked at again: that it is used up now is no matter.
            self.states[index] = state_of(rule, fits or reply.verdict == _REPEATED, level, demand.cost)
            if rule.is_concurrency:
                self.counted_in[index] = where
                self.lease = reply.lease
        if reply.verdict in {_DENIED, _REUSED}:
            self.allowed = False

    def forget_redis(self) -> None:
        """Take note that what Redis counted was given back."""
        for index in self.remote:
            state = self.states[index]
            if state is not None:
                back = 1 if state.rule.is_concurrency else self.demand.cost
                remaining = min(state.rule.size, state.remaining + back)
                self.states[index] = state._replace(remaining=remaining, used=max(0, state.used - back))

    def outcome(self) -> Outcome:
        """Return what was decided."""
        states = [
            # Denied before it was its turn.
            State(rule, fits=True, counted=False) if state is None else state
            for rule, state in zip(self.demand.rules, self.states, strict=True)
        ]
        lease = _lease(self) if self.allowed and self.counted_in else ""
        return Outcome(self.allowed, states, lease, self.unavailable)


class Limiter:
    """Decides with Redis, None for none, and PostgreSQL."""

    def __init__(self, redis: RedisServer | None, counters: Counters) -> None:
        self._redis = redis
        self._counters = counters
        folder = Path(__file__).parent
        self._consume: Any = None
        self._refund: Any = None
        if redis is not None:
            self._consume = redis.script((folder / "consume.lua").read_text(encoding="utf-8"))
            self._refund = redis.script((folder / "refund.lua").read_text(encoding="utf-8"))
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

    def is_degraded(self, rule: Rule) -> bool:
        """Whether Redis should count a quota and does not."""
        return not rule.is_calendar and (self._redis is None or self._redis.is_away)

    def release(self, lease: str, *, dry: bool = False) -> int:
        """Give the places of a lease back; return how many were held. `dry` only looks at the lease.

        Raises LeaseInvalidError or UnavailableError.
        """
        name, here, there = _read_lease(lease)
        if dry:
            return 0
        released = self._counters.release(name, here) if here else 0
        if not there:
            return released
        keys = [_NAME + key for key in there]
        try:
            return released + int(self._ask("ZREM", lambda redis: sum(_remove(redis, keys, name))))
        except RedisAwayError:
            raise UnavailableError("Redis holds the places and is away", retry_after=1.0) from None

    def reset(self, key: str, once: str) -> None:
        """Forget what Redis counts under `key`, once for each `once`. Raises UnavailableError."""
        if self._redis is None:
            return
        try:
            if self._ask("SET", lambda redis: redis.set(f"{_NAME}reset:{once}", "", nx=True, ex=_RESET_REMEMBERED)):
                self._ask("DEL", lambda redis: redis.delete(_NAME + key))
        except RedisAwayError:
            raise UnavailableError("Redis counts the quota and is away", retry_after=1.0) from None

    def _ask(self, operation: str, work: Any) -> Any:
        if self._redis is None:
            raise RedisAwayError
        return self._redis.ask(operation, work)

    def _decide_together(self, asked: Sequence[_Asked]) -> Mapping[_Asked, Any]:
        """Decide for several calls. What fails is returned and not raised: asking again would consume again."""
        found: dict[_Asked, Any] = {}
        for dry in {each.dry for each in asked}:
            calls = [each for each in asked if each.dry == dry]
            works = [[_Work(demand, redis=self._redis is not None) for demand in each.demands] for each in calls]
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

    def _tally(self, works: Sequence[_Work]) -> None:
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

    def _decide(self, works: Sequence[_Work], *, dry: bool) -> None:
        remote = [work for work in works if work.remote]
        if remote:
            self._decide_in_redis(remote, dry=dry)
        local = [work for work in works if work.local and work.allowed]
        if not local:
            return
        try:
            self._decide_here(local, dry=dry)
        except Exception:
            self._give_back([work for work in local if work.remote and not dry])
            raise
        self._give_back([work for work in local if work.remote and not work.allowed and not dry])

    def _decide_here(self, works: Sequence[_Work], *, dry: bool) -> None:
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

    def _decide_in_redis(self, works: Sequence[_Work], *, dry: bool) -> None:
        keys = _Keys()
        demands = [[*_head(keys, work), work.lease, *_items(keys, work)] for work in works]
        args = ["1" if dry else "", int(REMEMBERED * 1000), json.dumps(demands, separators=(",", ":"))]
        try:
            answer = self._ask("EVALSHA", lambda redis: self._consume(keys=keys.names, args=args, client=redis))
        except RedisAwayError:
            for work in works:
                work.go_without_redis()
            return
        for work, reply in zip(works, _replies(answer, works), strict=True):
            work.take(work.remote, reply, "r")

    def _give_back(self, works: Sequence[_Work]) -> None:
        """Give back what Redis counted; if it is away by now, that stays consumed: never over the limit."""
        if not works:
            return
        keys = _Keys()
        demands = [[_head(keys, work)[0], work.lease, *_taken(keys, work)] for work in works]
        args = [json.dumps(demands, separators=(",", ":"))]
        try:
            self._ask("EVALSHA", lambda redis: self._refund(keys=keys.names, args=args, client=redis))
        except RedisAwayError:
            return
        for work in works:
            work.forget_redis()


class _Keys:
    """The keys of a script, by place."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """All keys, in their places."""
        return list(self._places)

    def place(self, name: str) -> int:
        """Return the place of a key, from 1."""
        return self._places.setdefault(_NAME + name, len(self._places) + 1)


def _head(keys: _Keys, work: _Work) -> tuple[int, str]:
    demand = work.demand
    return keys.place("a:" + demand.memory) if demand.memory else 0, demand.print


def _items(keys: _Keys, work: _Work) -> Iterator[int]:
    demand = work.demand
    for index in work.remote:
        rule = demand.rules[index]
        yield keys.place(demand.keys[index])
        yield rule.code
        yield rule.most
        yield rule.taken(demand.cost)
        yield 1 if rule.denies else 0


def _taken(keys: _Keys, work: _Work) -> Iterator[int]:
    """Say of the items that Redis counted what to give back: a shadow quota that did not fit took nothing of a rate."""
    demand = work.demand
    for index in work.remote:
        rule, state = demand.rules[index], work.states[index]
        if rule.is_concurrency or (state is not None and state.fits):
            yield keys.place(demand.keys[index])
            yield rule.code
            yield rule.taken(demand.cost)


def _replies(answer: Sequence[Any], works: Sequence[_Work]) -> Iterator[Reply]:
    at = 1
    for work in works:
        verdict, earlier = answer[at], answer[at + 1]
        end = at + 2 + 2 * len(work.remote)
        levels = [(bool(fits), int(level)) for fits, level in zip(answer[at + 2 : end : 2], answer[at + 3 : end : 2])]  # noqa: B905
        at = end
        yield Reply(verdict, earlier.decode() if earlier else work.lease, levels)


def _remove(redis: Any, keys: Sequence[str], name: str) -> list[int]:
    pipeline = redis.pipeline(transaction=False)
    for key in keys:
        pipeline.zrem(key, name)
    removed: list[int] = pipeline.execute()
    return removed


def _lease(work: _Work) -> str:
    parts = b"".join(
        where.encode() + bytes.fromhex(work.demand.keys[index]) for index, where in work.counted_in.items()
    )
    return base64.urlsafe_b64encode(bytes.fromhex(work.lease) + parts).rstrip(b"=").decode()


def _read_lease(lease: str) -> tuple[str, list[str], list[str]]:
    """Return the name of a lease, and the counters that it has places of in PostgreSQL and in Redis."""
    try:
        raw = base64.b64decode(lease.encode() + b"=" * (-len(lease) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    parts = [raw[at : at + _DIGITS + 1] for at in range(_DIGITS, len(raw), _DIGITS + 1)]
    if not parts or any(len(part) != _DIGITS + 1 or part[:1] not in {b"r", b"p"} for part in parts):
        raise LeaseInvalidError(violations=[FieldViolation("lease", "is none of this server")])
    keys = {where: [part[1:].hex() for part in parts if part[:1] == where] for where in (b"p", b"r")}
    return raw[:_DIGITS].hex(), keys[b"p"], keys[b"r"]
