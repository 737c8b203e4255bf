"""Rows of tables: what an experiment gives, a figure draws and a page prints, with declared columns.

A row is a frozen dataclass. Each field says its unit and its meaning, once, here; the data page is made of them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from talking_heads_utils.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound="Row")


class Column(NamedTuple):
    """One declared column. unit: such as logits, nats, share, items; ``""`` for names and counts without one."""

    name: str
    kind: type
    unit: str
    meaning: str


def column(unit: str, meaning: str) -> Any:
    """A field of a row: its unit and what it holds."""
    return field(metadata={"unit": unit, "meaning": meaning})


def maybe(unit: str, meaning: str) -> Any:
    """As :func:`column`, of what may be empty: it is, unless it is given by name."""
    return field(default=None, kw_only=True, metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True)
class Row:
    """Base of all rows. Fields are str, int, float or bool, or one of them or None."""

    @classmethod
    def columns(cls) -> list[Column]:
        """The declared columns, in order."""
        hints = typing.get_type_hints(cls)
        return [Column(f.name, _plain(hints[f.name]), f.metadata["unit"], f.metadata["meaning"]) for f in fields(cls)]


@dataclass(frozen=True)
class ModelRow(Row):
    """Base of the rows that are of one model."""

    model: str = column("", "as the command took it")


def _plain(hint: Any) -> type:
    """The type of a value that is there: of ``float | None`` float."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def frame(rows: Iterable[Row], kind: type[Row] | None = None) -> pd.DataFrame:
    """Rows of one kind as a table with its declared columns, also where there are none (``kind`` says which then)."""
    import pandas as pd

    found = list(rows)
    of = kind or type(found[0])
    return pd.DataFrame({c.name: pd.Series([getattr(r, c.name) for r in found], dtype=_dtype(c)) for c in of.columns()})


def _dtype(of: Column) -> str:
    return {str: "object", int: "Int64", float: "float64", bool: "boolean"}[of.kind]


def rows(table: pd.DataFrame, kind: type[R]) -> list[R]:
    """The rows that :func:`frame` made a table of. Raises :class:`ResultError` for a table with other columns."""
    declared = kind.columns()
    if lacking := [c.name for c in declared if c.name not in table.columns]:
        raise ResultError(f"A table of {kind.__name__} lacks {', '.join(lacking)}. Make the result again.")
    values: Sequence[dict[str, Any]] = table[[c.name for c in declared]].to_dict("records")
    return [kind(**{c.name: _value(record[c.name], c) for c in declared}) for record in values]


def _value(value: Any, of: Column) -> Any:
    import pandas as pd

    if value is None or (of.kind is not float and pd.isna(value)):
        return None
    return of.kind(value)
