"""Reads of a domain from standbys, when these have everything that was acknowledged before the read began.

The primary is asked how far it has come (a few bytes that many reads share), and a standby whether it has replayed that
far. One that has not within a moment, is away or is a standby no more costs that moment: the primary answers.
docs/decisions/0022-standbys.md has the argument.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import psycopg
import structlog

from kronos_db.runtime import deadline
from kronos_db.runtime.database.pool import Connection, Pool
from kronos_db.runtime.database.queries import Query, load_queries
from kronos_db.runtime.errors import KronosError, UnavailableError
from kronos_db.runtime.workers import Gatherer, about_to_block

Result = TypeVar("Result")
Outcome = Literal["served", "behind", "away"]

# Seconds for which a read waits for a standby to replay, and between two looks; within which it must answer a look.
_PATIENCE, _LOOK = 0.05, 0.003
_SILENCE = 0.5
# Seconds for which a standby that was behind or away is left alone, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_log = structlog.get_logger(__name__)


class NoStandbyError(Exception):
    """No standby can answer now: the primary is to be asked."""


class Position(NamedTuple):
    """How far the primary has come: the place in its WAL, the timeline of that, and the cluster."""

    lsn: str | None
    timeline: int
    cluster: int


class Progress:
    """Tells whether a standby has everything that was acknowledged. `ask` runs a query on the primary."""

    def __init__(self, domain: str, ask: Callable[[Query, Callable[..., Position]], Sequence[Position]]) -> None:
        self._queries = load_queries(Path(__file__).with_name("standbys.sql"), domain)
        self._ask = ask
        self._positions: Gatherer[str, Position] = Gatherer(self._ask_position)

    def position(self) -> Position | None:
        """Return how far the primary has come, None when who answers is none. Raises what asking it raises."""
        position = self._positions.get("now")
        return None if position is None or position.lsn is None else position

    def reaches(self, connection: Connection, position: Position, patience: float) -> bool:
        """Tell whether the standby has replayed up to a position; waits so many seconds for it.

        Raises UnavailableError when it is no standby of the cluster, and psycopg's errors.
        """
        give_up = time.monotonic() + deadline.remaining(patience)
        while True:
            is_standby, is_on_timeline, has_replayed = self.look(connection, position)
            if not is_standby:
                raise UnavailableError("it is no standby of this cluster")
            if not is_on_timeline or has_replayed or time.monotonic() >= give_up:
                return has_replayed and is_on_timeline
            time.sleep(_LOOK)

    def look(self, connection: Connection, position: Position) -> tuple[bool, bool, bool]:
        """Return whether it is a standby of the cluster, on the timeline for certain, and has replayed so far."""
        usual, connection.silence_limit = connection.silence_limit, _SILENCE
        try:
            cursor = connection.cursor(binary=True)
            found: Any = cursor.execute(self._queries["reached"].text, position._asdict()).fetchone()
        finally:
            connection.silence_limit = usual
        return bool(found[0]), bool(found[1]), bool(found[2])

    def _ask_position(self, keys: Sequence[str]) -> Mapping[str, Position]:
        # Asked after each of those that share it began: what was acknowledged before them is in it.
        return dict.fromkeys(keys, self._ask(self._queries["position"], Position)[0])


class _Standby:
    """One of them, and until when it is left alone."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.pause = _FIRST_PAUSE
        self.away_until = 0.0


class Standbys:
    """The standbys of a domain, asked in turn."""

    def __init__(self, domain: str, pools: Sequence[Pool], progress: Progress) -> None:
        self.counts: dict[Outcome, int] = {"served": 0, "behind": 0, "away": 0}
        self._domain = domain
        self._standbys = [_Standby(pool) for pool in pools]
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self.progress = progress

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Return what `work` reads on a standby that has all that was acknowledged before now.

        Raises NoStandbyError when none can tell, and what asking the primary for its position raises.
        """
        standby = self._chosen()
        if standby is None:
            raise NoStandbyError
        position = self.progress.position()
        if position is None:
            raise NoStandbyError
        about_to_block()
        try:
            with standby.pool.connection() as connection, _closed_on_error(connection):
                if not self.progress.reaches(connection, position, _PATIENCE):
                    raise self._left_alone(standby, "behind")
                result = work(connection)
        except (psycopg.Error, KronosError) as error:
            if deadline.remaining(1.0) <= 0:
                # That is the caller's fault, and the primary will say so.
                raise NoStandbyError from error
            raise self._left_alone(standby, "away") from error
        standby.pause = _FIRST_PAUSE
        self._count("served")
        return result

    def close(self) -> None:
        """Let go of the connections."""
        for standby in self._standbys:
            standby.pool.close()

    def _chosen(self) -> _Standby | None:
        now, turn = time.monotonic(), next(self._turns)
        able = [standby for standby in self._standbys if standby.away_until <= now]
        return able[turn % len(able)] if able else None

    def _left_alone(self, standby: _Standby, outcome: Outcome) -> NoStandbyError:
        with self._lock:
            now = time.monotonic()
            if standby.away_until <= now:
                standby.away_until = now + standby.pause
                _log.info("a standby is not asked", domain=self._domain, because=outcome, again_in=standby.pause)
                standby.pause = min(standby.pause * 2, _LONGEST_PAUSE)
        self._count(outcome)
        return NoStandbyError()

    def _count(self, outcome: Outcome) -> None:
        with self._lock:
            self.counts[outcome] += 1


@contextmanager
def _closed_on_error(connection: Connection) -> Iterator[None]:
    """Close a connection on which something failed: on a standby nothing is worth keeping one for."""
    try:
        yield
    except psycopg.Error:
        connection.close()
        raise
