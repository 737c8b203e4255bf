"""Figure 2 of Merullo et al. (2024) on another model: each component of each S-inhibition head, into each mover."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class ComponentRow(Row):
    """One component: how strongly a mover's query reads it, and what its removal from that query does."""

    model: str = column("", "name of the model")
    head: str = column("", "S-inhibition head")
    mover: str = column("", "the mover whose query reads it")
    component: int = column("", "its index, the largest singular value first")
    score: float = column("", "composition score into the mover's query")
    null: float = column("", "root mean square of a random direction's score")
    effect: float = column("share of attention", "change of I(m) by its removal, mean over prompts")
    low: float = column("share of attention", "lower end of its 95% interval over prompts")
    high: float = column("share of attention", "upper end")
    odds: float = column("nats", "change of the log-odds of the mover's attention, IO to S1, by its removal")
    odds_low: float = column("nats", "lower end of its 95% interval over prompts")
    odds_high: float = column("nats", "upper end")
    n: int = column("prompts", "that chose no role")
