"""Which heads a task is asked about: chosen by what they do to a twin, never by what their loss costs.

A head that another stands in for costs nothing when it alone is lost. So heads are chosen by the geometric mean of two
things that show it all the same: their direct effect, prompt less twin, and the log-odds that the twin gains with the
head at the prompt's value. A head that does only one of both has none; the order is the same in any units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.experiments.icl.swaps import Into, Ready, direct, exchanged, ready
from talking_heads_utils.experiments.icl.tasks import tasks
from talking_heads_utils.labels import Head
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import SELECTION

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

N_CHOSEN = 20  # heads, of a small model half of all at most
N_TRIED = 40  # heads of most direct effect that are put into the twin one by one; the others matter too little
N_MATCHED = 20  # sets of other heads
NEAR = 0.05  # of the summed direct effect, by which they may be off
TIMES = 4  # as many heads as those that they are matched to, at most
N_SELECT = 64  # prompts of a task's selection half


@dataclass(frozen=True)
class Picked:
    """Heads by what they do to a twin, on a task's selection half.

    direct: of every head on right less rival, prompt less twin, logits. denoised: log-odds that the twin gains with one
    head at the prompt's value, nats, of the heads of most direct effect. chosen: the strongest by both, in order.
    """

    direct: Float[Tensor, "n_layers n_heads"]
    denoised: dict[Head, float]
    chosen: list[Head]

    def summed(self, heads: Sequence[Head]) -> float:
        """Direct effects of some heads together, logits."""
        return sum(self.direct[head.layer, head.head].item() for head in heads)


def pick(select: Ready, n: int = N_CHOSEN) -> Picked:
    """Choose ``n`` heads, and of a small model half of all at most: those of the largest geometric mean of direct
    effect and denoised gain, each above 0."""
    found = direct(select)
    effect = (found.heads[:, 0] - found.twin_heads).mean(0)
    order = effect.flatten().argsort(descending=True, stable=True)[:N_TRIED]
    tried = [Head(*divmod(i, effect.shape[1])) for i in order.tolist()]
    said = exchanged(select, [[], *([head] for head in tried)], into=Into.TWIN).log_odds
    gained = dict(zip(tried, (said[:, 1:] - said[:, :1]).mean(0).tolist()))
    both = {head: effect[head.layer, head.head].item() * gain for head, gain in gained.items() if gain > 0}
    chosen = sorted((head for head, product in both.items() if product > 0), key=lambda head: -both[head])
    return Picked(effect, gained, chosen[: min(n, effect.numel() // 2)])


def matched(picked: Picked, heads: Sequence[Head], n: int = N_MATCHED, seed: int = 0) -> list[list[Head]]:
    """``n`` sets of other heads whose summed direct effect is that of ``heads``, give or take 5%.

    Of the heads that were put into the twin, one after the other is drawn, more likely one of more direct effect, and
    kept where the sum does not pass the target by more, until it is near. Where four times as many heads are not
    enough, or all that fit, the set has less.
    """
    target, drawn = picked.summed(heads), torch.Generator().manual_seed(seed)
    others = [head for head in picked.denoised if head not in heads and picked.summed([head]) > 0]
    weights, sets = torch.tensor([picked.summed([head]) for head in others]), []
    for _ in range(n):
        kept: list[Head] = []
        for i in torch.rand(len(others), generator=drawn).pow(1 / weights).argsort(descending=True).tolist():
            if picked.summed(kept) >= (1 - NEAR) * target or len(kept) == TIMES * len(heads):
                break
            if picked.summed([*kept, others[i]]) <= (1 + NEAR) * target:
                kept.append(others[i])
        sets.append(kept)
    return sets


def picks(c: Context) -> dict[str, Picked]:
    """The chosen heads of every task, by its name. Ask for it by ``c.kept(picks)``."""
    n = c.n(N_SELECT, 24)
    return {task.name: pick(ready(c, task.ask(c, n, SELECTION))) for task in follow(tasks(c), "tasks")}
