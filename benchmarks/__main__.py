"""Runs the measurements: prints a table, writes `benchmarks/results.json` and `docs/benchmarks.md`.

python -m benchmarks [--only users]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import users
from benchmarks.stand import Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
DOMAINS: Mapping[str, Callable[[], Iterator[Row]]] = {"users": users.rows}
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
    return f"""# Benchmarks

Made by `make bench`; do not edit. Measured on {datetime.now(UTC):%Y-%m-%d} with {machine}. The machines are shared:
ratios between figures of one run say more than the figures. The load comes from a process of its own on the same
machine, so server, floor, PostgreSQL and load share its cores. The floor of a unary call is a bare threaded grpcio
echo server with the same number of threads, loaded in turn with the server.

{table(rows)}
"""


def main() -> None:
    """Measure what is asked for; rows of other domains are kept from the run before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(DOMAINS))
    only: str | None = parser.parse_args().only
    kept = [Row(**row) for row in json.loads(RESULTS.read_text())] if RESULTS.exists() and only else []
    rows = [row for row in kept if not row.name.startswith(f"{only}:")]
    for domain, measure in DOMAINS.items():
        if only in {None, domain}:
            rows += measure()
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(page(rows))
    print(table(rows))
    if not all(row.met in {None, True} for row in rows):
        raise SystemExit("a bar was not met")


if __name__ == "__main__":
    main()
