"""The database that is backed up: what it says of itself, and the content that it has at one moment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo

from kronos_db.backup.model import BackupBusyError, Content, DatabaseUnsuitableError, Lsn, ProgramError, TableContent

# The advisory lock of whoever makes backups of this cluster: "kronosbk" as a number.
_LOCK = int.from_bytes(b"kronosbk", "big")
_CONNECT = 10
# Attempts to find a moment without a write under way, and seconds between them: two seconds in all.
_ATTEMPTS = 400
_PAUSE = 0.005

_FACTS = """
SELECT (SELECT system_identifier FROM pg_control_system()),
       current_setting('server_version_num')::int,
       -- The control file names it only after the first checkpoint of a promoted server.
       CASE WHEN pg_is_in_recovery() THEN '0' ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
       current_setting('data_checksums')::bool,
       current_setting('summarize_wal')::bool,
       pg_size_bytes(current_setting('wal_segment_size')),
       (SELECT array_agg(spcname::text) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')),
       pg_is_in_recovery()
"""
# Ordinary tables of users: what is partitioned is counted in its partitions.
_TABLES = """
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY 1, 2
"""
_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
# 64 bits of each row, added up in 128: rows in another order give the same, a row more, less or other does not.
_HASH = "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM {} t"
_MARK = """
SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, pg_current_wal_insert_lsn()::text
FROM pg_current_snapshot() s
"""
_NEXT = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
_WRITING = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL) + (SELECT count(*) FROM pg_prepared_xacts)
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a running cluster says of itself."""

    system_identifier: int
    server_version: int
    timeline: int
    checksums: bool
    summarizes: bool
    segment_size: int


@dataclass(frozen=True, slots=True)
class SlotState:
    """How the slot of the receiver stands; lags in bytes."""

    position: Lsn
    kept: int | None
    lost: bool
    receiving: bool
    synchronous: bool


class Source:
    """The cluster behind `dsn`: direct, as a role that may read all and replicate."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @contextmanager
    def connect(self, database: str | None = None) -> Iterator[Connection]:
        """Open a connection in autocommit mode. Raises ProgramError when there is none."""
        try:
            info = self.dsn if database is None else make_conninfo(self.dsn, dbname=database)
            with psycopg.connect(info, autocommit=True, connect_timeout=_CONNECT, prepare_threshold=None) as connection:
                yield connection
        except psycopg.Error as error:
            raise ProgramError(f"The database failed: {error}") from error

    def facts(self) -> Facts:
        """Return what the cluster says of itself. Raises DatabaseUnsuitableError when it cannot be backed up."""
        with self.connect() as connection:
            row = connection.execute(_FACTS).fetchone()
            assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        if row[6]:
            raise DatabaseUnsuitableError(f"Tablespaces are not backed up, and there are: {', '.join(row[6])}.")
        if row[7]:
            raise DatabaseUnsuitableError("The database is a standby: back up the primary.")
        return Facts(row[0], row[1], int(row[2], 16), *row[3:6])

    @contextmanager
    def lock(self) -> Iterator[Connection]:
        """Hold the right to make a backup of this cluster. Raises BackupBusyError."""
        with self.connect() as connection:
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK]).fetchone()
            if row != (True,):
                raise BackupBusyError("A backup of this database is made at the moment.")
            try:
                yield connection
            finally:
                # PostgreSQL would give it up too, but only some time after the connection is closed.
                with suppress(psycopg.Error):
                    connection.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])

    def next_transaction(self) -> int:
        """Return the id (xid8) of a transaction that begins now: none after it has begun yet."""
        with self.connect() as connection, connection.transaction(force_rollback=True):
            row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        return int(row[0]) if row else 0

    def slot(self, name: str, application: str) -> SlotState:
        """Return how the slot `name` stands."""
        with self.connect() as connection:
            row = connection.execute(
                "SELECT pg_current_wal_flush_lsn()::text, "
                "pg_wal_lsn_diff(pg_current_wal_flush_lsn(), s.restart_lsn)::bigint, "
                "coalesce(s.wal_status = 'lost', false), coalesce(s.active, false), "
                "EXISTS (SELECT FROM pg_stat_replication WHERE application_name = %s AND sync_state <> 'async') "
                "FROM (SELECT 1) one LEFT JOIN pg_replication_slots s ON s.slot_name = %s",
                [application, name],
            ).fetchone()
        assert row is not None  # noqa: S101 - the one row of `one`
        return SlotState(Lsn.parse(row[0]), row[1], row[2], row[3], row[4])

    def let_commits_wait(self, application: str, *, wait: bool) -> None:
        """Make commits wait for the receiver to have their WAL durable, or no longer."""
        name = f"FIRST 1 ({application})" if wait else ""
        with self.connect() as connection:
            shown = connection.execute("SELECT current_setting('synchronous_standby_names')").fetchone()
            if shown != (name,):
                connection.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(name)))
                connection.execute("SELECT pg_reload_conf()")

    def content(self) -> Content | None:
        """Take the content of all tables at one position of the WAL; None when writes left no moment for it.

        Position and snapshots (one for each database) belong together because between them nothing can have committed:
        no transaction that writes was under way once the position was read, and none had ended since the snapshots. In
        this order: a commit that was in the WAL before the position but not in a snapshot was under way at the first
        look, or has moved the end of the snapshots at the second.
        """
        with ExitStack() as stack:
            watcher = stack.enter_context(self.connect())
            holders = {name: stack.enter_context(self.connect(name)) for name in _databases(watcher)}
            for _ in range(_ATTEMPTS):
                marks = [_mark(holder) for holder in holders.values()]
                writing = watcher.execute(_WRITING).fetchone()
                later = watcher.execute(_NEXT).fetchone()
                if writing == (0,) and later and all(low == high == later[0] for low, high, _ in marks):
                    # Recovery stops before the first record behind the position, so there must be one.
                    watcher.execute("SELECT pg_logical_emit_message(false, 'kronos_backup', '', true)")
                    taken_at = datetime.now(UTC)
                    tables = {name: _hashes(holder) for name, holder in holders.items()}
                    return Content(marks[-1][2], taken_at, tables)
                for holder in holders.values():
                    holder.execute("ROLLBACK")
                time.sleep(_PAUSE)
        return None

    def hashes(self) -> Mapping[str, Mapping[str, TableContent]]:
        """Return rows and hashes of all tables in all databases."""
        with self.connect() as connection:
            names = _databases(connection)
        found = {}
        for name in names:
            with self.connect(name) as connection:
                _mark(connection)
                found[name] = _hashes(connection)
        return found


def _databases(connection: Connection) -> Sequence[str]:
    return [str(row[0]) for row in connection.execute(_DATABASES)]


def _mark(connection: Connection) -> tuple[int, int, Lsn]:
    """Begin to read in one snapshot; return its lowest and next transaction, and a position right after it."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    row = connection.execute(_MARK).fetchone()
    assert row is not None  # noqa: S101 - one snapshot
    return int(row[0]), int(row[1]), Lsn.parse(row[2])


def _hashes(connection: Connection) -> Mapping[str, TableContent]:
    """Return rows and hashes of all tables in the snapshot of `connection`."""
    connection.execute("SET LOCAL statement_timeout = 0")
    # What a value looks like as text must not depend on settings.
    for setting in ("datestyle = 'ISO'", "timezone = 'UTC'", "bytea_output = 'hex'", "extra_float_digits = 1"):
        connection.execute(f"SET LOCAL {setting}")
    found = {}
    for schema, table in connection.execute(_TABLES).fetchall():
        row = connection.execute(sql.SQL(_HASH).format(sql.Identifier(schema, table))).fetchone()
        assert row is not None  # noqa: S101 - an aggregate
        found[f"{schema}.{table}"] = TableContent(int(row[0]), str(row[1]))
    connection.execute("ROLLBACK")
    return found
