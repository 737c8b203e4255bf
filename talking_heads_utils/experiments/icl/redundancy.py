"""What heads do alone and together, chosen by :mod:`~talking_heads_utils.experiments.icl.choice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, groupby
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.choice import Picked, matched, picks
from talking_heads_utils.experiments.icl.clusters import drawn_means, drawn_over_tasks, ends, mean_in_clusters
from talking_heads_utils.experiments.icl.swaps import Into, Ready, Where, exchanged, ready
from talking_heads_utils.experiments.icl.tasks import tasks
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT

JOINT = (2, 5, 10, 20)  # chosen heads that are exchanged together
EVERYWHERE = (2, 5)  # the same at all positions
MATCHED_TO = 5  # chosen heads to which others are matched
N_HELD, N_PAIRS, N_LAYERS, N_EVERYWHERE = 200, 100, 100, 40  # prompts of a task
OVER_TASKS = "all"
LEAST = 1e-3  # what a divisor is taken for where it is less


class Set(StrEnum):
    """Which heads are exchanged."""

    CHOSEN = "chosen"
    MATCHED = "matched"  # others with as much direct effect together
    LAYER = "layer"


@dataclass(frozen=True)
class HeadRow(ModelRow):
    """What one head does to one task."""

    task: str = column("", "task")
    head: str = column("", "head")
    layer: int = column("", "its layer")
    direct: float = column("logits", "direct effect on right less rival, prompt less twin, selection half, mean")
    denoised: float | None = column("nats", "log-odds gained in the twin with this head at the prompt's value, "
                                    "selection half; of the heads of most direct effect")  # fmt: skip
    chosen: int | None = column("", "its place among the chosen, by the geometric mean of both, from 1; none of others")
    alone: float | None = column("nats", "log-odds lost with this head at the twin's value, held-out half; of the "
                                 "heads of most direct effect")  # fmt: skip
    low: float | None = column("nats", "95% interval over prompts, lower end")
    high: float | None = column("nats", "upper end")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class PairRow(ModelRow):
    """What two chosen heads do together."""

    task: str = column("", "task")
    a: str = column("", "head")
    b: str = column("", "head")
    joint: float = column("nats", "log-odds lost with both exchanged")
    summed: float = column("nats", "sum of what is lost with each exchanged")
    interaction: float = column("nats", "joint less summed: above 0 each stands in for the other")
    low: float = column("nats", "95% interval over prompts, lower end")
    high: float = column("nats", "upper end")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class SetRow(ModelRow):
    """What a set of heads does together, over what its heads do alone."""

    task: str = column("", "task; all for the mean over tasks")
    heads_are: str = column("", "chosen, matched on the direct effect of the 5 chosen first, or of one layer")
    where: str = column("", "where values are exchanged: end or all")
    n_heads: int = column("heads", "of the set; of matched sets over tasks the mean")
    draw: int | None = column("", "of a matched set, from 1")
    heads: str = column("", "heads of the set, of a whole layer L3, over tasks none")
    direct: float = column("logits", "sum of direct effects, selection half")
    joint: float = column("nats", "log-odds lost with all exchanged")
    summed: float | None = column("nats", "sum of what is lost with each exchanged; none of whole layers")
    ratio: float | None = column("", "joint over summed; none where what is summed is not clearly above 0")
    low: float | None = column("", "95% interval over prompts, of all over tasks too, lower end; without a ratio too, "
                               "where what is lost together is clearly above 0")  # fmt: skip
    high: float | None = column("", "upper end")
    accuracy: float = column("share", "right answers with all exchanged")
    before: float = column("share", "right answers with nothing exchanged")
    twin: float = column("share", "right answers of the twin")
    n: int = column("prompts", "of the held-out half; of all: tasks")


# --- what is lost ---


@dataclass(frozen=True)
class Lost:
    """What is lost with each set of heads exchanged, by prompt.

    log_odds: nats. right: whether the answer is right all the same; before: with nothing exchanged.
    """

    sets: list[tuple[Head, ...]]
    log_odds: Float[Tensor, "n k"]
    right: Bool[Tensor, "n k"]
    before: Bool[Tensor, "n"]

    def summed(self, heads: Sequence[Head]) -> Float[Tensor, "n"]:
        """What is lost with each of some heads alone, added up: the sets hold one head each."""
        return self.log_odds[:, [self.sets.index((head,)) for head in heads]].sum(1)


def lost(r: Ready, sets: Sequence[Sequence[Head]], where: Where = Where.END, n: int | None = None) -> Lost:
    """Each set at the twin's values, of the first ``n`` prompts. Raises as
    :func:`talking_heads_utils.experiments.icl.swaps.exchanged` does."""
    said = exchanged(r, [[], *sets], where=where, n=n)
    before, right = said.right(r.asked).tensor_split([1], 1)
    return Lost([tuple(heads) for heads in sets], said.log_odds[:, :1] - said.log_odds[:, 1:], right, before[:, 0])


class Ratio(NamedTuple):
    """Joint over summed loss with its 95% interval. Where what is summed is not clearly above 0 there is no value; the
    lower end is there if what is lost together is."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def ratio(draws: Float[Tensor, "n_draws_1 2"]) -> Ratio:
    """From joint and summed loss of all prompts and of every draw."""
    joint, summed = draws.unbind(1)
    if ends(summed).low > 0:
        return Ratio(*ends(joint / summed.clamp(min=LEAST)).numbers)
    if ends(joint).low > 0:  # heads that cost next to nothing alone: how many times as much, at least
        return Ratio(low=1 / max(LEAST, ends(summed / joint.clamp(min=LEAST)).high.item()))
    return Ratio()


