"""The handlers of restricted SQL: part of AdminService."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from kronos.admin.v1 import query_pb2 as pb

from kronos_db.admin.guard import fingerprint
from kronos_db.admin.query_store import Column, Reading, Row
from kronos_db.admin.query_values import Fill, filler
from kronos_db.admin.querying import Querying, Question, Result
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.terms import on_terms

# What one message holds, about: callers take 4 MiB, and one row is 1 MiB at most.
_MOST_ROWS = 500
_MOST_BYTES = 256 * 1024
_CUTS = {"": pb.QUERY_CUT_UNSPECIFIED, "rows": pb.QUERY_CUT_ROWS, "bytes": pb.QUERY_CUT_BYTES}


def _fingerprint(request: pb.QueryRequest | pb.ExplainQueryRequest) -> str:
    return fingerprint(request.sql)


class QueryHandlers:
    """Statements of operators."""

    def __init__(self, querying: Querying) -> None:
        self._querying = querying

    @on_terms(detail=_fingerprint)
    def Query(self, request: pb.QueryRequest, context: object) -> Iterator[pb.QueryResponse]:
        """Run a statement."""
        started = time.monotonic()
        call = Call.of(context)
        with self._querying.run(_question(request), lambda reading: _cancel_with(call, reading)) as result:
            yield pb.QueryResponse(columns=_columns(result.columns))
            for rows in _portions(result):
                yield pb.QueryResponse(rows=rows)
            end = _end(result)
        end.fingerprint = fingerprint(request.sql)
        end.elapsed.FromTimedelta(timedelta(seconds=time.monotonic() - started))
        yield pb.QueryResponse(end=end)

    @on_terms(detail=_fingerprint)
    def ExplainQuery(self, request: pb.ExplainQueryRequest, context: object) -> pb.ExplainQueryResponse:
        """Tell the plan of a statement."""
        plan, most = self._querying.explain(Question(request.sql, request.domain))
        return pb.ExplainQueryResponse(
            plan=plan.text,
            cost=plan.cost,
            max_cost=most,
            row_count=plan.rows,
            fingerprint=fingerprint(request.sql),
        )


def joined(documents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return one document of the parts of a result as JSON has them: columns, all rows, and the fields of the end."""
    columns: list[Any] = []
    rows: list[Any] = []
    end: Mapping[str, Any] = {}
    for part in documents:
        columns += part.get("columns", {}).get("columns", [])
        rows += part.get("rows", {}).get("rows", [])
        end = part.get("end", end)
    return {"columns": columns, "rows": [row["values"] for row in rows], **end}


def _question(request: pb.QueryRequest) -> Question:
    return Question(
        request.sql,
        request.domain,
        request.max_rows,
        request.max_bytes,
        request.timeout.ToTimedelta().total_seconds(),
    )


def _cancel_with(call: Call, reading: Reading) -> None:
    """Cancel the statement when the call is over before it: in a thread, since gRPC's own must not wait."""

    def closed() -> None:
        if not reading.over:
            threading.Thread(target=reading.cancel, name="cancel", daemon=True).start()

    if not call.context.add_callback(closed):
        closed()


def _columns(columns: Sequence[Column]) -> pb.QueryColumns:
    return pb.QueryColumns(
        columns=[pb.QueryColumn(name=each.name, type=each.type, type_oid=each.oid) for each in columns]
    )


def _portions(result: Result) -> Iterator[pb.QueryRows]:
    fills = [filler(column) for column in result.columns]
    portion, sent = pb.QueryRows(), 0
    for row in result.rows():
        _fill_row(portion.rows.add(), row, fills)
        if len(portion.rows) >= _MOST_ROWS or result.bytes - sent >= _MOST_BYTES:
            yield portion
            portion, sent = pb.QueryRows(), result.bytes
    if portion.rows:
        yield portion


def _fill_row(message: pb.QueryRow, row: Row, fills: Sequence[Fill]) -> None:
    for text, fill in zip(row, fills, strict=True):
        value = message.values.add()
        if text is None:
            value.null_value = 0  # type: ignore[assignment]  # the only value of its enum
        else:
            fill(value, text)


def _end(result: Result) -> pb.QueryEnd:
    return pb.QueryEnd(row_count=result.count, byte_count=result.bytes, cut=_CUTS[result.cut], cost=result.plan.cost)
