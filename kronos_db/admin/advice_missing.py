"""Which indexes are missing for the statements that take long, judged by what ANALYZE knows of the tables."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from kronos_db.admin.advice import PERIOD, Advice, Column, Facts, Index, Kind, Limits, Statement, Table, quoted
from kronos_db.admin.predicates import Access, Check, Condition, Order, accesses

# What the indexes that we make are called by: so they are told from those of the migrations.
PREFIX = "kronos_adv"
_LONGEST_NAME = 63
_MARK = 6
# A key more is of use only while so many rows are left to be looked at.
_ENOUGH = 10.0
_MOST_KEYS = 4
# Rows that a statement may read of an index before it matters that each one is fetched from the table too.
_MANY_FETCHED = 200.0
# A covering index carries at most so many columns more, of so many bytes.
_MOST_INCLUDED = 3
_WIDEST_INCLUDED = 64
# A better index is one that finds so many times fewer rows.
_BETTER = 4.0
# PostgreSQL's own guess of a range with two bounds that it does not know.
_RANGE_SHARE = 0.005
_GIN_OPERATORS = frozenset({"@>", "&&", "?", "?|", "?&", "@@", "@?"})
_PATH_OPERATORS = frozenset({"@>", "@?", "@@"})


@dataclass(frozen=True, slots=True)
class _Candidate:
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
        return self.table.name, self.method, self.predicate


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A candidate with the statements it is for."""

    candidate: _Candidate
    statements: tuple[Statement, ...]
    gain_ms: float


def advise_missing(facts: Facts, limits: Limits) -> list[Advice]:
    """Return the indexes to make; those that gain most come first."""
    wanted: list[_Wanted] = []
    columns = {name: list(table.columns) for name, table in facts.tables.items()}
    for statement in facts.statements:
        if statement.mean_ms < limits.mean_ms or statement.calls < limits.calls:
            continue
        for query in accesses(statement.text, facts.schema, columns):
            for candidate in _candidates(facts, query, statement, limits):
                gain = statement.total_ms * (1 - min(1.0, candidate.share))
                wanted.append(_Wanted(candidate, (statement,), gain))
    # Writes are counted for longer, or for less long, than statements.
    share = min(1.0, PERIOD / max(facts.observed, timedelta(seconds=1)))
    merged = [each for each in _merged(wanted) if _pays(each, share, limits)]
    return [_advice(facts, each) for each in sorted(merged, key=lambda each: -each.gain_ms)]


def _candidates(facts: Facts, query: Sequence[Access], statement: Statement, limits: Limits) -> Iterable[_Candidate]:
    for access in query:
        table = facts.tables[access.table]
        indexes = [index for index in facts.indexes if index.table == access.table and index.valid]
        # Of a partitioned table no index can be made without locking everybody out.
        if table.rows < limits.rows or table.partitioned:
            continue
        # A table is not entered from one that is entered from it.
        arriving = _arriving(facts, [other for other in query if other is not access])
        if access.each_row:
            arriving |= dict.fromkeys(access.around, 1.0)
        else:
            arriving |= {alias: _found(facts, other) for alias, other in access.around.items() if alias not in arriving}
        found = _Judge(table, indexes, access, arriving=arriving, statement=statement, limits=limits).candidate()
        if found is not None:
            yield found


def _arriving(facts: Facts, query: Sequence[Access]) -> dict[str, float]:
    """Return of how many rows of each access a statement is about, when each table is entered by its best way."""
    by_alias = {access.alias: access for access in query}
    rows = {access.alias: _found(facts, access) for access in query}
    for _ in query:
        for access in query:
            table = facts.tables[access.table]
            for condition in access.conditions:
                if condition.joins is None or condition.joins[0] not in by_alias or condition.expression:
                    continue
                each = table.rows / max(1.0, table.distinct(condition.key) or 1.0)
                rows[access.alias] = min(rows[access.alias], rows[condition.joins[0]] * each)
    return rows


def _found(facts: Facts, access: Access) -> float:
    """Return how many rows of a table meet the conditions on it alone."""
    return facts.tables[access.table].rows * _local_share(facts, access)


def _local_share(facts: Facts, access: Access) -> float:
    table = facts.tables[access.table]
    return math.prod(_share(table, each) for each in access.conditions if each.joins is None)


def _share(table: Table, condition: Condition) -> float:
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


