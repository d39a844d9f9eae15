"""The background work of the logs domain: partitions ahead and behind, counts merged, origins forgotten."""

from __future__ import annotations

import time
from functools import partial

from kronos_db.logs.store import LogsStore
from kronos_db.runtime.database.background import BackgroundWork, Held

# Seconds between two runs.
_PARTITIONS = 600.0
_COUNTS = 5.0
_ORIGINS = 86_400.0


def upkeep(store: LogsStore) -> list[BackgroundWork]:
    """Return what is to be done."""
    database = store.database
    return [
        BackgroundWork(database, "log-partitions", _PARTITIONS, partial(turn_partitions, store)),
        BackgroundWork(database, "merge-log-counts", _COUNTS, partial(_merge_counts, store)),
        BackgroundWork(database, "forget-log-origins", _ORIGINS, partial(_forget_origins, store)),
    ]


def turn_partitions(store: LogsStore, held: Held) -> None:
    """Make partitions ahead of the time, and drop those whose records have been kept for long enough."""
    for keep_days in store.used_classes():
        if held():
            store.make_partitions(keep_days, time.time_ns())
        while held() and store.drop_partition(keep_days) is not None:
            pass


def _merge_counts(store: LogsStore, held: Held) -> None:
    while held() and store.merge_counts():
        pass


def _forget_origins(store: LogsStore, held: Held) -> None:
    if held():
        store.forget_origins()
