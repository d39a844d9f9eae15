"""The cache: what is asked for is answered from memory, from Redis, or read, and never from before a write."""

from __future__ import annotations

import hashlib
import math
import random
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kronos_db.runtime import deadline
from kronos_db.runtime.cache.board import Board, Mark, now
from kronos_db.runtime.cache.memory import Entry, Memory
from kronos_db.runtime.cache.remote import Kept, Remote
from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.workers import Gatherer

_NANO = 1_000_000_000
_MILLI = 1_000_000
# How early a copy may be read anew, as a multiple of what reading it takes: XFetch's beta, and where it is looked at.
_BETA, _HORIZON = 1.0, 10
# Clocks of machines differ; a copy from Redis ends so many milliseconds earlier.
_SKEW = 1000
# Seconds that one process may take to read a value, and those between two looks whether it has.
_FILLING, _LOOK = 5.0, 0.02
_TURNS = 64


class Loaded(NamedTuple):
    """What was read: a value, the tags that it depends on, and for how many seconds it is true (None: until changed).

    `valid_for` counts from before the reading began, by the clock of the database.
    """

    value: bytes
    tags: Sequence[str]
    valid_for: float | None = None


Load = Callable[[Sequence[str]], Mapping[str, Loaded]]


@dataclass(frozen=True, slots=True)
class Rules:
    """How copies of one kind are kept.

    `lifetime` in seconds, at most. `remote`: in Redis too. `exclusive`: one process at a time reads a value, the
    others wait for it; for queries that cost more than waiting.
    """

    name: str
    lifetime: float = 300.0
    remote: bool = False
    exclusive: bool = False


