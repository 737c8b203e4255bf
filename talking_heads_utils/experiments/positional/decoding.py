"""What three components' coordinates tell of the answer, and how that and accuracy depend on the list length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.positional.coordinates import (
    Feature,
    choose_writers,
    decode,
    discriminant_directions,
    index_of_answer,
    separability,
)
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.forward.steer import random_directions, write_vectors
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import correct
from talking_heads_utils.prompts.halves import halves, random_folds, wording_folds
from talking_heads_utils.stats import bootstrap_mean, share

N_RANDOM, N_SHUFFLED = 10, 10  # random triples of directions; orders of the answers


class Subspace(StrEnum):
    """Three directions of the residual stream: the components', those of the same heads that were fitted to the list
    index on the other half, or random ones."""

    COMPONENTS = "components"
    FITTED = "fitted"
    RANDOM = "random"


class Split(StrEnum):
    """What was left out of the fit: prompts at random, or all prompts of a wording."""

    PROMPTS = "prompts"
    WORDINGS = "wordings"


@dataclass(frozen=True)
class Channel:
    """A name mover, and the three components that its query reads most, by weights alone.

    directions: in which those write, unit vectors, in the order of ``writers``.
    """

    mover: Head
    writers: tuple[Component, ...]
    directions: Float[Tensor, "3 d_model"]


@dataclass(frozen=True)
class DecodingRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "three directions that are read: components, fitted, random")
    feature: str = column("", "of the answer: list_index, position, identity")
    split: str = column("", "left out of the fit: prompts, wordings")
    right: float = column("share", "held-out lists whose answer is decoded; of random triples the mean")
    low: float = column("share", "95% interval over prompts, lower end")
    high: float = column("share", "95% interval over prompts, upper end")
    smallest: float = column("share", "of random triples the worst")
    largest: float = column("share", "of random triples the best")
    shuffled: float = column("share", "the same where the answers are shuffled before the fit, mean over shuffles")
    chance: float = column("share", "one in n_items")
    n: int = column("prompts", "held-out lists")


@dataclass(frozen=True)
class DimensionRow(Row):
    model: str = column("", "as the command took it")
    k: int = column("directions", "how many are read")
    subspace: str = column("", "the first k components by weights, or k random directions")
    feature: str = column("", "of the answer: list_index, position, identity")
    right: float = column("share", "held-out lists whose answer is decoded")
    n: int = column("prompts", "held-out lists")


@dataclass(frozen=True)
class PointRow(Row):
    n_items: int = column("items", "length of the list")
    x: float = column("stream units", "residual stream at end along the first component's direction")
    y: float = column("stream units", "along the second's")
    z: float = column("stream units", "along the third's")
    list_index: int = column("", "of the answer, from 0")
    word: str = column("", "the answer")


@dataclass(frozen=True)
class CrowdingRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval of the accuracy over prompts, lower end")
    high: float = column("share", "95% interval of the accuracy over prompts, upper end")
    list_index: float = column("share", "list indices decoded from three coordinates, on other prompts than the fit's")
    position: float = column("share", "positions decoded likewise")
    identity: float = column("share", "answers decoded likewise")
    apart: float = column("spreads", "distance of nearest list indices' mean points, in spreads within one")
    apart_random: float = column("spreads", "the largest along any of some random triples")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class IndexRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    list_index: int = column("", "of the answer, from 0")
    accuracy: float = column("share", "lists answered; empty where no answer has this index")
    n: int = column("prompts", "lists whose answer has this index")


def channel(run: Context) -> Channel:
    """The strongest mover and its writers. Raises :class:`NotApplicable` for a model without a mover, or with fewer
    than three components below it."""
    writers = choose_writers(run.scores, run.mover, write_directions(run.weights)[0])
    return Channel(run.mover, writers, write_vectors(run.bridge, writers))


def points(recording: Recording, mover: Head, directions: Float[Tensor, "*sets k d_model"]) -> Float[Tensor, "..."]:
    """Coordinates of what enters the mover's layer at ``end``, ``[*sets, n, k]``, on the CPU."""
    resid = recording.reader(mover.layer).resid[recording.rows, recording.end]
    return (resid @ directions.to(resid).mT).cpu()


