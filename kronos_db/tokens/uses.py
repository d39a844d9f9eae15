"""Notes when tokens are used without a write for each use: gathered in memory, written in batches by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from kronos_db.tokens.model import SEEN_EVERY, SEEN_WITHIN

# The uses of so many tokens are remembered as noted; beyond that they are noted again.
MOST = 50_000
_BATCH = 1_000
# Seconds that the thread gets to write the last uses.
_PATIENCE = 5.0
_log = structlog.get_logger(__name__)

# Writes that tokens were used so many seconds ago; returns of how many that was news.
Write = Callable[[Sequence[tuple[str, float]]], int]


class Uses:
    """The uses of tokens in one process, each token's once every SEEN_EVERY seconds.

    At most SEEN_WITHIN seconds later it is written. When the process is killed, what it knew of the last 65 seconds is
    lost: what was not written, and uses that were not noted because another had been.
    """

    def __init__(self, write: Write, every: float = SEEN_EVERY, within: float = SEEN_WITHIN, most: int = MOST) -> None:
        self._write = write
        self._every = every
        self._within = within
        self._most = most
        # Tokens whose use was noted of late; and those of them that are not written yet, with when that was.
        self._noted: set[str] = set()
        self._waiting: dict[str, float] = {}
        self._forget_at = time.monotonic() + every
        self._failing = False
        self._stopping = False
        self._due = threading.Event()
        # One at a time: what is being written counts as written only when it is.
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="token uses", daemon=True)

    def note(self, token_id: str) -> None:
        """Take note that a token is used now."""
        if token_id in self._noted:
            return
        if len(self._noted) >= self._most:
            # Not written here: whoever waits for a lock in a call may wait for a call of its own thread.
            self._noted = set()
            self._due.set()
        if len(self._waiting) >= 2 * self._most:
            # Nothing can be written. Without the database copies are not answered from for long.
            return
        self._noted.add(token_id)
        self._waiting[token_id] = time.monotonic()

    def note_now(self, token_id: str) -> None:
        """Write that a token is used now."""
        self._noted.add(token_id)
        self._write([(token_id, 0.0)])

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, and stop."""
        self._stopping = True
        self._due.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def flush(self) -> None:
        """Write what waits. What cannot be written waits on."""
        with self._writing:
            uses = self._taken()
            try:
                for start in range(0, len(uses), _BATCH):
                    now = time.monotonic()
                    self._write([(token_id, now - at) for token_id, at in uses[start : start + _BATCH]])
            except Exception:
                for token_id, at in uses:
                    self._waiting.setdefault(token_id, at)
                raise

    def _taken(self) -> list[tuple[str, float]]:
        """Take out what waits, one by one: others put something in meanwhile, and none of it may be lost."""
        uses = []
        while self._waiting:
            uses.append(self._waiting.popitem())
        return uses

    def _run(self) -> None:
        while not self._stopping:
            self._due.wait(self._within)
            self._due.clear()
            if time.monotonic() >= self._forget_at:
                self._noted = set()
                self._forget_at = time.monotonic() + self._every
            self._flushed()
        self._flushed()

    def _flushed(self) -> None:
        """Write what waits; a failure is logged, once for each outage."""
        try:
            self.flush()
        except Exception:  # noqa: BLE001  # tried again
            if not self._failing:
                _log.warning("uses of tokens are not written for now", exc_info=True)
            self._failing = True
        else:
            self._failing = False
