"""Tries missing indexes out in a scratch database, on a sample of the tables: what they gain, and what they cost.

The sample is a copy of rows as they are stored: what is sealed stays sealed. It is dropped when the trial is over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from kronos_db.admin.advice import Advice, Facts, Kind, Measured, Statement, Table, quoted
from kronos_db.admin.changes import ScratchMissingError, ScratchTakenError
from kronos_db.admin.predicates import accesses
from kronos_db.admin.statement_store import Sources
from kronos_db.admin.trial import Parameter, parameters
from kronos_db.runtime.database.operating import OperatorConnection, connected
from kronos_db.runtime.database.queries import load_queries

_QUERIES = load_queries(Path(__file__).with_name("indexes.sql"), "admin")
# Seconds that any statement may take there.
_LIMIT = 60.0
_SAMPLED_ROWS = 100_000
_WRITTEN_ROWS = 5_000
_TIMES = 5
_MOST_STATEMENTS = 3

# Statements over tables that are made for the trial alone. A value as text, of one of the first rows; of JSON documents
# that of a member.
_ROW = "(SELECT count(*) / 2 FROM (SELECT FROM {table} WHERE {column} IS NOT NULL LIMIT 1000) AS few)"
_VALUE = f"""
SELECT CASE WHEN {{member}} = '' THEN {{column}}::text ELSE to_jsonb({{column}}) ->> {{member}} END
FROM {{table}} WHERE {{column}} IS NOT NULL OFFSET {_ROW} LIMIT 1
"""  # noqa: S608 - names are quoted
# What a value contains: the first element of an array, the last member of a JSON object.
_ELEMENT = f"""
SELECT CASE jsonb_typeof(value.document)
    WHEN 'object' THEN (
        SELECT jsonb_build_object(member.key, member.value)::text
        FROM jsonb_each(CASE jsonb_typeof(value.document) WHEN 'object' THEN value.document END) AS member
        ORDER BY member.key DESC LIMIT 1
    )
    WHEN 'array' THEN value.document ->> 0
