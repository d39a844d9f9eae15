"""The background work of the cache: removes what is over, step by step, and what is left of deleted namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kronos_db.cache.counting import Counts
from kronos_db.cache.model import Namespace
from kronos_db.cache.namespaces import NamespacesStore
from kronos_db.cache.room import Step
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import as_row

QUERIES = Path(__file__).with_name("upkeep.sql")
# Seconds for which changes are kept for those who watch: there is one for each write, so a week would be too many.
CHANGES_KEPT = 900.0
# Seconds between two sweeps.
INTERVAL = 10.0
# Entries that a step looks at, and steps of one namespace in one sweep: what is not reached is next time's.
_LOOKED_AT, _MOST_STEPS = 1000, 20
_PAGE = 500
# Seconds after which no write and no lease of before an invalidation can come any more; three times the longest lease.
_TAGS_KEPT = 900.0


class Sweep:
    """One sweep after the other, in one process of the fleet. Where each namespace's has come to is remembered."""

    def __init__(self, database: Database, namespaces: NamespacesStore, counts: Counts) -> None:
        self._database = database
        self._namespaces = namespaces
        self._counts = counts
        self._queries = load_queries(QUERIES, "cache")
        self._hands: dict[str, str] = {}
        self._index_hands: dict[str, tuple[int, str, str]] = {}
        self.work = BackgroundWork(database, "sweep", INTERVAL, self.run)

    def run(self, held: Held) -> None:
        """Sweep every namespace a bit further."""
        after: str | None = None
        while held():
            page = self._namespaces.list_page(after, _PAGE)
            for namespace in page:
                self._sweep(namespace, held)
            if len(page) < _PAGE:
                break
            after = page[-1].name
        self._remove_orphans(held)
        self._counts.tell_if_due()

    def _sweep(self, namespace: Namespace, held: Held) -> None:
        params = {"namespace_id": namespace.id, "durable": namespace.durable, "limit": _LOOKED_AT}
        tally = self._counts.known(namespace)
        for _ in range(_MOST_STEPS):
            if not held():
                return
            hand = self._hands.get(namespace.id, "")
            step = self._database.fetch_all(self._queries["sweep"], {**params, "after": hand}, Step)[0]
            tally.expirations += step.removed
            if step.last is None or step.seen < _LOOKED_AT:
                self._hands.pop(namespace.id, None)
                self._end_round(params)
                break
            self._hands[namespace.id] = step.last
        if namespace.indexes:
            self._sweep_index(params, held)
        self._database.execute(self._queries["recount"], params)
        self._database.execute(self._queries["sum_up"], params)

    def _end_round(self, params: Mapping[str, Any]) -> None:
        """Do what is done once for each round over a namespace."""
        self._database.execute(self._queries["forget_tags"], {**params, "seconds": _TAGS_KEPT})
        self._database.execute(self._queries["forget_uses"], params)

    def _sweep_index(self, params: Mapping[str, Any], held: Held) -> None:
        namespace_id = params["namespace_id"]
        for _ in range(_MOST_STEPS):
            if not held():
                return
            number, value, key = self._index_hands.get(namespace_id, (0, "", ""))
            place = {"number": number, "value": value, "key": key}
            found = self._database.fetch_all(self._queries["sweep_index"], {**params, **place}, as_row)
            if not found or found[0][3] < _LOOKED_AT:
                self._index_hands.pop(namespace_id, None)
                return
            self._index_hands[namespace_id] = found[0][:3]

    def _remove_orphans(self, held: Held) -> None:
        for durable in (True, False):
            orphans = self._database.fetch_all(self._queries["orphans"], {"durable": durable}, str)
            for namespace_id in orphans:
                params = {"durable": durable, "namespace_id": namespace_id, "limit": _LOOKED_AT}
                # The index first: the entries lead to what is left.
                for query in ("remove_orphaned_index", "remove_orphans"):
                    while held() and self._database.execute(self._queries[query], params):
                        pass
        self._database.execute(self._queries["remove_orphaned_tags"], {})
