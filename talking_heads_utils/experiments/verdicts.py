"""What is measured for a claim: numbers alone. Words for them are made where they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Verdict(StrEnum):
    """What a rule says of a claim; a claim without a rule is not judged."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    UNDECIDED = "undecided"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Measured:
    """The number that a claim is about, and its control. Without an interval, ``low`` and ``high`` are NaN.

    what, control_label: what the two numbers are, in snake_case. n: prompts, or what ``n_of`` names. p: of the two
    being alike, where a test says so.
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


def share_of(flags: pd.Series) -> float:
    """Share of flags that are set; NaN of none."""
    return float(flags.mean()) if len(flags) else nan


def listed(values: Iterable[Any]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    names = [str(value) for value in values]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def with_interval(row: pd.Series, value: str, ends: str = "") -> str:
    """The column ``value`` of a row with its ``low`` and ``high``: ``0.94 [0.85, 0.98]``. ends: how the names of these
    two begin."""
    return f"{row[value]:.2f} [{row[f'{ends}low']:.2f}, {row[f'{ends}high']:.2f}]"
