"""Find statements that are executed on a connection with autocommit, in the source code of a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
EXECUTING_METHODS = {"execute", "executemany", "exec_driver_sql", "scalar", "scalars", "stream"}
WRITE = re.compile(r"\b(insert|update|delete|merge|truncate|create|alter|drop|copy|call)\b")
# These lock rows and write nothing that a commit waits for.
ROW_LOCK = re.compile(r"\bfor\s+(no\s+key\s+)?update\b")


def find_waiting_statements(source: str) -> list[str]:
    """Return the statements on connections with autocommit that may wait for a standby, as `function: statement`.

    Those are writes that do not turn `synchronous_commit` off, and statements that are not in the source code, such as
    arguments. The statement is empty for a function that keeps such a connection or passes it to another module.
    """
    return sorted(_Module(ast.parse(source)).find_waiting_statements())


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self._functions = dict(_list_functions(tree, ""))
        self._values = _list_values(tree.body)

    def find_waiting_statements(self) -> Iterator[str]:
        openers = {name for name, function in self._functions.items() if _opens_connection(function)}
        # Functions that return the connection; those that call them use it.
        returning = {name for name in openers if self._is_returning(name)}
        used = openers - returning | {name for name in self._functions if self._calls_any(name, returning)}
        for name in used:
            statements = list(self._list_statements(self._functions[name], {name})) or [""]
            yield from (f"{name}: {statement}" for statement in statements if _may_wait(statement))

    def _is_returning(self, name: str) -> bool:
        returns = (node for node in ast.walk(self._functions[name]) if isinstance(node, ast.Return))
        is_called = any(self._calls_any(other, {name}) for other in self._functions)
        return is_called and any(_opens_connection(node) for node in returns)

    def _calls_any(self, name: str, others: set[str]) -> bool:
        names = {other.rpartition(".")[2] for other in others}
        calls = (node for node in ast.walk(self._functions[name]) if isinstance(node, ast.Call))
        return any(_called_name(call) in names for call in calls)

    def _list_statements(self, function: Function, seen: set[str]) -> Iterator[str]:
        """Yield the statements of a function, and of the functions of the module to which it passes a connection."""
        values = self._values | _list_values(function.body)
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr in EXECUTING_METHODS:
                yield _expand(call.args[0], values, set()) if call.args else ""
            for name in self._functions.keys() - seen:
                if call.args and name.rpartition(".")[2] == _called_name(call):
                    yield from self._list_statements(self._functions[name], seen | {name})


def _list_functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield prefix + child.name, child
        if isinstance(child, ast.ClassDef):
            yield from _list_functions(child, f"{child.name}.")


def _list_values(body: list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """Return the expressions that are assigned to each name, also as the variable of a loop."""
    values: dict[str, list[ast.expr]] = {}
    for node in (node for statement in body for node in _walk_scope(statement)):
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.For):
            pairs = [(node.target, node.iter)]
        for target, value in pairs:
            if isinstance(target, ast.Name) and value is not None:
                values.setdefault(target.id, []).append(value)
    return values


def _walk_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and the nodes below it, without those of functions and classes."""
    if isinstance(node, Function | ast.ClassDef):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk_scope(child)


def _opens_connection(part: ast.AST) -> bool:
    return any(
        (isinstance(node, ast.Constant) and str(node.value).upper() == "AUTOCOMMIT")
        or (isinstance(node, ast.keyword) and node.arg == "autocommit" and not _is_constant(node.value, False))
        or (isinstance(node, ast.Attribute) and node.attr in ("autocommit", "set_autocommit"))
        for node in ast.walk(part)
    )


def _is_constant(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _called_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _expand(expression: ast.expr, values: dict[str, list[ast.expr]], seen: set[str]) -> str:
    """Return the source code of an expression and of the values of the names in it."""
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)} - seen
    parts = [_expand(value, values, seen | names) for name in sorted(names) for value in values.get(name, [])]
    return " ".join([ast.unparse(expression), *parts])


def _may_wait(statement: str) -> bool:
    text = ROW_LOCK.sub("", statement.replace("\\n", " ").lower())
    if WRITE.search(text):
        return "synchronous_commit" not in text
    return re.search(r"\bselect\b", text) is None
