"""Each domain's place in PostgreSQL: which database, which login role, which migrations."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from kronos_db.config import Settings, SettingsError
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.dsn import as_role, login_of
from kronos_db.runtime.database.migrations import (
    Migration,
    Migrator,
    Role,
    SchemaTooNewError,
    applied_as_seen_by,
    chain,
    pending,
)
from kronos_db.runtime.database.pool import Pool, PoolLimits
from kronos_db.runtime.database.reading_role import READER, Part, ReadingRole, read_readable
from kronos_db.runtime.database.standbys import Progress, Standbys
from kronos_db.runtime.errors import OverloadedError, UnavailableError

# The domains that have code: their migrations stand in the folder of the same name.
SERVED: Sequence[str] = ("users", "tokens", "logs", "routes", "messages", "cache", "admin")
# Settings of a domain's role. Queues are empty now and full then, and a plan made for an empty table stays.
_ROLE_SETTINGS: Mapping[str, Mapping[str, str]] = {"messages": {"enable_seqscan": "off"}}
# Tables of a domain whose rows its role may add and read alone.
_APPEND_ONLY: Mapping[str, Sequence[str]] = {"admin": ("audit_events",)}
# What the role of a domain may be a member of beside its own rights: the server's statistics are for administration.
_MEMBER_OF: Mapping[str, Sequence[str]] = {"admin": ("pg_monitor",)}
_MINIMUM_SECRET = 32
# Seconds that the server may be silent beyond the time that a statement may take.
_SILENCE_MARGIN = 5.0
# Seconds that a read waits for a connection to a standby, before it goes to the primary.
_STANDBY_TIMEOUT = 0.1


@dataclass(frozen=True, slots=True)
class MigrationState:
    """A migration of a domain, for `kronos-db migrate --status`."""

    domain: str
    name: str
    state: Literal["applied", "pending"]
    applied_at: datetime | None
    path: Path


@dataclass(frozen=True, slots=True)
class ReadingPlace:
    """A database in which operators' statements run: connections of their role, and the relations that it may read.

    `primary` is where they run when `pool` leads to a standby that has not all that was acknowledged.
    """

    pool: Pool
    relations: frozenset[str]
    primary: Pool | None = None


def open_database(settings: Settings, domain: str) -> Database:
    """Return the database of `domain` through the pool of its role. Raises SettingsError."""
    dsn, _role = _access(settings, domain)
    limits = PoolLimits(
        settings.pool_max_size,
        settings.pool_max_waiting,
        settings.pool_timeout,
        settings.prepared_statements,
        settings.statement_timeout + _SILENCE_MARGIN,
    )
    database = Database(domain, Pool(domain, dsn, limits), settings.statement_timeout)
    standbys = replicas(settings, domain) if settings.replica_reads else []
    if standbys:
        short = replace(limits, timeout=_STANDBY_TIMEOUT)
        pools = [Pool(f"{domain} standby {number}", dsn, short) for number, dsn in enumerate(standbys)]
        database.standbys = Standbys(domain, pools, progress_of(database))
    return database


def progress_of(database: Database) -> Progress:
    """Return what tells whether a standby has everything that was acknowledged in `database`."""
    return Progress(database.domain, lambda query, make: database.fetch_all(query, {}, make))


def listening_dsns(settings: Settings, domains: Iterable[str]) -> dict[str, str]:
    """Return for each domain where to listen for its changes: straight to PostgreSQL, as a role that may log in there.

    Domains of one database get the same DSN, that of the first one's role.
    """
    found: dict[str | None, str] = {}
    return {
        domain: found.setdefault(settings.domain_direct_dsn(domain), _listening_dsn(settings, domain))
        for domain in domains
    }


def ways(settings: Settings, domain: str) -> tuple[str, str]:
    """Return the DSN that the calls of `domain` take, and one that leads straight to its PostgreSQL."""
    return _access(settings, domain)[0], _listening_dsn(settings, domain)


def replicas(settings: Settings, domain: str) -> list[str]:
    """Return how the role of `domain` reaches the standbys that are known; none of a domain with its own database."""
    login = login_of(_access(settings, domain)[0])
    if settings.replica_dsns is None or settings.domain_dsn(domain) is not None or login is None:
        return []
    role, password = login
    return [as_role(dsn, role, password or "") for dsn in settings.replica_dsns.get_secret_value().split()]


def known_migrations(domain: str) -> list[str]:
    """Return the names of the migrations that this release knows of a domain, in the order of application."""
    return [migration.name for migration in _chain(domain)]


def _listening_dsn(settings: Settings, domain: str) -> str:
    dsn, role = _access(settings, domain)
    direct = settings.domain_direct_dsn(domain)
    return dsn if direct is None or role.password is None else as_role(direct, role.name, role.password)


def shortfall(domain: str, database: Database, *, serving: bool = False) -> str | None:
    """Return one sentence why the schema of `domain` cannot be served yet, None when it can.

    Who is `serving` already bears a newer schema: each migration leaves the release before it working, and runs while
    that serves. Raises SchemaTooNewError or MigrationChangedError when waiting does not help.
    """
    try:
        applied = applied_as_seen_by(database)
    except (UnavailableError, OverloadedError):
        return "PostgreSQL does not answer"
    try:
        missing = pending(_chain(domain), applied)
    except SchemaTooNewError:
        if serving:
            return None
        raise
    return f"{len(missing)} migrations are pending; run `kronos-db migrate`" if missing else None


def migrate(settings: Settings, report: Callable[[str, str], None]) -> None:
    """Bring every domain's schema up to date; calls `report(domain, migration)` after each migration applied."""
    for domain in SERVED:
        _migrator(settings, domain).migrate(report)
    _set_reading_rights(settings)


