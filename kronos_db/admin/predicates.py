"""Finds in the text of a statement by what it looks for rows of each table: conditions, join keys, order.

A statement is read as it was written or as pg_stat_statements normalised it. Only what an index can certainly serve is
found: conditions that all must hold, on a column alone or on an expression of one that never changes its mind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NamedTuple

import pglast
from pglast import ast
from pglast.enums import (
    A_Expr_Kind,
    BoolExprType,
    JoinType,
    NullTestType,
    SetOperation,
    SortByDir,
    SortByNulls,
    SubLinkType,
)

from kronos_db.admin.tree import (
    column_sql,
    conjuncts,
    folds_rows,
    is_a,
    literal_of,
    names_of_queries,
    other_sources,
    queries_within,
    walk,
)

# Functions of one column that an index may hold: they give the same for ever, whatever the settings.
_IMMUTABLE = frozenset({"lower", "upper", "md5", "length", "abs", "btrim", "char_length"})
_RANGES = frozenset({"<", "<=", ">", ">="})
_CONTAINS = frozenset({"@>", "&&", "?", "?|", "?&", "@@", "@?"})


class Check(Enum):
    """How a condition tests its key."""

    EQUAL = "="
    RANGE = "<"
    CONTAINS = "@>"
    # True of all rows that an index with this condition would hold.
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on one table. `key` is a column or an expression as SQL; `columns` are what it reads.

    `operator` is that of CONTAINS; `joins` names table alias and column of the other side of an equality.
    `value` is the text of a FIXED condition's comparison, None where there is nothing to compare.
    """

    key: str
    test: Check
    columns: tuple[str, ...]
    operator: str = ""
    joins: tuple[str, str] | None = None
    expression: bool = False
    sql: str = ""
    both_sides: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """One key of an ORDER BY."""

    key: str
    descending: bool = False


@dataclass(slots=True)
class Access:
    """One mention of a table in a statement. `reads`: the columns that are needed of it, None for all.

    `opaque`: something beyond the conditions decides what is found (an OR, an expression).
    `around` are the accesses of the queries around this one; `each_row`: it is run anew for each of their rows.
    `alone`: nothing else is read beside it; `aggregates`: rows are folded, so that fewer come out than are found.
    """

    alias: str
    table: str
    conditions: list[Condition] = field(default_factory=list)
    order: tuple[Order, ...] = ()
    limited: bool = False
    reads: frozenset[str] | None = None
    opaque: bool = False
    alone: bool = False
    aggregates: bool = False
    outer: bool = False
    around: Mapping[str, Access] = field(default_factory=dict, repr=False)
    each_row: bool = False


Columns = Mapping[str, Sequence[str]]


def accesses(text: str, schema: str, columns: Columns) -> list[list[Access]]:
    """Return what a statement reads, for each of its queries; nothing when it cannot be parsed.

    `columns` are those of each table of `schema`.
    """
    try:
        parsed = pglast.parse_sql(text)
    except pglast.parser.ParseError:
        return []
    found: list[list[Access]] = []
    for raw in parsed or ():
        _Reader(schema, columns, found).read(raw.stmt, {})
    return found


class _At(NamedTuple):
    """The table that a condition is read for, among those that are known where it stands."""

    alias: str
    known: Mapping[str, Access]


