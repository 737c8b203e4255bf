"""What is measured for a claim: numbers alone. Words for them are made where they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from numpy import ndarray
    from torch import Tensor


class Verdict(StrEnum):
    """What a rule says of a claim; without a rule, or with too few units for its power, a claim is not judged."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    UNDECIDED = "undecided"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Measured:
    """The number that a claim is about, and its control. Without an interval, ``low`` and ``high`` are NaN.

    what, control_label: what the two numbers are, in snake_case. n: prompts, or what ``n_of`` names. p: of the two
    being alike, where a test says so. also: further numbers that a rule reads, by name. units: how many heads, readers
    or the like there are, on which a rule's power depends.
    """

    what: str
    value: float
    low: float = nan
    high: float = nan
    unit: str = ""
    n: int = 0
    n_of: str = "prompts"
    control_label: str = ""
    control: float = nan
    control_low: float = nan
    control_high: float = nan
    p: float = nan
    also: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Rule:
    """Turns what was measured into one of three verdicts, where there are units enough for its power.

    decide: gives the verdict. least: unit -> how many it takes for 80% power at the effect that the claim speaks of.
    """

    decide: Callable[[Measured], Verdict]
    least: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, found: Measured) -> Verdict:
        return Verdict.NOT_JUDGED if self.lacking(found) else self.decide(found)

    def lacking(self, found: Measured) -> dict[str, tuple[int, int]]:
        """Unit -> how many there are and how many it takes, of those that are too few."""
        counts = {unit: (found.units.get(unit, 0), n) for unit, n in self.least.items()}
        return {unit: (has, n) for unit, (has, n) in counts.items() if has < n}


def rank_p(own: float, drawn: pd.Series | ndarray | Tensor) -> float:
    """Share of draws, and the number itself, that reach it; 1 without draws."""
    return (1 + int((drawn >= own).sum())) / (1 + len(drawn))


def where(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def listed(values: Iterable[Any]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    names = [str(value) for value in values]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def with_interval(row: Any, value: str, ends: str = "", form: str = ".2f") -> str:
    """The column ``value`` of a row with its ``low`` and ``high``: ``0.94 [0.85, 0.98]``. ends: how the names of these
    two begin. form: of all three."""
    return f"{row[value]:{form}} [{row[f'{ends}low']:{form}}, {row[f'{ends}high']:{form}}]"
