"""Decides from its text whether a statement may run as a query: one SELECT, made of nothing but what is on the lists.

This is one layer of several, and the first (docs/decisions/0018-restricted-sql.md). Every node of PostgreSQL's own
parse tree is visited, wherever it stands; what is not on a list is refused. It sees names, not what they resolve to: so
names are qualified or those of pg_catalog, which is the whole search path of the role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pglast import ast, parser
from pglast.enums import A_Expr_Kind, MinMaxOp

from kronos_db.admin import guard_lists as lists
from kronos_db.admin.query_model import StatementRefusedError

# Characters. Parsing takes 0.2 ms for a usual statement and 0.1 s for the longest.
MOST_CHARACTERS = 50_000
# Nodes within nodes. A hundred joins, or terms of one sum, nest as deeply as that.
_MOST_DEPTH = 250
# Tokens beside commas and constants, counted before the text is parsed: each may nest what stands around it once more,
# and PostgreSQL's parser outside of PostgreSQL ends the process when the stack is used up. That takes 10,000 and more.
_MOST_TOKENS = 2_000
_FLAT_TOKENS = frozenset({"ASCII_44", "ICONST", "FCONST", "SCONST", "BCONST", "XCONST", "USCONST"})
# What a number may say that makes a value so many times, or so many characters, large; and all of these together.
_MOST_LENGTH = 10_000
_MOST_GROWTH = 1_000_000
# Below this a length is counted as none.
_SMALL_LENGTH = 100
# Ways of format() that make no room of their own: no widths.
_PLAIN_FORMAT = set("sIL%")

Check = Callable[["Guard", Any], None]


def fingerprint(text: str) -> str:
    """Return what statements have in common that differ in their constants alone; '' when it cannot be parsed."""
    try:
        _check_size(text)
        return str(parser.fingerprint(text))
    except (parser.ParseError, StatementRefusedError):
        return ""


def check(text: str, relations: frozenset[str]) -> str:
    """Return the statement of a text when it may run: without the semicolon that ends it.

    `relations` are those of the domains that may be read: `schema.name`. Raises StatementRefusedError, which names the
    rule and the place.
    """
    return Guard(text, relations).check()


class Guard:
    """The check of one statement."""

    def __init__(self, text: str, relations: frozenset[str]) -> None:
        self._text = text
        self._relations = relations
        self._ctes: set[str] = set()
        self._growth = 1

    def check(self) -> str:
        """See the function of this name."""
        raw = self._only_statement()
        statement = raw.stmt
        if not isinstance(statement, ast.SelectStmt):
            kind = type(statement).__name__.removesuffix("Stmt")
            raise StatementRefusedError("statement", f"{kind} is not SELECT, VALUES, TABLE or WITH", 1)
        nodes = list(_walk(statement))
        self._ctes = {str(node.ctename) for node in nodes if isinstance(node, ast.CommonTableExpr)}
        for node in nodes:
            self._visit(node)
        # What stands before it, as semicolons do, makes room, so that PostgreSQL counts places as the caller does.
        start, length = int(raw.stmt_location), int(raw.stmt_len)
        return " " * start + self._text[start:][: length or None]

    def _only_statement(self) -> Any:
        try:
            _check_size(self._text)
            parsed = parser.parse_sql(self._text)
        except parser.ParseError as error:
            place = error.args[1] if len(error.args) > 1 else None
            what = str(error.args[0]).partition(", at index")[0]
            raise StatementRefusedError("syntax", what, place + 1 if isinstance(place, int) else 0) from None
        if len(parsed) != 1:
            raise StatementRefusedError("one statement", f"it is {len(parsed)} statements")
        return parsed[0]

    def _visit(self, node: Any) -> None:
        kind = type(node).__name__
        if kind not in lists.NODES:
            self._refuse("node", f"{kind} is not part of a query", node)
        special = _CHECKS.get(kind)
        if special is not None:
            special(self, node)

    def _refuse(self, rule: str, what: str, node: Any = None) -> None:
        # In characters from 0, -1 for none.
        location = getattr(node, "location", None)
        raise StatementRefusedError(rule, what, location + 1 if isinstance(location, int) else 0)

    def _relation(self, node: Any) -> None:
        name = str(node.relname)
        if node.catalogname:
            self._refuse("relation", "another database cannot be named", node)
        elif node.schemaname is None or node.schemaname == "pg_catalog":
            if name not in lists.CATALOG and (node.schemaname or name not in self._ctes):
                hint = (
                    "is none that may be read" if name.startswith("pg_") else "needs the name of its schema before it"
                )
                self._refuse("relation", f"{name} {hint}", node)
        elif node.schemaname == "information_schema":
            if name not in lists.INFORMATION_SCHEMA:
                self._refuse("relation", f"information_schema.{name} is none that may be read", node)
        elif f"{node.schemaname}.{name}" not in self._relations:
            self._refuse("relation", f"{node.schemaname}.{name} is none that may be read", node)

    def _cte(self, node: Any) -> None:
        # Else a relation of the catalog could be asked for by the name of a query that is out of reach there.
        if str(node.ctename).startswith("pg_"):
            self._refuse("relation", "a WITH query must not be called pg_…", node)

    def _function(self, node: Any) -> None:
        name = self._own_name(node.funcname, "function", node)
        if name not in lists.FUNCTIONS:
            self._refuse("function", f"{name} is not on the list of functions", node)
        if node.func_variadic and name in {"format", *lists.AMPLIFIERS}:
            self._refuse("function", f"{name} takes no VARIADIC here", node)
        place = lists.AMPLIFIERS.get(name)
        if place is not None:
            self._amplifier(name, place, node)
        elif name == "format" and not _is_plain_format(node):
            self._refuse("size", "the first argument of format must be a text with %s, %I and %L alone", node)

    def _amplifier(self, name: str, place: int, node: Any) -> None:
        arguments = node.args or ()
        length = _at_most(arguments[place]) if len(arguments) > place else None
        if length is None or length > _MOST_LENGTH or any(isinstance(each, ast.NamedArgExpr) for each in arguments):
            self._refuse(
                "size", f"the length of {name} must be up to {_MOST_LENGTH}: a number or least(…, number)", node
            )
        self._grow(length or 0, node)

    def _grow(self, length: int, node: Any) -> None:
        self._growth *= length if length > _SMALL_LENGTH else 1
        if self._growth > _MOST_GROWTH:
            self._refuse("size", "its lengths multiply to too much", node)

    def _type(self, node: Any) -> None:
        if node.setof or node.pct_type:
            self._refuse("type", "SETOF and %TYPE are not part of a query", node)
        name = self._own_name(node.names, "type", node)
        if name not in lists.TYPES:
            self._refuse("type", f"{name} is not on the list of types", node)
        if name in lists.PADDED:
            for length in node.typmods or ():
                number = _at_most(length)
                if number is None or number > _MOST_LENGTH:
                    self._refuse("size", f"{name} may have a length up to {_MOST_LENGTH}", node)
                self._grow(number or 0, node)

    def _own_name(self, names: Any, rule: str, node: Any) -> str:
        """Return a name that is unqualified or of pg_catalog, without the schema."""
        parts = [str(part.sval) for part in names]
        if len(parts) > 2 or (len(parts) == 2 and parts[0] != "pg_catalog"):  # noqa: PLR2004 - schema and name
            self._refuse(rule, f"{'.'.join(parts)} is not of pg_catalog", node)
        return parts[-1]

    def _operator(self, node: Any) -> None:
        if node.kind == A_Expr_Kind.AEXPR_OP or node.name:
            self._own_name(node.name, "operator", node)

    def _sublink(self, node: Any) -> None:
        if node.operName:
            self._own_name(node.operName, "operator", node)

    def _sort(self, node: Any) -> None:
        if node.useOp:
            self._own_name(node.useOp, "operator", node)

    def _collation(self, node: Any) -> None:
        self._own_name(node.collname, "collation", node)

    def _column(self, node: Any) -> None:
        self._fields(node.fields[1:], node)

    def _indirection(self, node: Any) -> None:
        self._fields(node.indirection, node)

    def _fields(self, fields: Any, node: Any) -> None:
        # `x.f` is f(x) when x has no column f; of functions that take any row, those that do harm are pg_….
        for field in fields:
            if isinstance(field, ast.String) and str(field.sval).startswith("pg_"):
                self._refuse("function", f"{field.sval} cannot be asked for as a column", node)

    def _sample(self, node: Any) -> None:
        if self._own_name(node.method, "function", node) not in lists.SAMPLING:
            self._refuse("function", "samples are taken by bernoulli or system", node)

    def _column_definition(self, node: Any) -> None:
        if any(
            getattr(node, name, None)
            for name in ("raw_default", "cooked_default", "constraints", "fdwoptions", "storage_name", "compression")
        ):
            self._refuse("node", "a column of a record has a name, a type and a collation alone", node)


_CHECKS: dict[str, Check] = {
    "RangeVar": Guard._relation,  # noqa: SLF001 - its own
    "CommonTableExpr": Guard._cte,  # noqa: SLF001
    "FuncCall": Guard._function,  # noqa: SLF001
    "TypeName": Guard._type,  # noqa: SLF001
    "A_Expr": Guard._operator,  # noqa: SLF001
    "SubLink": Guard._sublink,  # noqa: SLF001
    "SortBy": Guard._sort,  # noqa: SLF001
    "CollateClause": Guard._collation,  # noqa: SLF001
    "ColumnRef": Guard._column,  # noqa: SLF001
    "A_Indirection": Guard._indirection,  # noqa: SLF001
    "RangeTableSample": Guard._sample,  # noqa: SLF001
    "ColumnDef": Guard._column_definition,  # noqa: SLF001
}


def _walk(root: ast.Node) -> Iterator[ast.Node]:
    """Yield every node below `root` and itself; whatever attribute holds it, and however many lists are around it."""
    waiting: list[tuple[Any, int]] = [(root, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MOST_DEPTH:
            raise StatementRefusedError("depth", "it nests too deeply")
        if isinstance(value, tuple | list):
            waiting.extend((each, depth) for each in value)
        elif isinstance(value, ast.Node):
            yield value
            waiting.extend((getattr(value, name), depth + 1) for name in value)


def _check_size(text: str) -> None:
    """Return when the text may be given to the parser. Raises StatementRefusedError or pglast's ParseError."""
    if len(text) > MOST_CHARACTERS:
        raise StatementRefusedError("length", f"it has more than {MOST_CHARACTERS} characters")
    if "\0" in text:
        raise StatementRefusedError("syntax", "it has a character 0")
    if sum(token.name not in _FLAT_TOKENS for token in parser.scan(text)) > _MOST_TOKENS:
        raise StatementRefusedError("length", f"it has more than {_MOST_TOKENS} words and signs")


def _at_most(node: Any) -> int | None:
    """Return the number that an expression cannot exceed, when it is one or least(…) of one and others."""
    if isinstance(node, ast.TypeCast) and _last(node.typeName) in {"int2", "int4", "int8"}:
        return _at_most(node.arg)
    if isinstance(node, ast.A_Const) and isinstance(node.val, ast.Integer):
        return int(node.val.ival or 0)
    if isinstance(node, ast.MinMaxExpr) and node.op == MinMaxOp.IS_LEAST:
        return min((known for each in node.args or () if (known := _at_most(each)) is not None), default=None)
    return None


def _last(type_name: Any) -> str:
    return str(type_name.names[-1].sval)


def _is_plain_format(node: Any) -> bool:
    first = node.args[0] if node.args else None
    if not (isinstance(first, ast.A_Const) and isinstance(first.val, ast.String)):
        return False
    pieces = str(first.val.sval).split("%")
    text = iter(pieces[1:])
    for piece in text:
        if piece == "":
            # `%%` stands for one; what follows it is plain.
            next(text, None)
        elif piece[0] not in _PLAIN_FORMAT:
            return False
    return True
