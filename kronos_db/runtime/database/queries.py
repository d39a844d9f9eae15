"""Loads the named SQL of a domain from its `queries.sql`.

A file is a series of blocks. `-- name: NAME` begins a query, `-- fragment: NAME` begins a piece that later blocks
include as `{NAME}`. The comment lines that follow say what it does; `-- plan: custom` among them keeps the query from
being prepared, for queries whose optional filters want a plan of their own. `{schema}` stands for the schema of the
domain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^-- (name|fragment): *(\w+) *$", re.MULTILINE)
_PLACE = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"/\* (\w+:\w+) \*/")


@dataclass(frozen=True, slots=True)
class Query:
    """One named SQL text. `prepared` says whether the server may keep its plan."""

    name: str
    text: str
    comment: str
    prepared: bool

    @property
    def label(self) -> str:
        """`<schema>:<name>`, by which PostgreSQL's log and traces know it."""
        return query_name(self.text) or self.name


def query_name(text: str) -> str:
    """Return `<schema>:<query>` of a statement that begins with its name; empty for others."""
    found = _NAME.match(text)
    return found[1] if found else ""


def load_queries(path: Path, schema: str) -> Mapping[str, Query]:
    """Return the queries of `path` by name.

    Raises ValueError for a block without comment or text, a name used twice, or an unknown fragment.
    """
    parts = _BLOCK.split(path.read_text(encoding="utf-8"))
    if parts[0].strip() and not all(line.startswith("--") for line in parts[0].strip().splitlines()):
        raise ValueError(f"{path}: SQL before the first name")
    fragments: dict[str, str] = {"schema": schema}
    queries: dict[str, Query] = {}
    for kind, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        comment, text = _split(body)
        if not comment or not text or name in fragments or name in queries:
            raise ValueError(f"{path}: {name} needs a comment, a text and a name of its own")
        text = _include(text, fragments, f"{path}: {name}")
        if kind == "fragment":
            fragments[name] = text
            continue
        # The leading comment names the statement in pg_stat_activity and in the server's log.
        tagged = f"/* {schema}:{name} */ {text}"
        queries[name] = Query(name, tagged, comment, prepared="plan: custom" not in comment)
    return queries


def _split(body: str) -> tuple[str, str]:
    lines = body.strip().splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    comment = " ".join(line.removeprefix("--").strip() for line in lines[:count])
    return comment, "\n".join(lines[count:]).strip().rstrip(";")


def _include(text: str, fragments: Mapping[str, str], where: str) -> str:
    def replacement(match: re.Match[str]) -> str:
        try:
            return fragments[match.group(1)]
        except KeyError:
            raise ValueError(f"{where} includes an unknown fragment {match.group(0)}") from None

    return _PLACE.sub(replacement, text)
