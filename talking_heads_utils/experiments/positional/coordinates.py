"""Coordinates of lists in a small subspace of the residual stream at ``end``, and what can be decoded from them.

The answer's list index and its identity are decoded by one rule: each of a list's n items may be the one that is left,
each such hypothesis predicts a point, and the nearest prediction wins. By chance a share 1 / n is right. For the *list
index* (from 0) the prediction is the mean point of lists whose answer has that index; for the *identity* it is a sum of
one vector per item that is named twice, so that of items that no fit has seen all hypotheses are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.ends import ends
from talking_heads_utils.experiments.positional.subspace import SILENT, chosen

PENALTIES = torch.logspace(-2, 3, 11, dtype=torch.float64)  # of the ridge, to choose from
TIE = 1e-6  # squared distances that differ by less, or by less than this share, are equal: it is rounding
N_INNER = 5  # folds that choose where those to fit on are of one group
N_UNITS = 200  # lists that units are of


def coordinates(stream: Float[Tensor, "n d_model"], directions: Float[Tensor, "k d_model"]) -> Float[Tensor, "n k"]:
    """Coordinates along unit directions; 0 along one on which nothing but rounding differs from list to list."""
    values = stream @ directions.T
    return values.masked_fill(values.std(0) <= SILENT * stream.norm(dim=1).mean(), 0.0)


class Feature(StrEnum):
    """What is decoded of the answer."""

    LIST_INDEX = "list_index"
    IDENTITY = "identity"


class Units(NamedTuple):
    """Mean and standard deviation of each chosen component's coordinate over the selection lists of one length."""

    mean: Float[Tensor, "k"]
    std: Float[Tensor, "k"]


def units(c: Context, n_items: int) -> Units:
    """In what coordinates of lists of this length are told."""
    lists = Lists(Part.SELECTION, n_items, c.n(N_UNITS))
    values = ends(c, lists).stream @ c.kept(chosen).directions.T
    return Units(values.mean(0), values.std(0))


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
