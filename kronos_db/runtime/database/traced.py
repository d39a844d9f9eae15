"""Statements and transactions as spans, where the call that sends them is recorded; never with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from kronos_db.runtime import tracing
from kronos_db.runtime.database.pool import Connection
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Params, Row, Transaction

Result = TypeVar("Result")


def begun(connection: Connection, limit: Callable[[], str | None] = lambda: None) -> Transaction:
    """Return what sends the statements of a transaction, or of a read, on behalf of what is at hand."""
    return Transaction(connection, limit) if tracing.span() is None else _Traced(connection, limit)


def recorded(domain: str, run: Callable[[Connection], Result]) -> Callable[[Connection], Result]:
    """Return `run`, each attempt of which is a span: from BEGIN to the answer of COMMIT."""

    def whole(connection: Connection) -> Result:
        with tracing.within(f"{domain}:transaction", _attributes(domain, "transaction")):
            return run(connection)

    return whole


def statement(query: Query, times: int = 1) -> AbstractContextManager[tracing.Span | None]:
    """Record the block, which runs `query` so many times, as a span with the query's name."""
    if tracing.span() is None:
        return nullcontext()
    schema, _, name = query.label.partition(":")
    attributes = _attributes(schema, name)
    return tracing.within(query.label, attributes if times == 1 else {**attributes, "db.operation.batch.size": times})


def _attributes(schema: str, name: str) -> tracing.Attributes:
    return {
        "db.system.name": "postgresql",
        "db.namespace": schema,
        "db.operation.name": name,
        "db.query.summary": f"{schema}:{name}",
    }


class _Traced(Transaction):
    """A transaction whose statements are spans.

    In a transaction statements are sent together: the span of one whose result is not waited for tells when it was
    queued, that of the transaction when all were done.
    """

    def fetch_all(self, query: Query, params: Params, make: Callable[..., Row]) -> list[Row]:
        """Run `query`; return `make(*columns)` of every row."""
        with statement(query) as span:
            rows = super().fetch_all(query, params, make)
            if span is not None:
                span.set({"db.response.returned_rows": len(rows)})
            return rows

    def fetch_one(self, query: Query, params: Params, make: Callable[..., Row]) -> Row | None:
        """Run `query`; return `make(*columns)` of its first row, or None."""
        with statement(query):
            return super().fetch_one(query, params, make)

    def fetch_each(self, query: Query, params: Sequence[Params], make: Callable[..., Row]) -> list[list[Row]]:
        """Run `query` with each of `params`; return `make(*columns)` of each one's rows."""
        with statement(query, len(params)):
            return super().fetch_each(query, params, make)

    def execute(self, query: Query, params: Params) -> int:
        """Run `query`; return how many rows it touched."""
        with statement(query):
            return super().execute(query, params)
