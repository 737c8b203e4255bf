"""What chapter 1's page shows of its toys alone, beside the experiments of every model."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.effects import (
    inhibition_score,
)
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.concentration import (
    CurveRow,
    concentration,
)
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.labels import Head
from talking_heads_utils.stats import bootstrap_mean


@dataclass(frozen=True)
class FoundRow(Row):
    """Which heads of a toy were found, and how well its answer runs through them."""

    model: str = column("", "name of the model")
    movers: str = column("", "heads that attend to the answer and write it")
    share: float = column("share", "of the logit difference, what they write")
    inhibition: str = column("", "heads that turn them away from what is named twice; empty if the movers write little")
    score: float | None = column("share of attention", "I(m) of the strongest mover on the held-out half")
    low: float | None = column("share of attention", "lower end of its 95% interval over prompts")
    high: float | None = column("share of attention", "upper end")
    n: int | None = column("prompts", "of the held-out half")


def found(c: Context) -> FoundRow:
    """Movers and inhibition heads on lists."""
    at = c.found
    row = (c.model, ", ".join(map(str, at.movers)), at.share)
    if not at.through_movers:
        return FoundRow(*row, "", None, None, None, None)
    runs = c.kept(mover_runs)
    heads = ", ".join(map(str, runs.heads)) or "none"
    score = bootstrap_mean(inhibition_score(runs.held_out, runs.mover).cpu())
    return FoundRow(*row, heads, score.mean, score.low, score.high, score.n)


@dataclass(frozen=True)
class EffectRow(Row):
    """One component of an inhibition head: what its removal does to the strongest mover, and its composition score."""

    model: str = column("", "name of the model")
    head: str = column("", "inhibition head")
    mover: str = column("", "the mover whose query it is removed from")
    component: int = column("", "its index, the largest singular value first")
    effect: float = column("share of attention", "change of I(m) on the held-out half")
    error: float = column("share of attention", "half of its 95% interval")
    others_effect: float | None = column("share of attention", "lowest of the layer's heads that inhibit nothing")
    score: float = column("", "composition score into the mover's query")
    null: float = column("", "root mean square of a random direction's score")


def component_rows(c: Context, n_heads: int = 3, n_components: int = 32) -> list[EffectRow]:
    """The first components of the first inhibition heads."""
    at, rows = c.kept(mover_runs), []
    for head in at.heads[:n_heads]:
        values = at.effects.inhibition[:, 0, head.layer].cpu()
        others = [h for h in range(values.shape[1]) if Head(head.layer, h) not in at.heads]
        lowest = values[:, others].mean(0).min(0).values if others else None
        score = c.scores.block(at.mover, "Q")[0].score[head.layer, head.head, :, at.mover.head]
        own = values[:, head.head]
        error = 1.96 * own.std(0) / len(own) ** 0.5
        for i in range(min(n_components, own.shape[1])):
            beside = None if lowest is None else lowest[i].item()
            effect = (own[:, i].mean().item(), error[i].item(), beside)
            rows.append(EffectRow(c.model, str(head), str(at.mover), i, *effect, score[i].item(), c.scores.null_rms))
    return rows


def curves(c: Context, n_heads: int = 3) -> list[CurveRow]:
    """Removal of the top k components of the first inhibition heads, of k random ones and of the whole head."""
    at = c.kept(mover_runs)
    return [
        row
        for head in at.heads[:n_heads]
        for row in concentration(at.selection, at.held_out, at.mover, head, model=c.model, seed=c.seed)
    ]