END
FROM (
    SELECT to_jsonb({{column}}) AS document FROM {{table}} WHERE {{column}} IS NOT NULL OFFSET {_ROW} LIMIT 1
) AS value
"""  # noqa: S608 - names are quoted


class _NotTriableError(Exception):
    """An index cannot be tried out; the text says why."""


class Scratch:
    """The scratch database; `dsn` is None when there is none."""

    def __init__(self, dsn: str | None, sources: Sources) -> None:
        self._dsn = dsn
        self._sources = sources

    def check(self) -> None:
        """Raise ScratchMissingError when nothing can be tried out."""
        if self._dsn is None:
            raise ScratchMissingError

    def measured(self, facts: Facts, advice: Advice) -> Advice:
        """Return `advice` with what was measured; with the reason among its evidence when nothing was."""
        if advice.kind is not Kind.MISSING:
            return advice
        try:
            return replace(advice, measured=self._measure(facts, advice))
        except (_NotTriableError, psycopg.Error) as error:
            said = error.diag.message_primary if isinstance(error, psycopg.Error) else str(error)
            return replace(advice, evidence=[*advice.evidence, f"not measured: {said}"])

    def _measure(self, facts: Facts, advice: Advice) -> Measured:
        statements = [each for each in facts.statements if each.id in advice.queries][:_MOST_STATEMENTS]
        columns = {name: list(table.columns) for name, table in facts.tables.items()}
        names = {
            access.table
            for each in statements
            for query in accesses(each.text, facts.schema, columns)
            for access in query
        }
        tables = [facts.tables[name] for name in sorted(names | {advice.table})]
        with self._schema(facts.schema) as scratch:
            with self._sources.connected(facts.domain) as source:
                for table in tables:
                    _clone(facts, table, source, scratch)
            trial = _Trial(scratch, tables)
            before = {each.id: trial.run(each) for each in statements}
            slowest = max(before, key=lambda query: before[query][0])
            scratch.run(advice.statement.replace(" CONCURRENTLY", ""))
            after, plan = trial.run(next(each for each in statements if each.id == slowest))
            sampled = scratch.fetch_all(_QUERIES["sampled"], {"table": f"{facts.schema}.{advice.table}"}, int)[0]
            name = f"{quoted(facts.schema)}.{quoted(advice.index)}"
            size = scratch.fetch_all(_QUERIES["size"], {"index": name}, int)[0]
            return Measured(
                before[slowest][0],
                after,
                int(size * max(1.0, facts.tables[advice.table].rows / max(1, sampled))),
                _write_cost(scratch, advice, facts.schema, sampled),
                sampled,
                advice.index in plan,
            )

    @contextmanager
    def _schema(self, schema: str) -> Iterator[OperatorConnection]:
        """Give a connection to the scratch database, with an empty schema of this name, which is dropped at the end."""
        if self._dsn is None:
            raise ScratchMissingError
        with connected(self._dsn, "scratch", _LIMIT, {"search_path": "pg_catalog"}) as scratch:
            if not scratch.fetch_one(_QUERIES["lock"], {}, bool):
                raise ScratchTakenError
            mark = scratch.fetch_one(_QUERIES["schema_mark"], {"schema": schema}, str)
            if mark is not None and mark != _MARK:
                # Whatever database this is: nobody's data is dropped here.
                raise ScratchTakenError(metadata={"schema": schema})
            scratch.run(f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE")
            scratch.run(f"CREATE SCHEMA {quoted(schema)}")
            scratch.run(f"COMMENT ON SCHEMA {quoted(schema)} IS '{_MARK}'")
            try:
                yield scratch
            finally:
                scratch.run(f"DROP SCHEMA {quoted(schema)} CASCADE")
                # The end of the session would free it too, but not before the next one is there.
                scratch.fetch_one(_QUERIES["unlock"], {}, bool)


# The comment of schemas that may be dropped.
_MARK = "kronos-db scratch"


def _clone(facts: Facts, table: Table, source: OperatorConnection, scratch: OperatorConnection) -> None:
    """Copy a sample of a table, with its indexes."""
    full = f"{quoted(table.schema)}.{quoted(table.name)}"
    columns = ", ".join(f"{quoted(each.name)} {each.type}" for each in table.columns.values())
    names = ", ".join(quoted(each) for each in table.columns)
    scratch.run(f"CREATE TABLE {full} ({columns})")
    share = 100 * _SAMPLED_ROWS / max(table.rows, 1.0)
    sample = f" TABLESAMPLE SYSTEM ({share:.6f}) REPEATABLE (1)" if share < 100 else ""  # noqa: PLR2004 - percent
    # Names and numbers of ours alone.
    source.copy_rows(f"SELECT {names} FROM {full}{sample}", scratch, f"{full} ({names})")  # noqa: S608
    for index in facts.indexes:
        if index.table == table.name and index.valid and not index.partition_of:
            scratch.run(index.definition)
    scratch.run(f"ANALYZE {full}")


class _Trial:
    """Runs statements with values of rows that are there."""

    def __init__(self, scratch: OperatorConnection, tables: Sequence[Table]) -> None:
        self._scratch = scratch
        self._tables = tables

    def run(self, statement: Statement) -> tuple[float, str]:
        """Return the ms that a statement takes, the least of five times, and its plan; undo what it does."""
        wanted = parameters(statement.text)
        if wanted is None:
            raise _NotTriableError("a parameter of a statement is compared with no column")
        values = ", ".join(self._value(each) for each in wanted)
        scratch = self._scratch
        scratch.run(f"PREPARE kronos_trial AS {statement.text}")
        try:
            scratch.run("SET plan_cache_mode = force_custom_plan")
            call = f"EXECUTE kronos_trial({values})" if wanted else "EXECUTE kronos_trial"
            plans = [self._explained(call) for _ in range(_TIMES)]
        finally:
            scratch.run("DEALLOCATE kronos_trial")
        times = [float(plan[0]["Execution Time"]) for plan in plans]
        # What else the machine does only adds to it.
        return min(times), json.dumps(plans[-1])

    def _explained(self, call: str) -> Any:
        self._scratch.run("BEGIN")
        try:
            return self._scratch.ask(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {call}")
        finally:
            self._scratch.run("ROLLBACK")

    def _value(self, parameter: Parameter) -> str:
        if parameter.limit:
            return "10"
        table = next((each for each in self._tables if parameter.column in each.columns), None)
        if table is None:
            raise _NotTriableError(f"a parameter is compared with {parameter.column}, which no table here has")
        text = _ELEMENT if parameter.contained else _VALUE
        found = self._scratch.ask(
            text.format(
                table=f"{quoted(table.schema)}.{quoted(table.name)}",
                column=quoted(parameter.column),
                member=_literal(parameter.member),
            )
        )
        if found is None:
            raise _NotTriableError(f"there is no value of {parameter.column}")
        column = table.columns[parameter.column]
        if parameter.array or (parameter.contained and parameter.whole and column.type.endswith("[]")):
            found = '{"' + found.replace("\\", "\\\\").replace('"', '\\"') + '"}'
        return _literal(str(found))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _write_cost(scratch: OperatorConnection, advice: Advice, schema: str, rows: int) -> float:
    """Return the microseconds that an index adds to each row written."""
    table, copy = f"{quoted(schema)}.{quoted(advice.table)}", f'{quoted(schema)}."kronos_written"'
    scratch.run(f"CREATE TABLE {copy} (LIKE {table})")
    fill = f"INSERT INTO {copy} SELECT * FROM {table} LIMIT {_WRITTEN_ROWS}"  # noqa: S608 - names of ours
    bare = min(_timed(scratch, copy, fill) for _ in range(_TIMES))
    name = f"ON {copy}"
    scratch.run(
        advice.statement.replace(" CONCURRENTLY", "")
        .replace(f"ON {table}", name)
        .replace(quoted(advice.index), '"kronos_written_index"')
    )
    indexed = min(_timed(scratch, copy, fill) for _ in range(_TIMES))
    return max(0.0, indexed - bare) * 1e6 / max(1, min(_WRITTEN_ROWS, rows))


def _timed(scratch: OperatorConnection, table: str, statement: str) -> float:
    scratch.run(f"TRUNCATE {table}")
    start = time.perf_counter()
    scratch.run(statement)
    return time.perf_counter() - start
