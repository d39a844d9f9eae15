"""The Redis that a process uses, which may go away: it is asked, and left alone for a while when it does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import redis
import structlog

from kronos_db.runtime import tracing

Result = TypeVar("Result")

# Seconds: within which Redis has to answer, and for which it is left alone when it does not, at first and at most.
TIMEOUT = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_CONNECTIONS = 64

_log = structlog.get_logger(__name__)


class RedisAwayError(Exception):
    """Redis did not answer, or not of late."""


class RedisFigures(NamedTuple):
    """What Redis tells of itself; `max_bytes` is 0 when it has no limit."""

    version: str
    used_bytes: int
    max_bytes: int
    connections: int
    hits: int
    misses: int


class RedisServer:
    """The Redis at `url`: redis://, rediss:// or unix://."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, max_connections=_CONNECTIONS
        )
        self._lock = threading.Lock()
        self._pause = _FIRST_PAUSE
        self._away_until = 0.0
        self.failures = 0

    @property
    def is_away(self) -> bool:
        """Whether Redis did not answer of late and is left alone."""
        return time.monotonic() < self._away_until

    def script(self, text: str) -> Any:
        """Return a Lua script; called with `keys` and `args` inside of `ask` it runs there."""
        return self._redis.register_script(text)

    def ask(self, operation: str, work: Callable[[Any], Result]) -> Result:
        """Return what `work` returns, which gets the client. Raises RedisAwayError; what was asked may be done then.

        `operation` names it in traces, as Redis names its commands.
        """
        if self.is_away:
            raise RedisAwayError
        if tracing.span() is None:
            return self._asked(work)
        with tracing.within(f"redis {operation}", {"db.system.name": "redis", "db.operation.name": operation}):
            return self._asked(work)

    def _asked(self, work: Callable[[Any], Result]) -> Result:
        try:
            result = work(self._redis)
        except redis.RedisError as error:
            self.failures += 1
            self._leave_alone(error)
            raise RedisAwayError from error
        self._pause = _FIRST_PAUSE
        return result

    def figures(self) -> RedisFigures:
        """Ask Redis how it is, also while it is left alone; when it answers, that is over. Raises RedisAwayError."""
        try:
            found = self._redis.info()
        except redis.RedisError as error:
            raise RedisAwayError from error
        self._away_until, self._pause = 0.0, _FIRST_PAUSE
        names = ("used_memory", "maxmemory", "connected_clients", "keyspace_hits", "keyspace_misses")
        return RedisFigures(str(found.get("redis_version", "")), *(int(found.get(name, 0)) for name in names))

    def close(self) -> None:
        """Let go of the connections."""
        self._redis.close()

    def _leave_alone(self, error: redis.RedisError) -> None:
        with self._lock:
            if self.is_away:
                # Calls that fail together are one failure.
                return
            self._away_until = time.monotonic() + self._pause
            _log.warning("Redis does not answer", reason=type(error).__name__, again_in=self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