def decoding(run: Context, n_items: int, n_prompts: int = 400) -> list[DecodingRow]:
    """How well the answer is decoded on the held-out half, from which subspace."""
    at, seed = run.kept(channel), run.seed
    selection, held_out = halves(run.lists(n_items, n_prompts))
    recorded, recording = (run.record(half, [at.mover.layer]) for half in (selection, held_out))
    heads = dict.fromkeys(w.of_head for w in at.writers)
    writes = torch.stack([recorded.write(h.layer)[:, h.head] for h in heads]).sum(0)
    fitted = discriminant_directions(writes, index_of_answer(selection))
    random = random_directions(N_RANDOM, 3, at.directions.shape[1], seed)
    subspaces = {Subspace.COMPONENTS: at.directions[None], Subspace.FITTED: fitted[None], Subspace.RANDOM: random}
    splits = {Split.PROMPTS: random_folds(len(held_out), seed=seed), Split.WORDINGS: wording_folds(held_out)}
    generator, index = torch.Generator().manual_seed(seed), index_of_answer(held_out)
    shuffled = [index[torch.randperm(len(index), generator=generator)] for _ in range(N_SHUFFLED)]
    rows = []
    for subspace, sets in subspaces.items():
        values = points(recording, at.mover, sets)
        for feature in Feature:
            for split, folds in splits.items():
                right = torch.stack([decode(v, held_out, feature, folds) for v in values])
                null = torch.stack([decode(values[i % len(values)], held_out, feature, folds, order)
                                    for i, order in enumerate(shuffled)])  # fmt: skip
                mean = right.double().mean(0)  # by prompt: 0 or 1, unless over triples or where hypotheses tie
                found = share(mean == 1) if ((mean == 0) | (mean == 1)).all() else bootstrap_mean(mean)
                worst, best = right.double().mean(1).aminmax()
                rows.append(DecodingRow(
                    run.model, n_items, subspace, feature, split, found.mean, found.low, found.high, worst.item(),
                    best.item(), null.double().mean().item(), 1 / n_items, found.n,
                ))  # fmt: skip
    return rows


def dimensions(run: Context, n_items: int, ks: Sequence[int], n_prompts: int = 400) -> list[DimensionRow]:
    """How many components it takes. Raises :class:`OptionError` for no k, or one below 1."""
    if not ks or min(ks) < 1:
        raise OptionError(f"Name the numbers of components to decode from, each 1 or more, not {list(ks)}.")
    held_out = halves(run.lists(n_items, n_prompts))[1]
    recording = run.record(held_out, [run.mover.layer])
    writers = choose_writers(run.scores, run.mover, recording.directions, k=max(ks))
    chosen = torch.stack([recording.directions[w.layer, w.head, w.component] for w in writers])
    sets = {Subspace.COMPONENTS: chosen, Subspace.RANDOM: random_directions(1, max(ks), chosen.shape[1], run.seed)[0]}
    folds = random_folds(len(held_out), seed=run.seed)
    return [
        DimensionRow(run.model, k, subspace, feature, right, len(held_out))
        for k in ks for subspace, directions in sets.items() for feature in Feature
        for values in [points(recording, run.mover, directions[:k])]
        for right in [decode(values, held_out, feature, folds).double().mean().item()]
    ]  # fmt: skip


def cloud(run: Context, n_items: int, n_prompts: int = 120) -> list[PointRow]:
    """Prompts as points."""
    at, prompts = run.kept(channel), run.lists(n_items, n_prompts)
    values = points(run.record(prompts, [at.mover.layer]), at.mover, at.directions).tolist()
    words = [run.tokenizer.decode([token]).strip() for token in prompts.answers.tolist()]
    return [PointRow(n_items, x, y, z, index, word)
            for (x, y, z), index, word in zip(values, prompts.info["index"], words)]  # fmt: skip


def crowding(run: Context, lengths: Sequence[int], n_prompts: int = 120) -> list[CrowdingRow]:
    """By list length, on the same prompts: accuracy, what is decoded, and how far apart list indices are."""
    at, rows = run.kept(channel), []
    random = random_directions(N_RANDOM, 3, at.directions.shape[1], run.seed)
    for n_items in lengths:
        prompts = run.lists(n_items, n_prompts)
        recording = run.record(prompts, [at.mover.layer])
        right, index = share(correct(recording.logits, prompts)), index_of_answer(prompts)
        folds = random_folds(len(prompts), seed=run.seed)
        values, *others = points(recording, at.mover, torch.stack([at.directions.cpu(), *random]))
        decoded = {feature: decode(values, prompts, feature, folds).double().mean().item() for feature in Feature}
        rows.append(CrowdingRow(
            run.model, n_items, right.mean, right.low, right.high, decoded[Feature.LIST_INDEX],
            decoded[Feature.POSITION], decoded[Feature.IDENTITY], separability(values, index),
            max(separability(other, index) for other in others), right.n,
        ))  # fmt: skip
    return rows


def by_list_index(run: Context, lengths: Sequence[int], n_prompts: int = 120) -> list[IndexRow]:
    """Accuracy by list length and by the answer's list index."""
    rows = []
    for n_items in lengths:
        prompts = run.lists(n_items, n_prompts)
        right = correct(run.record(prompts, [run.mover.layer]).logits, prompts).cpu()
        index = index_of_answer(prompts)
        rows += [_of_index(run.model, n_items, i, right[index == i]) for i in range(n_items)]
    return rows


def _of_index(model: str, n_items: int, i: int, right: Int[Tensor, "n"]) -> IndexRow:
    return IndexRow(model, n_items, i, right.double().mean().item(), len(right))
