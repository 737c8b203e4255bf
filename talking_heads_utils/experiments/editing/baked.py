"""The best edit as a checkpoint, measured by plain transformers."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class BakedRow(Row):
    model: str = column("", "as the command took it")
    edit: str = column("", "as in the table of gains")
    n_items: int = column("items", "length of the lists")
    by: str = column("", "package: edited in place; transformers: its own code on the baked checkpoint")
    before: float = column("share", "lists answered without the edit")
    after: float = column("share", "with it")
    gain: float = column("points", "of accuracy")
    low: float = column("points", "95% interval, lower end")
    high: float = column("points", "upper end")
    apart: float = column("logits", "largest difference of a candidate's logit from the package's")
    n: int = column("prompts", "held-out lists")


def run(c: Context) -> list[BakedRow]:
    raise NotImplementedError
