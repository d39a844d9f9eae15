"""Copies in Redis, for all processes of all machines. Redis is not trusted: neither to answer, nor to remember.

Every value carries the moment from which it is, the places on the board that it depends on, its end, and a keyed hash
over all of that and its name. So a Redis that was wiped, rolled back or written to by somebody else costs time alone.
One that does not answer is left alone for a while.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, Full, Queue
from typing import Any, NamedTuple
from uuid import uuid4

from kronos_db.runtime.redis import TIMEOUT, Invocation, RedisAwayError, RedisServer, Script

# Batches of values that wait to be written; more are dropped.
_MOST_WAITING = 256
# Values that are written in one go, unless one batch has more.
_MOST_AT_ONCE = 256
_MAC = 16
# Moment, end of life (milliseconds of Unix time), number of places.
_HEAD = struct.Struct(">QQH")
_PLACE = 4
# Removes a lock if it is still ours.
_RELEASE = Script.of("if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end")


class Kept(NamedTuple):
    """A copy as it is kept in Redis; `until` is in milliseconds of Unix time."""

    value: bytes
    moment: int
    places: tuple[int, ...]
    until: int


class Remote:
    """Copies in `server`. `key` is secret, and shared by all processes of one domain."""

    def __init__(self, server: RedisServer, key: bytes) -> None:
        self._key = key
        self.server = server
        self._stopped = False
        self._waiting: Queue[Mapping[str, Kept]] = Queue(_MOST_WAITING)
        self._writer = threading.Thread(target=self._write, name="redis writer", daemon=True)
        self._writer.start()
        self.dropped = 0

    @property
    def is_away(self) -> bool:
        """Whether Redis did not answer of late and is left alone."""
        return self.server.is_away

    def get(self, names: Sequence[str]) -> dict[str, Kept]:
        """Return what is kept under `names`, one at least, and is whole; nothing when Redis does not answer."""
        opened = {name: self._opened(name, value) for name, value in self.server.read(names).items()}
        return {name: kept for name, kept in opened.items() if kept is not None}

    def put_soon(self, values: Mapping[str, Kept]) -> None:
        """Keep `values` as soon as there is time; when there is none they are dropped."""
        try:
            self._waiting.put_nowait(values)
        except Full:
            self.dropped += 1

    def put(self, values: Mapping[str, Kept]) -> None:
        """Keep `values` until their ends."""
        for names in self.server.by_node(values).values():
            self._put({name: values[name] for name in names})

    def lock(self, name: str, seconds: float) -> str | None:
        """Return a token when nobody else has locked `name`; without Redis nobody is known to have.

        The lock opens by itself after `seconds`.
        """
        token = uuid4().hex
        taken = self._try("SET", lambda redis: redis.set(name, token, nx=True, px=int(seconds * 1000)) or False, name)
        return None if taken is False else token

    def unlock(self, name: str, token: str) -> None:
        """Open a lock if it is still the one of `token`."""
        self.server.run(_RELEASE, [Invocation([name], [token])])

    def close(self) -> None:
        """Stop writing; the server is let go of by whoever opened it."""
        self._stopped = True
        # It wakes the writer; when others wait in the queue it is awake.
        self.put_soon({})
        self._writer.join(2 * TIMEOUT)

    def _write(self) -> None:
        while not self._stopped:
            gathered = dict(self._waiting.get())
            while len(gathered) < _MOST_AT_ONCE:
                try:
                    gathered.update(self._waiting.get_nowait())
                except Empty:
                    break
            self.put(gathered)

    def _put(self, values: Mapping[str, Kept]) -> None:
        """Keep `values`, which are all of one node."""

        def write(redis: Any) -> None:
            pipeline = redis.pipeline(transaction=False)
            for name, kept in values.items():
                pipeline.set(name, self._closed(name, kept), pxat=kept.until)
            pipeline.execute()

        if values:
            self._try("SET", write, next(iter(values)))

    def _try(self, operation: str, call: Callable[[Any], Any], name: str) -> Any:
        """Return what `call` returns that asks for `name`, None when Redis is away."""
        try:
            return self.server.ask(operation, call, name)
        except RedisAwayError:
            return None

    def _closed(self, name: str, kept: Kept) -> bytes:
        head = _HEAD.pack(kept.moment, kept.until, len(kept.places))
        body = head + b"".join(place.to_bytes(_PLACE, "big") for place in kept.places) + kept.value
        return self._mac(name, body) + body

    def _opened(self, name: str, text: bytes) -> Kept | None:
        body = text[_MAC:]
        if len(body) < _HEAD.size or not hmac.compare_digest(text[:_MAC], self._mac(name, body)):
            return None
        moment, until, count = _HEAD.unpack_from(body)
        start = _HEAD.size + count * _PLACE
        places = struct.unpack_from(f">{count}I", body, _HEAD.size)
        return Kept(body[start:], moment, places, until)

    def _mac(self, name: str, body: bytes) -> bytes:
        framed = len(name).to_bytes(4, "big") + name.encode() + body
        return hashlib.blake2b(framed, key=self._key, digest_size=_MAC).digest()
