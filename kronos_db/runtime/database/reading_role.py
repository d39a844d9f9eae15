"""The login role that reads for operators: given the columns it may read, and kept from functions that do harm.

It is a member of nothing, owns nothing and is granted columns alone, by the `readable.sql` of each domain. PostgreSQL
lets everybody run functions that leave locks, notify, reach other sessions or run texts as SQL, and everybody make
temporary tables and run code in a procedural language. That cannot be taken from one role; so it is taken from PUBLIC
in the databases of this server, and given to the roles of the domains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import structlog
from psycopg import sql

from kronos_db.runtime.database.migrations import Migrator, Role
from kronos_db.runtime.database.pool import Connection

_log = structlog.get_logger(__name__)

READER = "kronos_query"
# Connections of all processes together. PostgreSQL refuses more, whatever the processes think.
_MOST_CONNECTIONS = 32
# Of its sessions, whatever a statement is given: PostgreSQL ends what these do not end.
_SETTINGS: Mapping[str, str] = {
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "repeatable read",
    "transaction_timeout": "600s",
    "lock_timeout": "1s",
    "work_mem": "16MB",
    "hash_mem_multiplier": "1",
    "max_parallel_workers_per_gather": "0",
    "cursor_tuple_fraction": "1",
    "jit": "off",
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
}
# Set where the migrating role may: PostgreSQL keeps it to superusers.
_SUPERUSER_SETTINGS: Mapping[str, str] = {"temp_file_limit": "256MB"}

# Functions of pg_catalog that do harm though everybody may run them.
HARMFUL: Sequence[str] = (
    # They leave a setting, a seed, a snapshot on disk or a transaction id behind.
    "set_config", "setseed", "pg_export_snapshot", "pg_current_xact_id", "txid_current", "pg_stat_clear_snapshot",
    "pg_stat_force_next_flush",
    # Locks that outlast the transaction, or that others wait for.
    "pg_advisory_lock", "pg_advisory_lock_shared", "pg_advisory_unlock", "pg_advisory_unlock_all",
    "pg_advisory_unlock_shared", "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared", "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared", "pg_try_advisory_xact_lock", "pg_try_advisory_xact_lock_shared",
    # They reach other sessions, or the log of the server.
    "pg_cancel_backend", "pg_terminate_backend", "pg_notify", "pg_logical_emit_message", "pg_sync_replication_slots",
    # They run a text, or what a name leads to, as SQL.
    "ts_stat", "ts_rewrite", "query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema", "cursor_to_xml",
    "cursor_to_xmlschema", "table_to_xml", "table_to_xmlschema", "table_to_xml_and_xmlschema", "schema_to_xml",
    "schema_to_xmlschema", "schema_to_xml_and_xmlschema", "database_to_xml", "database_to_xmlschema",
    "database_to_xml_and_xmlschema",
    # Large objects.
    "lo_creat", "lo_create", "lo_from_bytea", "lo_open", "lo_close", "lo_get", "lo_put", "lo_lseek", "lo_lseek64",
    "lo_tell", "lo_tell64", "lo_truncate", "lo_truncate64", "lo_unlink", "loread", "lowrite",
    # They take time and nothing else.
    "pg_sleep", "pg_sleep_for", "pg_sleep_until",
    # Maintenance by function.
    "brin_summarize_new_values", "brin_summarize_range", "brin_desummarize_range", "gin_clean_pending_list",
    "pg_restore_relation_stats", "pg_restore_attribute_stats", "pg_clear_relation_stats", "pg_clear_attribute_stats",
)  # fmt: skip
# By name, in any schema: they connect to elsewhere with what they are given.
_HARMFUL_ANYWHERE = "dblink%"

_DOORS = """
SELECT p.oid::regprocedure::text
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE ((n.nspname = 'pg_catalog' AND p.proname = ANY (%(names)s)) OR p.proname LIKE %(anywhere)s)
"""
_OPEN_TO_ALL = """
AND EXISTS (
    SELECT FROM pg_catalog.aclexplode(COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a
    WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE'
)
"""
# Why the role is not as it must be, as it sees itself: one row for each fault.
_FAULTS = f"""
SELECT 'it is a superuser, or may make roles or databases, replicate or bypass row security'
FROM pg_catalog.pg_roles
WHERE rolname = current_user AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
UNION ALL
SELECT 'it is a member of ' || m.roleid::pg_catalog.regrole::text
FROM pg_catalog.pg_auth_members AS m JOIN pg_catalog.pg_roles AS r ON r.oid = m.member WHERE r.rolname = current_user
UNION ALL
SELECT 'it may make temporary tables' WHERE pg_catalog.has_database_privilege(current_database(), 'TEMP')
UNION ALL
SELECT 'it may run code in ' || lanname FROM pg_catalog.pg_language
WHERE lanpltrusted AND pg_catalog.has_language_privilege(oid, 'USAGE') AND lanname <> 'sql'
UNION ALL
(SELECT 'it may run ' || f.name FROM ({_DOORS}) AS f (name)
WHERE pg_catalog.has_function_privilege(f.name, 'EXECUTE') LIMIT 1)
"""  # noqa: S608 - constants
_PARAMETERS = {"names": list(HARMFUL), "anywhere": _HARMFUL_ANYWHERE}
_GRANT = re.compile(r"GRANT\s+SELECT\s*\(([^)]*)\)\s*ON\s+([a-z_]+\.[a-z_]+)\s+TO\s+kronos_query\s*;")
_SECRET = re.compile(r"^-- secret: ([a-z_]+\.[a-z_]+) \(([a-z_, ]+)\)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Readable:
    """What a domain's `readable.sql` says: of each relation the columns that may be read, and the secrets."""

    text: str
    granted: Mapping[str, frozenset[str]]
    secret: Mapping[str, frozenset[str]]


def read_readable(path: Path) -> Readable:
    """Return what `path` says. Raises ValueError for statements beside GRANT SELECT (…) ON … TO kronos_query."""
    text = path.read_text(encoding="utf-8")
    bare = re.sub(r"--.*", "", text)
    if _GRANT.sub("", bare).strip():
        raise ValueError(f"{path}: something else than GRANT SELECT (columns) ON schema.table TO {READER};")
    granted = {match[2]: _columns(match[1]) for match in _GRANT.finditer(bare)}
    secret: dict[str, frozenset[str]] = {}
    for match in _SECRET.finditer(text):
        secret[match[1]] = secret.get(match[1], frozenset()) | _columns(match[2])
    return Readable(bare, granted, secret)


def _columns(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(","))


@dataclass(frozen=True, slots=True)
class Part:
    """A domain of a database: its schema, its login role, and what of it may be read."""

    schema: str
    role: str
    readable: Readable


class ReadingRole(Migrator):
    """Makes the role in one database and sets its rights; whatever it could read before and is not listed ends."""

    def __init__(self, direct_dsn: str, password: str, statement_timeout: float) -> None:
        super().__init__(READER, direct_dsn, (), Role(READER, password, _SETTINGS), statement_timeout)

    def apply(self, parts: Sequence[Part]) -> None:
        """Bring the role to what `parts`, all domains of the database, say. Raises MigrationFailedError.

        Where the migrating role has no right to do so all stays as it is, and a warning says so.
        """
        with self._failing_as_one(), self._connect() as connection:
            self._lock(connection)
            self._make_role_despite_others(connection)
            connection.execute("SET lock_timeout = '5s'")
            with connection.transaction():
                for part in parts:
                    _grant(connection, part)
                # In one transaction with the grants: the domains are never without.
                _close_doors(connection, [part.role for part in parts], [part.schema for part in parts])

    @contextmanager
    def _failing_as_one(self) -> Iterator[None]:
        with self._named_failure("setting the rights of the role of queries"):
            try:
                yield
            except psycopg.errors.InsufficientPrivilege as error:
                _log.warning("query_role_not_set", reason=str(error).strip())

    def _make_role(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        super()._make_role(connection)
        role = sql.Identifier(READER)
        connection.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(role, sql.Literal(_MOST_CONNECTIONS)))
        if connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (True,):
            for name, value in _SUPERUSER_SETTINGS.items():
                connection.execute(
                    sql.SQL("ALTER ROLE {} SET {} = {}").format(role, sql.Identifier(name), sql.Literal(value))
                )


def _grant(connection: psycopg.Connection[tuple[Any, ...]], part: Part) -> None:
    names = {"schema": sql.Identifier(part.schema), "reader": sql.Identifier(READER)}
    for text in (
        # Its own role was granted them before.
        "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC",
        "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {reader}",
        "GRANT USAGE ON SCHEMA {schema} TO {reader}",
    ):
        connection.execute(sql.SQL(text).format(**names))
    if part.readable.granted:
        connection.execute(part.readable.text)


def _close_doors(connection: psycopg.Connection[tuple[Any, ...]], roles: Sequence[str], schemas: Sequence[str]) -> None:
    functions = [row[0] for row in connection.execute(_DOORS, _PARAMETERS)]
    # Whoever made the schemas migrates, another time if not now.
    owners = connection.execute(
        "SELECT DISTINCT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = ANY (%s)", (list(schemas),)
    ).fetchall()
    keep = {*roles, *(row[0] for row in owners)}
    keepers = sql.SQL(", ").join([*map(sql.Identifier, sorted(keep)), sql.SQL("CURRENT_USER")])
    database = connection.info.dbname
    # The names come from the catalog, quoted.
    every = sql.SQL(", ").join(map(sql.SQL, functions))
    connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(every, keepers))
    still_open = [row[0] for row in connection.execute(_DOORS + _OPEN_TO_ALL, _PARAMETERS)]
    if still_open:
        every = sql.SQL(", ").join(map(sql.SQL, still_open))
        connection.execute(sql.SQL("REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC").format(every))
    for text in (
        "GRANT TEMPORARY ON DATABASE {database} TO {keepers}",
        "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    ):
        connection.execute(sql.SQL(text).format(database=sql.Identifier(database), keepers=keepers))
    languages = connection.execute("SELECT lanname FROM pg_language WHERE lanpltrusted AND lanname <> 'sql'").fetchall()
    for (language,) in languages:
        name = sql.Identifier(language)
        connection.execute(sql.SQL("GRANT USAGE ON LANGUAGE {} TO {}").format(name, keepers))
        connection.execute(sql.SQL("REVOKE USAGE ON LANGUAGE {} FROM PUBLIC").format(name))


def faults(connection: Connection) -> list[str]:
    """Return why the role of this connection, which is to be that of queries, may do more than it must."""
    return [row[0] for row in connection.execute(_FAULTS, _PARAMETERS)]
