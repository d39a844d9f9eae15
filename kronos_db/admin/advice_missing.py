"""Which indexes are missing for the statements that take long, judged by what ANALYZE knows of the tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from kronos_db.admin.advice import PERIOD, Advice, Column, Facts, Index, Limits, Statement, Table, quoted
from kronos_db.admin.candidates import Candidate, Wanted, advice_of, merged
from kronos_db.admin.predicates import Access, Check, Condition, Order, accesses
from kronos_db.admin.selectivity import arriving_rows, found_rows, share_of

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
_GIN_OPERATORS = frozenset({"@>", "&&", "?", "?|", "?&", "@@", "@?"})
_PATH_OPERATORS = frozenset({"@>", "@?", "@@"})


def advise_missing(facts: Facts, limits: Limits) -> list[Advice]:
    """Return the indexes to make; those that gain most come first."""
    wanted: list[Wanted] = []
    columns = {name: list(table.columns) for name, table in facts.tables.items()}
    for statement in facts.statements:
        if statement.mean_ms < limits.mean_ms or statement.calls < limits.calls:
            continue
        for query in accesses(statement.text, facts.schema, columns):
            for candidate in _candidates(facts, query, statement, limits):
                gain = statement.total_ms * (1 - min(1.0, candidate.share))
                wanted.append(Wanted(candidate, (statement,), gain))
    # Writes are counted for longer, or for less long, than statements.
    share = min(1.0, PERIOD / max(facts.observed, timedelta(seconds=1)))
    kept = [each for each in merged(wanted) if _pays(each, share, limits)]
    return [advice_of(facts, each) for each in sorted(kept, key=lambda each: -each.gain_ms)]


def _candidates(facts: Facts, query: Sequence[Access], statement: Statement, limits: Limits) -> Iterable[Candidate]:
    for access in query:
        table = facts.tables[access.table]
        indexes = [index for index in facts.indexes if index.table == access.table and index.valid]
        # Of a partitioned table no index can be made without locking everybody out.
        if table.rows < limits.rows or table.partitioned:
            continue
        # A table is not entered from one that is entered from it.
        arriving = arriving_rows(facts, [other for other in query if other is not access])
        if access.each_row:
            arriving |= dict.fromkeys(access.around, 1.0)
        else:
            arriving |= {
                alias: found_rows(facts, other) for alias, other in access.around.items() if alias not in arriving
            }
        found = _Judge(table, indexes, access, arriving=arriving, statement=statement, limits=limits).candidate()
        if found is not None:
            yield found


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

    def candidate(self) -> Candidate | None:
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
            return share_of(self._table, condition) <= _PARTIAL_SHARE
        distinct = self._table.distinct(condition.key)
        few = distinct is not None and distinct <= _FEW_VALUES
        return bool(condition.sql) and few and share_of(self._table, condition) <= self._limits.share

    def _share(self, condition: Condition) -> float:
        if condition.expression:
            # As distinct as its column; the key of a document is as rare as the answers are.
            column = self._table.columns.get(condition.columns[0])
            if column is not None and column.type not in {"jsonb", "json"}:
                distinct = self._table.distinct(column.name)
                return 1 / max(1.0, distinct) if distinct else 1.0
            return self._answered_share()
        return share_of(self._table, replace(condition, joins=None))

    def _answered_share(self) -> float:
        """Return the share of the table that each call returns, where that is what it found; else 1."""
        access, statement = self._access, self._statement
        if not access.alone or access.aggregates or access.limited:
            return 1.0
        return statement.rows / statement.calls / max(1.0, self._table.rows)

    def _of(self, conditions: Iterable[Condition]) -> float:
        """Return the share that conditions of one index find together."""
        share = math.prod(self._share(each) for each in conditions)
        fixed = math.prod(share_of(self._table, each) for each in self._fixed)
        whole = not self._access.opaque and not any(each.test is Check.CONTAINS for each in self._access.conditions)
        known = share * fixed
        # What was counted counts more than what was guessed: callers may ask for rare values alone.
        return min(known, self._answered_share()) if whole else known

    def _containing(self) -> Candidate | None:
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
            return Candidate(
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

    def _looked_up(self) -> Candidate | None:
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
        return Candidate(self._table, tuple(keys), tuple(columns), predicate=self._where(), share=share, why=why)

    def _range_after(self, chosen: Sequence[Condition]) -> Condition | None:
        """Return the range that an index goes on with behind its equalities; alone it must be known to be narrow."""
        for each in self._ranges:
            if chosen or self._fixed:
                return each
            if not self._access.opaque and self._answered_share() <= self._limits.share:
                return each
        return None

    def _ordered(self) -> Candidate | None:
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
        matching = self._table.rows * math.prod(share_of(self._table, each) for each in (*equal, *self._fixed))
        if matching < self._limits.rows / 5 or any(each.expression for each in equal):
            return None
        keys = [each.key for each in equal]
        keys += [each.key for each in access.order if each.key not in keys]
        if len(keys) > _MOST_KEYS or any(_begins(index, keys, self._predicates()) for index in self._indexes):
            return None
        share = _ENOUGH / max(1.0, self._table.rows)
        why = "ORDER BY " + ", ".join(each.key for each in access.order)
        return Candidate(self._table, tuple(keys), tuple(keys), predicate=self._where(), share=share, why=why)

    def _covering(self) -> Candidate | None:
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
        return Candidate(
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
            partial = math.prod(share_of(self._table, each) for each in implying)
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
        return min(share_of(self._table, condition), self._answered_share())

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


def _pays(wanted: Wanted, share: float, limits: Limits) -> bool:
    """Tell whether an index saves more than it costs those who write; `share` of the writes is of the same time."""
    return wanted.gain_ms > wanted.candidate.table.writes * share * limits.write_ms
