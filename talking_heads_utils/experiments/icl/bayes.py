"""The Bayes-optimal predictor of a family of functions: what can be known of the next answer after k examples."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.prompts.functions import Examples, Family


def posterior(
    family: Family,
    x: Int[Tensor, "n n_pairs"],
    y: Int[Tensor, "n n_pairs"],
    prior: Float[Tensor, "n_functions"] | None = None,
) -> Float[Tensor, "n n_pairs_1 n_functions"]:
    """The exact reader's belief after 0, 1, ..., n_pairs examples. prior: over functions, uniform by default.

    Where no function fits the examples (a held-out one under a prior without it), the belief is NaN.
    """
    n_functions = len(family.functions)
    prior = torch.full((n_functions,), 1 / n_functions, dtype=torch.float64) if prior is None else prior.double()
    steps = family.likelihood[:, x, y].log().permute(1, 2, 0)
    logs = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], 1) + prior.log()
    return logs.softmax(-1)


def predictive(
    family: Family, belief: Float[Tensor, "n k n_functions"], x: Int[Tensor, "n k"]
) -> Float[Tensor, "n k n_numbers"]:
    """Probability of each number as the function's own value at x, under a belief over functions."""
    values = family.values.T[x]
    out = torch.zeros(*x.shape, family.n_numbers, dtype=belief.dtype)
    return out.scatter_add_(2, values, belief)


def trained_prior(family: Family) -> Float[Tensor, "n_functions"]:
    """Uniform over the functions that training showed."""
    kept = (~family.held_out).double()
    return kept / kept.sum()


def bayes_accuracy(
    family: Family, examples: Examples, prior: Float[Tensor, "n_functions"]
) -> Float[Tensor, "n n_pairs"]:
    """Whether the exact reader's first choice for pair k, after the k pairs before it, is the function's own value.

    A belief that is nowhere (NaN) counts as wrong; of several first choices each counts by its share.
    """
    belief = posterior(family, examples.x, examples.y, prior)[:, :-1]
    chance = predictive(family, belief, examples.x)
    top = chance >= chance.amax(-1, keepdim=True) - 1e-12
    hit = top.gather(2, examples.clean[..., None])[..., 0]
    return (hit / top.sum(-1).clamp(min=1)).nan_to_num(0.0)
