"""The Redis that a process uses, which may go away: it is asked, and left alone for a while when it does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import structlog

from kronos_db.runtime import tracing
from kronos_db.runtime.redis_clients import FAILURES, TIMEOUT, WHOLE, Invocation, Script, open_client

__all__ = ["TIMEOUT", "Invocation", "RedisAwayError", "RedisFigures", "RedisServer", "Script"]

Result = TypeVar("Result")

# Seconds for which Redis, or a node of its cluster, is left alone when it does not answer, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0

_log = structlog.get_logger(__name__)


class RedisAwayError(Exception):
    """Redis did not answer, or not of late."""


class RedisFigures(NamedTuple):
    """What Redis tells of itself, of a cluster the sum over its nodes; `max_bytes` is 0 when it has no limit."""

    version: str
    used_bytes: int
    max_bytes: int
    connections: int
    hits: int
    misses: int


class RedisServer:
    """The Redis at `url`: one server, the master that sentinels name, or a cluster (`redis_address.py` has the forms).

    A node of a cluster that does not answer is left alone by itself: what the others have is asked for.
    """

    def __init__(self, url: str) -> None:
        self._client = open_client(url)
        self._lock = threading.Lock()
        self._pauses: dict[str, float] = {}
        self._away_until: dict[str, float] = {}
        self.failures = 0

    @property
    def is_away(self) -> bool:
        """Whether Redis, all of it, did not answer of late and is left alone."""
        return self._is_left_alone(WHOLE)

    def is_away_for(self, name: str) -> bool:
        """Whether whoever has `name` is left alone."""
        return self.is_away or self._is_left_alone(self._client.node_of(name))

    @property
    def is_partly_away(self) -> bool:
        """Whether it is, or a node of its cluster."""
        return any(self._is_left_alone(node) for node in list(self._away_until))

    def room_of(self, name: str) -> str:
        """Return what names must begin with to stand in one script with others of the room of `name`; "" for any."""
        return self._client.room_of(name)

    def by_node(self, names: Iterable[str]) -> Mapping[str, Sequence[str]]:
        """Return `names` by the node that has them."""
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self._client.node_of(name), []).append(name)
        return found

    def ask(self, operation: str, work: Callable[[Any], Result], name: str = "") -> Result:
        """Return what `work` returns, which gets the client and asks for `name`, or what is on the same node.

        `operation` names it in traces, as Redis names its commands. Raises RedisAwayError; what was asked may be done
        then.
        """
        node = self._client.node_of(name) if name else WHOLE
        return self._asked(node, operation, lambda: work(self._client.commands()))

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the values of those of `names` that have one, as far as Redis answers."""
        found: dict[str, bytes] = {}
        for node, of_node in self.by_node(names).items():
            try:
                values = self._asked(node, "MGET", lambda: self._client.read(of_node))  # noqa: B023  # called at once
            except RedisAwayError:
                continue
            found |= {name: value for name, value in zip(of_node, values, strict=True) if value is not None}
        return found

    def run(self, script: Script, invocations: Sequence[Invocation]) -> list[Any]:
        """Run a script with each of `invocations`, whose keys are of one room each; return the answers, in order.

        None where Redis did not answer: it may be done there all the same.
        """
        answers: list[Any] = [None] * len(invocations)
        by_node: dict[str, list[int]] = {}
        for number, each in enumerate(invocations):
            by_node.setdefault(self._client.node_of(each.keys[0]) if each.keys else WHOLE, []).append(number)
        for node, numbers in by_node.items():
            of_node = [invocations[number] for number in numbers]
            try:
                found = self._asked(node, "EVALSHA", lambda: self._client.run(node, script, of_node))  # noqa: B023  # at once
            except RedisAwayError:
                continue
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
        return answers

    def figures(self) -> RedisFigures:
        """Ask Redis how it is, also while it is left alone; when it answers, that is over. Raises RedisAwayError."""
        try:
            told = self._client.info()
        except FAILURES as error:
            raise RedisAwayError from error
        with self._lock:
            self._away_until.clear()
            self._pauses.clear()
        names = ("used_memory", "maxmemory", "connected_clients", "keyspace_hits", "keyspace_misses")
        sums = (sum(int(each.get(name, 0)) for each in told) for name in names)
        return RedisFigures(str(told[0].get("redis_version", "")), *sums)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _asked(self, node: str, operation: str, work: Callable[[], Result]) -> Result:
        if self._is_left_alone(node) or self.is_away:
            raise RedisAwayError
        if tracing.span() is None:
            return self._answered(node, work)
        with tracing.within(f"redis {operation}", {"db.system.name": "redis", "db.operation.name": operation}):
            return self._answered(node, work)

    def _answered(self, node: str, work: Callable[[], Result]) -> Result:
        try:
            result = work()
        except FAILURES as error:
            self.failures += 1
            self._leave_alone(node, error)
            raise RedisAwayError from error
        if self._pauses:
            self._pauses.pop(node, None)
        return result

    def _is_left_alone(self, node: str) -> bool:
        until = self._away_until.get(node)
        return until is not None and time.monotonic() < until

    def _leave_alone(self, node: str, error: Exception) -> None:
        with self._lock:
            if self._is_left_alone(node):
                # Calls that fail together are one failure.
                return
            pause = self._pauses.get(node, _FIRST_PAUSE)
            self._away_until[node] = time.monotonic() + pause
            self._pauses[node] = min(pause * 2, _LONGEST_PAUSE)
            _log.warning("Redis does not answer", reason=type(error).__name__, node=node or None, again_in=pause)
