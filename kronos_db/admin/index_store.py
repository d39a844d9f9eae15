"""Reads what is known of a domain's tables and indexes, as the domain's own role sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from kronos_db.admin.advice import Column, Facts, Index, Statement, Table
from kronos_db.runtime.database.operating import OperatorConnection
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import as_row

_QUERIES = load_queries(Path(__file__).with_name("indexes.sql"), "admin")


def facts_of(
    direct: OperatorConnection,
    domain: str,
    statements: Sequence[Statement] = (),
    replicas: Sequence[OperatorConnection] = (),
) -> Facts:
    """Return what is known of the schema of `domain`; `replicas` are standbys that are asked what they read."""
    params = {"schema": domain}
    seconds, standbys = direct.fetch_all(_QUERIES["observed"], {}, as_row)[0]
    columns: dict[str, dict[str, Column]] = {}
    for table, *rest in direct.fetch_all(_QUERIES["columns"], params, as_row):
        column = Column(*rest)
        columns.setdefault(table, {})[column.name] = column
    tables = {}
    for name, rows, size, writes, key, partitioned in direct.fetch_all(_QUERIES["tables"], params, as_row):
        tables[name] = Table(domain, name, rows, size, writes, columns.get(name, {}), key, partitioned)
    indexes = direct.fetch_all(_QUERIES["indexes"], params, Index)
    for replica in replicas:
        scans = {index.name: index.scans for index in replica.fetch_all(_QUERIES["indexes"], params, Index)}
        indexes = [replace(index, scans=index.scans + scans.get(index.name, 0)) for index in indexes]
    return Facts(
        domain, domain, timedelta(seconds=seconds), tables, indexes, statements, max(0, standbys - len(replicas))
    )
