"""Coordinates of lists in a small subspace of the residual stream at ``end``: where lists sit, and what of the answer
can be decoded from them, in how many dimensions.

The answer's list index and its identity are decoded by one rule: each of a list's n items may be the one that is left,
each such hypothesis predicts a point, and the nearest prediction wins. By chance a share 1 / n is right. For the *list
index* (from 0) the prediction is the mean point of lists whose answer has that index; for the *identity* it is a sum of
one vector per item that is named twice, so that of items that no fit has seen all hypotheses are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import drawn_test, numbered, random_folds
from talking_heads_utils.experiments.list_prompts import EACH_INDEX, Lists, Part, check_each_index
from talking_heads_utils.experiments.positional.ends import Ends, ends
from talking_heads_utils.experiments.positional.subspace import (
    SILENT,
    Chosen,
    K,
    Subspace,
    chosen,
    nearest_lengths,
    shown_lengths,
)
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.stats import Interval, bootstrap_mean, middle, share

PENALTIES = torch.logspace(-2, 3, 11, dtype=torch.float64)  # of the ridge, to choose from
TIE = 1e-6  # squared distances that differ by less, or by less than this share, are equal: it is rounding
N_INNER = 5  # folds that choose where those to fit on are of one group
N_LISTS = 400
N_NEW_WORDING = 100  # as many as the held-out lists have of each of their four wordings
N_SHUFFLED = 5
LENGTHS = (4, 6)
N_SHOWN, N_UNITS = 120, 200  # lists to show; whose spread is the unit


class Feature(StrEnum):
    """What is decoded of the answer."""

    LIST_INDEX = "list_index"
    IDENTITY = "identity"


class Split(StrEnum):
    """What was left out of the fit: lists at random, all lists of a wording, or all lists of the new objects."""

    LISTS = "lists"
    WORDINGS = "wordings"
    OBJECTS = "objects"


# --- where lists sit ---


@dataclass(frozen=True)
class PointRow(ModelRow):
    n_items: int = column("items", "length of the list")
    order: str = column("", "kept, shuffled: in which the others are named again")
    wording: str = column("", "of the list")
    list_index: int = column("", "of the answer, from 0")
    word: str = column("", "the answer")
    x: float = column(
        "standard deviations", "coordinate along the first component's direction, about the mean over other lists"
    )
    y: float = column("standard deviations", "along the second's")
    z: float = column("standard deviations", "along the third's")
    right: bool = column("", "whether the list was answered")


def run_points(c: Context) -> list[PointRow]:
    """Held-out lists of every length that is shown. Raises :class:`NotApplicable` as
    :func:`~talking_heads_utils.experiments.positional.subspace.chosen` and
    :func:`~talking_heads_utils.experiments.positional.subspace.lengths` do."""
    return [row for n_items in shown_lengths(c) for row in _of_length(c, n_items)]


def _of_length(c: Context, n_items: int) -> list[PointRow]:
    directions, at = c.kept(chosen).directions, c.kept(ends, Lists(Part.HELD_OUT, n_items, c.n(N_SHOWN)))
    unit = (c.kept(ends, Lists(Part.SELECTION, n_items, c.n(N_UNITS))).stream @ directions.T)[:, :K]
    points = ((at.stream @ directions[:K].T - unit.mean(0)) / unit.std(0)).tolist()
    right = at.right(at.logits(at.stream[:, None]))[:, 0].tolist()
    words = [c.tokenizer.decode([token]).strip() for token in at.prompts.answers.tolist()]
    info = (at.prompts.info[name] for name in ("order", "wording", "index"))
    return [
        PointRow(c.model, n_items, order, wording, index, word, x, y, z, answered)
        for order, wording, index, word, (x, y, z), answered in zip(*info, words, points, right)
    ]


# --- what a fit to other lists decodes ---


def coordinates(stream: Float[Tensor, "n d_model"], directions: Float[Tensor, "k d_model"]) -> Float[Tensor, "n k"]:
    """Coordinates along unit directions; 0 along one on which nothing but rounding differs from list to list."""
    values = stream @ directions.T
    return values.masked_fill(values.std(0) <= SILENT * stream.norm(dim=1).mean(), 0.0)


def hypotheses(items: Int[Tensor, "n n_items"], feature: Feature) -> Float[Tensor, "n n_items n_features"]:
    """For each list, given by its items' tokens, and each item that might be left: the regressors."""
    if feature == Feature.LIST_INDEX:
        return torch.eye(items.shape[1]).double().expand(len(items), -1, -1)
    values, which = items.cpu().unique(return_inverse=True)
    own = torch.nn.functional.one_hot(which, len(values)).double()
    return own.sum(1, keepdim=True) - own


