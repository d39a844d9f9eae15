"""Brings one domain's schema up to what the code knows: plain SQL files, in order, each in its own transaction.

Runs on a direct connection, never through pgBouncer, under an advisory lock, so that any number of processes may try
at once. The chain of a domain is the runtime's own files first, applied in the domain's schema, then the domain's.
What was applied is kept in `<schema>.schema_migration` with a checksum of its text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.errors import KronosError

RUNTIME_MIGRATIONS = Path(__file__).with_name("migrations")
# Any constant will do; it only has to be the same in every release. 0x6b72 is "kr".
_LOCK_CLASS = 0x6B72
_LOCK_TIMEOUT = "5s"
_STATEMENT_TIMEOUT = "300s"
_WAIT_FOR_OTHER_MIGRATOR = "60s"
_APPLIED = "SELECT name, checksum, applied_at FROM {schema}.schema_migration ORDER BY applied_at, name"


class SchemaTooNewError(KronosError):
    """The database holds migrations that this release does not know."""


class MigrationChangedError(KronosError):
    """A migration was changed after it had been applied."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of a chain. `name` is `<chain>/<file stem>`, for example `users/0001_create`."""

    name: str
    path: Path

    @property
    def text(self) -> str:
        """The SQL."""
        return self.path.read_text(encoding="utf-8")

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration as the database remembers it."""

    name: str
    checksum: str
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class Role:
    """A login role and its password; None leaves the password as it is."""

    name: str
    password: str | None


def chain(domain: str, folder: Path) -> Sequence[Migration]:
    """Return the migrations of `domain`, in the order of application."""
    return [
        *(Migration(f"runtime/{path.stem}", path) for path in sorted(RUNTIME_MIGRATIONS.glob("*.sql"))),
        *(Migration(f"{domain}/{path.stem}", path) for path in sorted(folder.glob("*.sql"))),
    ]


def pending(known: Sequence[Migration], applied: Sequence[Applied]) -> list[Migration]:
    """Return what is still to be applied.

    Raises SchemaTooNewError when the database knows more than the code, MigrationChangedError when an applied file
    changed.
    """
    files = {migration.name: migration for migration in known}
    for row in applied:
        if row.name not in files:
            raise SchemaTooNewError(f"the database has migration {row.name}, which this release does not know")
        if files[row.name].checksum != row.checksum:
            raise MigrationChangedError(f"migration {row.name} was changed after it had been applied")
    done = {row.name for row in applied}
    return [migration for migration in known if migration.name not in done]


def applied_as_seen_by(database: Database) -> list[Applied]:
    """Return what was applied to the schema of `database`, as its own role sees it; nothing when there is none yet.

    Raises UnavailableError when PostgreSQL does not answer or does not know the role yet.
    """
    query = Query("applied", _APPLIED.format(schema=database.domain), "", prepared=False)
    try:
        return database.fetch_all(query, {}, Applied)
    except psycopg.errors.UndefinedTable:
        return []


class Migrator:
    """Applies the chain of one domain and gives its login role its rights."""

    def __init__(
        self, domain: str, direct_dsn: str, known: Sequence[Migration], role: Role, statement_timeout: float
    ) -> None:
        self.domain = domain
        self.known = known
        self._dsn = direct_dsn
        self._role = role
        self._statement_timeout = statement_timeout

    def applied(self) -> list[Applied]:
        """Return what the database remembers, oldest first; nothing when the domain has no schema yet."""
        with self._connect() as connection:
            return self._applied(connection)

    def migrate(self, report: Callable[[str, str], None]) -> int:
        """Apply what is pending and return how many that were; calls `report(domain, name)` after each."""
        with self._connect() as connection, self._locked(connection):
            self._prepare(connection)
            todo = pending(self.known, self._applied(connection))
            for migration in todo:
                self._apply(connection, migration)
                report(self.domain, migration.name)
            self._grant(connection)
        return len(todo)

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self._dsn, autocommit=True, application_name="kronos-db:migrate", connect_timeout=10)

    @contextmanager
    def _locked(self, connection: psycopg.Connection[tuple[Any, ...]]) -> Iterator[None]:
        connection.execute(f"SET lock_timeout = '{_WAIT_FOR_OTHER_MIGRATOR}'")
        connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (_LOCK_CLASS, self.domain))
        yield  # The lock goes with the connection.

    def _applied(self, connection: psycopg.Connection[tuple[Any, ...]]) -> list[Applied]:
        found = connection.execute("SELECT to_regclass(%s)", (f"{self.domain}.schema_migration",)).fetchone()
        if found is None or found[0] is None:
            return []
        return [Applied(*row) for row in connection.execute(_APPLIED.format(schema=self.domain))]

    def _prepare(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Make sure that the schema, its table of migrations and the login role exist."""
        schema = sql.Identifier(self.domain)
        with connection.transaction():
            # Roles belong to the whole server: other domains and databases may be making theirs right now.
            connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK_CLASS,))
            self._make_role(connection)
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
            connection.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {}.schema_migration (name text PRIMARY KEY, checksum text NOT NULL,"
                    " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
                ).format(schema)
            )

    def _make_role(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        role = sql.Identifier(self._role.name)
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (self._role.name,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        if self._role.password is not None:
            # Hashed here, so that no log of the server ever sees the password itself.
            verifier = connection.pgconn.encrypt_password(
                self._role.password.encode(), self._role.name.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(verifier)))
        for name, value in (
            ("statement_timeout", f"{int(self._statement_timeout * 1000)}ms"),
            ("idle_in_transaction_session_timeout", "60s"),
            ("search_path", "pg_catalog"),
        ):
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(role, sql.Identifier(name), sql.Literal(value))
            )

    def _apply(self, connection: psycopg.Connection[tuple[Any, ...]], migration: Migration) -> None:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            connection.execute(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")
            connection.execute(sql.SQL("SET LOCAL search_path = {}, pg_catalog").format(sql.Identifier(self.domain)))
            connection.execute(migration.text)
            connection.execute(
                sql.SQL("INSERT INTO {}.schema_migration (name, checksum) VALUES (%s, %s)").format(
                    sql.Identifier(self.domain)
                ),
                (migration.name, migration.checksum),
            )

    def _grant(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Give the domain's role rows, not structure, and that in its own schema alone."""
        names = {"schema": sql.Identifier(self.domain), "role": sql.Identifier(self._role.name)}
        with connection.transaction():
            for text in (
                "REVOKE ALL ON SCHEMA {schema} FROM PUBLIC",
                "GRANT USAGE ON SCHEMA {schema} TO {role}",
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
                "REVOKE INSERT, UPDATE, DELETE ON {schema}.schema_migration FROM {role}",
                "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
                "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
            ):
                connection.execute(sql.SQL(text).format(**names))
