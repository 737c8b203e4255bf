"""How much of an S-inhibition head's effect a few of its components carry: their coefficients at ``end`` are exchanged
with those of the same prompt with its names in the other order, in all movers' queries at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.effects import component_effects
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import (
    BEST_MEASURED,
    PREDICTED,
    PREDICTORS,
    Study,
    study_of,
)
from talking_heads_utils.experiments.inhibition.prediction import task_distances
from talking_heads_utils.experiments.inhibition.shifts import KEY, QUERY, VALUE, Answers, Exchange, exchanged_answers
from talking_heads_utils.experiments.rows import ModelRow, column, maybe
from talking_heads_utils.experiments.verdicts import rank_p
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.scores.composition import null_rms
from talking_heads_utils.scores.distance import scores_at_distances
from talking_heads_utils.stats import middle, resamples, summary

ALL = "all"  # heads together
LOG_ODDS, LOGIT_DIFFERENCE, PROBABILITY = "log_odds", "logit_difference", "probability"  # what is measured

WHOLE_HEAD = "whole_head"
OTHER_COMPONENT = "other_component"  # of the same head, of like energy
MATCHED_SETS = "matched_sets"  # drawn from the same layers, of like energy
RANDOM_DIRECTIONS = "random_directions"  # drawn in the head's output space
WEIGHTS = "weights"  # how hits call the prediction
SIZES = (1, 2, 3, 5, 8, 16)  # components of each head
N_OTHER = 3  # sizes of the sets of other components of the same head
N_DRAWS = 99
CLAIMED = 2  # components a head that the claim speaks of
DRAWN = (MATCHED_SETS, RANDOM_DIRECTIONS)
RUN = (PREDICTED, WHOLE_HEAD, OTHER_COMPONENT)  # to the answer at every size; other sets at the claimed one at most
BLOCK = 32  # exchanges that are run at once
NAMED = 8  # components that a row names
LEAST = 1e-3  # of a whole head's effect, in any unit: shares of less mean nothing


@dataclass(frozen=True)
class ExchangeRow(ModelRow):
    """What the exchange of one set of components does to one measure, mean over prompts. The shift of every control is
    scaled to the energy of the predicted set's. Of drawn sets: the mean over draws, and the draws' 2.5% and 97.5%
    points."""

    head: str = column("", "S-inhibition head, or all of them together")
    into: str = column("", "query, key or value: which input of the movers sees the exchange")
    set: str = column("", "how the components were chosen")
    k: int = column("components", "how many of each head")
    components: str = column("", "their names, up to eight of a head; empty for drawn sets and whole heads")
    measure: str = column("", "log_odds: of the movers' attention, IO to S1, in nats; logit_difference; probability: "
                          "of IO")  # fmt: skip
    effect: float = column("", "change of the measure, mean over prompts")
    low: float = column("", "lower end of its 95% interval over prompts, of drawn sets over draws")
    high: float = column("", "upper end")
    share: float = column("share", "of what the exchange of the whole head's write into the query does")
    share_low: float = column("share", "lower end of its 95% interval over prompts, of drawn sets over draws")
    share_high: float = column("share", "upper end")
    energy: float | None = maybe("share", "of the whole exchanged write's squared length; empty for controls")
    matched_share: float | None = maybe("share", "95% point of the matched sets' shares; of predicted sets alone")
    p: float | None = maybe("", "share of matched sets, the set itself included, with as large an effect")
    n_draws: int | None = maybe("sets", "how many were drawn")
    n: int = column("prompts", "each with its twin")


@dataclass(frozen=True)
class HitRow(ModelRow):
    """Where a predictor has the component of a head whose exchange does most to the movers' log-odds."""

    head: str = column("", "S-inhibition head")
    predictor: str = column("", "what the head's components were ranked by, on other prompts or on none")
    strongest: str = column("", "the component whose exchange does most")
    first: str = column("", "the predictor's first")
    rank: int = column("", "of the strongest under the predictor, 1 for the first")
    hit_at_1: bool = column("", "whether it is the first")
    hit_at_3: bool = column("", "whether it is among the first three")
    p: float = column("", "chance of so good a rank by a random order")
    first_share: float = column("share", "effect of the predictor's first over that of the strongest")
    certain: float = column("share", "of bootstrap samples of the prompts in which the same component is the strongest")
    n_components: int = column("components", "of the head, those that write anything")
    n: int = column("prompts", "each with its twin")


@dataclass(frozen=True)
class ComponentRow(ModelRow):
    """One component: how strongly a mover's query reads it, and what its removal from that query does."""

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


@dataclass(frozen=True)
class Tried:
    """One set. components: what it names."""

    set: str
    k: int
    exchange: Exchange
    components: tuple[Component, ...] = ()
    into: str = QUERY


