"""What PostgreSQL tells of itself and of each domain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from kronos_db.admin.watching import DegradedError
from kronos_db.runtime.cache.engine import Cache, Loaded, Rules
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.direct import Direct, greets
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import as_row
from kronos_db.runtime.errors import DeadlineTooShortError, KronosError, StatementTimeoutError, UnavailableError

QUERIES = Path(__file__).with_name("status.sql")
_MOST_TABLES = 10
# Seconds for which sizes stay as they were read, by whichever process.
_SIZES_LIFETIME = 10.0
_GREETING = 0.8


class Server(NamedTuple):
    """What a PostgreSQL says of itself; times in seconds, None where the role may not see or there is nothing."""

    version: str
    is_standby: bool
    replication_lag: float | None
    standbys: int
    connections: int
    max_connections: int
    oldest_transaction: float | None
    wraparound_age: int
    cache_hit_ratio: float | None


class Work(NamedTuple):
    """Background work: who holds its lease, if anybody, and for how many seconds it was not done."""

    name: str
    holder: UUID | None
    lag: float | None


class Table(NamedTuple):
    """How large a table is."""

    name: str
    bytes: int
    rows: int


class Sizes(NamedTuple):
    """How large the database, the domain in it and its largest tables are."""

    database: int
    domain: int
    tables: Sequence[Table]


class Domain(NamedTuple):
    """What is known of a domain."""

    applied: Sequence[str]
    pending: int
    works: Sequence[Work]


class DomainLooks:
    """Looks at domains on the way that their calls take; `known` has the migrations that this release knows of each."""

    def __init__(self, databases: Mapping[str, Database], known: Mapping[str, Sequence[str]], cache: Cache) -> None:
        self._databases = databases
        self._known = known
        self._queries = {domain: load_queries(QUERIES, domain) for domain in databases}
        # Dear to read, and the same for all processes.
        rules = Rules("sizes of domains", lifetime=_SIZES_LIFETIME, remote=True, exclusive=True)
        self._sizes = cache.kind(rules, self._load_sizes)

    @property
    def domains(self) -> Sequence[str]:
        """The domains that there are."""
        return tuple(self._databases)

    def look(self, domain: str) -> Domain:
        """Return how a domain is. Raises DegradedError while migrations are pending, and what `Database.read` does."""
        queries = self._queries[domain]

        def read() -> tuple[list[str], list[Work]]:
            return self._databases[domain].read(
                lambda tx: (tx.fetch_all(queries["migrations"], {}, str), tx.fetch_all(queries["works"], {}, Work))
            )

        try:
            applied, works = read()
        except (DeadlineTooShortError, StatementTimeoutError) as error:
            raise UnavailableError("PostgreSQL does not answer in time") from error
        pending = len(set(self._known[domain]) - set(applied))
        found = Domain(applied, pending, works)
        if pending:
            raise DegradedError(f"{pending} migrations are pending", found)
        return found

    def sizes(self, domain: str) -> Sizes | None:
        """Return how large a domain is, as it was up to ten seconds ago; None when that cannot be told."""
        try:
            kept = self._sizes.get(domain)
        except KronosError:
            # What they are is not worth the rest.
            return None
        if kept is None:
            return None
        database, total, tables = json.loads(kept)
        return Sizes(database, total, [Table(*table) for table in tables])

    def _load_sizes(self, domains: Sequence[str]) -> Mapping[str, Loaded]:
        return {domain: Loaded(json.dumps(self._read_sizes(domain)).encode(), ()) for domain in domains}

    def _read_sizes(self, domain: str) -> Sizes:
        rows = self._databases[domain].fetch_all(self._queries[domain]["sizes"], {}, as_row)
        tables = [Table(*row[1:]) for row in rows]
        database = rows[0][0] if rows else 0
        return Sizes(database, sum(table.bytes for table in tables), tables[:_MOST_TABLES])


class ServerLook:
    """Looks at the PostgreSQL of a DSN, straight."""

    def __init__(self, dsn: str) -> None:
        self._direct = Direct(dsn, "kronos-db:status")
        self._query = load_queries(QUERIES, "admin")["server"]

    def look(self) -> Server:
        """Return how it is. Raises UnavailableError."""
        return self._direct.fetch_all(self._query, {}, Server)[0]

    def close(self) -> None:
        """Let go of the connection."""
        self._direct.close()


class PoolerLook:
    """Looks at what stands between the server and PostgreSQL, and tells it apart from what is behind it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._direct = Direct(dsn, "kronos-db:status")

    def look(self) -> None:
        """Raise UnavailableError when it does not answer, whatever is behind it."""
        if not greets(self._dsn, _GREETING):
            raise UnavailableError("does not answer")

    def reach(self) -> bool:
        """Ask PostgreSQL through it; return whether sessions end in it. Raises UnavailableError."""
        return self._direct.is_pooled()

    def close(self) -> None:
        """Let go of the connection."""
        self._direct.close()
