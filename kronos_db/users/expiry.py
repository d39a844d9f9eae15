"""Background work of the domain: removes grants that have expired, and so tells those who watch."""

from __future__ import annotations

from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.database import Database
from kronos_db.users.grant_store import GrantStore

# Seconds between two looks, and of the lease: its holder looks as often as it renews it, three times in its duration.
_INTERVAL = 1.0
_LEASE = 3.0


def upkeep(database: Database) -> list[BackgroundWork]:
    """Return what is to be done for grants: no decision waits for it."""
    grants = GrantStore(database)

    def expire(held: Held) -> None:
        while held() and grants.expire():
            pass

    return [BackgroundWork(database, "expire-grants", _INTERVAL, expire, lease_seconds=_LEASE)]