def decode(
    sets: Sequence[Float[Tensor, "n k"]],
    rows: Float[Tensor, "n n_items n_features"],
    index: Int[Tensor, "n"],
    folds: Int[Tensor, "n"],
) -> Float[Tensor, "n_sets n"]:
    """Whether each prompt's answer is decoded from its point in each of some subspaces, 0 or 1, by a ridge regression
    fitted on the other folds, its penalty chosen within them; 1 / m where m hypotheses, the answer's among them, are
    equally near up to rounding.

    rows: as :func:`hypotheses` has them. index: which of them is the answer's. Raises :class:`TaskError` where all
    prompts lie in one fold.
    """
    if len(folds.unique()) < 2:
        raise TaskError("What is decoded is fitted on other folds: there must be two at least, such as two wordings.")
    of_set = torch.cat([torch.full((values.shape[1],), i) for i, values in enumerate(sets)])
    values = torch.cat([v.double().cpu() for v in sets], 1)
    own = rows[torch.arange(len(values)), index]  # what each answer's hypothesis says
    right = torch.zeros(len(sets), len(values), dtype=torch.float64)
    for fold in folds.unique():
        test = folds == fold
        X, y = own[~test], values[~test]
        centre, mean = X.mean(0), y.mean(0)
        weights = ridge(X - centre, y - mean, choose_penalty(X, y, folds[~test], of_set)[of_set])
        residual = y - mean - (X - centre) @ weights
        apart = values[test, None] - (rows[test] - centre) @ weights - mean
        for i in range(len(sets)):
            distance = _squared_distances(apart[..., of_set == i], residual[:, of_set == i])
            right[i, test] = credit(distance, index[test])
    return right


def _squared_distances(
    apart: Float[Tensor, "m n_items k"], residual: Float[Tensor, "n k"]
) -> Float[Tensor, "m n_items"]:
    """In units of the spread of what a fit left."""
    spread = residual.T @ residual / len(residual)
    spread = spread + (1e-6 * residual.var() + 1e-12) * torch.eye(len(spread))
    return (apart @ torch.linalg.cholesky(torch.linalg.inv(spread))).square().sum(-1)


def credit(distance: Float[Tensor, "n n_items"], index: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """1 where the item at ``index`` is the nearest, 1 / m where it is one of m that tie within :data:`TIE`, else 0."""
    nearest = distance.amin(1, keepdim=True)
    tied = distance <= nearest + TIE * nearest.clamp(min=1)
    return tied.gather(1, index[:, None])[:, 0].double() / tied.sum(1)


def choose_penalty(
    X: Float[Tensor, "n n_features"], y: Float[Tensor, "n k"], groups: Int[Tensor, "n"], of_set: Int[Tensor, "k"]
) -> Float[Tensor, "n_sets"]:
    """For each set of columns of ``y`` the one of :data:`PENALTIES` with the smallest squared error on groups that were
    left out, each column in units of its variance. of_set: of each column."""
    if len(groups.unique()) < 2:
        groups = torch.arange(len(X)) % N_INNER
    error = torch.zeros(len(PENALTIES), y.shape[1], dtype=torch.float64)
    for group in groups.unique():
        out = groups == group
        centre, mean = X[~out].mean(0), y[~out].mean(0)
        fits = ridge(X[~out] - centre, y[~out] - mean, PENALTIES[:, None])
        error += (y[out] - (X[out] - centre) @ fits - mean).square().sum(1)
    error = error / y.var(0).clamp(min=1e-12)
    of_sets = torch.zeros(len(PENALTIES), int(of_set.max()) + 1, dtype=torch.float64).index_add_(1, of_set, error)
    return PENALTIES[of_sets.argmin(0)]


def ridge(
    X: Float[Tensor, "n n_features"], y: Float[Tensor, "n k"], penalties: Float[Tensor, "*p k"]
) -> Float[Tensor, "*p n_features k"]:
    """Weights of ridge regressions of centred values, each column under its own penalty on the squared weights."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return Vh.T @ (S[:, None] / (S[:, None] ** 2 + penalties[..., None, :]) * (U.T @ y))


# --- the experiment ---


@dataclass(frozen=True)
class DecodingRow(ModelRow):
    """Of matched triples: mean over triples, and the triples' 2.5% and 97.5% points."""

    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "chosen, anywhere, matched (three dimensions alone)")
    k: int = column("dimensions", "components whose coordinates are read")
    feature: str = column("", "of the answer: list_index, identity")
    split: str = column("", "left out of the fit: lists, wordings, objects")
    right: float = column(
        "share", "lists left out whose answer is decoded; one that is as near as m others counts 1 / m"
    )
    low: float = column("share", "95% interval over lists, of matched triples over triples, lower end")
    high: float = column("share", "upper end")
    shuffled: float | None = column("share", "the same where answers are shuffled; empty for matched triples")
    chance: float = column("share", "one in n_items")
    p: float | None = column("", "share of matched triples, this one included, that decode as much; of chosen at k = 3")
    n_draws: int | None = column("triples", "matched ones behind p, or behind the row")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class Pool:
    """Lists of which each fold is left out once, and decoded from a fit to the others."""

    stream: Float[Tensor, "n d_model"]
    items: Int[Tensor, "n n_items"]
    index: Int[Tensor, "n"]
    folds: Int[Tensor, "n"]


