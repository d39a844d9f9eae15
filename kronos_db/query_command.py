"""What `kronos-db query` does: runs a statement that reads, and prints its rows as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import typer
from google.protobuf import descriptor_pool
from google.protobuf.json_format import MessageToDict
from kronos.admin.v1 import admin_pb2, query_pb2
from rich.console import Console
from rich.table import Table

from kronos_db.client import Client, Method

Format = Literal["table", "csv", "json"]

# Not by reflection, which operators need not be allowed.
_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_QUERY = Method(_SERVICE.methods_by_name["Query"], descriptor_pool.Default())
_EXPLAIN = Method(_SERVICE.methods_by_name["ExplainQuery"], descriptor_pool.Default())
_CUTS = {
    query_pb2.QUERY_CUT_ROWS: "there are more rows than may be returned (--max-rows, KRONOS_DB_QUERY_MAX_ROWS)",
    query_pb2.QUERY_CUT_BYTES: "there are more bytes than may be returned (KRONOS_DB_QUERY_MAX_BYTES)",
}
# The exit code of a result that was cut: rows were printed, and not all.
CUT = 3


def read_statement(text: str | None, file: Path | None) -> str:
    """Return the statement: as given, from a file, or from standard input. Raises typer.TyperException."""
    if (text is None) == (file is None):
        raise typer.BadParameter("Give a statement, - for standard input, or --file.")
    if text is not None and text != "-":
        return text
    try:
        return sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except OSError as error:
        raise typer.TyperException(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise typer.TyperException("The statement is not UTF-8.") from None


def run(client: Client, request: query_pb2.QueryRequest, form: Format) -> None:
    """Run a statement and print its rows; says on standard error when they were cut, with exit code 3."""
    deadline = request.timeout.ToTimedelta().total_seconds() + 5 if request.HasField("timeout") else None
    parts: Iterator[Any] = client.call(_QUERY, iter([request]), deadline=deadline)
    columns = [column.name for column in next(parts).columns.columns]
    end: query_pb2.QueryEnd | None = None

    def rows() -> Iterator[Sequence[object]]:
        nonlocal end
        for part in parts:
            if part.WhichOneof("part") == "end":
                end = part.end
            for row in part.rows.rows:
                yield [plain(value) for value in row.values]

    _PRINTERS[form](columns, rows(), sys.stdout)
    if end is None:
        raise typer.TyperException("The result was broken off; these are not all rows.")
    if end.cut != query_pb2.QUERY_CUT_UNSPECIFIED:
        print(f"Cut after {end.row_count} rows: {_CUTS[end.cut]}.", file=sys.stderr)
        raise typer.Exit(CUT)


def explain(client: Client, request: query_pb2.ExplainQueryRequest) -> None:
    """Print the plan of a statement, and what it is expected to cost and may cost."""
    [answer] = client.call(_EXPLAIN, iter([request]), deadline=30.0)
    found: Any = answer
    print(json.dumps(json.loads(found.plan), indent=2, ensure_ascii=False))
    print(f"cost {found.cost:.0f} of {found.max_cost:.0f}", file=sys.stderr)


def plain(value: query_pb2.QueryValue) -> object:
    """Return a value as JSON has it: decimals, times and all that JSON does not know as text."""
    kind = value.WhichOneof("kind") or "null_value"
    return _PLAIN[kind](value) if kind in _PLAIN else getattr(value, kind)


_PLAIN: Mapping[str, Callable[[query_pb2.QueryValue], object]] = {
    "null_value": lambda _: None,
    "array_value": lambda value: [plain(each) for each in value.array_value.values],
    "json_value": lambda value: json.loads(value.json_value),
    "bytes_value": lambda value: "\\x" + value.bytes_value.hex(),
    "timestamp_value": lambda value: value.timestamp_value.ToJsonString(),
    # NaN and infinity are texts in JSON.
    "double_value": lambda value: MessageToDict(value)["doubleValue"],
}


def _cell(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _as_table(columns: Sequence[str], rows: Iterator[Sequence[object]], out: TextIO) -> None:
    console = Console(highlight=False, markup=False, file=out)
    if not console.is_terminal:
        # A pipe has no width: nothing is to be broken there.
        console = Console(highlight=False, markup=False, file=out, width=10_000)
    table = Table(*columns)
    for row in rows:
        table.add_row(*("NULL" if value is None else _cell(value) for value in row))
    console.print(table)
    console.print(f"{table.row_count} rows")


def _as_csv(columns: Sequence[str], rows: Iterator[Sequence[object]], out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)


def _as_json(columns: Sequence[str], rows: Iterator[Sequence[object]], out: TextIO) -> None:
    """Print an object on each line; of columns with the same name the last one is in it."""
    out.writelines(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)


_PRINTERS = {"table": _as_table, "csv": _as_csv, "json": _as_json}
