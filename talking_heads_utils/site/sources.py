"""Where a function of the package stands: file and lines, so that a page can lead to it."""

from __future__ import annotations

import importlib
import inspect
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import talking_heads_utils
from talking_heads_utils.errors import LabelError

PACKAGE = talking_heads_utils.__name__


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
    module, *names = _module(name)
    found: Any = module
    for part in names:
        if not hasattr(found, part):
            raise LabelError(
                f"{name} is not there: {getattr(found, '__name__', found)} has no {part}. Correct the name."
            )
        found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    if isinstance(found, cached_property):
        found = found.func
    elif isinstance(found, property):
        found = found.fget
    found = inspect.unwrap(found) if callable(found) else found  # torch.no_grad() and the like
    root = Path(talking_heads_utils.__file__).parent.parent
    try:
        path = Path(inspect.getsourcefile(found) or "").relative_to(root).as_posix()
        if not path.startswith(f"{PACKAGE}/"):
            raise ValueError(path)
        lines, first = inspect.getsourcelines(found)
    except (TypeError, ValueError, OSError) as error:
        raise LabelError(f"{name} is no function, class or module of this package. Name one.") from error
    return Place(path, (first, first + len(lines) - 1) if names else None)


def _module(name: str) -> list:
    """The longest part of a name that is a module, imported, and the names that are left."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            return [importlib.import_module(".".join(parts[:n])), *parts[n:]]
        except ModuleNotFoundError:
            continue
    raise LabelError(f"There is no module {parts[0]!r}. Full names begin with {PACKAGE!r}.")
