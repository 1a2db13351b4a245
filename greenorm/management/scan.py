"""Finds, in source text alone, the uses of `sync_to_async` that could become runs. Imports nothing of the project."""

from __future__ import annotations

import ast
import os
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Where the adapters are imported from, by the names that they have there.
ADAPTERS = {
    ("asgiref.sync", "sync_to_async"),
    ("asgiref.sync", "SyncToAsync"),
    ("channels.db", "database_sync_to_async"),
}
# Directories that hold the code of others.
_NOT_THE_PROJECTS = {"site-packages", "node_modules", "__pycache__", "build", "dist", "venv", "env"}


@dataclass(frozen=True)
class Use:
    """A use of an adapter, and what to write in its place."""

    file: str
    line: int
    code: str
    instead: str


def uses_below(directory: Path) -> Iterator[Use]:
    """Yield the uses in all Python files of a project, by file and line; files that are no Python are left out."""
    for path in _python_files(directory):
        try:
            with tokenize.open(path) as file:
                tree = ast.parse(file.read())
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        yield from _uses_in(tree, str(path.relative_to(directory)))


def _python_files(directory: Path) -> Iterator[Path]:
    for parent, directories, files in os.walk(directory):
        directories[:] = sorted(
            name
            for name in directories
            if name not in _NOT_THE_PROJECTS
            and not name.startswith(".")
            and not Path(parent, name, "pyvenv.cfg").exists()
        )
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def _uses_in(tree: ast.Module, file: str) -> Iterator[Use]:
    names = set(_names_of_adapters(tree))
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    decorators = {
        id(decorator): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in node.decorator_list
    }
    found: list[Use] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or ast.unparse(node) not in names:
            continue
        call = called.get(id(node))
        if call is not None and _keeps_its_thread(call):
            continue
        use: ast.expr = node if call is None else call
        if (function := decorators.get(id(use))) is not None:
            found.append(Use(file, use.lineno, f"@{ast.unparse(use)} def {function.name}", "@greenorm.awaitable"))
        elif call is not None and call.args:
            outer = called.get(id(call))
            arguments = [ast.unparse(call.args[0]), *(_arguments(outer) if outer is not None else ["..."])]
            code = ast.unparse(call if outer is None else outer)
            found.append(Use(file, node.lineno, code, f"greenorm.run({', '.join(arguments)})"))
    yield from sorted(found, key=lambda use: use.line)


def _names_of_adapters(tree: ast.Module) -> Iterator[str]:
    """Yield the expressions by which a module can mean an adapter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (node.module, alias.name) in ADAPTERS:
                    yield alias.asname or alias.name
                for module, name in ADAPTERS:
                    if f"{node.module}.{alias.name}" == module:
                        yield f"{alias.asname or alias.name}.{name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                for module, name in ADAPTERS:
                    if alias.name == module:
                        yield f"{alias.asname or module}.{name}"


def _keeps_its_thread(call: ast.Call) -> bool:
    return any(
        (keyword.arg == "thread_sensitive" and isinstance(keyword.value, ast.Constant) and not keyword.value.value)
        or keyword.arg == "executor"
        for keyword in call.keywords
    )


def _arguments(call: ast.Call) -> list[str]:
    return [*map(ast.unparse, call.args), *map(ast.unparse, call.keywords)]