class Kind:
    """Copies of one kind, by key. `load` reads those of several keys that exist."""

    def __init__(self, rules: Rules, load: Load, board: Board, memory: Memory, remote: Remote | None) -> None:
        self.rules = rules
        self._load = load
        self._board = board
        self._memory = memory
        self._number, self._shelf = memory.shelf()
        self._remote = remote if rules.remote or rules.exclusive else None
        self._gatherer: Gatherer[str, bytes] = Gatherer(self._fill_alone if rules.exclusive else self._fill)
        # A value is read in its key's turn; keys share turns by their hash.
        self._turns = [threading.Lock() for _ in range(_TURNS)] if rules.exclusive else []
        self.hits = 0
        self.remote_hits = 0
        self.misses = 0

    def get(self, key: str) -> bytes | None:
        """Return the value of `key`, None when there is none; raises what `load` raises."""
        entry = self._shelf.get(key)
        at = now()
        if entry is None or not self._is_current(entry, at):
            self.misses += 1
            return self._gatherer.get(key)
        entry.used = True
        self.hits += 1
        if at >= entry.early and self._is_chosen(entry, at):
            return self._refreshed(key, entry)
        return entry.value

    def get_many(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Return the values of those of `keys` that have one."""
        found, missing = {}, []
        at = now()
        for key in keys:
            entry = self._shelf.get(key)
            if entry is None or not self._is_current(entry, at):
                missing.append(key)
            else:
                entry.used = True
                found[key] = entry.value
        self.hits += len(found)
        self.misses += len(missing)
        return found | self._fill_many(missing) if missing else found

    def _fill_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        if not self.rules.exclusive:
            return self._fill(keys)
        # Through the gatherer: a call that may be set aside must not hold the turn of a key.
        values = {key: self._gatherer.get(key) for key in keys}
        return {key: value for key, value in values.items() if value is not None}

    def _is_current(self, entry: Entry, at: int) -> bool:
        return at < entry.until and self._board.is_current(entry.mark, entry.places, at)

    def _is_refreshing(self, key: str) -> bool:
        entry = self._shelf.get(key)
        return entry is not None and entry.refreshing

    def _is_chosen(self, entry: Entry, at: int) -> bool:
        """Tell whether this caller reads the value anew before it ends (XFetch, Vattani et al., VLDB 2015)."""
        if entry.refreshing or at - entry.cost * _BETA * math.log(1.0 - random.random()) < entry.until:
            return False
        entry.refreshing = True
        return True

    def _refreshed(self, key: str, entry: Entry) -> bytes | None:
        try:
            return self._gatherer.get(key)
        except KronosError:
            # It may have ended while we waited.
            if not self._is_current(entry, now()):
                raise
            return entry.value

    def _fill(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the values of `keys` from Redis or by reading them, and keep them."""
        mark = self._board.mark()
        if self._remote is None or mark is None:
            return self._read(keys, mark)
        # Who reads a copy anew before its end would find the same one in Redis.
        asked = [key for key in keys if not self._is_refreshing(key)]
        found = self._from_remote(self._remote, asked, mark) if asked else {}
        missing = [key for key in keys if key not in found]
        return found | self._read(missing, mark) if missing else found

    def _read(self, keys: Sequence[str], mark: Mark | None, *, soon: bool = True) -> dict[str, bytes]:
        # The mark was taken before: what changes from here on is newer than what we keep.
        begun = now()
        loaded = self._load(keys)
        if mark is not None:
            cost = now() - begun
            entries = {key: self._entry(item, mark, begun, cost) for key, item in loaded.items()}
            self._memory.put(self._number, entries)
            self._to_remote(entries, mark, soon=soon)
        return {key: item.value for key, item in loaded.items()}

    def _entry(self, loaded: Loaded, mark: Mark, begun: int, cost: int) -> Entry:
        value, tags, seconds = loaded
        if seconds is None or seconds > self.rules.lifetime:
            seconds = self.rules.lifetime
        until = begun + int(seconds * _NANO)
        return Entry(value, mark, self._board.places(tags), until, until - _HORIZON * cost, cost)

    def _from_remote(self, remote: Remote, keys: Sequence[str], mark: Mark) -> dict[str, bytes]:
        """Return what Redis has of `keys` that is current, and keep it in memory."""
        if remote.is_away:
            return {}
        names = {self._name(key): key for key in keys}
        at, clock = now(), int(time.time() * 1000)
        found = {}
        for name, kept in remote.get(list(names)).items():
            # A copy of before we followed the changes is not comparable.
            own = Mark(mark.epoch, kept.moment)
            left = kept.until - _SKEW - clock
            if kept.moment < self._board.since or left <= 0 or not self._board.is_current(own, kept.places, at):
                continue
            until = at + left * _MILLI
            found[names[name]] = Entry(kept.value, own, kept.places, until, until, 0)
        self._memory.put(self._number, found)
        self.remote_hits += len(found)
        return {key: entry.value for key, entry in found.items()}

    def _to_remote(self, entries: Mapping[str, Entry], mark: Mark, *, soon: bool) -> None:
        if self._remote is None or self._remote.is_away:
            return
        at, clock = now(), int(time.time() * 1000)
        kept = {
            self._name(key): Kept(entry.value, mark.moment, entry.places, clock + (entry.until - at) // _MILLI)
            for key, entry in entries.items()
            if entry.until > at
        }
        # After the names were made: they must be of the history that the moment is of.
        if kept and self._board.epoch == mark.epoch:
            (self._remote.put_soon if soon else self._remote.put)(kept)

    def _fill_alone(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Fill each of `keys` while nobody else does: no thread here and, while Redis is there, no other process."""
        found: dict[str, bytes] = {}
        for key in keys:
            with self._turns[zlib.crc32(key.encode()) % _TURNS]:
                value = self._after_others(key)
            if value is not None:
                found[key] = value
        return found

    def _after_others(self, key: str) -> bytes | None:
        entry = self._shelf.get(key)
        kept = entry if entry is not None and self._is_current(entry, now()) else None
        if kept is not None and not kept.refreshing:
            return kept.value
        if self._remote is None:
            return self._read([key], self._board.mark()).get(key)
        lock = f"{self._name(key)}:filling"
        token = self._remote.lock(lock, _FILLING)
        if kept is not None and token is None:
            # Another process reads it anew, and what we have is true still.
            return kept.value
        return self._read_locked(key, self._remote, lock, token, anew=kept is not None)

    def _read_locked(self, key: str, remote: Remote, lock: str, token: str | None, *, anew: bool) -> bytes | None:
        """Read `key` as soon as nobody else does; unless `anew`, what others have put into Redis meanwhile will do."""
        give_up = time.monotonic() + deadline.remaining(_FILLING)
        try:
            while not anew:
                mark = self._board.mark()
                if mark is not None and (found := self._from_remote(remote, [key], mark)):
                    return found[key]
                if token is not None or time.monotonic() >= give_up:
                    break
                time.sleep(_LOOK)
                token = remote.lock(lock, _FILLING)
            # Others wait for it: it is in Redis before the lock is opened.
            return self._read([key], self._board.mark(), soon=False).get(key)
        finally:
            if token is not None:
                remote.unlock(lock, token)

    def _name(self, key: str) -> str:
        """Return the name in Redis: one for each history of each database, so that none sees another's moments."""
        identity, timeline = self._board.identity
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return f"kronos-db:1:{identity:x}:{timeline:x}:{self.rules.name}:{digest}"


class Cache:
    """The copies of one domain in this process."""

    def __init__(self, board: Board, memory: Memory, remote: Remote | None) -> None:
        self.kinds: list[Kind] = []
        self.board = board
        self.memory = memory
        self.remote = remote

    def kind(self, rules: Rules, load: Load) -> Kind:
        """Return a new kind of copies."""
        made = Kind(rules, load, self.board, self.memory, self.remote)
        self.kinds.append(made)
        return made
