"""The background work that what the runtime keeps in every domain's schema needs."""

from __future__ import annotations

from functools import partial

from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.changes import KEPT
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import QUERIES
from kronos_db.runtime.database.queries import Query, load_queries

# Seconds between two looks for expired answers.
_ANSWERS_INTERVAL = 60.0
# And for changes that are no longer kept.
_CHANGES_INTERVAL = 600.0


def upkeep(database: Database, kept: float = KEPT) -> list[BackgroundWork]:
    """Return what is to be done for the schema of `database`; its changes are kept for `kept` seconds."""
    purge = load_queries(QUERIES, database.domain)["purge"]
    return [
        BackgroundWork(database, "purge-idempotency", _ANSWERS_INTERVAL, partial(_purge_answers, database, purge)),
        BackgroundWork(
            database, "purge-changes", min(_CHANGES_INTERVAL, kept / 10), partial(_purge_changes, database, kept)
        ),
    ]


def _purge_answers(database: Database, purge: Query, held: Held) -> None:
    """Remove expired rows, some with each statement, until there are none."""
    while held() and database.execute(purge, {}):
        pass


def _purge_changes(database: Database, kept: float, held: Held) -> None:
    """Remove what is no longer kept for those who watch."""
    while held() and database.purge_changes(kept):
        pass