def _set_reading_rights(settings: Settings) -> None:
    """Bring the role that reads for operators, in every database, to what the domains there let it read.

    Without a role secret there is no password for it, and no such role.
    """
    if settings.postgres_role_secret_file is None:
        return
    password = _derived_password(settings, READER)
    databases: dict[str, list[Part]] = {}
    for domain in SERVED:
        _dsn, role = _access(settings, domain)
        part = Part(domain, role.name, read_readable(readable_file(domain)))
        databases.setdefault(settings.domain_direct_dsn(domain) or "", []).append(part)
    for dsn, parts in databases.items():
        ReadingRole(dsn, password, settings.statement_timeout).apply(parts)


def readable_file(domain: str) -> Path:
    """Return the file that says which columns of a domain operators may read."""
    return Path(__file__).parent / domain / "readable.sql"


def readable_relations(domains: Iterable[str]) -> frozenset[str]:
    """Return the relations of `domains`, `schema.name`, of which operators may read columns."""
    return frozenset().union(*(read_readable(readable_file(domain)).granted for domain in domains))


def open_reading(settings: Settings) -> dict[str, ReadingPlace]:
    """Return where operators' statements run, by the name of a domain; "" is the common database, or its replica.

    Domains without a DSN of their own are there. Nothing without a role secret.
    """
    if settings.postgres_role_secret_file is None:
        return {}
    password = _derived_password(settings, READER)
    places: dict[str, ReadingPlace] = {}
    shared = [domain for domain in SERVED if settings.domain_dsn(domain) is None]
    primary = settings.postgres_direct_dsn or settings.postgres_dsn
    common = settings.query_dsn or primary
    if common is not None and shared:
        place = _reading_place(settings, as_role(common.get_secret_value(), READER, password), shared)
        if settings.query_dsn is not None and primary is not None:
            other = _reading_place(settings, as_role(primary.get_secret_value(), READER, password), shared)
            place = replace(place, primary=other.pool)
        places.update(dict.fromkeys(["", *shared], place))
    for domain in SERVED:
        direct = settings.domain_direct_dsn(domain)
        if domain not in shared and direct is not None:
            places[domain] = _reading_place(settings, as_role(direct, READER, password), [domain])
    return places


def _reading_place(settings: Settings, dsn: str, domains: Sequence[str]) -> ReadingPlace:
    limits = PoolLimits(
        settings.query_connections,
        settings.pool_max_waiting,
        settings.pool_timeout,
        # Never by name: what a session is left with is looked at.
        prepared_statements=False,
        silence=settings.query_timeout + _SILENCE_MARGIN,
        min_size=0,
    )
    return ReadingPlace(Pool("query", dsn, limits), readable_relations(domains))


def migration_plan(settings: Settings) -> list[MigrationState]:
    """Return every migration with its state. Raises SchemaTooNewError or MigrationChangedError."""
    states = []
    for domain in SERVED:
        migrator = _migrator(settings, domain)
        rows = migrator.applied()
        pending(migrator.known, rows)
        applied = {row.name: row.applied_at for row in rows}
        for migration in migrator.known:
            at = applied.get(migration.name)
            states.append(MigrationState(domain, migration.name, "applied" if at else "pending", at, migration.path))
    return states


def _chain(domain: str) -> Sequence[Migration]:
    return chain(domain, Path(__file__).parent / domain / "migrations")


def _migrator(settings: Settings, domain: str) -> Migrator:
    _dsn, role = _access(settings, domain)
    direct = settings.domain_direct_dsn(domain)
    if direct is None:
        raise SettingsError("KRONOS_DB_POSTGRES_DIRECT_DSN or KRONOS_DB_POSTGRES_DSN is required to migrate.")
    return Migrator(
        domain,
        direct,
        _chain(domain),
        role,
        settings.statement_timeout,
        append_only=_APPEND_ONLY.get(domain, ()),
        member_of=_MEMBER_OF.get(domain, ()),
    )


def _access(settings: Settings, domain: str) -> tuple[str, Role]:
    """Return the DSN that serves `domain` and the login role in it.

    A DSN of the domain's own names its role and password. Else the role is `kronos_<domain>` in the common database,
    with a password derived from the role secret.
    """
    own = settings.domain_dsn(domain)
    if own is not None:
        login = login_of(own)
        if login is None:
            raise SettingsError(f"KRONOS_DB_{domain.upper()}_DSN: must name a role.")
        return own, Role(*login, _ROLE_SETTINGS.get(domain, {}))
    if settings.postgres_dsn is None:
        raise SettingsError(f"KRONOS_DB_POSTGRES_DSN or KRONOS_DB_{domain.upper()}_DSN is required.")
    role = f"kronos_{domain}"
    password = _derived_password(settings, role)
    return as_role(settings.postgres_dsn.get_secret_value(), role, password), Role(
        role, password, _ROLE_SETTINGS.get(domain, {})
    )


def _derived_password(settings: Settings, role: str) -> str:
    path = settings.postgres_role_secret_file
    if path is None:
        raise SettingsError("KRONOS_DB_POSTGRES_ROLE_SECRET_FILE is required unless every domain has a DSN of its own.")
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"KRONOS_DB_POSTGRES_ROLE_SECRET_FILE: {error.strerror}: {path}.") from None
    if len(secret) < _MINIMUM_SECRET:
        raise SettingsError(f"KRONOS_DB_POSTGRES_ROLE_SECRET_FILE: must hold at least {_MINIMUM_SECRET} characters.")
    digest = hmac.digest(secret, f"kronos-db role {role}".encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
