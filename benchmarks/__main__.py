"""Runs the measurements: prints a table, writes `benchmarks/results.json` and `docs/benchmarks.md`.

python -m benchmarks [--only processes]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import admin, backup, cache, logs, messages, overload, processes, routes, streams, tokens, users
from benchmarks.stand import Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
PARTS: Mapping[str, Callable[[], Iterator[Row]]] = {
    "users": users.rows,
    "tokens": tokens.rows,
    "logs": logs.rows,
    "routes": routes.rows,
    "messages": messages.rows,
    "cache": cache.rows,
    "admin": admin.rows,
    "processes": processes.rows,
    "streams": streams.rows,
    "overload": overload.rows,
    "backup": backup.rows,
}
_PAGE = """# Benchmarks

Made by `make bench`; do not edit.
Measured on {day} with {machine}.
The machines are shared: ratios between figures of one run say more than the figures. A figure and its floor are loaded
in turn, three times, and the round in the middle counts.

{table}

## What is measured

The **load** comes from a process of its own on the same machine: server, floor, PostgreSQL and load share its cores.
64 calls are in flight unless a row says something else, four on a connection; each answered one is replaced at once.
The generator (`benchmarks/load.py`) sends HTTP/2 frames made beforehand and does not decode answers; grpcio's client
would take two to four times as much from the server beside it. Its share is a row of its own, in cores that it kept
busy.

The **floor** of a unary call is a bare threaded grpcio server that answers each request with as many bytes
(`benchmarks/echo.py`), with as many processes and threads. Other floors are in the name of the row: "A beside B" has B
as its floor.

**Rows of logs.** Records have a body of 75 characters, six attributes, trace and span id. The floor of intake is one
connection that copies the rows that the server makes of the same records into the same table, in transactions of
1,000; the server has one process, and four streams or calls bring batches (`benchmarks/batches.py`). Queries and counts
are asked one at a time of five million records of one day and 20 services.

**Rows of processes.** 8,000 users of 1,000,000 are **hot**: asked for again and again, in random order, after a time
to warm up. **Cold** ones are drawn from the others, none of them twice, so no cache knows them; PostgreSQL's own pages
are warm. All interceptors are on.

**Rows of checks.** 20 lines of roles, each ten deep, and users with five grants of them in different scopes. Every
other question is allowed, by the first role of a line: all ten are between it and the grant. From copies: 8,000 users,
after a time to warm up. Not in copies: each user is asked about once. The decisions a second of BatchCheckPermissions
are those of eight connections with one batch each in flight, about the same 8,000 users. With 1,000,000 users beside
1,000: two servers, asked in turn.

**Rows of tokens.** 2 processes. 8,000 tokens of 3,000,000 are hot, others are asked for once. **With 3,000,000 stored
beside 10,000**: two servers, asked in turn, one call at a time, so that the database shows and not the queue. A token's
subject is a user of UsersService, which tells whether that user is active. While the tokens of one subject are revoked,
others are introspected without a pause.

**Rows of restricted SQL.** Eight statements that take all they can get, each for a second, while somebody else calls
without a pause. A statement that computes keeps a core of PostgreSQL's machine busy, here one of two; any process does
that to its neighbours, so a second row has beside it a process of the lowest priority that counts as long.

**Rows of routes.** Matching alone is a loop in one thread, normalising of the path included. AuthorizeRequest asks
Users whether the user is active and may. Its calls share one user, so all of them count in the same two counters: "a
rate and a day" waits for PostgreSQL to commit before each answer, "two rates" asks Redis alone. A change of the table
is live when its call returns: no process answers from before it.

**Rows of the cache.** Values have 100 bytes. "GetEntries of 100 keys" asks for 8,000 hot keys in random order.
"PutEntries of 100" overwrites 50,000 keys again and again; its floor is one redis-py client (with hiredis) that does
the same by SETs in pipelines of 100, to the Redis beside the server, without versions and without anybody being told.

**2 processes beside 1** is told twice, with the same load on each process (32 calls in flight). "As seen" is what
arrived, on a machine where the generator and PostgreSQL need cores too; with 2 cores it cannot come near 2. "A core
each" takes that out: calls, divided by the processor seconds of the serving processes (user and system) in which they
were answered, times the number of processes. It is what they would do if each had a core and nobody took of it. It
falls below 2 as far as a call gets dearer because there is another process.

**Rows of backups.** A database of 1 GB, three quarters of it random bytes, backed up to the disk that it lies on. Ours
are compressed and sealed; the floor is `pg_basebackup` into a folder, its fsync included. A backup is measured until it
is complete and durable; the content for drills is taken after that. The chain is a full and an incremental backup; its
floor is `cp -r` of plain ones and `pg_combinebackup`. Full backups are made without a pause while eight calls are in
flight.

**Rows of messages.** "Plain SQL" is a queue as pgmq publishes it (`benchmarks/plain_queue.py`), over four connections
of one process to the same PostgreSQL: no caller, no seal, no lease token, no history, no answer that is remembered for
a repeat. Payloads have 100 bytes. The raw INSERT writes the rows of the messages alone. The snapshot is held by an idle
REPEATABLE READ transaction; as many messages as stand in the row were put in and removed while it was open, all of
which PostgreSQL has to keep.

**Express + Sequelize** (`benchmarks/express`) serves the same row of the same PostgreSQL as JSON over HTTP/1.1, with as
many processes and connections, 64 kept-alive connections with one call each, and a generator of the same kind. It does
less: no caller is known or refused, nothing is validated, counted or logged. The answer is the same: node:crypto opens
e-mail and phone, and derived keys are remembered, as kronos-db does; the run fails when they are still sealed.
Sequelize answers plain rows (`raw`) and Express makes no etags, which is faster than what both do by themselves. Needs
node and npm; without them the row says so.
"""
_HEAD = ("figure", "value", "unit", "floor", "ratio", "bar", "met")


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text."""
    met = "" if row.met is None else "yes" if row.met else "NO"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return (row.name, _number(row.value), row.unit, _number(row.floor), ratio, row.bar, met)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [_HEAD, tuple("---" for _ in _HEAD), *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def page(rows: list[Row]) -> str:
    """Return the page of benchmarks."""
    machine = f"{os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}"
    return _PAGE.format(day=f"{datetime.now(UTC):%Y-%m-%d}", machine=machine, table=table(rows))


def main() -> None:
    """Measure what is asked for; rows of other parts are kept from the run before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS))
    only: str | None = parser.parse_args().only
    kept = [Row(**row) for row in json.loads(RESULTS.read_text())] if RESULTS.exists() and only else []
    rows = [row for row in kept if not row.name.startswith(f"{only}:")]
    for part, measure in PARTS.items():
        if only in {None, part}:
            for row in measure():
                print(" | ".join(cells(row)), file=sys.stderr, flush=True)
                rows.append(row)
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(page(rows))
    print(table(rows))
    if not all(row.met in {None, True} for row in rows):
        raise SystemExit("a bar was not met")


if __name__ == "__main__":
    main()
