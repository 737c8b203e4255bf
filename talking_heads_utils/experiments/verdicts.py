"""What is said of a claim: its measure, its control, and a verdict that follows from the numbers by a fixed rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
NOT_JUDGED = "not judged"  # by a rule that is known to be unsound


@dataclass(frozen=True)
class Verdict:
    """One claim about one model. measured, control: what was seen, with intervals and n, as text. why: what is wrong
    with the rule where it may not judge."""

    claim: str
    measured: str
    control: str
    verdict: str
    why: str = ""


def unsound(why: str) -> Callable[[Callable[P, Verdict]], Callable[P, Verdict]]:
    """Marks a rule that is known to be unsound: its numbers are shown and no verdict is given. ``__wrapped__`` is the
    rule itself."""

    def mark(rule: Callable[P, Verdict]) -> Callable[P, Verdict]:
        @wraps(rule)
        def marked(*args: P.args, **kwargs: P.kwargs) -> Verdict:
            return replace(rule(*args, **kwargs), verdict=NOT_JUDGED, why=why)

        return marked

    return mark


def by_verdict(verdicts: Mapping[str, str]) -> str:
    """Models and their verdicts as ``supported in a and b; undecided in c``, each verdict once, the best first."""
    said = verdicts.values()
    order = dict.fromkeys(v for v in (SUPPORTED, NOT_SUPPORTED, UNDECIDED, *said) if v in said)
    return "; ".join(f"{v} in {listed(name for name, of in verdicts.items() if of == v)}" for v in order)


def listed(values: Iterable[Any]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    names = [str(value) for value in values]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def counted(flags: pd.Series) -> str:
    """How many flags are set: ``3 of 15``."""
    return f"{int(flags.sum())} of {len(flags)}"


def with_interval(row: pd.Series, value: str, ends: str = "") -> str:
    """The column ``value`` of a row with its ``low`` and ``high``: ``0.94 [0.85, 0.98]``. ends: how the names of these
    two begin."""
    return f"{row[value]:.2f} [{row[f'{ends}low']:.2f}, {row[f'{ends}high']:.2f}]"
