"""How few heads suffice: all others at the twin's values at the last token."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column

ENOUGH = 0.9  # of the accuracy with nothing exchanged


@dataclass(frozen=True)
class SufficientRow(Row):
    """Accuracy with some heads left as they are and all others exchanged."""

    model: str = column("", "model")
    task: str = column("", "task")
    which: int = column("", "1 for the first set, 2 for the next one without its heads, and so on; 0 for random heads")
    draw: int | None = column("", "of random heads")
    n_heads: int = column("heads", "left as they are")
    head: str = column("", "the one that was added last")
    suffices: bool = column("", "whether it is the smallest that keeps 90% of the accuracy on the selection half")
    selected: float = column("share", "right answers on the selection half, over those with nothing exchanged")
    kept: float = column("share", "the same on the held-out half")
    low: float = column("share", "95% interval over prompts, lower end")
    high: float = column("share", "upper end")
    accuracy: float = column("share", "right answers on the held-out half")
    everywhere: float | None = column("share", "kept with all others exchanged at all positions; of sets that suffice")
    without: float | None = column("share", "kept with only this set exchanged; of sets that suffice")
    n: int = column("prompts", "of the held-out half")


def run(c: Context) -> list[SufficientRow]:
    raise NotImplementedError
