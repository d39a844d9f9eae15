"""Which indexes that are there are invalid, duplicate, redundant, unused or bloated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from kronos_db.admin.advice import Advice, Facts, Index, Kind, Limits, quoted

# What REINDEX CONCURRENTLY calls its new index, and the old one when it is replaced; with a number when that is taken.
LEFTOVERS = ("_ccnew", "_ccold")


def advise_existing(facts: Facts, limits: Limits) -> list[Advice]:
    """Return what is to be done about the indexes of a domain, one advice for each at most."""
    mine = [index for index in facts.indexes if not index.partition_of and not index.building]
    found = [_invalid(facts, index) for index in mine if not index.valid]
    valid = [index for index in mine if index.valid]
    found += _covered(facts, valid)
    done = {advice.index for advice in found}
    rest = [index for index in valid if index.name not in done]
    unused = [_unused(facts, index) for index in rest if _is_unused(facts, index, limits)]
    gone = {advice.index for advice in unused}
    bloated = [_bloated(facts, index) for index in rest if index.name not in gone and _is_bloated(index, limits)]
    return found + unused + bloated


def is_leftover(name: str) -> bool:
    """Tell whether REINDEX CONCURRENTLY gave an index its name for the time of its work."""
    return any(name.rstrip("0123456789").endswith(ending) for ending in LEFTOVERS)


def drop(facts: Facts, index: Index, kind: Kind, reason: str, evidence: Sequence[str]) -> Advice:
    """Return the advice to drop `index`."""
    return Advice(
        kind,
        facts.domain,
        index.table,
        index.name,
        f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(facts.schema)}.{quoted(index.name)}",
        "" if kind is Kind.INVALID else concurrently(index.definition),
        reason,
        evidence,
        index.size,
    )


def concurrently(definition: str) -> str:
    """Return the definition of an index, as pg_get_indexdef has it, so that it locks nobody out."""
    return definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)


def _rebuild(facts: Facts, index: Index, kind: Kind, reason: str, evidence: Sequence[str]) -> Advice:
    statement = f"REINDEX INDEX CONCURRENTLY {quoted(facts.schema)}.{quoted(index.name)}"
    return Advice(kind, facts.domain, index.table, index.name, statement, "", reason, evidence, index.size)


def _invalid(facts: Facts, index: Index) -> Advice:
    evidence = [f"pg_index says that {index.name} is not valid, and no backend is building it"]
    if index.constraint or (index.enforces and not is_leftover(index.name)):
        return _rebuild(
            facts, index, Kind.INVALID, "It was left half-built: it enforces nothing and serves nobody.", evidence
        )
    return drop(
        facts, index, Kind.INVALID, "It was left half-built: every write keeps it, and no read uses it.", evidence
    )


def _covered(facts: Facts, valid: Sequence[Index]) -> Iterator[Advice]:
    """Yield the advice to drop what another index of the same table does as well."""
    by_table = sorted(valid, key=lambda index: index.table)
    for _table, group in groupby(by_table, key=lambda index: index.table):
        kept = list(group)
        # Those that are worth least first, so that of two that are the same the right one stays.
        for index in sorted(kept, key=lambda index: (index.constraint, index.enforces, -len(index.included))):
            if index.enforces or index.constraint:
                continue
            other = _first(other for other in kept if other is not index and _does_all_of(other, index))
            if other is None:
                continue
            kept.remove(index)
            same = list(other.keys) == list(index.keys) and set(other.included) == set(index.included)
            kind = Kind.DUPLICATE if same else Kind.REDUNDANT
            reason = f"{other.name} is the same." if same else f"{other.name} begins with all of its columns."
            yield drop(facts, index, kind, reason, [f"this: {index.definition}", f"other: {other.definition}"])


def _first(found: Iterable[Index]) -> Index | None:
    return next(iter(found), None)


def _does_all_of(other: Index, index: Index) -> bool:
    """Tell whether `other` serves every read that `index` serves, as well as it does."""
    if other.method != index.method or other.predicate != index.predicate:
        return False
    if not set(index.included) <= {*other.columns, *other.included}:
        return False
    if list(other.keys) == list(index.keys):
        return True
    # An index of several methods' kinds is not a list: only a btree is in the order of its leading keys. One key more
    # makes it longer; with many more it would be read for its leading ones at a price.
    return (
        index.method == "btree"
        and list(other.keys[: len(index.keys)]) == list(index.keys)
        and (other.size <= _LARGER * max(index.size, 1) or index.size == 0)
    )


# An index that is so many times as large is no replacement: what it saves in writes it costs in memory.
_LARGER = 4


def _is_unused(facts: Facts, index: Index, limits: Limits) -> bool:
    return (
        index.scans == 0
        and facts.observed >= limits.observed
        and not facts.unknown_standbys
        and not (index.enforces or index.constraint or index.supports_key)
        and index.size >= limits.unused_size
    )


def _unused(facts: Facts, index: Index) -> Advice:
    days = facts.observed.total_seconds() / 86_400
    evidence = [f"0 scans in {days:.1f} days", f"{index.size} bytes", "it enforces nothing"]
    return drop(facts, index, Kind.UNUSED, "No read uses it, and every write keeps it.", evidence)


def _is_bloated(index: Index, limits: Limits) -> bool:
    if index.expected_size is None:
        return False
    wasted = index.size - index.expected_size
    return wasted >= limits.wasted and wasted >= limits.wasted_share * index.size


def _bloated(facts: Facts, index: Index) -> Advice:
    wasted = index.size - (index.expected_size or 0)
    evidence = [f"{index.size} bytes, of which about {wasted} are empty", "estimated of its rows and their width"]
    return _rebuild(facts, index, Kind.BLOATED, "Most of its pages are empty.", evidence)
