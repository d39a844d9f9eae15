"""Who keeps copies of one domain's data, as they agree on it in PostgreSQL.

A holder is a group of processes on one machine that share a board. It enters, and then says at short intervals that it
lives and how far it has dropped what was changed. Whoever changes something waits for the holders that are behind, and
counts out those that give no sign of life: they know by their own clock that they may not answer from copies any more.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from kronos_db.runtime.database.changes import Instant, Page, Position, moment
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries

# Changes that are read at a time.
_PAGE = 2000


class Holders:
    """The table `copy_holder` of one domain, from the view of the holder `own`."""

    def __init__(self, database: Database, own: UUID) -> None:
        self.own = own
        # The last beat that we know of.
        self._beat = 0
        self._database = database
        self._queries = load_queries(Path(__file__).with_name("holders.sql"), database.domain)

    def enter(self) -> Instant:
        """Begin to keep copies; return the instant from which on changes must be followed.

        Only what is read after this returned may be kept: a write that did not see this holder was committed before.
        """
        self._beat = self._database.fetch_all(self._queries["enter"], {"id": self.own}, int)[0]
        return self._database.instant()

    def beat(self, position: Position, timeline: str) -> bool:
        """Say that this holder lives and has applied everything up to `position`.

        False when it was counted out, or the database goes on in another timeline than `timeline`.
        """
        params = {"id": self.own, "applied": moment(position.seen), "timeline": timeline}
        beats = self._database.fetch_all(self._queries["beat"], params, int)
        self._beat = beats[0] if beats else 0
        return bool(beats)

    def changes(self, position: Position) -> Page:
        """Return what became visible since `position`, as far as copies depend on it. Raises PositionLostError."""
        return self._database.changes_since(position, _PAGE, whole=False)

    def leave(self) -> None:
        """End keeping copies: nobody waits for this holder any more, unless it has been entered anew."""
        self.expel(self.own, self._beat)

    def behind(self, at: int) -> dict[UUID, int]:
        """Return the other holders that have not applied everything up to the moment `at`, with their beats."""
        return dict(self._database.fetch_all(self._queries["behind"], {"id": self.own, "moment": at}, _pair))

    def expel(self, holder: UUID, beat: int) -> None:
        """Count out a holder unless it gave a sign of life since `beat`."""
        self._database.execute(self._queries["expel"], {"id": holder, "beat": beat})

    def call(self) -> None:
        """Wake up the keepers of the other holders."""
        self._database.notify("copies")


def _pair(holder: UUID, beat: int) -> tuple[UUID, int]:
    return holder, beat
