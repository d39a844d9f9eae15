"""Leases in PostgreSQL: of any number of processes on any number of hosts, one at a time holds a name.

The table `lease` of a schema has a row for each name. Expiry is judged by the database's clock alone. The holder
counts by its own clock, from before it asked, and so gives up before the database does. It works through a pooler in
transaction mode, and nothing has to be cleaned up after a holder that died: its lease runs out.

A holder that is stopped for long between a look at its clock and what it does then (a paused virtual machine) may act
after its lease. What must not happen even then has the `fence` in the condition of its statement, as `done` has it:
<https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html>.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from kronos_db.runtime import deadline
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.errors import KronosError

# The holder's clock may be so much slower than the database's.
_CLOCK_MARGIN = 0.9


class LeaseGoneError(KronosError):
    """The row of a lease was deleted: its fence begins anew, which must not be."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the database says of a lease.

    `remaining` is in seconds. `since_success` is the seconds since the work was last done, `success_time` when that was
    as Unix time; both are None when it never was.
    """

    mine: bool
    fence: int
    remaining: float
    since_success: float | None
    success_time: float | None


@dataclass(frozen=True, slots=True)
class _Hold:
    fence: int
    # By time.monotonic().
    until: float


class Lease:
    """The lease `name` in the schema of `database`, as one possible holder sees it; it lasts `seconds`."""

    def __init__(self, database: Database, name: str, seconds: float) -> None:
        self._database = database
        self._queries = load_queries(Path(__file__).with_name("leases.sql"), database.domain)
        self._identity = {"name": name, "holder": uuid4()}
        self._hold: _Hold | None = None
        self.seconds = seconds

    @property
    def fence(self) -> int | None:
        """The number of this holding, greater than that of every one before; None when another holds the lease."""
        hold = self._hold
        return hold.fence if hold is not None and time.monotonic() < hold.until else None

    def take(self) -> Look:
        """Take the lease if it is free, or renew it, and look at it. Raises KronosError when PostgreSQL is away."""
        until = time.monotonic() + self.seconds * _CLOCK_MARGIN
        # Longer there is no use in waiting.
        with _deadline_in(self.seconds):
            taken = self._database.execute(self._queries["take"], {**self._identity, "seconds": self.seconds}) == 1
            look = self._database.fetch_one(self._queries["look"], self._identity, Look)
        if look is None:
            raise LeaseGoneError("a row of lease was deleted")
        self._hold = _Hold(look.fence, until) if taken and look.mine else None
        return look

    def done(self, fence: int) -> bool:
        """Note that the work begun under `fence` is done; return False, and note nothing, when that fence is over."""
        return self._database.execute(self._queries["done"], {**self._identity, "fence": fence}) == 1

    def release(self) -> None:
        """Let another one have the lease at once."""
        hold, self._hold = self._hold, None
        if hold is not None:
            with _deadline_in(self.seconds):
                self._database.execute(self._queries["release"], {**self._identity, "fence": hold.fence})


@contextmanager
def _deadline_in(seconds: float) -> Iterator[None]:
    """Bound what waits for PostgreSQL in the block, as a caller's deadline would; one that is there stays."""
    token = deadline.current.set(time.monotonic() + deadline.remaining(seconds))
    try:
        yield
    finally:
        deadline.current.reset(token)
