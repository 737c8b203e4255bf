"""Where a function of the package stands, file and lines, and which line of a page made a figure: so that a page can
lead to both."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import talking_heads_utils
from talking_heads_utils.errors import LabelError

PACKAGE = talking_heads_utils.__name__
REPOSITORY = "https://github.com/talking-heads-book/talking-heads"
COLAB = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")


def page_url(path: str) -> str:
    """The address of a page's source, such as ``book/rules.md``, which leads somewhere from a notebook on Colab too. In
    the book such a link leads to the page itself."""
    return f"{REPOSITORY}/blob/main/{path}"


class Place(NamedTuple):
    """A file of the repository, its path from the root, and the first and last line; a module has none."""

    path: str
    lines: tuple[int, int] | None

    def url(self, repository: str, branch: str) -> str:
        """The address on GitHub, lines marked."""
        mark = f"#L{self.lines[0]}-L{self.lines[1]}" if self.lines else ""
        return f"{repository}/blob/{branch}/{self.path}{mark}"


def locate(name: str) -> Place:
    """Module, function, class or method by its full name, such as ``talking_heads_utils.stats.bootstrap_mean``.

    Raises :class:`LabelError` for a name that the package does not hold.
    """
    try:
        found: Any = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise LabelError(f"{name} is not there: {error}. Correct the name; it begins with {PACKAGE!r}.") from error
    whole = inspect.ismodule(found)
    if isinstance(found, cached_property | property):
        found = found.func if isinstance(found, cached_property) else found.fget
    found = inspect.unwrap(found) if callable(found) else found  # torch.no_grad() and the like
    root = Path(talking_heads_utils.__file__).parent.parent
    try:
        path = Path(inspect.getsourcefile(found) or "").relative_to(root).as_posix()
        if not path.startswith(f"{PACKAGE}/"):
            raise ValueError(path)
        lines, first = inspect.getsourcelines(found)
    except (TypeError, ValueError, OSError) as error:
        raise LabelError(f"{name} is no function, class or module of this package. Name one.") from error
    return Place(path, None if whole else (first, first + len(lines) - 1))


class Made(NamedTuple):
    """What made a figure: lines of Python that make it again, and the full name of the function that drew it."""

    lines: str
    function: str | None


def made_by(cells: Sequence[str], name: str) -> Made:
    """What made a figure: what was given to its ``page.show``, after the lines of the page that this goes back to.

    cells: the sources of a page's code cells up to that which shows the figure. name: of the figure. Raises
    :class:`LabelError` where that cell does not show it.
    """
    sources = [re.sub(r"^(\s*)(?=[%!])", r"\1pass  # ", cell, flags=re.M) for cell in cells]  # a notebook's commands
    *before, last = [ast.parse(source) for source in sources]
    for at, statement in enumerate(last.body):
        for call in ast.walk(statement):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("show") and _named(call) in (name, None):
                shown = call.args[0].body if isinstance(call.args[0], ast.Lambda) else call.args[0]
                earlier = [(s, node) for s, tree in zip(sources, before) for node in tree.body]
                earlier += [(sources[-1], node) for node in last.body[:at]]
                (indent,) = re.findall(r"^\s*", sources[-1].splitlines()[shown.lineno - 1])
                drawn = indent + (ast.get_source_segment(sources[-1], shown) or "")
                return Made("\n".join([*_leading_to(shown, earlier), dedent(drawn)]), _drawer(shown, earlier))
    raise LabelError(f"The last cell does not show {name}. Give the cells up to the one that does.")


def _named(call: ast.Call) -> str | None:
    """The name that is given to a figure; None where it is no plain string."""
    values = [k.value.value for k in call.keywords if k.arg == "name" and isinstance(k.value, ast.Constant)]
    return str(values[0]) if values else None


def _leading_to(shown: ast.expr, earlier: Sequence[tuple[str, ast.stmt]]) -> list[str]:
    """Of earlier statements, with their sources, those whose names the expression needs, or what it needs needs;
    imports first."""
    needed, lines, imports = _names(shown, ast.Load), list[str](), list[str]()
    for source, node in reversed(earlier):
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [a for a in node.names if (a.asname or a.name.split(".")[0]) in needed]
            imports += [ast.unparse(node)] if node.names else []
        elif (bound := _names(node, ast.Store)) & needed:
            needed = needed - bound | _names(node, ast.Load)
            lines.append(ast.get_source_segment(source, node) or "")
    return [*imports[::-1], *lines[::-1]]


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Names that are read (``Load``) or given (``Store``), but for those of comprehensions."""
    inner = {n.id for c in ast.walk(node) if isinstance(c, ast.comprehension) for n in ast.walk(c.target)
             if isinstance(n, ast.Name)}  # fmt: skip
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)} - inner


def _drawer(shown: ast.expr, earlier: Sequence[tuple[str, ast.stmt]]) -> str | None:
    """The package's function that stands furthest out in an expression."""
    imported: dict[str, str] = {}
    for _, node in earlier:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE):
            imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            imported |= {a.asname or a.name: a.name for a in node.names if a.name == PACKAGE}
    for part in ast.walk(shown):
        if isinstance(part, ast.Call | ast.Name | ast.Attribute):
            first, *rest = ast.unparse(part.func if isinstance(part, ast.Call) else part).split(".")
            if first in imported:
                return ".".join([imported[first], *rest])
    return None
