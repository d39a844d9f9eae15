"""Figures of every PostgreSQL, of the room that domains take and of statements, for /metrics: told by one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry

from kronos_db.admin.statements import Cost, Period
from kronos_db.admin.status_store import Server, ServerLook, Sizes
from kronos_db.runtime import deadline
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.ops.metrics import Reading, gauges

# Seconds between two looks, and that the sizes of a domain may take.
_INTERVAL, _PATIENCE = 15.0, 2.0
# Statements are told by what they took within this time, those that took most.
_PERIOD = timedelta(hours=1)
_MOST_STATEMENTS = 30

_SERVER: tuple[tuple[str, str, Callable[[Server], float | None]], ...] = (
    ("connections", "Sessions in the PostgreSQL, of everybody.", lambda server: server.connections),
    ("max_connections", "Sessions that the PostgreSQL allows.", lambda server: server.max_connections),
    (
        "oldest_transaction_seconds",
        "For how long the oldest transaction of a client has been open; 0 when none is.",
        lambda server: server.oldest_transaction or 0.0,
    ),
    (
        "wraparound_age",
        "Transactions since the oldest row that is not frozen: at 2 billion PostgreSQL stops.",
        lambda server: server.wraparound_age,
    ),
    (
        "cache_hit_ratio",
        "Share of blocks of the database that were found in its memory, since its statistics began.",
        lambda server: server.cache_hit_ratio,
    ),
    ("standbys", "Standbys and receivers that are connected to the PostgreSQL.", lambda server: server.standbys),
    (
        "replication_lag_seconds",
        "How far the slowest standby is behind, or this server when it is one; nothing where nothing is replayed.",
        lambda server: server.replication_lag,
    ),
)


@dataclass(frozen=True)
class _Found:
    """What the last look found, by server and by domain."""

    servers: Mapping[str, Server] = field(default_factory=dict)
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    # Calls and seconds, by domain and query.
    statements: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)


class PostgresFigures:
    """The background work `look-at-postgres`, and what it found.

    `servers` has who looks at each PostgreSQL by its address, `sizes` gives the room of a domain, `costs` what
    statements took.
    """

    def __init__(
        self,
        database: Database,
        domains: Sequence[str],
        servers: Mapping[str, ServerLook],
        sizes: Callable[[str], Sizes | None],
        costs: Callable[[Period], Sequence[Cost]],
    ) -> None:
        self._domains = domains
        self._servers = servers
        self._sizes = sizes
        self._costs = costs
        self._found = _Found()
        self.work = BackgroundWork(database, "look-at-postgres", _INTERVAL, self.look)

    def look(self, _held: Held | None = None) -> None:
        """Look at everything; of a server that does not answer nothing is told."""
        now = datetime.now(UTC)
        period = Period(now - _PERIOD, now + _PERIOD, limit=_MOST_STATEMENTS)
        self._found = replace(self._found, servers=self._looked_at())
        self._found = replace(self._found, statements=_by_query(self._costs(period)))
        # The last, since it waits where a table is locked: just then the others are wanted.
        self._found = replace(self._found, sizes=dict(self._measured()))

    def _measured(self) -> Iterable[tuple[str, Sizes]]:
        before = deadline.current.get()
        for domain in self._domains:
            deadline.current.set(time.monotonic() + _PATIENCE)
            sizes = self._sizes(domain)
            if sizes is not None:
                yield domain, sizes
        deadline.current.set(before)

    def _looked_at(self) -> dict[str, Server]:
        found = {}
        for address, server in self._servers.items():
            try:
                found[address] = server.look()
            except UnavailableError:
                # What needs it says so itself.
                continue
            finally:
                server.close()
        return found

    def watch(self, registry: CollectorRegistry) -> None:
        """Register the metrics; a process that does not do the work tells none."""

        def told(read: Callable[[_Found], Iterable[Reading]]) -> Callable[[], Iterable[Reading]]:
            return lambda: read(self._found) if self.work.holds else ()

        for name, meaning, value in _SERVER:
            gauges(registry, f"kronos_db_postgres_{name}", meaning, ["server"], told(_of_servers(value)))
        for name, meaning, size in (
            ("kronos_db_domain_bytes", "What the tables of a domain take, with their indexes.", lambda s: s.domain),
            ("kronos_db_database_bytes", "What the whole database that a domain is in takes.", lambda s: s.database),
        ):
            gauges(registry, name, meaning, ["domain"], told(_of_domains(size)))
        for name, meaning, place in (
            ("kronos_db_statement_calls", "How often a query ran within the last hour, as last read.", 0),
            ("kronos_db_statement_seconds", "What a query took within the last hour, as last read, all runs.", 1),
        ):
            gauges(registry, name, f"{meaning} {_WHICH}", ["domain", "query"], told(_of_statements(place)))


_WHICH = f"The {_MOST_STATEMENTS} that took most."


def _of_servers(value: Callable[[Server], float | None]) -> Callable[[_Found], Iterable[Reading]]:
    return lambda found: [
        ((address,), float(number))
        for address, server in found.servers.items()
        if (number := value(server)) is not None
    ]


def _of_domains(value: Callable[[Sizes], int]) -> Callable[[_Found], Iterable[Reading]]:
    return lambda found: [((domain,), float(value(sizes))) for domain, sizes in found.sizes.items()]


def _of_statements(place: int) -> Callable[[_Found], Iterable[Reading]]:
    return lambda found: [(labels, cost[place]) for labels, cost in found.statements.items()]


def _by_query(costs: Sequence[Cost]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return calls and seconds of each query; a statement that has no name goes by its number."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for cost in costs:
        labels = cost.domain, " ".join(cost.queries) or str(cost.query_id)
        calls, seconds = found.get(labels, (0.0, 0.0))
        found[labels] = calls + cost.calls, seconds + cost.total_us / 1e6
    return found
