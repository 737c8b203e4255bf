"""What others recover of a head's direct effect when it is gone, and how much of that is rescaling."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


class Who(StrEnum):
    """Who changes: later heads with a direct effect for the answer, against it, or without one; MLPs; the norm."""

    MOVERS = "movers"
    NEGATIVE = "negative"
    OTHERS = "others"
    MLPS = "mlps"
    ALL = "all"  # with the scale of the untouched run
    NORM = "norm"  # what a scale of its own adds
    POST = "post"  # the post's yardstick: direction and scale of the changed run


@dataclass(frozen=True)
class BackupRow(Row):
    """What others recover when heads are exchanged at the last token."""

    model: str = column("", "model")
    task: str = column("", "task; all for the mean over tasks")
    heads_are: str = column("", "chosen or matched")
    draw: int | None = column("", "of a matched head or set")
    out: str = column("", "heads that are exchanged")
    who: str = column("", "who changes: movers, negative, others, mlps, all; norm; post")
    lost: float = column("logits", "direct effect that is lost with them")
    recovered: float = column("logits", "change of the others' direct effects, above 0 where they make up for it")
    share: float | None = column("share", "recovered over lost; none where too little is lost")
    low: float | None = column("share", "95% interval over prompts, of all over tasks, lower end")
    high: float | None = column("share", "upper end")
    n: int = column("prompts", "of the held-out half; of all: tasks")


def run(c: Context) -> list[BackupRow]:
    raise NotImplementedError