class _Judge:
    """Decides on one access of one statement."""

    def __init__(
        self,
        table: Table,
        indexes: Sequence[Index],
        access: Access,
        *,
        arriving: Mapping[str, float],
        statement: Statement,
        limits: Limits,
    ) -> None:
        self._table = table
        self._indexes = indexes
        self._access = access
        self._arriving = arriving
        self._statement = statement
        self._limits = limits
        self._equal = self._equalities()
        self._fixed = [each for each in access.conditions if self._is_fixed(each)]
        self._ranges = [each for each in access.conditions if each.test is Check.RANGE]

    def candidate(self) -> _Candidate | None:
        """Return the index that is missing, None when none is."""
        return self._containing() or self._looked_up() or self._ordered() or self._covering()

    def _equalities(self) -> list[Condition]:
        """Return the equalities that hold one table's rows against something known by then, best first."""
        found: list[Condition] = []
        for each in self._access.conditions:
            if each.test is not Check.EQUAL or self._is_fixed(each):
                continue
            if each.joins is not None and not self._enters_by(each):
                continue
            if any(known.key == each.key for known in found):
                continue
            found.append(each)
        return sorted(found, key=self._share)

    def _enters_by(self, condition: Condition) -> bool:
        """Tell whether few enough rows come from the other side that each is looked up here."""
        other, _column = condition.joins or ("", "")
        if other not in self._arriving:
            # Of a query within: nobody knows how many rows it gives.
            return False
        if self._access.outer and not self._access.conditions:
            return False
        distinct = self._table.distinct(condition.key) or 1.0
        return self._arriving[other] / max(1.0, distinct) < self._limits.share

    def _is_fixed(self, condition: Condition) -> bool:
        """Tell whether a partial index is to hold the rows that meet this condition: few do, of many values."""
        if condition.test is Check.FIXED:
            return _share(self._table, condition) <= _PARTIAL_SHARE
        distinct = self._table.distinct(condition.key)
        few = distinct is not None and distinct <= _FEW_VALUES
        return bool(condition.sql) and few and _share(self._table, condition) <= self._limits.share

    def _share(self, condition: Condition) -> float:
        if condition.expression:
            # As distinct as its column; the key of a document is as rare as the answers are.
            column = self._table.columns.get(condition.columns[0])
            if column is not None and column.type not in {"jsonb", "json"}:
                distinct = self._table.distinct(column.name)
                return 1 / max(1.0, distinct) if distinct else 1.0
            return self._answered_share()
        return _share(self._table, replace(condition, joins=None))

    def _answered_share(self) -> float:
        """Return the share of the table that each call returns, where that is what it found; else 1."""
        access, statement = self._access, self._statement
        if not access.alone or access.aggregates or access.limited:
            return 1.0
        return statement.rows / statement.calls / max(1.0, self._table.rows)

    def _of(self, conditions: Iterable[Condition]) -> float:
        """Return the share that conditions of one index find together."""
        share = math.prod(self._share(each) for each in conditions)
        fixed = math.prod(_share(self._table, each) for each in self._fixed)
        whole = not self._access.opaque and not any(each.test is Check.CONTAINS for each in self._access.conditions)
        known = share * fixed
        # What was counted counts more than what was guessed: callers may ask for rare values alone.
        return min(known, self._answered_share()) if whole else known

    def _containing(self) -> _Candidate | None:
        for each in self._access.conditions:
            if each.test is not Check.CONTAINS:
                continue
            column = self._table.columns.get(each.key)
            if column is None or self._answered_share() > self._limits.share / 5:
                continue
            key = _gin_key(column, each.operator)
            if key is None or self._has_gin(column, each.operator):
                continue
            why = f"{each.key} {each.operator} …"
            return _Candidate(
                self._table,
                (key,),
                (column.name,),
                "gin",
                predicate=self._where(),
                share=self._answered_share(),
                why=why,
            )
        return None

    def _has_gin(self, column: Column, operator: str) -> bool:
        for index in self._indexes:
            if index.method == "gin" and column.name in index.columns and not index.predicate:
                path = any("jsonb_path_ops" in key for key in index.keys)
                if not path or operator in _PATH_OPERATORS:
                    return True
        return False

    def _looked_up(self) -> _Candidate | None:
        """Return an index that finds the few rows that the equalities, or a narrow range, ask for."""
        chosen: list[Condition] = []
        for each in self._equal:
            left = self._table.rows * self._of(chosen) if chosen else self._table.rows
            if len(chosen) < _MOST_KEYS and left > _ENOUGH and self._share(each) < _HALF:
                chosen.append(each)
        keys = [each.key for each in chosen]
        ranged = self._range_after(chosen)
        share = self._of(chosen) if chosen else (self._of([]) if self._fixed or ranged else 1.0)
        if not (chosen or ranged or self._fixed) or share > self._limits.share:
            return None
        if self._served(share):
            return None
        columns = [name for each in chosen for name in each.columns]
        if ranged is not None and len(keys) < _MOST_KEYS and self._table.rows * share > _ENOUGH:
            keys += [name for name in ranged.columns if name not in keys] if not ranged.expression else [ranged.key]
            columns += ranged.columns
        elif self._access.order and self._access.limited:
            keys += [_order_key(each) for each in self._access.order if each.key not in keys]
            columns += [each.key for each in self._access.order]
        if not keys:
            keys = list(self._table.primary_key) or [self._fixed[0].key]
            columns = list(keys)
        why = " and ".join(each.key for each in (*chosen, *([ranged] if ranged else []))) or self._where()
        return _Candidate(self._table, tuple(keys), tuple(columns), predicate=self._where(), share=share, why=why)

    def _range_after(self, chosen: Sequence[Condition]) -> Condition | None:
        """Return the range that an index goes on with behind its equalities; alone it must be known to be narrow."""
        for each in self._ranges:
            if chosen or self._fixed:
                return each
            if not self._access.opaque and self._answered_share() <= self._limits.share:
                return each
        return None

    def _ordered(self) -> _Candidate | None:
        """Return an index that gives rows in the order asked for, so that the first ones are all that is read."""
        access = self._access
        if not (access.order and access.limited and access.alone):
            return None
        # Other conditions may be met by few: then it would be read to its end.
        equal = [each for each in access.conditions if each.test is Check.EQUAL and each not in self._fixed]
        others = [
            each
            for each in access.conditions
            if each not in equal and each not in self._fixed and not _bounds(each, access.order)
        ]
        if access.opaque or others or len({each.descending for each in access.order}) > 1 or len(equal) > 1:
            return None
        matching = self._table.rows * math.prod(_share(self._table, each) for each in (*equal, *self._fixed))
        if matching < self._limits.rows / 5 or any(each.expression for each in equal):
            return None
        keys = [each.key for each in equal]
        keys += [each.key for each in access.order if each.key not in keys]
        if len(keys) > _MOST_KEYS or any(_begins(index, keys, self._predicates()) for index in self._indexes):
            return None
        share = _ENOUGH / max(1.0, self._table.rows)
        why = "ORDER BY " + ", ".join(each.key for each in access.order)
        return _Candidate(self._table, tuple(keys), tuple(keys), predicate=self._where(), share=share, why=why)

    def _covering(self) -> _Candidate | None:
        """Return an index that holds all that is read of many rows, in place of one that only finds them."""
        access = self._access
        if access.reads is None or not access.alone or not self._equal or access.opaque:
            return None
        keys = tuple(each.key for each in self._equal if not each.expression)
        share = math.prod(self._share(each) for each in self._equal)
        fetched = self._table.rows * share
        more = tuple(sorted(access.reads - set(keys)))
        if fetched < _MANY_FETCHED or share > self._limits.share or len(keys) != len(self._equal):
            return None
        width = sum(self._table.columns[name].width for name in more if name in self._table.columns)
        if not 0 < len(more) <= _MOST_INCLUDED or width > _WIDEST_INCLUDED:
            return None
        whole = {*keys, *more}
        if any(whole <= {*index.columns, *index.included} and _begins(index, keys[:1], ()) for index in self._indexes):
            return None
        why = f"{fetched:.0f} rows are fetched for {', '.join(more)}"
        return _Candidate(
            self._table, keys, keys, included=more, predicate=self._where(), share=share / _BETTER, why=why
        )

    def _where(self) -> str:
        return " AND ".join(each.sql for each in self._fixed)

    def _predicates(self) -> frozenset[str]:
        return frozenset(_bare(each.sql) for each in self._access.conditions if each.sql)

    def _served(self, share: float) -> bool:
        """Tell whether an index that is there finds about as few rows."""
        return any(
            self._found_by(index) <= max(share * _BETTER, _ENOUGH_SHARE / max(1.0, self._table.rows))
            for index in self._indexes
        )

    def _found_by(self, index: Index) -> float:
        """Return the share of the table that is read when an index is used."""
        if index.method not in {"btree", "hash"}:
            return 1.0
        partial = 1.0
        if index.predicate:
            if not _implied(index.predicate, self._predicates()):
                return 1.0
            held = {_bare(part) for part in index.predicate.split(" AND ")}
            implying = [each for each in self._access.conditions if each.sql and _bare(each.sql) in held]
            partial = math.prod(_share(self._table, each) for each in implying)
        known = {each.key: each for each in self._access.conditions if each.test is Check.EQUAL and self._usable(each)}
        matched = []
        for key in index.keys:
            name = _bare(key)
            found = next((each for each in known.values() if _bare(each.key) == name), None)
            if found is None:
                ends = next((each for each in self._ranges if _bare(each.key) == name), None)
                if ends is not None:
                    matched.append(ends)
                break
            matched.append(found)
        if index.unique and not index.predicate and len(matched) == len(index.keys):
            return 1.0 / max(1.0, self._table.rows)
        if not matched:
            return partial if index.predicate else 1.0
        whole = not self._access.opaque and len(matched) == len(self._access.conditions)
        share = math.prod(
            self._range_share(each) if each.test is Check.RANGE else self._share(each) for each in matched
        )
        return min(share * partial, self._answered_share()) if whole else share * partial

    def _range_share(self, condition: Condition) -> float:
        return min(_share(self._table, condition), self._answered_share())

    def _usable(self, condition: Condition) -> bool:
        return condition.joins is None or condition in self._equal


