"""What is counted for each namespace: in this process for /metrics, and in PostgreSQL for the whole fleet."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry

from kronos_db.cache.model import Namespace, Stats
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.ops.metrics import BUCKETS, Reading, counters, histograms

QUERIES = Path(__file__).with_name("upkeep.sql")
# Namespaces with series of their own in /metrics; all others share one.
MOST_LABELS = 100
OTHERS = "other"
# Seconds between two times that this process tells PostgreSQL.
_INTERVAL = 5.0
# Of so many calls one is looked at for the keys that it asks for, and so many keys of a namespace are remembered until
# they are told.
_SAMPLE = 16
_MOST_KEYS = 256
_TOP = 20


class Tally:
    """What this process counted for one namespace. Counted without a lock: an unlucky switch of threads loses some."""

    __slots__ = ("_calls", "_told", "buckets", "evictions", "expirations", "hits", "misses", "puts", "seconds", "uses")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.puts = 0
        self.evictions = 0
        self.expirations = 0
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self.uses: dict[str, int] = {}
        self._calls = 0
        self._told = Stats()

    def looked_up(self, keys: Sequence[str], hits: int, seconds: float) -> None:
        """Count a call that asked for `keys`."""
        self.hits += hits
        self.misses += len(keys) - hits
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self._calls += 1
        if self._calls % _SAMPLE == 0:
            key = keys[self._calls // _SAMPLE % len(keys)]
            if key in self.uses or len(self.uses) < _MOST_KEYS:
                self.uses[key] = self.uses.get(key, 0) + _SAMPLE * len(keys)

    def take(self) -> tuple[Stats, dict[str, int]]:
        """Return what was counted since this was last called."""
        now = Stats(self.hits, self.misses, self.puts, self.evictions, self.expirations)
        since = Stats(*(new - old for new, old in zip(now, self._told, strict=True)))
        self._told = now
        uses, self.uses = self.uses, {}
        return since, uses

    def give_back(self, since: Stats) -> None:
        """Take note that `since` was not told."""
        self._told = Stats(*(told - more for told, more in zip(self._told, since, strict=True)))


class Counts:
    """The tallies of this process, by name of the namespace."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "cache")
        self._tallies: dict[str, Tally] = {}
        self._ids: dict[str, str] = {}
        self._lock = threading.Lock()
        self._due = 0.0

    def of(self, name: str) -> Tally:
        """Return the tally of a namespace that there is, or was."""
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies.setdefault(name, Tally())
        return tally

    def known(self, namespace: Namespace) -> Tally:
        """Return the tally of a namespace, and remember under which id it is told."""
        self._ids[namespace.name] = namespace.id
        return self.of(namespace.name)

    def tell_if_due(self) -> None:
        """Tell PostgreSQL, when it is time and nobody else does; what it does not take is told later."""
        if time.monotonic() >= self._due and self._lock.acquire(blocking=False):
            try:
                with suppress(KronosError):
                    self._tell()
            finally:
                self._due = time.monotonic() + _INTERVAL
                self._lock.release()

    def tell(self) -> None:
        """Tell PostgreSQL what was not told yet, unless it is away: for a process that is about to end."""
        with self._lock, suppress(KronosError):
            self._tell()

    def stats(self, namespace: Namespace) -> tuple[Stats, list[tuple[str, int]]]:
        """Return what all processes have told of a namespace, this one too, and the keys that are asked for most."""
        with self._lock:
            self._tell()
        params = {"namespace_id": namespace.id, "limit": _TOP}
        stat = self._database.fetch_one(self._queries["stat"], params, Stats) or Stats()
        top = self._database.fetch_all(self._queries["top_keys"], params, lambda key, uses: (key, uses))
        return stat, top

    def _tell(self) -> None:
        taken = [(tally, self._ids[name], *tally.take()) for name, tally in self._tallies.items() if name in self._ids]
        told = [(tally, namespace_id, since) for tally, namespace_id, since, _ in taken if any(since)]
        columns = list(zip(*(since for _, _, since in told), strict=True))
        uses = [(namespace_id, key, count) for _, namespace_id, _, keys in taken for key, count in keys.items()]
        try:
            if told:
                params = {"namespace_ids": [namespace_id for _, namespace_id, _ in told]}
                numbers = {name: list(column) for name, column in zip(Stats._fields, columns, strict=True)}
                self._database.execute(self._queries["count"], params | numbers)
        except KronosError:
            for tally, _, since in told:
                tally.give_back(since)
            raise
        if uses:
            namespace_ids, keys, counts = (list(column) for column in zip(*uses, strict=True))
            params = {"namespace_ids": namespace_ids, "keys": keys, "uses": counts}
            self._database.execute(self._queries["count_uses"], params)

    def watch(self, registry: CollectorRegistry) -> None:
        """Register the metrics of namespaces, by at most MOST_LABELS names; the rest are added up as `other`."""
        for name, meaning, value in (
            ("kronos_db_namespace_hits_total", "Keys asked for that had an entry.", lambda tally: tally.hits),
            ("kronos_db_namespace_misses_total", "Keys asked for that had none.", lambda tally: tally.misses),
            ("kronos_db_namespace_puts_total", "Entries put or filled.", lambda tally: tally.puts),
            ("kronos_db_namespace_evictions_total", "Entries that gave way to others.", lambda tally: tally.evictions),
        ):
            counters(registry, name, meaning, ["namespace"], self._reader(value))
        histograms(
            registry,
            "kronos_db_namespace_lookup_seconds",
            "Time that GetEntries and GetOrLease took in their handlers.",
            ["namespace"],
            self._latencies,
        )

    def _reader(self, value: Callable[[Tally], int]) -> Callable[[], list[Reading]]:
        return lambda: [([label], sum(map(value, tallies))) for label, tallies in self._labelled()]

    def _latencies(self) -> Iterator[tuple[Sequence[str], Sequence[int], float]]:
        for label, tallies in self._labelled():
            counts = [sum(column) for column in zip(*(tally.buckets for tally in tallies), strict=True)]
            yield [label], counts, sum(tally.seconds for tally in tallies)

    def _labelled(self) -> Iterable[tuple[str, list[Tally]]]:
        """Return the tallies by their label: those that came first keep their names."""
        tallies = list(self._tallies.items())
        yield from ((name, [tally]) for name, tally in tallies[:MOST_LABELS])
        if tallies[MOST_LABELS:]:
            yield OTHERS, [tally for _, tally in tallies[MOST_LABELS:]]
