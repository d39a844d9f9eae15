"""Keeps namespaces within their limits: durable ones refuse what is too much, in the others old entries give way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kronos_db.cache.counting import Counts
from kronos_db.cache.model import Namespace, NamespaceFullError
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import as_row

QUERIES = Path(__file__).with_name("upkeep.sql")
# Seconds for which a process believes what it knows of a namespace's size, its own writes added.
_BELIEVED = 1.0
# Entries that one step of eviction looks at, and removes at most; and steps of one call.
_LOOKED_AT, _REMOVED = 500, 100
_MOST_STEPS = 40


class Usage(NamedTuple):
    """How many entries a namespace has, and how many bytes these take."""

    entries: int
    bytes: int


class Step(NamedTuple):
    """What a step of eviction or of a sweep did: the last key that it looked at, None at the end, and counts."""

    last: str | None
    seen: int
    removed: int
    bytes: int
    expired: int


@dataclass(slots=True)
class _Known:
    """What a process believes: since when, and where its hand stands among the keys."""

    at: float
    entries: int
    bytes: int
    hand: str = ""


class Room:
    """Makes room before writes. The entries that give way are the least recently used of those under the hand."""

    def __init__(self, database: Database, counts: Counts) -> None:
        self._database = database
        self._counts = counts
        self._queries = load_queries(QUERIES, "cache")
        self._known: dict[str, _Known] = {}

    def make(self, namespace: Namespace, entries: int, size: int) -> None:
        """Make room for so many entries and bytes. Raises NamespaceFullError when that must not be."""
        if not namespace.max_entries and not namespace.max_bytes:
            return
        known = self._known.get(namespace.id)
        if known is None or time.monotonic() - known.at > _BELIEVED:
            known = self._look(namespace)
        if (limit := _exceeded(namespace, known.entries + entries, known.bytes + size)) is not None:
            if namespace.durable:
                raise NamespaceFullError(metadata={"namespace": namespace.name, "limit": limit}, retry_after=_BELIEVED)
            self._evict(namespace, known, entries, size)
        known.entries += entries
        known.bytes += size

    def usage(self, namespace: Namespace) -> Usage:
        """Return the size of a namespace; it is measured when it is not known, as for a moment after a crash."""
        params = {"namespace_id": namespace.id, "durable": namespace.durable}
        for query in ("usage", "measure"):
            entries, size = self._database.fetch_all(self._queries[query], params, as_row)[0]
            if entries is not None:
                return Usage(entries, size)
        raise AssertionError("what was measured is known")

    def _look(self, namespace: Namespace) -> _Known:
        usage = self.usage(namespace)
        before = self._known.get(namespace.id)
        known = _Known(time.monotonic(), usage.entries, usage.bytes, before.hand if before else "")
        self._known[namespace.id] = known
        return known

    def _evict(self, namespace: Namespace, known: _Known, entries: int, size: int) -> None:
        """Remove entries, step by step, until there is room or the hand has gone round twice without finding any."""
        params = {"namespace_id": namespace.id, "durable": False, "limit": _LOOKED_AT, "most": _REMOVED}
        tally = self._counts.known(namespace)
        rounds = 0
        for _ in range(_MOST_STEPS):
            if rounds > 1 or _exceeded(namespace, known.entries + entries, known.bytes + size) is None:
                return
            found = self._database.fetch_all(self._queries["evict"], {**params, "after": known.hand}, Step)
            step = found[0]
            known.entries -= step.removed
            known.bytes -= step.bytes
            tally.evictions += step.removed - step.expired
            tally.expirations += step.expired
            rounds += step.seen < _LOOKED_AT
            known.hand = "" if step.last is None or step.seen < _LOOKED_AT else step.last


def _exceeded(namespace: Namespace, entries: int, size: int) -> str | None:
    """Return the limit that so much would exceed."""
    if namespace.max_entries and entries > namespace.max_entries:
        return f"{namespace.max_entries} entries"
    if namespace.max_bytes and size > namespace.max_bytes:
        return f"{namespace.max_bytes} bytes"
    return None