def run(c: Context) -> list[ExchangeRow]:
    """Every set of every S-inhibition head and of all together. Raises :class:`NotApplicable` for a model without
    movers or S-inhibition heads, or one that cannot do IOI."""
    study = c.kept(study_of)
    targets = {str(head): (head,) for head in study.heads} | {ALL: study.heads}
    return [row for name, heads in targets.items() for row in exchange_rows(study, name, heads)]


def exchange_rows(study: Study, name: str, target: Sequence[Head]) -> list[ExchangeRow]:
    """The rows of one head, or of several together, under a name."""
    tried = sets_of(study, target)
    size, rows = study.scored.energy(tried[0].exchange), []  # of the whole heads
    for what, values in measure(study, tried).items():
        mean, samples = values.double().mean(0), resamples(len(values)) @ values.double()
        there = mean[0].abs() > LEAST
        share = mean / mean[0] if there else torch.full_like(mean, torch.nan)
        toward = mean * mean[0].sign() if there else torch.zeros_like(mean)
        groups: dict[tuple[str, str, int], list[int]] = {}
        for i, t in enumerate(tried):
            if not values[:, i].isnan().any():
                groups.setdefault((t.set, t.into, t.k), []).append(i)
        for (kind, into, k), found in groups.items():
            i, first, more = found[0], tried[found[0]], dict[str, Any]()
            if kind in DRAWN:
                cells = _cells(mean[found].mean(), mean[found], share[found].mean(), share[found])
                more["n_draws"] = len(found)
            else:
                cells = _cells(mean[i], samples[:, i], share[i], samples[:, i] / samples[:, 0] if there else share)
            if kind not in (*DRAWN, OTHER_COMPONENT) and into == QUERY and size:
                more["energy"] = study.scored.energy(first.exchange) / size
            if (kind, into) == (PREDICTED, QUERY) and (drawn := groups.get((MATCHED_SETS, QUERY, k))):
                more |= {"matched_share": share[drawn].quantile(0.95).item(), "n_draws": len(drawn)}
                more["p"] = rank_p(toward[i].item(), toward[drawn])
            rows.append(ExchangeRow(
                study.model, name, into, kind, k, ", ".join(map(str, first.components[: NAMED * len(target)])), what,
                **cells, **more, n=len(values),
            ))  # fmt: skip
    return rows


def _cells(effect: Tensor, effects: Tensor, share: Tensor, shares: Tensor) -> dict[str, Any]:
    """The columns of an effect and its share, by the middle 95% of their samples or draws."""
    (low, high), (share_low, share_high) = middle(effects), middle(shares)
    return {"effect": effect.item(), "low": low, "high": high,
            "share": share.item(), "share_low": share_low, "share_high": share_high}  # fmt: skip


# --- the sets ----------------------------------------------------------------------------------------------------


def sets_of(study: Study, target: Sequence[Head]) -> list[Tried]:
    """All that is exchanged, the whole heads first.

    Chosen: the first k of each head by every order. With the energy of the predicted set: other components of the same
    heads; drawn ones of the same layers, each of the nearest in energy; random directions of the same heads' output.
    Last the claimed set and the whole heads, at every position, in the movers' keys or values.
    """
    scored, generator = study.scored, torch.Generator().manual_seed(study.seed)
    whole = Tried(WHOLE_HEAD, study.d_head, scored.of_heads(target))
    chosen, drawn = [whole], []
    n_least = min(len(study.orders[PREDICTED][head]) for head in study.heads)
    for k in (k for k in SIZES if k <= n_least):
        firsts = {order: study.first(order, target, k) for order in (*PREDICTORS, BEST_MEASURED)}
        chosen += [Tried(order, k, scored.of_components(some), some) for order, some in firsts.items()]
        own = firsts[PREDICTED]
        energy = scored.energy(scored.of_components(own))
        if k <= N_OTHER:
            both = list(own)
            for c in own:
                both += study.nearest(c, 1, both, same_head=True)
            other = tuple(both[len(own) :])
            chosen.append(Tried(OTHER_COMPONENT, k, scored.scaled_to(scored.of_components(other), energy), other))
        near = [study.nearest(c, N_DRAWS, own) for c in own]
        for draw in range(N_DRAWS):
            matched = scored.of_components(_one_of_each(near, draw, generator))
            random = scored.random(target, k, generator)
            drawn += [Tried(kind, k, scored.scaled_to(e, energy)) for kind, e in zip(DRAWN, (matched, random))]
    claimed = [t for t in chosen if t.set == PREDICTED and t.k <= CLAIMED][-1]
    return chosen + drawn + [replace(t, into=into) for into in (KEY, VALUE) for t in (claimed, whole)]


