"""Figure 2 of Merullo et al. (2024) on another model: each component of each S-inhibition head, into each mover."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

import torch

from talking_heads_utils.effects import component_effects
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import Study, study_of
from talking_heads_utils.experiments.inhibition.prediction import task_distances
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.scores.composition import null_rms
from talking_heads_utils.scores.distance import scores_at_distances
from talking_heads_utils.stats import summary


@dataclass(frozen=True)
class ComponentRow(Row):
    """One component: how strongly a mover's query reads it, and what its removal from that query does."""

    model: str = column("", "name of the model")
    head: str = column("", "S-inhibition head")
    mover: str = column("", "the mover whose query reads it")
    component: int = column("", "its index, the largest singular value first")
    score: float = column("", "composition score into the mover's query, mean over the prompts' distances to IO and S1")
    null: float = column("", "root mean square of a random direction's score")
    effect: float = column("share of attention", "change of I(m) by its removal, mean over prompts")
    low: float = column("share of attention", "lower end of its 95% interval over prompts")
    high: float = column("share of attention", "upper end")
    odds: float = column("nats", "change of the log-odds of the mover's attention, IO to S1, by its removal")
    odds_low: float = column("nats", "lower end of its 95% interval over prompts")
    odds_high: float = column("nats", "upper end")
    n: int = column("prompts", "that chose no role")


def run(c: Context) -> list[ComponentRow]:
    """Every component of every S-inhibition head that writes anything, into every mover above it. Raises
    :class:`NotApplicable` for a model without such heads."""
    return component_rows(c.kept(study_of), c.model)


def component_rows(study: Study, model: str = "") -> list[ComponentRow]:
    """The rows of one study, on the prompts that chose nothing."""
    recording = study.scored.own
    weights = recording.weights
    effects = component_effects(recording, study.movers)
    assert effects.inhibition is not None
    distances, times = task_distances(recording.prompts).unique(return_counts=True)
    share = (times / times.sum()).to(weights.W_Q)
    null = null_rms(weights.d_model - weights.processing.center)
    rows = []
    for head in study.heads:
        above = [m for m, mover in enumerate(study.movers) if mover.layer > head.layer]
        each = scores_at_distances(weights, [head], [study.movers[m] for m in above], "Q", distances)[:, 0]
        for m, of_mover in zip(above, torch.einsum("d,dcm->mc", share, each)):
            mover, score = study.movers[m], of_mover.tolist()
            at = (slice(None), m, head.layer, head.head)
            found, odds = summary(effects.inhibition[at]), summary(effects.odds[at])
            for i in (i for i in range(weights.d_head) if not isnan(score[i])):
                rows.append(ComponentRow(
                    model=model, head=str(head), mover=str(mover), component=i, score=score[i], null=null,
                    effect=found.mean[i].item(), low=found.low[i].item(), high=found.high[i].item(),
                    odds=odds.mean[i].item(), odds_low=odds.low[i].item(), odds_high=odds.high[i].item(), n=found.n,
                ))  # fmt: skip
    return rows