class _Reader:
    """Reads one statement, queries within queries included."""

    def __init__(self, schema: str, columns: Columns, found: list[list[Access]]) -> None:
        self._schema = schema
        self._columns = columns
        self._found = found

    def read(self, node: Any, around: Mapping[str, Access], *, each_row: bool = False) -> None:
        """Read a query whose surroundings know the accesses `around`; `each_row`: it gives a value for each row."""
        if is_a(node, ast.SelectStmt) and node.op != SetOperation.SETOP_NONE:
            self.read(node.larg, around, each_row=each_row)
            self.read(node.rarg, around, each_row=each_row)
            self._read_ctes(node, around)
            return
        if is_a(node, ast.ExplainStmt):
            self.read(node.query, around)
            return
        if not is_a(node, ast.SelectStmt, ast.UpdateStmt, ast.DeleteStmt, ast.InsertStmt):
            return
        self._read_ctes(node, around)
        if is_a(node, ast.InsertStmt):
            if node.selectStmt is not None:
                self.read(node.selectStmt, around)
            return
        self._read_query(node, around, each_row=each_row)

    def _read_ctes(self, node: Any, around: Mapping[str, Access]) -> None:
        if node.withClause is not None:
            for cte in node.withClause.ctes:
                self.read(cte.ctequery, around)

    def _read_query(self, node: Any, around: Mapping[str, Access], *, each_row: bool) -> None:
        scope: dict[str, Access] = {}
        quals: list[Any] = []
        others = 0
        hidden = names_of_queries(node)
        froms = list((node.fromClause if is_a(node, ast.SelectStmt) else other_sources(node)) or ())
        if not is_a(node, ast.SelectStmt):
            froms.insert(0, node.relation)
        for item in froms:
            others += self._read_from(item, scope, quals, hidden, around, outer=False)
        if node.whereClause is not None:
            quals.extend(conjuncts(node.whereClause))
        known = {**around, **scope}
        for qual in quals:
            self._read_qual(qual, scope, known)
        if is_a(node, ast.SelectStmt):
            self._read_output(node, scope, others)
        for link in queries_within(node, froms):
            self.read(link.subselect, known, each_row=link.subLinkType == SubLinkType.EXPR_SUBLINK)
        for access in scope.values():
            access.around, access.each_row = around, each_row
        if scope:
            self._found.append(list(scope.values()))

    def _read_from(
        self,
        item: Any,
        scope: dict[str, Access],
        quals: list[Any],
        hidden: frozenset[str],
        around: Mapping[str, Access],
        *,
        outer: bool,
    ) -> int:
        """Take in one item of FROM; return how many sources it has that are no tables of ours."""
        if is_a(item, ast.RangeVar):
            ours = item.schemaname in {None, self._schema} and item.relname in self._columns
            if not ours or (item.schemaname is None and item.relname in hidden):
                return 1
            alias = item.alias.aliasname if item.alias is not None else item.relname
            scope[alias] = Access(alias, item.relname, outer=outer)
            return 0
        if is_a(item, ast.JoinExpr):
            left = outer or item.jointype in {JoinType.JOIN_RIGHT, JoinType.JOIN_FULL}
            right = outer or item.jointype in {JoinType.JOIN_LEFT, JoinType.JOIN_FULL}
            before = set(scope)
            count = self._read_from(item.larg, scope, quals, hidden, around, outer=left)
            middle = set(scope) - before
            count += self._read_from(item.rarg, scope, quals, hidden, around, outer=right)
            if item.quals is not None:
                quals.extend(conjuncts(item.quals))
            for name in item.usingClause or ():
                self._join_using(name.sval, scope, middle, set(scope) - before - middle)
            return count
        if is_a(item, ast.RangeSubselect):
            self.read(item.subquery, {**around, **scope})
        return 1

    def _join_using(self, name: str, scope: Mapping[str, Access], left: set[str], right: set[str]) -> None:
        for mine, theirs in ((left, right), (right, left)):
            for alias in mine:
                if name not in self._columns[scope[alias].table]:
                    continue
                other = next((a for a in theirs if name in self._columns[scope[a].table]), None)
                if other is not None:
                    scope[alias].conditions.append(Condition(name, Check.EQUAL, (name,), joins=(other, name)))

    def _read_qual(self, qual: Any, scope: Mapping[str, Access], known: Mapping[str, Access]) -> None:
        touched = self._touched(qual, known)
        mine = [alias for alias in touched if alias in scope]
        for alias in mine:
            condition = self._condition(qual, alias, known)
            if condition is not None:
                _add(scope[alias], condition)
            elif len(touched) == 1:
                scope[alias].opaque = True

    def _condition(self, qual: Any, alias: str, known: Mapping[str, Access]) -> Condition | None:
        """Return what `qual` says of one table, when an index can serve it."""
        if is_a(qual, ast.NullTest):
            return self._null_test(qual, alias, known)
        negated = is_a(qual, ast.BoolExpr) and qual.boolop == BoolExprType.NOT_EXPR
        bare = qual.args[0] if negated else qual
        if is_a(bare, ast.ColumnRef):
            name = self._column_of(bare, alias, known)
            if name is None:
                return None
            return Condition(name, Check.FIXED, (name,), sql=f"NOT {column_sql(name)}" if negated else column_sql(name))
        if is_a(qual, ast.SubLink):
            return self._in_query(qual, alias, known)
        return self._comparison(qual, _At(alias, known)) if is_a(qual, ast.A_Expr) else None

    def _null_test(self, qual: Any, alias: str, known: Mapping[str, Access]) -> Condition | None:
        name = self._column_of(qual.arg, alias, known)
        if name is None:
            return None
        ending = "IS NULL" if qual.nulltesttype == NullTestType.IS_NULL else "IS NOT NULL"
        return Condition(name, Check.FIXED, (name,), sql=f"{column_sql(name)} {ending}")

    def _in_query(self, qual: Any, alias: str, known: Mapping[str, Access]) -> Condition | None:
        name = self._column_of(qual.testexpr, alias, known) if qual.testexpr is not None else None
        # How many rows the inner query gives is not known: as if it joined something.
        return None if name is None else Condition(name, Check.EQUAL, (name,), joins=("", ""))

    def _comparison(self, qual: Any, at: _At) -> Condition | None:
        operator: str = qual.name[-1].sval
        if qual.kind in {A_Expr_Kind.AEXPR_IN, A_Expr_Kind.AEXPR_OP_ANY}:
            if operator != "=" or at.alias in self._touched(qual.rexpr, at.known):
                return None
            return self._keyed(qual.lexpr, at, Check.EQUAL, "=")
        if qual.kind in {A_Expr_Kind.AEXPR_BETWEEN, A_Expr_Kind.AEXPR_BETWEEN_SYM}:
            found = self._keyed(qual.lexpr, at, Check.RANGE, "<")
            return found and replace(found, both_sides=True)
        sides = self._sides(qual, at)
        test = _test_of(operator, turned=sides is not None and sides[0] is qual.rexpr)
        if qual.kind != A_Expr_Kind.AEXPR_OP or sides is None or test is None:
            return None
        return self._keyed(sides[0], at, test, operator, sides[1])

    def _sides(self, qual: Any, at: _At) -> tuple[Any, Any] | None:
        """Return the side of a comparison that is of the table, and the other, if only one is."""
        left, right = (at.alias in self._touched(side, at.known) for side in (qual.lexpr, qual.rexpr))
        if left == right:
            return None
        return (qual.lexpr, qual.rexpr) if left else (qual.rexpr, qual.lexpr)

    def _keyed(self, mine: Any, at: _At, test: Check, operator: str, other: Any = None) -> Condition | None:
        if is_a(mine, ast.RowExpr):
            return self._row(mine, at, operator) if test is Check.RANGE else None
        name = self._column_of(mine, *at)
        if name is not None:
            literal = literal_of(other) if test is Check.EQUAL else None
            sql = f"{column_sql(name)} = {literal}" if literal is not None else ""
            return Condition(name, test, (name,), operator, self._joined(other, *at), sql=sql)
        expression = self._expression(mine, *at)
        if expression is None or test is Check.CONTAINS:
            return None
        key, columns = expression
        return Condition(key, test, columns, operator, expression=True)

    def _row(self, mine: Any, at: _At, operator: str) -> Condition | None:
        """Return the comparison of a row: its order is that of an index on its columns."""
        names = [self._column_of(part, *at) for part in mine.args]
        columns = tuple(name for name in names if name is not None)
        if len(columns) != len(names):
            return None
        return Condition(columns[0], Check.RANGE, columns, operator)

    def _joined(self, other: Any, alias: str, known: Mapping[str, Access]) -> tuple[str, str] | None:
        """Return where the other side of an equality comes from, when it is of another table."""
        found = [(other_alias, name) for other_alias, name in self._references(other, known) if other_alias != alias]
        return found[0] if found else None

    def _expression(self, node: Any, alias: str, known: Mapping[str, Access]) -> tuple[str, tuple[str, ...]] | None:
        """Return an expression as an index would hold it, with its columns; None when none could."""
        if is_a(node, ast.FuncCall):
            names = [part.sval for part in node.funcname]
            if names[-1] not in _IMMUTABLE or len(node.args or ()) != 1 or len(names) > 2:  # noqa: PLR2004 - schema, name
                return None
            inner = self._column_of(node.args[0], alias, known)
            return None if inner is None else (f"{names[-1]}({column_sql(inner)})", (inner,))
        if is_a(node, ast.A_Expr) and node.kind == A_Expr_Kind.AEXPR_OP and node.name[-1].sval == "->>":
            inner, literal = self._column_of(node.lexpr, alias, known), literal_of(node.rexpr)
            # pg_stat_statements puts a parameter in the key's place: then it is not known which one.
            return (f"({column_sql(inner)} ->> {literal})", (inner,)) if inner and literal else None
        return None

    def _column_of(self, node: Any, alias: str, known: Mapping[str, Access]) -> str | None:
        if not is_a(node, ast.ColumnRef):
            return None
        found = self._resolve(node, known)
        return found[1] if found is not None and found[0] == alias else None

    def _resolve(self, node: Any, known: Mapping[str, Access]) -> tuple[str, str] | None:
        parts = [part.sval for part in node.fields if is_a(part, ast.String)]
        if len(parts) != len(node.fields):
            return None
        name = parts[-1]
        if len(parts) > 1:
            return (parts[-2], name) if parts[-2] in known else None
        owners = [alias for alias, access in known.items() if name in self._columns[access.table]]
        # The innermost comes last.
        return (owners[-1], name) if owners else None

    def _references(self, node: Any, known: Mapping[str, Access]) -> Iterator[tuple[str, str]]:
        for reference in walk(node, lambda found: is_a(found, ast.ColumnRef)):
            found = self._resolve(reference, known)
            if found is not None:
                yield found

    def _touched(self, node: Any, known: Mapping[str, Access]) -> set[str]:
        return {alias for alias, _name in self._references(node, known)}

    def _read_output(self, node: Any, scope: Mapping[str, Access], others: int) -> None:
        aggregates = node.groupClause is not None or folds_rows(node.targetList)
        for access in scope.values():
            access.alone = len(scope) == 1 and not others
            access.aggregates = aggregates or node.distinctClause is not None
            access.limited = node.limitCount is not None
        if len(scope) != 1 or others:
            return
        (access,) = scope.values()
        access.order = () if access.aggregates else self._order(node, access, scope)
        if not any(walk(node.targetList, lambda found: is_a(found, ast.A_Star))):
            access.reads = frozenset(name for _alias, name in self._references(node, scope))

    def _order(self, node: Any, access: Access, scope: Mapping[str, Access]) -> tuple[Order, ...]:
        keys = []
        for sort in node.sortClause or ():
            name = self._column_of(sort.node, access.alias, scope)
            if name is None or sort.sortby_nulls != SortByNulls.SORTBY_NULLS_DEFAULT:
                return ()
            keys.append(Order(name, sort.sortby_dir == SortByDir.SORTBY_DESC))
        return tuple(keys)


def _add(access: Access, condition: Condition) -> None:
    """Take a condition in; a lower and an upper bound of the same key become one."""
    for place, known in enumerate(access.conditions):
        if known == condition:
            return
        if known.test is condition.test is Check.RANGE and known.key == condition.key:
            opposite = known.operator[:1] != condition.operator[:1]
            access.conditions[place] = Condition(
                known.key, Check.RANGE, known.columns, "<", None, known.expression, "", known.both_sides or opposite
            )
            return
    access.conditions.append(condition)


def _test_of(operator: str, *, turned: bool) -> Check | None:
    if operator == "=":
        return Check.EQUAL
    if operator in _RANGES:
        return Check.RANGE
    return Check.CONTAINS if operator in _CONTAINS and not turned else None