class Which(NamedTuple):
    """What a set is known by, in every task alike. size: of whole layers the layer."""

    heads_are: Set
    where: Where
    size: int
    draw: int | None = None


@dataclass(frozen=True)
class SetLoss:
    """What one set of a task loses, by prompt: nats, and whether the answer is right."""

    which: Which
    heads: Sequence[Head]
    joint: Float[Tensor, "n"]
    summed: Float[Tensor, "n"] | None
    right: Bool[Tensor, "n"]
    before: Bool[Tensor, "n"]


@dataclass(frozen=True)
class OfTask:
    """What heads of one task do, on the held-out half. twin: right answers of the twin, share."""

    task: str
    picked: Picked
    clusters: Int[Tensor, "n"]
    alone: Lost
    pairs: Lost | None
    sets: list[SetLoss]
    twin: float


def of_task(
    picked: Picked, held: Ready, *, n_pairs: int = N_PAIRS, n_layers: int = N_LAYERS, n_everywhere: int = N_EVERYWHERE,
    seed: int = 0,
) -> OfTask:  # fmt: skip
    """All that is exchanged in one task. n_pairs, n_layers, n_everywhere: prompts for pairs, for whole layers and at
    all positions; without any for 0."""
    at_end, everywhere = (
        {Which(Set.CHOSEN, where, k): picked.chosen[:k] for k in sizes if k <= len(picked.chosen)}
        for where, sizes in ((Where.END, JOINT), (Where.ALL, EVERYWHERE))
    )
    few = max((heads for heads in at_end.values() if len(heads) <= MATCHED_TO), key=len, default=[])
    drawn = enumerate(matched(picked, few, seed=seed), 1)
    at_end |= {Which(Set.MATCHED, Where.END, len(few), draw): heads for draw, heads in drawn}
    alone = lost(held, [[head] for head in dict.fromkeys([*picked.chosen, *picked.denoised])])
    sets = _losses(held, at_end, alone)
    if n_layers:
        whole = {Which(Set.LAYER, Where.END, layer): heads_in([layer], held.clean.n_heads)
                 for layer in range(held.clean.n_layers)}  # fmt: skip
        sets += _losses(held, whole, None, n_layers)
    if n_everywhere and everywhere:
        most = max(everywhere.values(), key=len)
        sets += _losses(held, everywhere, lost(held, [[head] for head in most], Where.ALL, n_everywhere), n_everywhere)
    pairs = lost(held, list(combinations(picked.chosen, 2)), n=n_pairs) if n_pairs else None
    twin = exchanged(held, [[]], into=Into.TWIN).right(held.asked).double().mean().item()
    return OfTask(held.asked.task.name, picked, held.asked.clusters, alone, pairs, sets, twin)


def _losses(r: Ready, sets: Mapping[Which, Sequence[Head]], alone: Lost | None, n: int | None = None) -> list[SetLoss]:
    """Of sets that are exchanged at the same places."""
    of = lost(r, list(sets.values()), next(iter(sets)).where, n)
    summed = [None if alone is None else alone.summed(heads) for heads in sets.values()]
    return [SetLoss(which, heads, of.log_odds[:, i], summed[i], of.right[:, i], of.before)
            for i, (which, heads) in enumerate(sets.items())]  # fmt: skip


# --- rows ---


