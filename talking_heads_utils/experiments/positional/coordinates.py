"""Points of prompts in a small subspace of the residual stream at ``end``, and what can be decoded from them.

The answer's list index, its position and its identity are decoded by one rule: each of a list's n items may be the one
that is left, each such hypothesis predicts a point, and the nearest prediction wins. By chance a share 1 / n is right.
For the *list index* (from 0) the prediction is the mean point of lists whose answer has that index, for the *position*
(in the prompt: by its wording a list begins sooner or later) of those whose answer stands at that token; for the
*identity* it is a sum of one vector per item that is named twice.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.scores.scores import CompositionScores

NEW = 0.5  # share of a direction that must lie outside the span of those chosen before
PENALTIES = torch.logspace(-2, 3, 11, dtype=torch.float64)  # of the ridge, to choose from
TIE = 1e-6  # squared distances that differ by less, or by less than this share, are equal: it is rounding
N_INNER = 5  # folds that choose where those to fit on are of one group


class Feature(StrEnum):
    """What is decoded of the answer."""

    LIST_INDEX = "list_index"
    POSITION = "position"
    IDENTITY = "identity"


def choose_writers(
    scores: CompositionScores, mover: Head, directions: Float[Tensor, "n_layers n_heads d_head d_model"], k: int = 3
) -> tuple[Component, ...]:
    """The k components that a mover's query reads most, by weights alone, each new by half at least to those before.

    Raises :class:`NotApplicable` if there are not so many.
    """
    chosen: list[Component] = []
    basis = directions.new_zeros(0, directions.shape[-1])
    for c in map(Component.parse, scores.table(mover, "Q")["writer"]):
        v = directions[c.layer, c.head, c.component]
        rest = v - (v @ basis.T) @ basis
        if v.isnan().any() or rest.square().sum() < NEW:
            continue
        chosen.append(c)
        basis = torch.cat([basis, (rest / rest.norm())[None]])
        if len(chosen) == k:
            return tuple(chosen)
    raise NotApplicable(f"Fewer than {k} different components write below {mover}.")


def hypotheses(prompts: PromptSet, feature: Feature) -> Float[Tensor, "n n_items n_features"]:
    """For each prompt and each item that might be left: the regressors. Raises :class:`TaskError` for prompts that are
    no lists."""
    n_items = prompts.recipe.n_items
    if n_items is None or "index" not in prompts.info:
        raise TaskError("List indices and identities are those of Laundry List prompts.")
    if feature == Feature.LIST_INDEX:
        return torch.eye(n_items).double().expand(len(prompts), -1, -1)
    positions, tokens = item_positions(prompts)
    values, index = (positions if feature == Feature.POSITION else tokens).unique(return_inverse=True)
    own = torch.nn.functional.one_hot(index, len(values)).double()
    return own if feature == Feature.POSITION else own.sum(1, keepdim=True) - own


def index_of_answer(prompts: PromptSet) -> Int[Tensor, "n"]:
    """List index of each prompt's answer."""
    return torch.as_tensor(prompts.info["index"])


def decode(
    values: Float[Tensor, "n k"],
    prompts: PromptSet,
    feature: Feature,
    folds: Int[Tensor, "n"],
    index: Int[Tensor, "n"] | None = None,
) -> Float[Tensor, "n"]:
    """Whether each prompt's answer is decoded from its point, 0 or 1, by a ridge regression fitted on the other folds,
    its penalty chosen within them; 1 / m where m hypotheses, the answer's among them, are equally near up to rounding.
    index: list indices to decode in place of the answers', such as shuffled ones.

    Raises :class:`TaskError` for prompts that are no lists, or that all lie in one fold.
    """
    if len(folds.unique()) < 2:
        raise TaskError("What is decoded is fitted on other folds: there must be two at least, such as two wordings.")
    values, rows = values.double().cpu(), hypotheses(prompts, feature)
    index = index_of_answer(prompts) if index is None else index
    own = rows[torch.arange(len(values)), index]
    right = torch.zeros(len(values))
    for fold in folds.unique():
        test = folds == fold
        X, y = own[~test], values[~test]
        centre, mean = X.mean(0), y.mean(0)
        weights = ridge(X - centre, y - mean, choose_penalty(X, y, folds[~test])[None])[0]
        residual = y - mean - (X - centre) @ weights
        spread = residual.T @ residual / len(residual) + (1e-6 * residual.var() + 1e-12) * torch.eye(y.shape[1])
        whiten = torch.linalg.cholesky(torch.linalg.inv(spread))
        predicted = (rows[test] - centre) @ weights + mean
        distance = ((values[test, None] - predicted) @ whiten).square().sum(-1)
        right[test] = credit(distance, index[test])
    return right


