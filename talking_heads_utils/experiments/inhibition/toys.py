"""What chapter 1's page shows of its toys alone, beside the experiments of every model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.effects import (
    INTERVENTIONS,
    KEY,
    QUERY,
    attention_without,
    component_effects,
    inhibition_score,
    total_effect,
)
from talking_heads_utils.experiments import corpus
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.concentration import (
    RANDOM,
    CurveRow,
    channel_curve,
    concentration,
    dimension,
    shares,
    whole_effect,
)
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.prompts.sets import item_positions
from talking_heads_utils.roles.lists import remove_from_values
from talking_heads_utils.scores.scores import ONE_COMPONENT, CompositionScores, compute_scores
from talking_heads_utils.stats import bootstrap_mean, spearman

if TYPE_CHECKING:
    import pandas as pd

N_FOLLOWED = 64  # components whose total effect is measured, the strongest and as many at random


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
    return FoundRow(*row, heads, *bootstrap_mean(inhibition_score(runs.held_out, runs.mover).cpu()))


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
        values = at.effects.inhibition[:, head.layer].cpu()
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


@dataclass(frozen=True)
class DirectionsRow(Row):
    """How few directions carry what all inhibition heads together write into the strongest mover's query."""

    model: str = column("", "name of the model")
    whole: float = column("share of attention", "change of I(m) when all of it is taken out")
    n_for_90: int | None = column("directions", "how many do 90% of that; empty for more than were tried")
    at_random: float = column("share", "of the whole effect, what as many random directions do")


def directions(c: Context) -> DirectionsRow:
    at = c.kept(mover_runs)
    curve = channel_curve(at.selection, at.held_out, at.mover, at.heads, seed=c.seed, model=c.model)
    k, random = dimension(curve), shares(curve, RANDOM)
    return DirectionsRow(c.model, whole_effect(curve), k, random[k or max(random)])


@dataclass(frozen=True)
class RecoveryRow(Row):
    """Heads taken in the order of the weights, against the inhibition heads that patching found."""

    model: str = column("", "name of the model")
    k: int = column("heads", "how many are taken")
    head: str = column("", "the last of them")
    score: float = column("", "largest composition score of one of its components into the movers' queries")
    precision: float = column("share", "of those taken, inhibition heads")
    recall: float = column("share", "of the inhibition heads, those taken")
    chance: float = column("share", "precision of heads drawn at random")


def recovery(c: Context) -> list[RecoveryRow]:
    """The order is by weights alone: no prompt is used."""
    return ranked_against(by_weights(c.scores, c.found.movers), c.found.inhibition, c.model)


def by_weights(scores: CompositionScores, movers: list[Head]) -> Float[Tensor, "n_layers n_heads"]:
    """Largest score of a single component into the movers' queries, mean over the movers that lie above."""
    values = scores.pairs("Q", ONE_COMPONENT)
    return torch.stack([values[:, :, mover.layer, mover.head] for mover in movers]).nanmean(0)


def ranked_against(
    predicted: Float[Tensor, "n_layers n_heads"], truth: list[Head], model: str = ""
) -> list[RecoveryRow]:
    """Heads in the order of ``predicted`` against the true ones; heads without a prediction count as neither."""
    wanted = {head for head in truth if not predicted[head.layer, head.head].isnan()}
    order = predicted.flatten().nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    ranked = [Head(*divmod(i, predicted.shape[1])) for i in order[: int((~predicted.isnan()).sum())].tolist()]
    rows, hits = [], 0
    for k, head in enumerate(ranked, 1):
        hits += head in wanted
        score, chance = predicted[head.layer, head.head].item(), len(wanted) / len(ranked)
        rows.append(RecoveryRow(model, k, str(head), score, hits / k, hits / max(1, len(wanted)), chance))
    return rows


@dataclass(frozen=True)
class SecondStepRow(Row):
    """One step further back: whom an inhibition head's values read, by weights and by removal."""

    model: str = column("", "name of the model")
    head: str = column("", "inhibition head")
    by_weights: str = column("", "the head whose single component its values read most")
    score: float = column("", "that component's composition score")
    chance: float = column("", "root mean square of a random direction's score")
    by_removal: str = column("", "the head whose removal from those values lowers I(m) most, held-out half")
    change: float = column("share of attention", "change of I(m) by that removal")
    same: bool = column("", "whether the two are one head")
    n_heads: int = column("heads", "to choose from")


def second_step(c: Context) -> list[SecondStepRow]:
    """A row for every inhibition head with a layer below."""
    at = c.kept(mover_runs)
    heads = [head for head in at.heads if head.layer > 0]
    if not heads:
        return []
    movers = [m for m in c.found.movers if m.layer == at.mover.layer]
    recording = c.record(at.held_out.prompts, sorted({head.layer for head in heads} | {at.mover.layer}))
    scores = compute_scores(recording.weights, "V", seed=c.seed)
    into_values = scores.pairs("V", ONE_COMPONENT)
    rows = []
    for head in heads:
        by_score = into_values[:, :, head.layer, head.head]
        removed = remove_from_values(recording, head, movers)
        read, lost = _top(by_score), _top(-removed)
        rows.append(SecondStepRow(
            c.model, str(head), str(read), by_score[read.layer, read.head].item(), scores.null_rms, str(lost),
            removed[lost.layer, lost.head].item(), read == lost, int((~removed.isnan()).sum()),
        ))  # fmt: skip
    return rows


