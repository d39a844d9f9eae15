"""What statements and indexes need in a serving process, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from kronos_db.admin.advising import Advisor
from kronos_db.admin.change_store import ChangeStore
from kronos_db.admin.reading import Reader
from kronos_db.admin.scratch import Scratch
from kronos_db.admin.statement_store import Sources, StatementStore
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.issuer import ISSUED

# Seconds between two looks for what was left of changes, and for those to be judged.
_SETTLE_EVERY = 60.0
# A change is judged by what its statements took for so long after it.
_JUDGED_AFTER = timedelta(hours=1)


class Operations:
    """Statements and indexes of all domains.

    `straight` has the DSN of each domain's role past any pooler, `replicas` those of its standbys, `owners` that of the
    role that owns its tables; `scratch` is the DSN of a database to try indexes out in.
    """

    def __init__(
        self,
        database: Database,
        straight: Mapping[str, str],
        *,
        replicas: Mapping[str, Sequence[str]],
        owners: Mapping[str, str],
        scratch: str | None,
    ) -> None:
        sources, store = Sources(straight, replicas), StatementStore(database)
        self._reader = Reader(sources, store, ISSUED)
        self._advisor = Advisor(sources, store, self._reader)
        self._changes = ChangeStore(database, owners, straight[database.domain])
        self.statements = sources, store, self._reader
        self.indexes = self._advisor, Scratch(scratch, sources), self._changes
        self.works = [self._reader.work, BackgroundWork(database, "settle-indexes", _SETTLE_EVERY, self._settle)]

    def start(self) -> None:
        """Begin to tell which methods issue which statements."""
        self._reader.start()

    def stop(self) -> None:
        """End it."""
        self._reader.stop()

    def _settle(self, held: Held) -> None:
        self._changes.settle(held, _JUDGED_AFTER, self._advisor.means)