def credit(distance: Float[Tensor, "n n_items"], index: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """1 where the item at ``index`` is the nearest, 1 / m where it is one of m that tie within :data:`TIE`, else 0."""
    nearest = distance.amin(1, keepdim=True)
    tied = distance <= nearest + TIE * nearest.clamp(min=1)
    return tied.gather(1, index[:, None])[:, 0] / tied.sum(1)


def choose_penalty(
    X: Float[Tensor, "n n_features"], y: Float[Tensor, "n k"], groups: Int[Tensor, "n"]
) -> Float[Tensor, ""]:
    """The one of :data:`PENALTIES` with the smallest squared error on groups that were left out, each coordinate in
    units of its variance."""
    if len(groups.unique()) < 2:
        groups = torch.arange(len(X)) % N_INNER
    error = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for group in groups.unique():
        out = groups == group
        centre, mean = X[~out].mean(0), y[~out].mean(0)
        predicted = (X[out] - centre) @ ridge(X[~out] - centre, y[~out] - mean, PENALTIES) + mean
        error += ((y[out] - predicted).square() / y.var(0).clamp(min=1e-12)).sum((1, 2))
    return PENALTIES[error.argmin()]


def ridge(
    X: Float[Tensor, "n n_features"], y: Float[Tensor, "n k"], penalties: Float[Tensor, "p"]
) -> Float[Tensor, "p n_features k"]:
    """Weights of a ridge regression of centred values under several penalties on the squared weights."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return Vh.T @ ((S / (S**2 + penalties[:, None]))[..., None] * (U.T @ y))


def discriminant_directions(
    writes: Float[Tensor, "n d_model"], groups: Int[Tensor, "n"], k: int = 3
) -> Float[Tensor, "k d_model"]:
    """The k directions that tell groups apart best within what was written (Fisher's discriminant, ridge on the
    spread within groups), as unit vectors. Fit it on prompts that are not scored."""
    means, within = _groups(writes, groups)
    spread = within.T @ within / len(within)
    values, vectors = torch.linalg.eigh(spread + (0.01 * spread.diagonal().mean() + 1e-9) * torch.eye(len(spread)))
    whiten = vectors * values.rsqrt()
    axes = torch.linalg.svd((means - writes.double().cpu().mean(0)) @ whiten, full_matrices=False).Vh[:k]
    return torch.nn.functional.normalize(axes @ whiten.T, dim=1).float()


def separability(values: Float[Tensor, "n k"], groups: Int[Tensor, "n"]) -> float:
    """Distance between the means of neighbouring groups, in spreads within a group, mean over the pairs that are
    nearest: below about two, groups overlap."""
    means, within = _groups(values, groups)
    spread = within.T @ within / max(1, len(within) - len(means))
    spread = spread + (1e-9 * spread.diagonal().mean() + 1e-12) * torch.eye(len(spread))
    gaps = means[:, None] - means
    distance = ((gaps @ torch.linalg.inv(spread)) * gaps).sum(-1).clamp(min=0).sqrt()
    distance.fill_diagonal_(torch.inf)
    return distance.amin(1).mean().item()


def _groups(values: Tensor, groups: Int[Tensor, "n"]) -> tuple[Float[Tensor, "g k"], Float[Tensor, "n k"]]:
    """Means of the groups, and what each value is off that of its own."""
    values, names = values.double().cpu(), groups.unique()
    means = torch.stack([values[groups == g].mean(0) for g in names])
    return means, values - means[torch.searchsorted(names, groups)]
