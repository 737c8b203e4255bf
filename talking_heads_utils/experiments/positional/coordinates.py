"""Points of prompts in a small subspace of the residual stream at ``end``, and what can be decoded from them.

Place and identity are decoded by one rule: each of a list's n items may be the one that is left, each such hypothesis
predicts a point, and the nearest prediction wins. By chance a share 1 / n is right. For *place* (in the list) the
prediction is the mean point of lists whose answer has that place, for *position* (in the prompt: by its wording a list
begins sooner or later) of those whose answer stands at that token; for *identity* it is a sum of one vector per item
named twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError, TaskError
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.scores.scores import CompositionScores
from talking_heads_utils.stats import ridge_weights

PLACE, POSITION, IDENTITY = "place", "position", "identity"
CARRIED = (PLACE, POSITION, IDENTITY)
NEW = 0.5  # share of a direction that must lie outside the span of those chosen before
RIDGE = 1.0


def choose_writers(
    scores: CompositionScores,
    mover: Head,
    directions: Float[Tensor, "n_layers n_heads d_head d_model"],
    k: int = 3,
) -> list[Component]:
    """The k components that a mover's query reads most, by weights alone, each new by half at least to those before.

    Raises :class:`OptionError` if there are not so many.
    """
    chosen: list[Component] = []
    basis = directions.new_zeros(0, directions.shape[-1])
    for name in scores.table(mover, "Q")["writer"]:
        c = Component.parse(name)
        v = directions[c.layer, c.head, c.component]
        rest = v - (v @ basis.T) @ basis
        if v.isnan().any() or rest.square().sum() < NEW:
            continue
        chosen.append(c)
        basis = torch.cat([basis, (rest / rest.norm())[None]])
        if len(chosen) == k:
            return chosen
    raise OptionError(f"Fewer than {k} different components write below {mover}: ask for fewer.")


def points(recording: Recording, layer: int, directions: Float[Tensor, "k d_model"]) -> Float[Tensor, "n k"]:
    """Coordinates of the residual stream at ``end``, entering ``layer``, along some directions."""
    resid = recording.reader(layer).resid[recording.rows, recording.end]
    return resid @ directions.to(resid).T


def hypotheses(prompts: PromptSet, carries: str) -> Float[Tensor, "n n_items n_features"]:
    """For each prompt and each item that might be left: the regressors of one of :data:`CARRIED`.

    Raises :class:`TaskError` for prompts that are no lists.
    """
    n_items = prompts.recipe.n_items
    if n_items is None or "index" not in prompts.info:
        raise TaskError("Places and identities are those of Laundry List prompts.")
    if carries == PLACE:
        return torch.eye(n_items).double().expand(len(prompts), -1, -1)
    positions, tokens = item_positions(prompts)
    what = positions if carries == POSITION else tokens
    values, index = what.unique(return_inverse=True)
    own = torch.nn.functional.one_hot(index, len(values)).double()
    return own if carries == POSITION else own.sum(1, keepdim=True) - own


def decode(
    values: Float[Tensor, "n k"], prompts: PromptSet, carries: str, folds: Int[Tensor, "n"]
) -> Bool[Tensor, "n"]:
    """Whether each prompt's answer is decoded from its point, by what was fitted on the other folds.

    Raises :class:`TaskError` for prompts that are no lists, or that all lie in one fold.
    """
    if len(folds.unique()) < 2:
        raise TaskError("What is decoded is fitted on other folds: there must be two at least, such as two wordings.")
    values, rows = values.double().cpu(), hypotheses(prompts, carries)
    place = torch.as_tensor(prompts.info["index"])
    each = torch.arange(len(values))
    right = torch.zeros(len(values), dtype=torch.bool)
    for fold in folds.unique():
        test = folds == fold
        X, y = rows[each, place][~test], values[~test]
        centre, mean = X.mean(0), y.mean(0)
        weights = ridge_weights(X - centre, y - mean, RIDGE)
        residual = y - mean - (X - centre) @ weights
        spread = residual.T @ residual / len(residual) + 1e-6 * residual.var() * torch.eye(y.shape[1]).double()
        whiten = torch.linalg.cholesky(torch.linalg.inv(spread + 1e-12 * torch.eye(y.shape[1]).double()))
        predicted = (rows[test] - centre) @ weights + mean
        distance = ((values[test, None] - predicted) @ whiten).square().sum(-1)
        right[test] = distance.argmin(1) == place[test]
    return right


def discriminant_directions(
    writes: Float[Tensor, "n d_model"], groups: Int[Tensor, "n"], k: int = 3
) -> Float[Tensor, "k d_model"]:
    """The k directions that tell groups apart best within what was written (Fisher's discriminant, ridge on the
    spread within groups), as unit vectors. Fit it on prompts that are not scored."""
    writes = writes.double().cpu()
    mean = writes.mean(0)
    means = torch.stack([writes[groups == g].mean(0) for g in groups.unique()])
    within = torch.cat([writes[groups == g] - writes[groups == g].mean(0) for g in groups.unique()])
    between = means - mean
    spread = within.T @ within / len(within)
    ridge = 0.01 * spread.diagonal().mean() + 1e-9
    values, vectors = torch.linalg.eigh(spread + ridge * torch.eye(len(mean)).double())
    whiten = vectors * values.rsqrt()
    axes = torch.linalg.svd(between @ whiten, full_matrices=False).Vh[:k]
    return torch.nn.functional.normalize(axes @ whiten.T, dim=1).float()


def separability(values: Float[Tensor, "n k"], groups: Int[Tensor, "n"]) -> float:
    """Distance between the means of neighbouring groups, in spreads within a group, mean over the pairs that are
    nearest: below about two, groups overlap."""
    values = values.double().cpu()
    names = groups.unique()
    means = torch.stack([values[groups == g].mean(0) for g in names])
    within = torch.cat([values[groups == g] - values[groups == g].mean(0) for g in names])
    spread = within.T @ within / max(1, len(within) - len(names))
    spread = spread + 1e-9 * spread.diagonal().mean() * torch.eye(len(spread)).double() + 1e-12 * torch.eye(len(spread))
    gaps = means[:, None] - means
    distance = ((gaps @ torch.linalg.inv(spread)) * gaps).sum(-1).clamp(min=0).sqrt()
    distance.fill_diagonal_(torch.inf)
    return distance.amin(1).mean().item()


def writes_of(recording: Recording, heads: Sequence[Head]) -> Float[Tensor, "n d_model"]:
    """What some heads write at ``end``, together."""
    return torch.stack([recording.write(h.layer)[:, h.head] for h in heads]).sum(0)
