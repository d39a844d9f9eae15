"""The background work of routes: what is over is removed."""

from __future__ import annotations

from functools import partial

from kronos_db.routes.counters import Counters
from kronos_db.routes.store import RoutesStore
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.database import Database

# Seconds between two looks: for what many requests leave behind, for counters, and for removed routes.
_ALLOWED, _COUNTERS, _REMOVED = 30.0, 600.0, 3600.0
# Seconds for which it is remembered what was removed. A process that knows an older table reads it anew.
_KEPT = 86_400.0


def upkeep(database: Database) -> list[BackgroundWork]:
    """Return what is to be done."""
    counters, store = Counters(database), RoutesStore(database)
    return [
        BackgroundWork(
            database, "purge-allowed", _ALLOWED, partial(_purge, counters, ["purge_allowed", "purge_leases"])
        ),
        BackgroundWork(database, "purge-usage", _COUNTERS, partial(_purge, counters, ["purge_usage"])),
        BackgroundWork(database, "forget-removed-routes", _REMOVED, partial(_forget, store)),
    ]


def _purge(counters: Counters, queries: list[str], held: Held) -> None:
    for query in queries:
        while held() and counters.purge(query):
            pass


def _forget(store: RoutesStore, held: Held) -> None:
    while held() and store.forget_removed(_KEPT):
        pass
