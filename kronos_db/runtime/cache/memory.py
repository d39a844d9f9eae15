"""Copies in the memory of this process, bounded in bytes: those not asked for of late give way (second chance)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from kronos_db.runtime.cache.board import Mark

# What an entry costs beside its value, in bytes.
_OVERHEAD = 500


@dataclass(slots=True, eq=False)
class Entry:
    """A copy. Times in nanoseconds of `board.now`: from `early` on it may be read anew, from `until` on it must be.

    `cost` is how long reading it took. `used` and `refreshing` are set by whoever answers from it.
    """

    value: bytes
    mark: Mark
    places: tuple[int, ...]
    until: int
    early: int
    cost: int
    used: bool = field(default=False, init=False)
    refreshing: bool = field(default=False, init=False)


Shelf = dict[str, Entry]


class Memory:
    """All copies of a process. Each kind looks into its own shelf; what is put there is counted and bounded here."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._shelves: list[Shelf] = []
        # Oldest first. Looking something up changes nothing here.
        self._order: OrderedDict[tuple[int, str], int] = OrderedDict()
        self.size = 0
        self.evictions = 0

    def shelf(self) -> tuple[int, Shelf]:
        """Return the number of a new shelf, and the shelf, which is for reading alone."""
        self._shelves.append({})
        return len(self._shelves) - 1, self._shelves[-1]

    def put(self, shelf: int, entries: Mapping[str, Entry]) -> None:
        """Put copies in their place; others give way to them. One that is larger than all the room is not kept."""
        order, kept, limit = self._order, self._shelves[shelf], self._limit
        with self._lock:
            for key, entry in entries.items():
                size = len(entry.value) + len(key) + _OVERHEAD
                if size > limit:
                    continue
                self.size += size - order.get((shelf, key), 0)
                order[shelf, key] = size
                kept[key] = entry
            self._evict()

    def __len__(self) -> int:
        return len(self._order)

    def _evict(self) -> None:
        while self.size > self._limit:
            (shelf, key), size = self._order.popitem(last=False)
            entry = self._shelves[shelf][key]
            if entry.used:
                entry.used = False
                self._order[shelf, key] = size
                continue
            del self._shelves[shelf][key]
            self.size -= size
            self.evictions += 1
