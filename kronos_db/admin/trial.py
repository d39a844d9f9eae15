"""Finds values with which a statement can be tried out: of rows that are there, for each of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pglast
from pglast import ast
from pglast.enums import A_Expr_Kind


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a parameter is compared with: a column, an element of it, one of its values, or nothing (a LIMIT).

    `table` is the alias or name that the column stands with; empty when it stands alone.
    """

    number: int
    column: str = ""
    table: str = ""
    # The key of a JSON document whose value is compared.
    member: str = ""
    contained: bool = False
    # The parameter is an array of such values; it is all that is on its side.
    array: bool = False
    whole: bool = False
    limit: bool = False


def parameters(text: str) -> list[Parameter] | None:
    """Return the parameters of a statement; None when one of them stands where no value is known for."""
    found: dict[int, Parameter] = {}
    numbers: set[int] = set()
    for node in _nodes(pglast.parse_sql(text)):
        if isinstance(node, ast.ParamRef):
            numbers.add(node.number or 0)
        elif isinstance(node, ast.A_Expr):
            _compared(node, found)
        elif isinstance(node, ast.SelectStmt):
            for part in (node.limitCount, node.limitOffset):
                for number in _numbers(part):
                    found[number] = Parameter(number, limit=True)
    return [found[number] for number in sorted(numbers)] if numbers <= set(found) else None


def _compared(node: Any, found: dict[int, Parameter]) -> None:
    for mine, other in ((node.lexpr, node.rexpr), (node.rexpr, node.lexpr)):
        columns: list[Any] = [each for each in _nodes(mine) if isinstance(each, ast.ColumnRef)]
        numbers = list(_numbers(other))
        if isinstance(mine, ast.RowExpr) and len(columns) == len(numbers):
            pairs = list(zip(columns, numbers, strict=True))
        elif len(columns) == 1:
            pairs = [(columns[0], number) for number in numbers]
        else:
            continue
        contained = node.kind == A_Expr_Kind.AEXPR_OP and node.name[-1].sval == "@>"
        for column, number in pairs:
            names = _names(column)
            if names:
                table = names[-2] if len(names) > 1 else ""
                whole = _is_parameter(other)
                array = whole and node.kind == A_Expr_Kind.AEXPR_OP_ANY
                found[number] = Parameter(number, names[-1], table, _member(mine), contained, array, whole)


def _names(column: Any) -> list[str]:
    return [str(part.sval) for part in column.fields if isinstance(part, ast.String)]


def _is_parameter(node: Any) -> bool:
    while isinstance(node, ast.TypeCast):
        node = node.arg
    return isinstance(node, ast.ParamRef)


def _member(node: Any) -> str:
    for each in _nodes(node):
        if isinstance(each, ast.A_Expr) and each.name and each.name[-1].sval == "->>":
            right: Any = each.rexpr
            if isinstance(right, ast.A_Const) and isinstance(right.val, ast.String):
                return str(right.val.sval)
    return ""


def _numbers(node: Any) -> Iterator[int]:
    return (each.number or 0 for each in _nodes(node) if isinstance(each, ast.ParamRef))


def _nodes(node: Any) -> Iterator[Any]:
    if isinstance(node, tuple | list):
        for part in node:
            yield from _nodes(part)
    elif isinstance(node, ast.Node):
        yield node
        for name in node:
            yield from _nodes(getattr(node, name))
