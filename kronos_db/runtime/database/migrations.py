"""Brings one domain's schema up to what the code knows: plain SQL files, in order, each in its own transaction.

Runs on a direct connection, never through pgBouncer, under an advisory lock, so that any number of processes may try
at once. The chain of a domain is the runtime's own files first, applied in the domain's schema, then the domain's.
What was applied is kept in `<schema>.schema_migration` with a checksum of its text.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.dsn import as_role
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.errors import KronosError

RUNTIME_MIGRATIONS = Path(__file__).with_name("migrations")
# Any constant will do; it only has to be the same in every release. 0x6b72 is "kr".
_LOCK_CLASS = 0x6B72
_LOCK_TIMEOUT = "5s"
_STATEMENT_TIMEOUT = "300s"
_WAIT_FOR_OTHER_MIGRATOR = "60s"
# Roles belong to the whole server, advisory locks to one database. What a collision looks like: the name is taken since
# we looked (before or after the other's commit), or "tuple concurrently updated", which has no code of its own.
_ROLE_COLLISIONS = frozenset({"23505", "42710", "XX000"})
_ROLE_ATTEMPTS = 20
_ROLE_PAUSE = 0.01
_APPLIED = "SELECT name, checksum, applied_at FROM {schema}.schema_migration ORDER BY applied_at, name"


class SchemaTooNewError(KronosError):
    """The database holds migrations that this release does not know."""


class MigrationChangedError(KronosError):
    """A migration was changed after it had been applied."""


class MigrationFailedError(KronosError):
    """A schema could not be migrated; the text names the file at fault, or what was in the way."""


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
    # Of its sessions, beside those that all roles have.
    settings: Mapping[str, str] = field(default_factory=dict)


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
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        # A first migration makes the table before it grants anything.
        return []


class Migrator:
    """Applies the chain of one domain and gives its login role its rights."""

    def __init__(
        self,
        domain: str,
        direct_dsn: str,
        known: Sequence[Migration],
        role: Role,
        statement_timeout: float,
        *,
        append_only: Sequence[str] = (),
        member_of: Sequence[str] = (),
    ) -> None:
        self.domain = domain
        self.known = known
        self._dsn = direct_dsn
        self._role = role
        self._statement_timeout = statement_timeout
        # Tables whose rows the role may add and read, and nothing else.
        self._append_only = append_only
        # Roles of PostgreSQL that the role is to be a member of, if whoever migrates may say so.
        self._member_of = member_of

    def applied(self) -> list[Applied]:
        """Return what the database remembers, oldest first; nothing when the domain has no schema yet."""
        with self._named_failure("its table of migrations"), self._connect() as connection:
            return self._applied(connection)

    def migrate(self, report: Callable[[str, str], None]) -> int:
        """Apply what is pending and return how many that were; calls `report(domain, name)` after each.

        Raises SchemaTooNewError, MigrationChangedError or MigrationFailedError. What was applied before stays.
        """
        with self._named_failure("connecting"), self._connect() as connection:
            with self._named_failure("waiting for another migrator"):
                self._lock(connection)
            with self._named_failure("making the schema and its role"):
                self._prepare(connection)
            todo = pending(self.known, self._applied(connection))
            for migration in todo:
                with self._named_failure(str(migration.path)):
                    self._apply(connection, migration)
                report(self.domain, migration.name)
            with self._named_failure("granting rights"):
                self._grant(connection)
        return len(todo)

    @contextmanager
    def _named_failure(self, step: str) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise MigrationFailedError(f"{self.domain}: {step} failed: {str(error).strip()}") from error

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self._dsn, autocommit=True, application_name="kronos-db:migrate", connect_timeout=10)

    def _lock(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Wait until no other process migrates this domain; the lock goes with the connection."""
        connection.execute(f"SET lock_timeout = '{_WAIT_FOR_OTHER_MIGRATOR}'")
        connection.execute("SET statement_timeout = 0")
        connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (_LOCK_CLASS, self.domain))

    def _applied(self, connection: psycopg.Connection[tuple[Any, ...]]) -> list[Applied]:
        found = connection.execute("SELECT to_regclass(%s)", (f"{self.domain}.schema_migration",)).fetchone()
        if found is None or found[0] is None:
            return []
        return [Applied(*row) for row in connection.execute(_APPLIED.format(schema=self.domain))]

    def _prepare(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Make sure that the schema, its table of migrations and the login role exist."""
        self._make_role_despite_others(connection)
        schema = sql.Identifier(self.domain)
        with connection.transaction():
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
            connection.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {}.schema_migration (name text PRIMARY KEY, checksum text NOT NULL,"
                    " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
                ).format(schema)
            )

    def _make_role_despite_others(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Make the role; again when another database, whose locks are not ours, is making it right now."""
        for attempt in range(1, _ROLE_ATTEMPTS + 1):
            try:
                with connection.transaction():
                    return self._make_role(connection)
            except psycopg.Error as error:
                if error.sqlstate not in _ROLE_COLLISIONS or attempt == _ROLE_ATTEMPTS:
                    raise
            time.sleep(_ROLE_PAUSE * attempt * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    def _make_role(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        role = sql.Identifier(self._role.name)
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (self._role.name,)).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        # Not set again when it is right: a new salt would void what a pgBouncer remembers, and its logins would fail.
        if self._role.password is not None and not (known and self._password_is_set(self._role.password)):
            # Hashed here, so that no log of the server ever sees the password itself.
            verifier = connection.pgconn.encrypt_password(
                self._role.password.encode(), self._role.name.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(verifier)))
        for name, value in (
            ("statement_timeout", f"{int(self._statement_timeout * 1000)}ms"),
            ("idle_in_transaction_session_timeout", "60s"),
            ("search_path", "pg_catalog"),
            *self._role.settings.items(),
        ):
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(role, sql.Identifier(name), sql.Literal(value))
            )

        self._join_groups(connection)

    def _join_groups(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Make the role a member where whoever migrates may say so; elsewhere it sees less, and goes without."""
        for group in self._member_of:
            [(is_member, may_grant)] = connection.execute(
                "SELECT pg_has_role(%s, %s, 'MEMBER'), pg_has_role(%s, 'MEMBER WITH ADMIN OPTION')",
                (self._role.name, group, group),
            ).fetchall()
            if may_grant and not is_member:
                names = sql.Identifier(group), sql.Identifier(self._role.name)
                connection.execute(sql.SQL("GRANT {} TO {}").format(*names))

    def _password_is_set(self, password: str) -> bool:
        """Tell whether the role logs in with `password`, and not for a reason that has nothing to do with it."""
        dsn = as_role(self._dsn, self._role.name, password)
        try:
            with psycopg.connect(dsn, application_name="kronos-db:migrate", connect_timeout=10) as connection:
                return bool(connection.pgconn.used_password)
        except psycopg.OperationalError:
            return False

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
            for table in self._append_only:
                text = "REVOKE UPDATE, DELETE ON {schema}.{table} FROM {role}"
                connection.execute(sql.SQL(text).format(**names, table=sql.Identifier(table)))
