"""How much of an S-inhibition head's effect a few of its components carry: their coefficients at ``end`` are exchanged
with those of the same prompt with its names in the other order, in all movers' queries at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import (
    BEST_MEASURED,
    PREDICTED,
    PREDICTORS,
    Study,
    study_of,
)
from talking_heads_utils.experiments.inhibition.shifts import KEY, QUERY, VALUE, Answers, Exchange
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.labels import Component, Head

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
class ExchangeRow(Row):
    """What the exchange of one set of components does to one measure, mean over prompts. The shift of every control is
    scaled to the energy of the predicted set's. Of drawn sets: the mean over draws, and the draws' 2.5% and 97.5%
    points."""

    model: str = column("", "name of the model")
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
    energy: float | None = column("share", "of the whole exchanged write's squared length; empty for controls")
    matched_share: float | None = column("share", "95% point of the matched sets' shares; of predicted sets alone")
    p: float | None = column("", "share of matched sets, the set itself included, with as large an effect")
    n_draws: int | None = column("sets", "how many were drawn")
    n: int = column("prompts", "each with its twin")


@dataclass(frozen=True)
class HitRow(Row):
    """Where a predictor has the component of a head whose exchange does most to the movers' log-odds."""

    model: str = column("", "name of the model")
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
class Tried:
    """One set. draw: which of the drawn ones it is. components: what it names."""

    set: str
    k: int
    exchange: Exchange
    components: tuple[Component, ...] = ()
    into: str = QUERY
    draw: int | None = None


def run(c: Context) -> list[ExchangeRow]:
    """Every set of every S-inhibition head and of all together. Raises :class:`NotApplicable` for a model without
    movers or S-inhibition heads, or one that cannot do IOI."""
    study = c.kept(study_of)
    targets = {str(head): (head,) for head in study.heads} | {ALL: study.heads}
    return [row for name, heads in targets.items() for row in exchange_rows(study, name, heads, c.model)]


def exchange_rows(
    study: Study, name: str, target: Sequence[Head], model: str = "", n_draws: int = N_DRAWS
) -> list[ExchangeRow]:
    """The rows of one head, or of several together, under a name."""
    tried = [*chosen_sets(study, target), *drawn_sets(study, target, n_draws), *other_inputs(study, target)]
    measured = measure(study, tried)
    whole = next(i for i, t in enumerate(tried) if t.set == WHOLE_HEAD and t.into == QUERY)
    size = study.scored.energy(tried[whole].exchange)
    rows = []
    for what, values in measured.items():
        boot = Boot.of(values, whole)
        groups: dict[tuple[str, str, int], list[int]] = {}
        for i, t in enumerate(tried):
            if not values[:, i].isnan().any():
                groups.setdefault((t.set, t.into, t.k), []).append(i)
        for (kind, into, k), found in groups.items():
            first, is_drawn = tried[found[0]], tried[found[0]].draw is not None
            drawn = groups.get((MATCHED_SETS, QUERY, k), []) if (kind, into) == (PREDICTED, QUERY) else []
            energy = study.scored.energy(first.exchange) / size if size and into == QUERY else None
            rows.append(ExchangeRow(
                model=model, head=name, into=into, set=kind, k=k,
                components=", ".join(map(str, first.components[: NAMED * len(target)])), measure=what,
                **(boot.draws(found) if is_drawn else boot.interval(found[0])),
                energy=None if is_drawn or kind == OTHER_COMPONENT else energy,
                **boot.against(found[0], drawn), n_draws=len(found) if is_drawn else len(drawn) or None, n=len(values),
            ))  # fmt: skip
    return rows


@dataclass(frozen=True)
class Boot:
    """Means over prompts of each set's effect, and the same in bootstrap samples of the prompts; whole: which set the
    shares are of."""

    mean: Float[Tensor, "k"]
    samples: Float[Tensor, "n_boot k"]
    whole: int

    @classmethod
    def of(cls, values: Float[Tensor, "n k"], whole: int, n_boot: int = 2000, seed: int = 0) -> Boot:
        values = values.double()
        return cls(values.mean(0), resamples(len(values), n_boot, seed) @ values, whole)

    @property
    def share(self) -> Float[Tensor, "k"]:
        """NaN where the whole does nothing."""
        whole = self.mean[self.whole]
        return self.mean / whole if whole.abs() > LEAST else torch.full_like(self.mean, torch.nan)

    def interval(self, i: int) -> dict[str, Any]:
        """Of one set, over prompts."""
        shares = self.samples[:, i] / self.samples[:, self.whole]
        ends = _ends(self.samples[:, i]), _ends(shares if self.share[i].isfinite() else shares * torch.nan)
        return _cells(self.mean[i].item(), ends[0], self.share[i].item(), ends[1])

    def draws(self, some: Sequence[int]) -> dict[str, Any]:
        """Of drawn sets, over draws."""
        means, shares = self.mean[some], self.share[some]
        return _cells(means.mean().item(), _ends(means), shares.mean().item(), _ends(shares))

    def against(self, i: int, drawn: Sequence[int]) -> dict[str, Any]:
        """One set beside drawn ones: how many do as much."""
        if not drawn:
            return {"matched_share": None, "p": None}
        whole = self.mean[self.whole]
        means = self.mean * whole.sign() if whole.abs() > LEAST else torch.zeros_like(self.mean)
        as_much = int((means[drawn] >= means[i]).sum())
        return {"matched_share": self.share[drawn].quantile(0.95).item(), "p": (1 + as_much) / (1 + len(drawn))}


