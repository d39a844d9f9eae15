"""The background work of tokens: rows that are over are removed, revocations of many are marked one by one."""

from __future__ import annotations

from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.database import Database
from kronos_db.tokens.store import TokensStore

# Seconds between two looks.
_INTERVAL = 60.0


class Purge:
    """Removes tokens that are over for long, some with each statement; `lag` tells how far behind it is."""

    def __init__(self, database: Database, store: TokensStore) -> None:
        self.work = BackgroundWork(database, "purge-tokens", _INTERVAL, self.run)
        self._store = store
        self._lag = 0.0

    @property
    def lag(self) -> float | None:
        """For how many seconds the oldest token that can be removed has been so; None where another process does it."""
        return self._lag if self.work.holds else None

    def run(self, held: Held) -> None:
        """Do all that is to be done now."""
        self._store.mark_cutoffs(held)
        while held():
            self._lag = self._store.purge_lag()
            if not self._store.purge():
                break
