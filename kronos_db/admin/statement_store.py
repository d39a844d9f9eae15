"""Reads PostgreSQL's counters and sessions as each domain's own role, and keeps what the counters have gone up by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psycopg

from kronos_db.admin.statements import (
    ActiveQueryGoneError,
    Cost,
    Counter,
    Period,
    Reading,
    Session,
    Source,
    SourceState,
    Target,
    UnknownDomainError,
    fingerprint,
    numbered,
)
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation, Reply
from kronos_db.runtime.database.operating import OperatorConnection, connected
from kronos_db.runtime.database.queries import load_queries, query_name
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.errors import UnavailableError

QUERIES = load_queries(Path(__file__).with_name("statements.sql"), "admin")
# Seconds.
_STATEMENT_TIMEOUT = 10.0
_COUNTERS = (
    "query_ids",
    "top_levels",
    "stats_since",
    "calls",
    "total_us",
    "rows",
    "blocks_hit",
    "blocks_read",
    "temp_bytes",
    "wal_bytes",
)
# Readings that one statement removes.
_PURGED_AT_ONCE = 20


class Sources:
    """The databases of the domains, straight, as each domain's role; `dsns` by domain, and so their `replicas`."""

    def __init__(self, dsns: Mapping[str, str], replicas: Mapping[str, Sequence[str]] | None = None) -> None:
        self.domains = tuple(dsns)
        self._dsns = dsns
        self._replicas = replicas or {}

    @contextmanager
    def connected(self, domain: str) -> Iterator[OperatorConnection]:
        """Give a connection as the role of `domain`. Raises UnknownDomainError, UnavailableError."""
        if domain not in self._dsns:
            raise UnknownDomainError(metadata={"domain": domain})
        with connected(self._dsns[domain], "observe", _STATEMENT_TIMEOUT) as direct:
            yield direct

    @contextmanager
    def replicas(self, domain: str) -> Iterator[list[OperatorConnection]]:
        """Give connections to the standbys of a domain that answer."""
        with ExitStack() as stack:
            found = []
            for dsn in self._replicas.get(domain, ()):
                with suppress(UnavailableError):
                    found.append(stack.enter_context(connected(dsn, "observe", _STATEMENT_TIMEOUT)))
            yield found

    def read(self) -> list[Reading]:
        """Return the counters of every domain, or why there are none."""
        return [self._read(domain) for domain in self.domains]

    def _read(self, domain: str) -> Reading:
        try:
            with self.connected(domain) as direct:
                found = direct.fetch_one(QUERIES["extension"], {}, as_row)
                if found is None:
                    return Reading(domain, SourceState.EXTENSION_MISSING)
                schema, able = found
                if not able:
                    return Reading(domain, SourceState.TOO_OLD)
                query = QUERIES["counters"]
                query = replace(query, text=query.text.replace("public.pg_stat", f"{schema}.pg_stat"))
                return Reading(domain, SourceState.COUNTED, direct.fetch_all(query, {}, Counter))
        except psycopg.errors.ObjectNotInPrerequisiteState:
            return Reading(domain, SourceState.NOT_LOADED)
        except UnavailableError:
            return Reading(domain, SourceState.UNREACHABLE)

    def sessions(self, domain: str) -> list[Session]:
        """Return the sessions of the role of `domain` that do something."""
        with self.connected(domain) as direct:
            return direct.fetch_all(QUERIES["sessions"], {}, Session)

    def cancel(self, target: Target) -> None:
        """Cancel or end. Raises ActiveQueryGoneError when what is meant is no longer there."""
        params = {
            "pid": target.pid,
            "backend_start": target.backend_start,
            "query_start": target.query_start,
            "end": target.end,
            "pretend": target.pretend,
        }
        with self.connected(target.domain) as direct:
            if not direct.fetch_one(QUERIES["signal"], params, bool):
                raise ActiveQueryGoneError(metadata={"pid": str(target.pid)})