def resamples(n: int, n_boot: int = 2000, seed: int = 0) -> Float[Tensor, "n_boot n"]:
    """Weights of the prompts in bootstrap samples; each row sums to one."""
    draws = torch.randint(n, (n_boot, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(n_boot, n).double().scatter_add_(1, draws, torch.ones_like(draws).double()) / n


def _ends(values: Float[Tensor, "n"]) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def _cells(effect: float, ends: tuple[float, float], share: float, of_share: tuple[float, float]) -> dict[str, Any]:
    return {"effect": effect, "low": ends[0], "high": ends[1],
            "share": share, "share_low": of_share[0], "share_high": of_share[1]}  # fmt: skip


# --- the sets ----------------------------------------------------------------------------------------------------


def top(study: Study, predictor: str, target: Sequence[Head], k: int) -> tuple[Component, ...]:
    """The first ``k`` components of each head, by one order."""
    return tuple(Component(h.layer, h.head, int(i)) for h in target for i in study.orders[predictor][h][:k])


def sizes(study: Study) -> list[int]:
    """Numbers of components that a set has of each head."""
    return [k for k in SIZES if k <= min(len(study.orders[PREDICTED][head]) for head in study.heads)]


def chosen_sets(study: Study, target: Sequence[Head]) -> Iterator[Tried]:
    """The whole heads, the first k by every order, and other components of the same heads."""
    scored = study.scored
    yield Tried(WHOLE_HEAD, study.d_head, scored.of_heads(target))
    for k in sizes(study):
        for order in (*PREDICTORS, BEST_MEASURED):
            some = top(study, order, target, k)
            yield Tried(order, k, scored.of_components(some), some)
        if k <= N_OTHER:
            own = top(study, PREDICTED, target, k)
            other = _others(study, own)
            energy = scored.energy(scored.of_components(own))
            yield Tried(OTHER_COMPONENT, k, scored.scaled_to(scored.of_components(other), energy), other)


def _others(study: Study, own: Sequence[Component]) -> tuple[Component, ...]:
    """For each component another one of its head that none has taken, the nearest in energy."""
    taken, found = set(own), []
    for c in own:
        energy = study.energies[c.layer, c.head].clone()
        apart = (energy.clamp(min=1e-12).log() - energy[c.component].clamp(min=1e-12).log()).abs()
        for t in taken:
            if t.of_head == c.of_head:
                apart[t.component] = torch.inf
        found.append(Component(c.layer, c.head, int(apart.argmin())))
        taken.add(found[-1])
    return tuple(found)


def drawn_sets(study: Study, target: Sequence[Head], n_draws: int) -> Iterator[Tried]:
    """Sets of other components of the same layers, each drawn from the nearest in energy, and random directions of the
    same heads' output; all with the energy of the predicted set."""
    generator = torch.Generator().manual_seed(study.seed)
    scored = study.scored
    for k in sizes(study):
        own = top(study, PREDICTED, target, k)
        energy = scored.energy(scored.of_components(own))
        near = [study.nearest(c, N_DRAWS, own) for c in own]
        for draw in range(n_draws):
            matched = scored.of_components(_one_of_each(near, draw, generator))
            yield Tried(MATCHED_SETS, k, scored.scaled_to(matched, energy), draw=draw)
            random = scored.random(target, k, generator)
            yield Tried(RANDOM_DIRECTIONS, k, scored.scaled_to(random, energy), draw=draw)


def _one_of_each(near: Sequence[list[Component]], draw: int, generator: torch.Generator) -> list[Component]:
    """One component of each list that has one left, none twice: at random, of a single list the next one."""
    some: list[Component] = []
    for candidates in near:
        n = len(candidates)
        order = torch.randperm(n, generator=generator) if len(near) > 1 else torch.arange(draw, draw + n) % n
        some += [candidates[i] for i in order.tolist() if candidates[i] not in some][:1]
    return some


def other_inputs(study: Study, target: Sequence[Head]) -> Iterator[Tried]:
    """The claimed set and the whole heads, at every position, in the movers' keys or values."""
    k = min(CLAIMED, max(sizes(study)))
    some = top(study, PREDICTED, target, k)
    for into in (KEY, VALUE):
        yield Tried(PREDICTED, k, study.scored.of_components(some), some, into)
        yield Tried(WHOLE_HEAD, study.d_head, study.scored.of_heads(target), (), into)


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
            put(some, study.answers([tried[i].exchange for i in some], names_only=bool(names_only)))
    for i, t in enumerate(tried):
        if t.into != QUERY:
            found[LOG_ODDS][:, i] = scored.odds_by_other_input(t.exchange, t.into).cpu()
            put([i], study.answers([t.exchange], t.into))
    return found


# --- who is the strongest ----------------------------------------------------------------------------------------


def run_hits(c: Context) -> list[HitRow]:
    """Every S-inhibition head by every predictor. Raises :class:`NotApplicable` as :func:`run` does."""
    study = c.kept(study_of)
    return [row for head in study.heads for row in hit_rows(study, head, c.model)]


def hit_rows(study: Study, head: Head, model: str = "") -> list[HitRow]:
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
            model=model, head=str(head), predictor=WEIGHTS if predictor == PREDICTED else predictor,
            strongest=str(components[strongest]) if there else "", first=str(components[first]), rank=rank,
            hit_at_1=there and rank == 1, hit_at_3=there and rank <= 3, p=rank / n,
            first_share=(mean[first] / mean[strongest]).item() if there else 0.0,
            certain=certain if there else 0.0, n_components=n, n=len(effects),
        ))  # fmt: skip
    return rows
