"""The audit log in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kronos_db.admin.audit import BEGINNING, Event, HashChain, Link, Listing
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row

QUERIES = Path(__file__).with_name("audit.sql")


class AuditStore:
    """Adds events at the end of the chain, whichever process adds others at the same time, and reads them."""

    def __init__(self, database: Database, chain: HashChain) -> None:
        self._database = database
        self._chain = chain
        self._queries = load_queries(QUERIES, "admin")

    def add(self, events: Sequence[Event]) -> None:
        """Add `events`, all or none, each once; return when they are durable.

        Their places and hashes are set here. Raises UnavailableError and what else `Database.transact` raises.
        """

        def work(tx: Transaction) -> None:
            tx.execute(self._queries["lock"], {})
            ids = [event.id for event in events]
            [(sequence, hash_, known)] = tx.fetch_all(self._queries["last"], {"ids": ids}, as_row)
            fresh = [event for event in events if event.id not in known]
            for event in self._chain.chained(fresh, Link(sequence, hash_ or BEGINNING)):
                tx.execute(self._queries["add"], event._asdict())

        self._database.transact(work)

    def list_page(self, listing: Listing) -> list[Event]:
        """Return events, newest first."""
        params = {
            "limit": listing.limit,
            "after": listing.after,
            "from": listing.time_from,
            "until": listing.time_until,
            "caller": listing.caller,
            "method": listing.method,
            "phase": listing.phase,
            "code": listing.code,
            "call_id": listing.call_id,
        }
        return self._database.fetch_all_aside(self._queries["list"], params, Event)

    def read(self, sequence: int, limit: int) -> list[Event]:
        """Return at most `limit` events in the order of the log, from `sequence` on."""
        return self._database.fetch_all_aside(self._queries["read"], {"from": sequence, "limit": limit}, Event)
