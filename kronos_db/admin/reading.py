"""When PostgreSQL's counters are read, and who tells which methods issue which statements."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import structlog

from kronos_db.admin.statement_store import Sources, StatementStore
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.issuer import Issued

# Seconds between two readings.
_INTERVAL = 300.0
# Seconds for which what was counted is kept.
_KEPT = 14 * 86_400.0
# Seconds within which readings that are asked for are one.
_FRESH = 2.0
# Seconds between two looks for methods and statements that were not seen together before.
_TELL_EVERY = 60.0
_PATIENCE = 5.0
_log = structlog.get_logger(__name__)


class Reader:
    """Reads the counters: in the background once in the fleet, and when somebody asks what they say."""

    def __init__(self, sources: Sources, store: StatementStore, issued: Issued) -> None:
        self._sources = sources
        self._store = store
        self._issued = issued
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="statement origins", daemon=True)
        self._failing = False
        self.work = BackgroundWork(store.database, "read-statements", _INTERVAL, self._read_and_purge)

    def refresh(self) -> None:
        """Read now, unless that was done just now."""
        self.tell()
        taken = self._store.last_taken()
        if taken is None or abs((datetime.now(UTC) - taken).total_seconds()) > _FRESH:
            self.read()

    def read(self) -> None:
        """Read now."""
        self._store.absorb(self._sources.read())

    def tell(self) -> None:
        """Keep what this process has found out about who issues what; it is tried again when that fails."""
        pairs = self._issued.take()
        try:
            self._store.add_origins(pairs)
        except Exception:
            self._issued.give_back(pairs)
            raise

    def start(self) -> None:
        """Tell from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop telling."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while not self._stopping.wait(_TELL_EVERY):
            try:
                self.tell()
            except Exception:  # noqa: BLE001  # tried again
                if not self._failing:
                    _log.warning("methods of statements are not written for now", exc_info=True)
                self._failing = True
            else:
                self._failing = False

    def _read_and_purge(self, held: Held) -> None:
        self.read()
        while held() and self._store.purge(_KEPT):
            pass
