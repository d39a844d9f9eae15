"""Indexes that would help, what is left of them when one does for several, and the advice to make them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from kronos_db.admin.advice import Advice, Facts, Kind, Statement, Table, quoted

# What the indexes that we make are called by: so they are told from those of the migrations.
PREFIX = "kronos_adv"
_LONGEST_NAME = 63
_MARK = 6


@dataclass(frozen=True, slots=True)
class Candidate:
    """An index that would help one statement, and the share of the table that it finds for each call."""

    table: Table
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    method: str = "btree"
    included: tuple[str, ...] = ()
    predicate: str = ""
    share: float = 1.0
    why: str = ""

    @property
    def shape(self) -> tuple[str, str, str]:
        """What two that one index can do for have in common."""
        return self.table.name, self.method, self.predicate


@dataclass(frozen=True, slots=True)
class Wanted:
    """A candidate with the statements it is for."""

    candidate: Candidate
    statements: tuple[Statement, ...]
    gain_ms: float


def merged(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return `wanted` without those that another one does as well: the same, or the beginning of its keys."""
    kept: list[Wanted] = []
    for each in sorted(wanted, key=lambda each: (-len(each.candidate.keys), -len(each.candidate.included))):
        for place, other in enumerate(kept):
            if _covers(other.candidate, each.candidate):
                statements = {statement.id: statement for statement in (*other.statements, *each.statements)}
                gain = other.gain_ms + (0 if each.statements[0] in other.statements else each.gain_ms)
                kept[place] = Wanted(other.candidate, tuple(statements.values()), gain)
                break
        else:
            kept.append(each)
    return kept


def _covers(other: Candidate, each: Candidate) -> bool:
    if other.shape != each.shape:
        return False
    return (other.keys[: len(each.keys)] == each.keys or set(other.keys[: len(each.keys)]) == set(each.keys)) and set(
        each.included
    ) <= {*other.columns, *other.included}


def advice_of(facts: Facts, wanted: Wanted) -> Advice:
    """Return the advice to make an index."""
    candidate, table = wanted.candidate, wanted.candidate.table
    name = _name(candidate)
    keys = ", ".join(_rendered(key, table) for key in candidate.keys)
    included = f" INCLUDE ({', '.join(quoted(each) for each in candidate.included)})" if candidate.included else ""
    where = f" WHERE {candidate.predicate}" if candidate.predicate else ""
    evidence = [f"{candidate.why}: about {candidate.share * 100:.3g} % of {table.rows:.0f} rows"]
    evidence += [_seen(statement) for statement in wanted.statements[:5]]
    return Advice(
        Kind.MISSING,
        facts.domain,
        table.name,
        name,
        f"CREATE INDEX CONCURRENTLY {quoted(name)} ON {quoted(table.schema)}.{quoted(table.name)} "
        f"USING {candidate.method} ({keys}){included}{where}",
        f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(table.schema)}.{quoted(name)}",
        f"{len(wanted.statements)} slow statements look for {candidate.why}.",
        evidence,
        0,
        wanted.gain_ms,
        tuple(statement.id for statement in wanted.statements),
    )


def _seen(statement: Statement) -> str:
    by = f" of {statement.query}" if statement.query else ""
    return f"{statement.calls} calls{by} of {statement.mean_ms:.1f} ms: {' '.join(statement.text.split())[:200]}"


def _rendered(key: str, table: Table) -> str:
    name = key.removesuffix(" DESC")
    if name in table.columns:
        return quoted(name) + key[len(name) :]
    return key


def _name(candidate: Candidate) -> str:
    """Return a name that says what the index is, and is the same for the same index alone."""
    words = "_".join("".join(c if c.isalnum() else "_" for c in key).strip("_") for key in candidate.keys)
    what = (candidate.shape, candidate.keys, candidate.included)
    mark = hashlib.sha256(repr(what).encode()).hexdigest()[:_MARK]
    return f"{PREFIX}_{candidate.table.name}_{words}".lower()[: _LONGEST_NAME - _MARK - 1] + f"_{mark}"
