"""Brings the tables of one schema back into the live database, out of an instance that a backup was restored into."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from psycopg import Connection, sql

from kronos_db.backup.database import Source
from kronos_db.backup.drill import SCRATCH, scratch_instance
from kronos_db.backup.model import (
    Progress,
    RestoredTables,
    RestoreRequest,
    RestoreTarget,
    Step,
    TablesMismatchError,
    Work,
)
from kronos_db.backup.plan import plan
from kronos_db.backup.programs import Programs
from kronos_db.backup.restore import Restoration
from kronos_db.backup.vault import Vault
from kronos_db.embedded.account import account_for

# What can be copied: generated columns are not, and partitions are reached through their own names.
_COLUMNS = """
SELECT c.relname::text, json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE n.nspname = %s AND c.relkind = 'r'
GROUP BY c.relname ORDER BY c.relname
"""
# Partitioned ones too: foreign keys are theirs.
_TABLES = """
SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p')
"""
# What the runtime keeps in every schema about what runs now, and the keys: those erased since stay erased. None of it
# goes back in time.
_PRESENT = ("schema_migration", "data_key", "copy_holder", "lease", "change", "change_horizon")
_MIGRATIONS = "SELECT name, checksum FROM {}.schema_migration ORDER BY name"
# Whoever watches or keeps copies has missed changes, and reads everything anew.
_OUTDATE = "UPDATE {}.change_horizon SET purged = pg_current_xact_id()"
_SEQUENCES = """
SELECT sequencename::text, last_value FROM pg_sequences
WHERE schemaname = %s AND last_value IS NOT NULL ORDER BY sequencename
"""


class TableRestoration:
    """Restores schemas into the database of `source`, through a scratch folder."""

    def __init__(
        self, vault: Vault, programs: Programs, restoration: Restoration, scratch: Path, *, source: Source, user: str
    ) -> None:
        self._vault = vault
        self._programs = programs
        self._restoration = restoration
        self._scratch = scratch
        self._source = source
        self._user = user

    def restore(self, schema: str, target: RestoreTarget, database: str) -> Work[RestoredTables]:
        """Restore the tables, as `Engine.restore_tables` describes."""
        began = time.monotonic()
        request = RestoreRequest(self._scratch / "tables", target)
        with scratch_instance(self._programs, self._restoration, request.folder) as instance:
            planned = plan(self._vault, request, self._source.facts().system_identifier)
            backup_id = planned.chain[-1].id
            yield from self._restoration.lay_out(planned, instance, account_for(request.folder))
            yield from self._restoration.recover(planned, instance, SCRATCH)
            yield Progress(Step.TABLES, backup_id=backup_id)
            past = Source(instance.dsn(self._user, database))
            with past.connect() as old, self._source.connect(database) as live:
                rows = _replace(old, live, schema)
        yield Progress(Step.DONE, backup_id=backup_id)
        return RestoredTables(backup_id, rows, time.monotonic() - began)


_Columns: TypeAlias = Mapping[str, str]


def _replace(old: Connection, live: Connection, schema: str) -> Mapping[str, int]:
    """Replace all rows of the schema in one transaction; return the rows of each table."""
    tables = _columns(old, schema)
    with live.transaction():
        live.execute("SET LOCAL statement_timeout = 0")
        # Foreign keys hold among what was consistent before; triggers have had their effect then.
        live.execute("SET LOCAL session_replication_role = replica")
        present = _columns(live, schema)
        _refuse_mismatch(schema, tables, present)
        _refuse_other_migrations(old, live, schema, present)
        found = (str(row[0]) for row in live.execute(_TABLES, [schema]))
        names = [sql.Identifier(schema, table) for table in found if table not in _PRESENT]
        live.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
        wanted = {table: columns for table, columns in tables.items() if table not in _PRESENT}
        rows = {table: _copy(old, live, schema, table, columns) for table, columns in wanted.items()}
        _advance_sequences(old, live, schema)
        if "change_horizon" in present:
            live.execute(sql.SQL(_OUTDATE).format(sql.Identifier(schema)))
    return rows


def _columns(connection: Connection, schema: str) -> dict[str, _Columns]:
    return {row[0]: row[1] for row in connection.execute(_COLUMNS, [schema])}


def _refuse_mismatch(
    schema: str,
    old: Mapping[str, _Columns],
    live: Mapping[str, _Columns],
) -> None:
    if not old:
        raise TablesMismatchError(f"The backup has no tables in the schema {schema}.", metadata={"schema": schema})
    for table in old.keys() | live.keys():
        # A partition that there was is copied when it still is there; a new one is emptied with the others.
        if table not in live or (table in old and old[table] != live[table]):
            raise TablesMismatchError(
                f"{schema}.{table} of the backup is not as it is in the live database: restore into a new instance.",
                metadata={"schema": schema, "table": table},
            )


def _refuse_other_migrations(old: Connection, live: Connection, schema: str, present: Mapping[str, _Columns]) -> None:
    if "schema_migration" in present:
        query = sql.SQL(_MIGRATIONS).format(sql.Identifier(schema))
        if old.execute(query).fetchall() != live.execute(query).fetchall():
            raise TablesMismatchError(
                f"The schema {schema} was migrated since: restore into a new instance.", metadata={"schema": schema}
            )


def _advance_sequences(old: Connection, live: Connection, schema: str) -> None:
    """Let no sequence give again what it gave before the target; what it gave since it does not give again either."""
    for name, last in old.execute(_SEQUENCES, [schema]).fetchall():
        place = sql.Identifier(schema, name).as_string(live)
        live.execute("SELECT setval(%s::regclass, greatest(%s, nextval(%s::regclass)))", [place, last, place])


def _copy(old: Connection, live: Connection, schema: str, table: str, columns: Iterable[str]) -> int:
    parts = {"table": sql.Identifier(schema, table), "columns": sql.SQL(", ").join(map(sql.Identifier, columns))}
    out = sql.SQL("COPY {table} ({columns}) TO STDOUT (FORMAT binary)").format(**parts)
    into = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT binary)").format(**parts)
    cursor = live.cursor()
    with old.cursor().copy(out) as source, cursor.copy(into) as sink:
        for piece in source:
            sink.write(piece)
    return cursor.rowcount
