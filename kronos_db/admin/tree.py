"""Walks the parse trees of pglast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pglast import ast
from pglast.enums import BoolExprType
from pglast.stream import RawStream

_AGGREGATES = frozenset(
    {"count", "sum", "avg", "min", "max", "bool_and", "bool_or", "array_agg", "string_agg", "json_agg", "jsonb_agg"}
)


def is_a(node: Any, *kinds: type[ast.Node]) -> bool:
    """Tell the kind of a node; its parts stay untyped, for pglast says of each that it may be absent."""
    return isinstance(node, kinds)


def conjuncts(node: Any) -> Iterator[Any]:
    """Yield the conditions that must all hold."""
    if is_a(node, ast.BoolExpr) and node.boolop == BoolExprType.AND_EXPR:
        for part in node.args:
            yield from conjuncts(part)
    else:
        yield node


def other_sources(node: Any) -> Any:
    """Return what an UPDATE or DELETE reads beside its table."""
    return node.fromClause if is_a(node, ast.UpdateStmt) else node.usingClause


def names_of_queries(node: Any) -> frozenset[str]:
    """Return the names that WITH gives to queries."""
    clause = node.withClause
    return frozenset(cte.ctename for cte in clause.ctes) if clause is not None else frozenset()


def queries_within(node: Any, froms: Sequence[Any]) -> Iterator[Any]:
    """Yield the queries in conditions, outputs and join conditions; those in FROM were read with it."""
    parts = [node.whereClause, getattr(node, "targetList", None), getattr(node, "havingClause", None)]
    parts += [join.quals for item in froms for join in walk(item, lambda found: is_a(found, ast.JoinExpr))]
    for part in parts:
        yield from walk(part, lambda found: is_a(found, ast.SubLink))


def folds_rows(targets: Any) -> bool:
    """Tell whether an output folds rows."""
    calls = walk(targets, lambda found: is_a(found, ast.FuncCall))
    return any(call.over is None and call.funcname[-1].sval in _AGGREGATES for call in calls)


def walk(node: Any, wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """Yield the nodes that are `wanted` below `node`, not those in queries within it."""
    if node is None:
        return
    if isinstance(node, tuple | list):
        for part in node:
            yield from walk(part, wanted)
        return
    if not is_a(node, ast.Node):
        return
    if wanted(node):
        yield node
    if is_a(node, ast.SelectStmt) and not is_a(node, ast.RawStmt):
        parts: Sequence[str] = ("targetList", "whereClause", "sortClause", "groupClause", "havingClause")
    else:
        parts = [name for name in node if name != "subselect"]
    for name in parts:
        yield from walk(getattr(node, name), wanted)


def literal_of(node: Any) -> str | None:
    """Return a constant as SQL, None for anything else and for NULL."""
    if is_a(node, ast.TypeCast):
        node = node.arg
    if not is_a(node, ast.A_Const) or node.isnull:
        return None
    text: str = RawStream()(node)
    return text


def column_sql(name: str) -> str:
    """Return a column's name as SQL."""
    return name if name.isidentifier() and name.islower() else '"' + name.replace('"', '""') + '"'