# An index of fewer rows than this share is a small one, and stays so.
_PARTIAL_SHARE = 0.2
# A column with so few values is a state, by which rows are set apart.
_FEW_VALUES = 20
# A key that keeps more than this of the rows is none.
_HALF = 0.5
_COLLATION = re.compile(r' COLLATE (\w+|"[^"]*")(\.(\w+|"[^"]*"))?')
# Rows that are read beside those that are wanted without anybody noticing.
_ENOUGH_SHARE = 50.0


def _bounds(condition: Condition, order: Sequence[Order]) -> bool:
    """Tell whether a range says where in the order to begin, as a page does."""
    names = [each.key for each in order]
    return condition.test is Check.RANGE and list(condition.columns) == names[: len(condition.columns)]


def _begins(index: Index, keys: Sequence[str], predicates: Iterable[str]) -> bool:
    """Tell whether an index is in the order of `keys`, for all rows or those that meet the statement's conditions."""
    if index.method != "btree" or (index.predicate and not _implied(index.predicate, frozenset(predicates))):
        return False
    return list(index.columns[: len(keys)]) == list(keys)


def _implied(predicate: str, conditions: frozenset[str]) -> bool:
    return all(_bare(part) in conditions for part in predicate.split(" AND "))


def _bare(sql: str) -> str:
    """Return an expression without what PostgreSQL adds when it shows it."""
    sql = _COLLATION.sub("", sql.removesuffix(" DESC"))
    for cast in ("::text", "::character varying", "::bpchar"):
        sql = sql.replace(cast, "")
    return sql.replace("(", "").replace(")", "").replace('"', "").strip()


