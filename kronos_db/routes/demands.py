"""Demands on quotas on their way: what is left to ask of whom, what is known by now, and the text of a lease."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from kronos_db.routes.counters import Reply
from kronos_db.routes.model import ConsumptionReusedError, Failure, LeaseInvalidError
from kronos_db.routes.quotas import Rule, State, state_of
from kronos_db.runtime.errors import FieldViolation
from kronos_db.runtime.redis import RedisServer

DENIED, ALLOWED, REPEATED, REUSED = range(4)
_DIGITS = 16
_NO_LEASE = "0" * 32


class Demand(NamedTuple):
    """What a request consumes, all or nothing: `keys` are the counters of `rules`.

    `memory` names the request among all callers', and `print` tells it from others that are named alike: 32 hexadecimal
    digits each, "" when it cannot be repeated.
    """

    rules: Sequence[Rule]
    keys: Sequence[str]
    cost: int = 1
    memory: str = ""
    print: str = ""


class Outcome(NamedTuple):
    """What was decided. `unavailable` when a quota refused because Redis is away. `lease` is "" without places."""

    allowed: bool
    states: Sequence[State]
    lease: str = ""
    unavailable: bool = False


class Part(NamedTuple):
    """The items of a demand whose counters are in one room of Redis, and the lease that holds places there."""

    work: Work
    room: str
    indexes: Sequence[int]
    lease: str


class Work:
    """A demand on its way: what is left to ask of whom, and what is known of each of its items."""

    __slots__ = (
        "allowed",
        "consumed",
        "counted_in",
        "demand",
        "error",
        "lease",
        "local",
        "remote",
        "states",
        "unavailable",
    )

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
        # What Redis has counted, and would have to get back.
        self.consumed: list[Part] = []
        for index, rule in enumerate(demand.rules):
            if rule.is_calendar:
                self.local.append(index)
            else:
                self.remote.append(index)
                if rule.is_concurrency and self.lease is _NO_LEASE:
                    self.lease = uuid4().hex
        if not redis:
            self.go_without_redis(self.remote)

    def parts(self, server: RedisServer) -> list[Part]:
        """Return what Redis is asked, by room."""
        rooms: dict[str, list[int]] = {}
        for index in self.remote:
            rooms.setdefault(server.room_of(self.demand.keys[index]), []).append(index)
        return [Part(self, room, indexes, self.lease) for room, indexes in rooms.items()]

    def go_without_redis(self, indexes: Sequence[int]) -> None:
        """Have each quota at `indexes`, which Redis should count, do what it does without."""
        for index in indexes:
            rule = self.demand.rules[index]
            if rule.failure is Failure.COUNT:
                self.local.append(index)
                continue
            refuses = rule.failure is Failure.REFUSE and rule.denies
            self.states[index] = State(rule, not refuses, counted=False)
            if refuses:
                self.allowed, self.unavailable = False, True
        self.local.sort()
        self.remote = [index for index in self.remote if index not in set(indexes)]

    def take(self, indexes: Sequence[int], reply: Reply, where: str) -> None:
        """Take what was decided about the items at `indexes`."""
        demand = self.demand
        if reply.verdict == REUSED:
            self.error = ConsumptionReusedError(
                violations=[FieldViolation("request_id", "was used for another consumption")]
            )
        for index, (fits, level) in zip(indexes, reply.levels, strict=True):
            rule = demand.rules[index]
            # What was allowed before is not looked at again: that it is used up now is no matter.
            self.states[index] = state_of(rule, fits or reply.verdict == REPEATED, level, demand.cost)
            if rule.is_concurrency:
                self.counted_in[index] = where
                self.lease = reply.lease
        if reply.verdict in {DENIED, REUSED}:
            self.allowed = False

    def take_part(self, part: Part, reply: Reply) -> None:
        """Take what a room of Redis decided."""
        self.take(part.indexes, reply, "r")
        if reply.verdict in {ALLOWED, REPEATED}:
            self.consumed.append(part._replace(lease=reply.lease))

    def forget(self, part: Part) -> None:
        """Take note that what a room of Redis counted was given back."""
        for index in part.indexes:
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


def _lease(work: Work) -> str:
    parts = b"".join(
        where.encode() + bytes.fromhex(work.demand.keys[index]) for index, where in work.counted_in.items()
    )
    return base64.urlsafe_b64encode(bytes.fromhex(work.lease) + parts).rstrip(b"=").decode()


def read_lease(lease: str) -> tuple[str, list[str], list[str]]:
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
