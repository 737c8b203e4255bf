"""What an experiment's numbers depend on in this package: the code of its module and of all that this imports.

Docstrings, comments, blank lines and imports for type checking do not count, so that prose makes no result stale.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import talking_heads_utils
from talking_heads_utils.files import data_dir

PACKAGE = talking_heads_utils.__name__
ROOT = Path(talking_heads_utils.__file__).parent


@cache
def source_sum(module: str) -> str:
    """SHA-256 over the code of a module, of all modules of this package that it imports, directly or not, and the words
    and wordings that prompts are made of."""
    total = hashlib.sha256()
    for name in depends_on(module):
        total.update(f"{name}\n{_code(name)}\n".encode())
    for path in sorted((data_dir() / "prompts").rglob("*.*")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


@cache
def _code(module: str) -> str:
    return code_of(_path(module).read_text(encoding="utf-8"))


def depends_on(module: str) -> list[str]:
    """A module's name and those of all modules of this package that it imports, directly or not, sorted."""
    found, left = set[str](), [module]
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += imported_by(name)
    return sorted(found)


@cache
def imported_by(module: str) -> list[str]:
    """The modules of this package that a module imports, at its top or in a function, but for type checking."""
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    return [name for name in _imports(tree) if name != PACKAGE and _is_module(name)]


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _is_module(name) else node.module for name in inner)
        else:
            yield from _imports(node)


def _is_module(name: str) -> bool:
    return name.split(".")[0] == PACKAGE and _path(name).is_file()


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def code_of(text: str) -> str:
    """Python source without docstrings, comments, blank lines and imports for type checking; the rest as it stands, so
    that it is the same in every version of Python."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if _is_docstring(node) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            stop = node.end_lineno or node.lineno  # one that was parsed has an end
            lines[node.lineno - 1 : stop] = [""] * (stop - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _is_docstring(node: ast.AST) -> TypeGuard[ast.Expr]:
    """A string that stands alone does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
