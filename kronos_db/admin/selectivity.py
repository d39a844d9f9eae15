"""Estimates which share of a table's rows a statement finds, from what ANALYZE knows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kronos_db.admin.advice import Column, Facts, Table
from kronos_db.admin.predicates import Access, Check, Condition

# PostgreSQL's own guess of a range with two bounds that it does not know.
_RANGE_SHARE = 0.005


def arriving_rows(facts: Facts, query: Sequence[Access]) -> dict[str, float]:
    """Return of how many rows of each access a statement is about, when each table is entered by its best way."""
    by_alias = {access.alias: access for access in query}
    rows = {access.alias: found_rows(facts, access) for access in query}
    for _ in query:
        for access in query:
            table = facts.tables[access.table]
            for condition in access.conditions:
                if condition.joins is None or condition.joins[0] not in by_alias or condition.expression:
                    continue
                each = table.rows / max(1.0, table.distinct(condition.key) or 1.0)
                rows[access.alias] = min(rows[access.alias], rows[condition.joins[0]] * each)
    return rows


def found_rows(facts: Facts, access: Access) -> float:
    """Return how many rows of a table meet the conditions on it alone."""
    return facts.tables[access.table].rows * _local_share(facts, access)


def _local_share(facts: Facts, access: Access) -> float:
    table = facts.tables[access.table]
    return math.prod(share_of(table, each) for each in access.conditions if each.joins is None)


def share_of(table: Table, condition: Condition) -> float:
    """Return which share of the rows meets a condition, as far as that is known; 1 when it is not."""
    column = table.columns.get(condition.columns[0])
    if column is None:
        return 1.0
    if condition.test is Check.FIXED:
        return _fixed_share(column, condition.sql)
    if condition.test is Check.RANGE:
        return _RANGE_SHARE if condition.both_sides else 1.0
    if condition.test is Check.CONTAINS or condition.expression:
        return 1.0
    if condition.sql:
        return _value_share(table, column, condition.sql.rpartition("= ")[2].strip("'"))
    distinct = table.distinct(column.name)
    return 1.0 if distinct is None else (1 - column.null_share) / max(1.0, distinct)


def _fixed_share(column: Column, sql: str) -> float:
    if sql.endswith("IS NOT NULL"):
        return 1 - column.null_share
    if sql.endswith("IS NULL"):
        return column.null_share
    return dict(zip(column.common_values, column.common, strict=False)).get("f" if sql.startswith("NOT ") else "t", 0.0)


def _value_share(table: Table, column: Column, value: str) -> float:
    known = dict(zip(column.common_values, column.common, strict=False))
    if value in known:
        return known[value]
    others = max(1.0, (table.distinct(column.name) or 1.0) - len(known))
    return max(0.0, 1 - sum(column.common) - column.null_share) / others
