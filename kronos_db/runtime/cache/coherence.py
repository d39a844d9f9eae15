"""Keeps the copies of one domain coherent: no write is acknowledged while a copy of before it may be answered from.

A write puts its change on the board that all processes of its machine look at, and then waits for the holders on other
machines, if there are any. One process of each machine keeps the board: it reads the log of changes, says that the
holder lives, and so extends the time for which copies may be answered from.
docs/decisions/0007-copies.md has the argument why that is enough.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog

from kronos_db.runtime import deadline
from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.database.changes import Position, moment
from kronos_db.runtime.database.holders import Holders
from kronos_db.runtime.errors import KronosError, PositionLostError, UnavailableError
from kronos_db.runtime.workers import Gatherer

# Seconds for which copies may be answered from after a sign of life, those between two such signs, and those without
# one after which a holder is counted out: a little more than the first.
LEASE = 3.0
_BEAT = 0.5
_SILENCE = LEASE * 1.2
# Seconds that a write waits for other holders at most.
_PATIENCE = LEASE * 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_NANO = 1_000_000_000

_log = structlog.get_logger(__name__)


class Coherence:
    """The copies of one domain in this process: what writes tell (`Copies` of `runtime.database`), and the keeper.

    `wake` is set by whoever listens when another machine waits for this one.
    """

    def __init__(self, domain: str, board: Board, holders: Holders) -> None:
        self.board = board
        self.wake = threading.Event()
        self._holders = holders
        self._stopped = threading.Event()
        self._others: Gatherer[int, None] = Gatherer(self._await_others)
        self._thread = threading.Thread(target=self._run, name=f"copies {domain}", daemon=True)

    @property
    def holder(self) -> UUID:
        """Names the holder that this process is part of."""
        return self.board.holder

    def start(self) -> None:
        """Keep the board as soon as no other process does."""
        self._thread.start()

    def end(self) -> None:
        """Begin to stop; returns at once."""
        self._stopped.set()
        self.wake.set()

    def stop(self) -> None:
        """End keeping it, and let another process do so at once."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(LEASE)

    def outdate(self, tags: Sequence[str], snapshot: str, timeline: str, others: bool) -> None:
        """Return when no copy that depends on one of `tags` is answered from that was read before `snapshot`.

        Raises UnavailableError when another holder neither drops its copies nor dies.
        """
        at = moment(snapshot)
        self.board.change(tags, at, int(timeline, 16))
        if others:
            self._others.get(at)

    def _await_others(self, moments: Sequence[int]) -> Mapping[int, None]:
        """Wait until the other holders have dropped everything that was changed up to the latest of `moments`."""
        at = max(moments)
        give_up = time.monotonic() + deadline.remaining(_PATIENCE)
        heard: dict[tuple[UUID, int], int] = {}
        pause = _FIRST_PAUSE
        while behind := self._holders.behind(at):
            heard = {beat: heard.get(beat, now()) for beat in behind.items()}
            for (holder, beat), since in heard.items():
                if now() - since > _SILENCE * _NANO:
                    _log.warning("a holder of copies gives no sign of life", holder=str(holder))
                    self._holders.expel(holder, beat)
            if time.monotonic() > give_up:
                raise UnavailableError("another holder does not drop its copies", retry_after=1.0)
            self._holders.call()
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return {}

    def _run(self) -> None:
        while not self._stopped.is_set():
            if not self.board.try_keep():
                self._stopped.wait(_BEAT)
                continue
            try:
                self._keep()
            except PositionLostError:
                continue
            except KronosError as error:
                _log.warning("copies are not kept for now", reason=str(error))
                self._stopped.wait(_BEAT)
            except Exception:  # noqa: BLE001  # the thread must go on
                _log.exception("copies are not kept for now")
                self._stopped.wait(_BEAT)
        self._leave()

    def _keep(self) -> None:
        """Follow the changes and extend the lease, until we are counted out or the history becomes another one."""
        begun = now()
        instant = self._holders.enter()
        timeline = int(instant.timeline, 16)
        position = Position(instant.snapshot)
        identity = _number(f"{instant.identity} {instant.started}")
        epoch = self.board.begin(moment(instant.snapshot), identity, timeline)
        while self._holders.beat(position, instant.timeline):
            if not self.board.extend(epoch, begun + int(LEASE * _NANO)):
                return
            self.wake.wait(_BEAT)
            self.wake.clear()
            if self._stopped.is_set():
                return
            begun = now()
            position = self._apply(position, timeline)

    def _apply(self, position: Position, timeline: int) -> Position:
        """Put on the board what became visible since `position`; return the position behind it."""
        while True:
            page = self._holders.changes(position)
            at = moment(page.snapshot)
            if page.changes:
                self.board.change({tag for noted in page.changes for tag in noted.change.tags}, at, timeline)
            position = page.end
            if position.until is None:
                self.board.advance(at)
                return position

    def _leave(self) -> None:
        """Give the board up when it is ours: copies are void, and nobody has to wait for us."""
        if not self.board.try_keep():
            return
        self.board.void()
        try:
            self._holders.leave()
        except KronosError as error:
            _log.warning("the holder of copies could not leave", reason=str(error))
        self.board.resign()


def _number(identity: str) -> int:
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
