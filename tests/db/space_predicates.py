"""Whether statements say which space they are about: what must hold for tables that are distributed by `space_id`.

A statement is parsed by Postgres's own grammar. In every query, subquery and data-modifying part of it each
distributed table must be tied by equality of its `space_id`: to a value, or to the `space_id` of another table that is.
A part whose tables are tied to one another alone reads all spaces: it runs on every node, but joins only what lies
together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pglast
from pglast import ast
from pglast.enums import A_Expr_Kind, BoolExprType, JoinType, SubLinkType

from sona_pg.store.schema import SCHEMA, metadata

KEY = "space_id"
REFERENCE = frozenset({"space", "space_grant"})
"""Tables that are on every node: as many rows as there are spaces, and grants of them, which every policy reads."""

DISTRIBUTED = frozenset(table.name for table in metadata.tables.values()) - REFERENCE
TABLES = DISTRIBUTED | REFERENCE

_NAMED = re.compile(rf"\b(?:FROM|JOIN|INTO|UPDATE|ON) {SCHEMA}\.(\w+)")
_STATEMENTS = (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)
_EQUAL = (A_Expr_Kind.AEXPR_OP, A_Expr_Kind.AEXPR_OP_ANY, A_Expr_Kind.AEXPR_IN, A_Expr_Kind.AEXPR_NOT_DISTINCT)


@dataclass(frozen=True)
class Finding:
    """A table that a part of a statement does not tie."""

    table: str
    is_untied: bool
    """Whether nothing ties it; else it is tied to others alone, and all spaces are read."""


@dataclass
class _Scope:
    """The tables of one part of a statement, by alias, and what their `space_id` is equal to."""

    tables: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    """Aliases of what is no table of the schema: functions, subqueries, temporary tables."""
    ties: list[tuple[str, str | None]] = field(default_factory=list)
    """Pairs of aliases, of which the first is tied where the second is; None is a value."""
    conditions: list[tuple[ast.Node | None, frozenset[str] | None]] = field(default_factory=list)
    """With the aliases whose rows they filter; None where they filter all."""

    def tie(self, alias: str, other: str | None) -> None:
        self.ties.append((alias, None if other in self.others else other))

    def untied(self) -> Iterator[str]:
        """Aliases of tables that nothing ties to a value."""
        tied: set[str] = set()
        grown = True
        while grown:
            found = {alias for alias, other in self.ties if other is None or other in tied}
            grown = not found <= tied
            tied |= found
        return (alias for alias in self.tables if alias not in tied)

    def findings(self) -> Iterator[Finding]:
        touched = {alias for pair in self.ties for alias in pair}
        for alias in self.untied():
            if self.tables[alias] in DISTRIBUTED:
                yield Finding(self.tables[alias], alias not in touched)


def findings(statement: str) -> list[Finding]:
    """What the parts of a statement, or of several, do not tie. Parameters are $1 or as psycopg has them."""
    return [found for part in pglast.parse_sql(_numbered(statement)) for found in of_tree(part.stmt)]


def _numbered(statement: str) -> str:
    return re.sub(r"%(\(\w+\))?[sbt]", "$1", statement).replace("%%", "%")


def of_tree(tree: object) -> Iterator[Finding]:
    """What is not tied in any part of a parse tree."""
    for part in _nodes(tree):
        if isinstance(part, _STATEMENTS):
            yield from _of_part(part, _common_tables(tree))
        elif isinstance(part, ast.CopyStmt) and part.relation is not None:
            names = {name.sval for name in part.attlist or ()}
            if _table_of(part.relation, frozenset()) in DISTRIBUTED and KEY not in names:
                yield Finding(part.relation.relname, True)
        elif isinstance(part, ast.TruncateStmt):
            tables = (_table_of(relation, frozenset()) for relation in part.relations)
            yield from (Finding(table, True) for table in tables if table in DISTRIBUTED)


def _of_part(part: ast.Node, common: frozenset[str]) -> Iterator[Finding]:
    if isinstance(part, ast.InsertStmt):
        yield from _of_insert(part)
    else:
        scope = _scope_of(part, common)
        yield from () if scope is None else scope.findings()


def _scope_of(part: ast.Node, common: frozenset[str]) -> _Scope | None:
    """The tables of a part and what ties them; None where it reads nothing."""
    scope = _Scope()
    if isinstance(part, ast.MergeStmt):
        _add_source(scope, part.relation, common)
        _add_source(scope, part.sourceRelation, common)
        scope.conditions.append((part.joinCondition, None))
    else:
        if not isinstance(part, ast.SelectStmt):
            _add_source(scope, part.relation, common)
        for source in (part.usingClause if isinstance(part, ast.DeleteStmt) else part.fromClause) or ():
            _add_source(scope, source, common)
        scope.conditions.append((part.whereClause, None))
    conditions = [(part, filtered) for condition, filtered in scope.conditions for part in _conjuncts(condition)]
    if any(_is_false(condition) for condition, _ in conditions):
        return None
    for condition, filtered in conditions:
        _add_equality(scope, condition, filtered, common)
    return scope


def _of_insert(part: ast.InsertStmt) -> Iterator[Finding]:
    table = part.relation.relname
    if _table_of(part.relation, frozenset()) not in DISTRIBUTED:
        return
    if part.cols is not None and KEY not in {column.name for column in part.cols}:
        yield Finding(table, True)
    conflict = part.onConflictClause
    target = () if conflict is None or conflict.infer is None else conflict.infer.indexElems or ()
    if target and KEY not in {element.name for element in target}:
        yield Finding(table, True)


def _table_of(source: ast.RangeVar, common: frozenset[str]) -> str | None:
    """The table of the schema that a name stands for; None if it is another."""
    known = source.relname in TABLES and source.schemaname in (None, SCHEMA)
    return source.relname if known and not (source.schemaname is None and source.relname in common) else None


def _common_tables(tree: object) -> frozenset[str]:
    return frozenset(part.ctename for part in _nodes(tree) if isinstance(part, ast.CommonTableExpr))


def _add_source(scope: _Scope, source: ast.Node, common: frozenset[str]) -> list[str]:
    """Add what stands in FROM; its aliases."""
    if isinstance(source, ast.JoinExpr):
        left, right = _add_source(scope, source.larg, common), _add_source(scope, source.rarg, common)
        # An outer join gives the rows of its outer side, whatever its condition says of them.
        filtered = frozenset(
            ([] if source.jointype in (JoinType.JOIN_LEFT, JoinType.JOIN_FULL) else left)
            + ([] if source.jointype in (JoinType.JOIN_RIGHT, JoinType.JOIN_FULL) else right)
        )
        if source.isNatural or KEY in {name.sval for name in source.usingClause or ()}:
            for one in left:
                for other in right:
                    _tie_both(scope, one, other, filtered)
        scope.conditions.append((source.quals, filtered))
        return left + right
    alias = source.alias.aliasname if source.alias is not None else getattr(source, "relname", "")
    table = _table_of(source, common) if isinstance(source, ast.RangeVar) else None
    if table is None:
        scope.others.add(alias)
    else:
        scope.tables[alias] = table
    return [alias]


def _conjuncts(condition: ast.Node | None) -> Iterator[ast.Node]:
    if isinstance(condition, ast.BoolExpr) and condition.boolop == BoolExprType.AND_EXPR:
        for part in condition.args:
            yield from _conjuncts(part)
    elif condition is not None:
        yield condition


def _is_false(condition: ast.Node) -> bool:
    """Whether nothing is read: only the columns are asked for."""
    return isinstance(condition, ast.A_Const) and isinstance(condition.val, ast.Boolean) and not condition.val.boolval


def _tie_both(scope: _Scope, one: str, other: str, filtered: frozenset[str] | None) -> None:
    """Tie either to the other, where its rows are filtered by that: one of them may be no table."""
    for a, b in ((one, other), (other, one)):
        if filtered is None or a in filtered:
            scope.tie(a, b)


def _add_equality(scope: _Scope, condition: ast.Node, filtered: frozenset[str] | None, common: frozenset[str]) -> None:
    if isinstance(condition, ast.SubLink) and condition.testexpr is not None:
        if condition.subLinkType != SubLinkType.ANY_SUBLINK or _reads_all(condition.subselect, common):
            return
        pairs = [(side, None) for side in _sides(condition.testexpr)]
    elif isinstance(condition, ast.A_Expr) and condition.kind in _EQUAL and condition.name[-1].sval == "=":
        left, right = _sides(condition.lexpr), _sides(condition.rexpr)
        pairs = list(zip(left, right, strict=True)) if len(left) == len(right) else [(side, None) for side in left]
    else:
        return
    for one, other in pairs:
        a, b = _key_of(scope, one), _key_of(scope, other)
        if a is not None and b is not None:
            _tie_both(scope, a, b, filtered)
        for side, key, opposite in ((one, a, other), (other, b, one)):
            # The name of a space is as good as its key.
            name = _column_of(scope, side, "name")
            named = name if name is not None and scope.tables.get(name) == "space" else None
            found = key if key is not None and (a is None or b is None) else named
            if found is None or (filtered is not None and found not in filtered):
                continue
            if not _is_of_a_row(scope, opposite) and not _is_array_of_all(opposite, common):
                scope.tie(found, None)


def _is_of_a_row(scope: _Scope, expression: object) -> bool:
    """Whether an expression is a column of a table of this part, and so no value that is known before."""
    if not isinstance(expression, ast.ColumnRef):
        return False
    names = [name.sval for name in expression.fields if isinstance(name, ast.String)]
    return len(names) > 1 and names[-2] in scope.tables


def _is_array_of_all(expression: object, common: frozenset[str]) -> bool:
    is_array = isinstance(expression, ast.SubLink) and expression.subLinkType == SubLinkType.ARRAY_SUBLINK
    return is_array and _reads_all(expression.subselect, common)


def _reads_all(query: ast.SelectStmt, common: frozenset[str]) -> bool:
    """Whether a query reads a table without saying the space, be it one that is on every node."""
    if query.larg is not None:
        return _reads_all(query.larg, common) or _reads_all(query.rarg, common)
    scope = _scope_of(query, common)
    return scope is not None and any(True for _ in scope.untied())


def _sides(expression: object) -> list[object]:
    return list(expression.args) if isinstance(expression, ast.RowExpr) else [expression]


def _key_of(scope: _Scope, expression: object) -> str | None:
    return _column_of(scope, expression, KEY)


def _column_of(scope: _Scope, expression: object, column: str) -> str | None:
    """Alias of the table of this part whose column an expression is; None if it is anything else."""
    if not isinstance(expression, ast.ColumnRef):
        return None
    names = [name.sval for name in expression.fields if isinstance(name, ast.String)]
    if names[-1:] != [column]:
        return None
    if len(names) > 1:
        return names[-2] if names[-2] in scope.tables else None
    # Without a table before it there is but one that can be meant.
    of_space = (alias for alias, table in scope.tables.items() if column == KEY or table == "space")
    return next(of_space, None)


def _nodes(tree: object) -> Iterator[ast.Node]:
    if isinstance(tree, ast.Node):
        yield tree
        for name in tree:
            yield from _nodes(getattr(tree, name))
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from _nodes(part)


@dataclass(frozen=True)
class Definition:
    """A function or a view of sql/, and its statements."""

    name: str
    trees: tuple[object, ...]
    is_view: bool = False

    @property
    def texts(self) -> list[str]:
        """Literals that name a distributed table as a statement does: statements are made of them when it runs."""
        literals = (node.sval for tree in self.trees for node in _nodes(tree) if isinstance(node, ast.String))
        return [text for text in literals if set(_NAMED.findall(text)) & DISTRIBUTED]


def definitions(script: str) -> Iterator[Definition]:
    """The functions, views and blocks of a script."""
    for part in pglast.parse_sql(script):
        statement = part.stmt
        begin = part.stmt_location
        text = script[begin : begin + part.stmt_len if part.stmt_len else None]
        if isinstance(statement, ast.ViewStmt):
            yield Definition(statement.view.relname, (statement.query,), is_view=True)
        elif isinstance(statement, ast.CreateFunctionStmt):
            name = statement.funcname[-1].sval
            language = next(o.arg.sval for o in statement.options if o.defname == "language")
            if language == "plpgsql":
                yield _procedural(name, text)
            elif statement.sql_body is not None:
                yield Definition(name, (statement.sql_body,))
            else:
                (body,) = (o.arg[0].sval for o in statement.options if o.defname == "as")
                yield Definition(name, (pglast.parse_sql(body),))
        elif isinstance(statement, ast.DoStmt):
            yield _procedural("DO", text)


def _procedural(name: str, text: str) -> Definition:
    trees = []
    # The parser has no catalog: it takes rows of our tables for text where they are given, for records where declared.
    signature, quote, body = re.split(r"(\$\$)", text, maxsplit=1)
    signature = re.sub(rf"\b({SCHEMA}|public)\.\w+(?!\w*\()", "text", signature)
    declared, begin, body = re.split(r"(\bBEGIN\b)", body, maxsplit=1)
    declared = re.sub(rf"\b({SCHEMA}|public)\.\w+\[\]", "text[]", declared)
    declared = re.sub(rf"\b{SCHEMA}\.\w+(%ROWTYPE)?(?!\w*\()", "record", declared)
    text = signature + quote + declared + begin + body
    for query, mode in _expressions(json.loads(pglast.parser.parse_plpgsql_json(text))):
        if mode >= 3:  # an assignment, to a variable or a part of one
            query = re.split(r":?=", query, maxsplit=1)[1]
        tree = pglast.parse_sql(query if mode == 0 else f"SELECT {query}")
        trees.append(tree)
    return Definition(name, tuple(trees))


def _expressions(tree: object) -> Iterator[tuple[str, int]]:
    """Every expression of a function: its text, and how it is to be parsed."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == "PLpgSQL_expr":
                yield value["query"], value.get("parseMode", 0)
            else:
                yield from _expressions(value)
    elif isinstance(tree, list):
        for part in tree:
            yield from _expressions(part)