def _order_key(order: Order) -> str:
    return f"{order.key} DESC" if order.descending else order.key


def _gin_key(column: Column, operator: str) -> str | None:
    if operator not in _GIN_OPERATORS:
        return None
    name = quoted(column.name)
    if column.type == "jsonb":
        return f"{name} jsonb_path_ops" if operator in _PATH_OPERATORS else name
    if column.type.endswith("[]") and operator in {"@>", "&&"}:
        return name
    return name if column.type == "tsvector" and operator == "@@" else None


def _merged(wanted: Sequence[_Wanted]) -> list[_Wanted]:
    """Return `wanted` without those that another one does as well: the same, or the beginning of its keys."""
    kept: list[_Wanted] = []
    for each in sorted(wanted, key=lambda each: (-len(each.candidate.keys), -len(each.candidate.included))):
        for place, other in enumerate(kept):
            if _covers(other.candidate, each.candidate):
                statements = {statement.id: statement for statement in (*other.statements, *each.statements)}
                gain = other.gain_ms + (0 if each.statements[0] in other.statements else each.gain_ms)
                kept[place] = _Wanted(other.candidate, tuple(statements.values()), gain)
                break
        else:
            kept.append(each)
    return kept


def _covers(other: _Candidate, each: _Candidate) -> bool:
    if other.shape != each.shape:
        return False
    return (other.keys[: len(each.keys)] == each.keys or set(other.keys[: len(each.keys)]) == set(each.keys)) and set(
        each.included
    ) <= {*other.columns, *other.included}


def _pays(wanted: _Wanted, share: float, limits: Limits) -> bool:
    """Tell whether an index saves more than it costs those who write; `share` of the writes is of the same time."""
    return wanted.gain_ms > wanted.candidate.table.writes * share * limits.write_ms


def _advice(facts: Facts, wanted: _Wanted) -> Advice:
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


def _name(candidate: _Candidate) -> str:
    """Return a name that says what the index is, and is the same for the same index alone."""
    words = "_".join("".join(c if c.isalnum() else "_" for c in key).strip("_") for key in candidate.keys)
    what = (candidate.shape, candidate.keys, candidate.included)
    mark = hashlib.sha256(repr(what).encode()).hexdigest()[:_MARK]
    return f"{PREFIX}_{candidate.table.name}_{words}".lower()[: _LONGEST_NAME - _MARK - 1] + f"_{mark}"
