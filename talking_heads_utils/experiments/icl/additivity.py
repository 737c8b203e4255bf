"""Whether what examples contribute to the log-odds at the last token adds: second differences."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column

GROUPS = (2, 4, 8)  # examples that are changed together


@dataclass(frozen=True)
class SumRow(Row):
    """What so many examples contribute together, over what each contributes alone, a label drawn at random in its slot
    as baseline."""

    model: str = column("", "model")
    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped; 0 for all rates together")
    n_changed: int = column("examples", "changed together")
    n_examples: int = column("examples", "in the sequence")
    joint: float = column("nats", "contribution of all together to the log-odds of the rule that they speak for, mean")
    summed: float = column("nats", "sum of the contributions of each, mean")
    summed_low: float = column("nats", "95% interval over sequences, lower end")
    summed_high: float = column("nats", "upper end")
    ratio: float = column("", "joint over summed; 1 if they add")
    low: float = column("", "95% interval over sequences, lower end")
    high: float = column("", "upper end")
    difference: float = column("nats", "joint less summed, mean: the second difference of two")
    difference_low: float = column("nats", "lower end")
    difference_high: float = column("nats", "upper end")
    n: int = column("sequences", "n")


def run(c: Context) -> list[SumRow]:
    raise NotImplementedError
