"""One component removed from the movers' queries, as the paper describes it."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class RemovalRow(Row):
    """Components of inhibition heads, the strongest of each head on the selection half and the weights' own choice."""

    model: str = column("", "as the command took it")
    task: str = column("", "ioi, lists")
    head: str = column("", "inhibition head")
    component: str = column("", "that is removed; the head's name: all of it")
    chosen_by: str = column("", "selection: strongest on other prompts; weights: by composition score; whole_head")
    inhibition: float = column(
        "attention", "I(m): the movers' to the answer less the mean to the others, mean over movers"
    )
    change: float = column("attention", "of it, by the removal")
    low: float = column("attention", "95% interval over prompts, lower end")
    high: float = column("attention", "upper end")
    share: float = column("share", "of I(m) that is gone; negative where it grows")
    share_low: float = column("share", "95% interval, lower end")
    share_high: float = column("share", "upper end")
    matched: float | None = column(
        "attention", "change by other components of the layer, matched on energy: 5% point; empty for heads"
    )
    p: float | None = column("", "share of matched ones, this one included, that lower it as much")
    p_holm: float | None = column("", "the same, corrected for the number of heads")
    n_draws: int | None = column("components", "matched ones")
    n: int = column("prompts", "held out")


def run(c: Context) -> list[RemovalRow]:
    raise NotImplementedError