def head_rows(model: str, found: OfTask) -> list[HeadRow]:
    """A row for every head."""
    picked, alone = found.picked, found.alone
    each = mean_in_clusters(alone.log_odds, found.clusters)
    at = {heads[0]: i for i, heads in enumerate(alone.sets)}
    rows = []
    for head in heads_in(range(len(picked.direct)), picked.direct.shape[1]):
        lost_alone = [part[at[head]].item() for part in each] if head in at else [None] * 3
        place = 1 + picked.chosen.index(head) if head in picked.chosen else None
        rows.append(HeadRow(model, found.task, str(head), head.layer, picked.summed([head]), picked.denoised.get(head),  # type: ignore[call-arg]
                            place, *lost_alone, len(found.clusters)))  # fmt: skip
    return rows


def pair_rows(model: str, found: OfTask) -> list[PairRow]:
    """A row for every two of the chosen heads."""
    if (of := found.pairs) is None:
        return []
    n, rows = len(of.log_odds), []
    for i, (a, b) in enumerate(of.sets):
        joint, summed = of.log_odds[:, i], found.alone.summed([a, b])[:n]
        about = mean_in_clusters(joint - summed, found.clusters[:n])
        means = (joint.mean().item(), summed.mean().item())
        rows.append(PairRow(model, found.task, str(a), str(b), *means, *about.numbers, n))
    return rows


def set_rows(model: str, found: Sequence[OfTask]) -> list[SetRow]:
    """A row for every set of every task, and, of two tasks or more, over tasks for every set that all of them have:
    the first so many of each, and draw by draw."""
    drawn = [_drawn(of, seed) for seed, of in enumerate(found)]
    rows = [_set_row(model, of.task, [of], [each], draws, len(each.joint))
            for of, sets in zip(found, drawn) for each, draws in sets.values()]  # fmt: skip
    for which in drawn[0] if len(found) > 1 else ():
        if which.heads_are != Set.LAYER and all(which in sets for sets in drawn):
            alike, draws = zip(*(sets[which] for sets in drawn))
            rows.append(_set_row(model, OVER_TASKS, found, alike, drawn_over_tasks(draws), len(found)))
    return rows


def _drawn(of: OfTask, seed: int) -> dict[Which, tuple[SetLoss, Float[Tensor, "n_draws_1 2"]]]:
    """Every set with means of joint and summed loss: of all prompts, and of clusters drawn anew. Of whole layers joint
    stands for summed."""
    found: dict[Which, tuple[SetLoss, Tensor]] = {}
    for n, alike in groupby(of.sets, lambda each: len(each.joint)):
        sets = list(alike)
        both = [torch.stack([s.joint, s.joint if s.summed is None else s.summed], 1) for s in sets]
        draws = drawn_means(torch.stack(both, 1), of.clusters[:n], seed=seed)
        found |= {each.which: (each, draws[:, i]) for i, each in enumerate(sets)}
    return found


def _set_row(
    model: str, task: str, found: Sequence[OfTask], sets: Sequence[SetLoss], draws: Float[Tensor, "n_draws_1 2"], n: int
) -> SetRow:  # fmt: skip
    """Of one task's set, or means over tasks."""
    which, layer = sets[0].which, sets[0].which.heads_are == Set.LAYER
    named = f"L{which.size}" if layer else " ".join(map(str, sets[0].heads)) if len(sets) == 1 else ""
    mean = lambda values: sum(map(float, values)) / len(sets)  # noqa: E731
    joint, summed = draws[0].tolist()
    return SetRow(
        model, task, which.heads_are.value, which.where.value, round(mean(len(each.heads) for each in sets)),
        which.draw, named, mean(of.picked.summed(each.heads) for of, each in zip(found, sets)), joint,
        None if layer else summed, *(Ratio() if layer else ratio(draws)),
        mean(each.right.double().mean() for each in sets), mean(each.before.double().mean() for each in sets),
        mean(of.twin for of in found), n,
    )  # fmt: skip


# --- a model ---


def found_in(c: Context) -> list[OfTask]:
    """What the heads of every task do. Ask for it by ``c.kept(found_in)``."""
    picked, n = c.kept(picks), [c.n(usual, 20) for usual in (N_HELD, N_PAIRS, N_LAYERS, N_EVERYWHERE)]
    sizes = dict(n_pairs=n[1], n_layers=n[2], n_everywhere=n[3], seed=c.seed)
    return [of_task(picked[task.name], ready(c, task.ask(c, n[0], HELD_OUT)), **sizes)
            for task in follow(tasks(c), "tasks")]  # fmt: skip


def run_heads(c: Context) -> list[HeadRow]:
    return [row for found in c.kept(found_in) for row in head_rows(c.model, found)]


def run_pairs(c: Context) -> list[PairRow]:
    return [row for found in c.kept(found_in) for row in pair_rows(c.model, found)]


def run_sets(c: Context) -> list[SetRow]:
    return set_rows(c.model, c.kept(found_in))