def _one_of_each(near: Sequence[list[Component]], draw: int, generator: torch.Generator) -> list[Component]:
    """One component of each list that has one left, none twice: at random, of a single list the next one."""
    some: list[Component] = []
    for candidates in near:
        n = len(candidates)
        order = torch.randperm(n, generator=generator) if len(near) > 1 else torch.arange(draw, draw + n) % n
        some += [candidates[i] for i in order.tolist() if candidates[i] not in some][:1]
    return some


# --- what they do ------------------------------------------------------------------------------------------------


def measure(study: Study, tried: Sequence[Tried]) -> dict[str, Float[Tensor, "n k"]]:
    """By measure, the change that each set makes; NaN where it was not measured: most drawn sets' answers."""
    scored, n = study.scored, len(study.scored.own.prompts)
    found = {name: torch.full((n, len(tried)), torch.nan) for name in (LOG_ODDS, LOGIT_DIFFERENCE, PROBABILITY)}
    plain = study.plain

    def put(i: Sequence[int], after: Answers) -> None:
        found[LOGIT_DIFFERENCE][:, i] = (after.logit_difference - plain.logit_difference).cpu()
        found[PROBABILITY][:, i] = (after.probability - plain.probability).cpu()

    queries = [i for i, t in enumerate(tried) if t.into == QUERY]
    found[LOG_ODDS][:, queries] = scored.odds([tried[i].exchange for i in queries]).cpu()
    for names_only, run in enumerate((
        [i for i in queries if tried[i].set in RUN or (tried[i].set not in DRAWN and tried[i].k <= CLAIMED)],
        [i for i in queries if tried[i].set == MATCHED_SETS and tried[i].k == CLAIMED],
    )):  # fmt: skip
        for start in range(0, len(run), BLOCK):
            some = run[start : start + BLOCK]
            exchanges = [tried[i].exchange for i in some]
            put(some, exchanged_answers(scored, study.ends, exchanges, names_only=bool(names_only)))
    for i, t in enumerate(tried):
        if t.into != QUERY:
            found[LOG_ODDS][:, i] = scored.odds_by_other_input(t.exchange, t.into).cpu()
            put([i], exchanged_answers(scored, study.ends, [t.exchange], t.into))
    return found


# --- who is the strongest ----------------------------------------------------------------------------------------


def run_hits(c: Context) -> list[HitRow]:
    """Every S-inhibition head by every predictor. Raises :class:`NotApplicable` as :func:`run` does."""
    study = c.kept(study_of)
    return [row for head in study.heads for row in hit_rows(study, head)]


def hit_rows(study: Study, head: Head) -> list[HitRow]:
    """One head's strongest component on the scored prompts, and its rank under each predictor; without one, where the
    whole head does nothing to the movers, all ranks are the last."""
    writing = sorted(study.orders[PREDICTED][head].tolist())
    components = [Component(head.layer, head.head, i) for i in writing]
    exchanges = [study.scored.of_components([c]) for c in components]
    odds = study.scored.odds([*exchanges, study.scored.of_heads([head])]).cpu().double()
    whole, effects = odds[:, -1].mean(), odds[:, :-1] * odds[:, -1].mean().sign()
    there = bool(whole.abs() > LEAST)
    mean, n = effects.mean(0), len(writing)
    strongest = int(mean.argmax())
    certain = ((resamples(len(effects)) @ effects).argmax(1) == strongest).double().mean().item()
    rows = []
    for predictor in PREDICTORS:
        order = study.orders[predictor][head].tolist()
        rank = 1 + order.index(writing[strongest]) if there else n
        first = writing.index(order[0])
        rows.append(HitRow(
            model=study.model, head=str(head), predictor=WEIGHTS if predictor == PREDICTED else predictor,
            strongest=str(components[strongest]) if there else "", first=str(components[first]), rank=rank,
            hit_at_1=there and rank == 1, hit_at_3=there and rank <= 3, p=rank / n,
            first_share=(mean[first] / mean[strongest]).item() if there else 0.0,
            certain=certain if there else 0.0, n_components=n, n=len(effects),
        ))  # fmt: skip
    return rows


# --- scores and effects ------------------------------------------------------------------------------------------


def run_effects(c: Context) -> list[ComponentRow]:
    """Figure 2 of Merullo et al. (2024) on another model: every component of every S-inhibition head that writes
    anything, into every mover above it. Raises :class:`NotApplicable` for a model without such heads."""
    return component_rows(c.kept(study_of))


def component_rows(study: Study) -> list[ComponentRow]:
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
                    model=study.model, head=str(head), mover=str(mover), component=i, score=score[i], null=null,
                    effect=found.mean[i].item(), low=found.low[i].item(), high=found.high[i].item(),
                    odds=odds.mean[i].item(), odds_low=odds.low[i].item(), odds_high=odds.high[i].item(), n=found.n,
                ))  # fmt: skip
    return rows