class StatementStore:
    """What statements cost, in the schema of the admin domain."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def absorb(self, readings: Sequence[Reading]) -> None:
        """Take readings in; each call of a statement is counted once, whoever reads it and however often."""
        self._add_texts(readings)
        self.database.transact(lambda tx: _absorb(tx, readings))

    def reset(self, readings: Sequence[Reading], domain: str | None, mutation: Mutation[datetime, Reply]) -> Reply:
        """Forget what was counted up to `readings`, which are taken in first, of one domain or of all."""
        self._add_texts(readings)

        def work(tx: Transaction) -> datetime:
            taken_at = _absorb(tx, readings)
            tx.execute(QUERIES["reset"], {"domain": domain})
            return taken_at

        return self.database.write(work, mutation)

    def once(self, work: Callable[[], None], mutation: Mutation[None, Reply]) -> Reply:
        """Do what is no work of this database, once for each request id."""
        return self.database.write(lambda _tx: work(), mutation)

    def last_taken(self) -> datetime | None:
        """Return when the last reading was taken in."""
        rows = self.database.fetch_all(QUERIES["last_taken"], {}, lambda taken_at: taken_at)
        return rows[0] if rows else None

    def sources(self) -> list[Source]:
        """Return how reading each domain went."""
        return self.database.fetch_all(
            QUERIES["sources"], {}, lambda domain, state, at: Source(domain, SourceState(state), at)
        )

    def costs(self, period: Period) -> list[Cost]:
        """Return a page of statements by what they cost, most first."""
        weight, domain, query_id = period.last or (None, None, None)
        params = {
            "after": period.after,
            "until": period.until,
            "order": period.order,
            "domain": period.domain,
            "method": period.method,
            "last_weight": weight,
            "last_domain": domain,
            "last_query_id": query_id,
            "limit": period.limit,
        }
        return self.database.fetch_all(QUERIES["list_costs"], params, Cost)

    def methods_of(self, queries: Sequence[str]) -> dict[str, list[str]]:
        """Return the methods that issue each of some named queries."""
        return dict(
            self.database.fetch_all(
                QUERIES["methods_of"], {"queries": list(queries)}, lambda name, found: (name, found)
            )
        )

    def add_origins(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Keep that methods issue named queries: pairs of method and text. Texts without a name are passed over."""
        named = [(method, text, query_name(text)) for method, text in pairs]
        rows = [
            (fingerprint(numbered(text)), name, method, numbered(text.partition("*/ ")[2]))
            for method, text, name in named
            if name
        ]
        if rows:
            names = ("fingerprints", "queries", "methods", "texts")
            self.database.execute(
                QUERIES["add_origins"], dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            )

    def purge(self, kept: float) -> bool:
        """Remove some of what is older than `kept` seconds; return whether there may be more."""
        if self.database.execute(QUERIES["purge_deltas"], {"kept": kept, "limit": _PURGED_AT_ONCE}):
            return True
        self.database.execute(QUERIES["purge_series"], {"kept": kept})
        self.database.execute(QUERIES["purge_statements"], {})
        return False

    def _add_texts(self, readings: Sequence[Reading]) -> None:
        known = set(self.database.fetch_all(QUERIES["known_statements"], {}, as_row))
        new = {
            (reading.domain, counter.query_id): counter.text
            for reading in readings
            for counter in reading.counters
            if (reading.domain, counter.query_id) not in known
        }
        if new:
            params = {
                "domains": [domain for domain, _ in new],
                "query_ids": [query_id for _, query_id in new],
                "fingerprints": [fingerprint(text) for text in new.values()],
                "texts": list(new.values()),
            }
            self.database.execute(QUERIES["add_statements"], params)


def _absorb(tx: Transaction, readings: Sequence[Reading]) -> datetime:
    taken_at: datetime = tx.fetch_all(QUERIES["take_clock"], {}, lambda at: at)[0]
    found = [(reading.domain, counter) for reading in readings for counter in reading.counters]
    params: dict[str, object] = {name: [] for name in _COUNTERS}
    fields = ("query_id", "top_level", *_COUNTERS[2:])
    for name, field in zip(_COUNTERS, fields, strict=True):
        params[name] = [getattr(counter, field) for _, counter in found]
    tx.execute(QUERIES["absorb"], {**params, "domains": [domain for domain, _ in found], "taken_at": taken_at})
    sources = {
        "domains": [reading.domain for reading in readings],
        "states": [reading.state.value for reading in readings],
        "taken_at": taken_at,
    }
    tx.execute(QUERIES["set_sources"], sources)
    return taken_at