def _top(values: Float[Tensor, "n_layers n_heads"]) -> Head:
    return Head(*divmod(int(values.nan_to_num(nan=-torch.inf).argmax()), values.shape[1]))


@dataclass(frozen=True)
class InterventionRow(Row):
    """One component, by one intervention on one input of the strongest mover."""

    side: str = column("", "the mover's query or its keys")
    intervention: str = column("", "remove, keep only, flip, or mean")
    change: float = column("share of attention", "of I(m), on the held-out half")
    low: float = column("share of attention", "lower end of its 95% interval over prompts")
    high: float = column("share of attention", "upper end")
    n: int = column("prompts", "of the held-out half")
    pattern: float = column("share of attention", "total variation of the mover's attention")
    direct: float = column("logits", "change of the logit difference through the mover alone")


def interventions(c: Context, component: Component) -> list[InterventionRow]:
    """One component by every intervention on the mover's query and keys."""
    at, rows = c.kept(mover_runs), []
    index = (slice(None), component.layer, component.head, component.component)
    for side in (QUERY, KEY):
        for how in INTERVENTIONS:
            effects = component_effects(at.held_out, at.mover, how, side=side)
            score = bootstrap_mean(effects.inhibition[index].cpu())
            means = (getattr(effects, name)[index].mean().item() for name in ("pattern", "direct"))
            rows.append(InterventionRow(side, how, *score, *means))
    return rows


def total_against_direct(c: Context, n: int = N_FOLLOWED) -> tuple[float, Float[Tensor, "k"], Float[Tensor, "k"]]:
    """``(Spearman, direct, total)``: effects on the logit difference of the n strongest components and n at random."""
    at = c.kept(mover_runs)
    table = at.effects.table()
    strongest = table["direct"].abs().nlargest(min(n, len(table))).index.tolist()
    rest = torch.tensor([i for i in table.index if i not in set(strongest)])
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(c.seed))[:n]].tolist()
    chosen = [Component.parse(table["writer"][i]) for i in strongest + drawn]
    above = prepare(c.bridge, at.held_out.prompts, at.mover.layer)
    total = total_effect(at.held_out, above, at.effects, chosen).mean(0)
    direct = torch.tensor(table["direct"].to_numpy())[strongest + drawn]
    return spearman(direct.double(), total.double().cpu()[None]).item(), direct, total


@dataclass(frozen=True)
class ItemRow(Row):
    """One item of one list: the mover's attention to where it is first named."""

    item: str = column("", "the word")
    answer: bool = column("", "whether it is the one that is left")
    before: float = column("share of attention", "untouched")
    after: float = column("share of attention", "with a component out of the mover's query")


@dataclass(frozen=True)
class OnePrompt:
    """What a reader may choose, and what the mover then looks at.

    heads: the inhibition heads, that of the strongest component first. others: earlier heads that inhibit nothing.
    texts: held-out lists by their row, those first on which the strongest component's removal loses most.
    """

    model: str
    mover: Head
    heads: list[Head]
    others: list[Head]
    strongest: Component
    d_head: int
    texts: dict[int, str]
    items: Callable[[Component, int], list[ItemRow]]

    def spread(self, n: int) -> list[int]:
        """``n`` rows at even steps from the largest loss on."""
        rows = list(self.texts)
        return [rows[i * len(rows) // n] for i in range(n)]


def one_prompt(c: Context) -> OnePrompt:
    """One component out of the mover's query, on one held-out list."""
    at = c.kept(mover_runs)
    strongest, n_heads = at.strongest(1)[0], c.weights.n_heads
    order = at.effects.of(strongest).argsort().tolist()
    heads = list(dict.fromkeys([strongest.of_head, *at.heads]))
    others = [head for head in heads_in(range(at.mover.layer), n_heads) if head not in heads]
    texts = {row: at.held_out.prompts.texts[row] for row in order}
    return OnePrompt(c.model, at.mover, heads, others, strongest, c.weights.d_head, texts, partial(_items, c))


def _items(c: Context, component: Component, row: int) -> list[ItemRow]:
    """I(m) is the answer's attention less the mean of the others'. Raises as
    :func:`~talking_heads_utils.effects.attention_without`."""
    at = c.kept(mover_runs)
    prompts = at.held_out.prompts
    pattern = attention_without(at.held_out, at.mover, component, row)
    positions, words = item_positions(prompts)
    before, after = pattern[:, positions[row].to(pattern.device)].tolist()
    names = [c.tokenizer.decode([word]).strip() for word in words[row].tolist()]
    return [ItemRow(*of) for of in zip(names, (words[row] == prompts.answers[row]).tolist(), before, after)]


def contexts(c: Context, texts: list[str]) -> pd.DataFrame:
    """The contexts in which the strongest component of the inhibition heads is most active, as a table."""
    at = c.kept(mover_runs)
    text = corpus.corpus_of(texts, c.tokenizer)
    active = corpus.activity(c.bridge, at.held_out.directions, text, at.strongest(1))
    return corpus.contexts(active[0], text, c.tokenizer)