def run(c: Context) -> list[DecodingRow]:
    """Raises :class:`NotApplicable` as :func:`~talking_heads_utils.experiments.positional.subspace.chosen` and
    :func:`~talking_heads_utils.experiments.positional.subspace.lengths` do, and :class:`TaskError` for too few lists of
    an index."""
    at = c.kept(chosen)
    return [
        row
        for n_items in nearest_lengths(c, *LENGTHS)
        for split, pool in pools(c, n_items).items()
        for feature in Feature
        for row in decoding_rows(c.model, at, pool, feature, split, c.seed)
    ]


def pools(c: Context, n_items: int) -> dict[Split, Pool]:
    """What is decoded of lists of one length, by what is left out."""
    held_out, wording, objects = (
        c.kept(ends, Lists(part, n_items, c.n(n)))
        for part, n in ((Part.HELD_OUT, N_LISTS), (Part.NEW_WORDING, N_NEW_WORDING), (Part.NEW_OBJECTS, N_LISTS))
    )
    for part in (held_out, objects):
        check_each_index(part.prompts, c.n(EACH_INDEX, 5))
    of_wording = numbered([*held_out.prompts.info["wording"], *wording.prompts.info["wording"]])
    of_part = torch.tensor([0] * len(held_out) + [1] * len(objects))
    return {
        Split.LISTS: _pool([held_out], random_folds(len(held_out), c.seed)),
        Split.WORDINGS: _pool([held_out, wording], of_wording),
        Split.OBJECTS: _pool([held_out, objects], of_part),
    }


def _pool(parts: Sequence[Ends], folds: Int[Tensor, "n"]) -> Pool:
    stream, items, index = (
        torch.cat([found.cpu() for found in each]) for each in zip(*((p.stream, p.candidates, p.index) for p in parts))
    )
    return Pool(stream, items, index, folds)


def decoding_rows(model: str, at: Chosen, pool: Pool, feature: Feature, split: Split, seed: int) -> list[DecodingRow]:
    """One row for each number of dimensions of each subspace, one for all matched triples."""
    named = {Subspace.CHOSEN: at.directions, Subspace.ANYWHERE: at.anywhere_directions}
    own = [(name, directions[:k]) for name, directions in named.items() for k in range(1, len(directions) + 1)]
    values = [coordinates(pool.stream, directions.cpu()) for directions in (*(found for _, found in own), *at.matched)]
    regressors, n_items = hypotheses(pool.items, feature), pool.items.shape[1]
    right = decode(values, regressors, pool.index, pool.folds)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [pool.index[torch.randperm(len(pool.index), generator=generator)] for _ in range(N_SHUFFLED)]
    null = torch.stack([decode(values[: len(own)], regressors, index, pool.folds).mean(1) for index in shuffled])
    drawn = right[len(own) :].mean(1)
    rows = []
    for (subspace, directions), hits, by_chance in zip(own, right, null.mean(0).tolist()):
        found, k = _interval(hits), len(directions)
        p = drawn_test(found.mean, drawn).p if (subspace, k) == (Subspace.CHOSEN, K) else None
        rows.append(DecodingRow(
            model, n_items, subspace, k, feature, split, *found[:3], by_chance, 1 / n_items, p,
            None if p is None else len(drawn), len(hits),
        ))  # fmt: skip
    rows.append(DecodingRow(
        model, n_items, Subspace.MATCHED, K, feature, split, drawn.mean().item(), *middle(drawn), None, 1 / n_items,
        None, len(drawn), len(pool.index),
    ))  # fmt: skip
    return rows


def _interval(hits: Float[Tensor, "n"]) -> Interval:
    """Of a share; where several hypotheses tie, and hits are parts, of their mean."""
    return share(hits == 1) if ((hits == 0) | (hits == 1)).all() else bootstrap_mean(hits, n_boot=2000)
