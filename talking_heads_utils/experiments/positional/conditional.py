"""Statistics of errors given what they must not be confounded with: slopes within strata, wrong answers dealt anew."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PRIOR = 0.005  # penalty on a squared slope: without one it runs away where x tells all
N_STEPS = 30  # of Newton's method
N_PERMUTATIONS = 999


class Slope(NamedTuple):
    """Of the log-odds, with its standard error."""

    value: Float[Tensor, "*sets"]
    error: Float[Tensor, "*sets"]


def conditional_slope(x: Float[Tensor, "*sets n"], right: Bool[Tensor, "n"], strata: Int[Tensor, "n"]) -> Slope:
    """Slope of the log-odds of being right on x, given how many are right in each stratum: conditional logistic
    regression (Breslow and Day 1980), so that strata may be small. Newton's method."""
    n_strata, longest = int(strata.max()) + 1, int(strata.bincount().max())
    order = strata.argsort(stable=True)
    place = torch.arange(len(strata)) - (strata.bincount().cumsum(0) - strata.bincount())[strata[order]]
    own = torch.nn.functional.one_hot(strata).double()
    centred = x.double() - (x.double() @ own / own.sum(0)) @ own.T
    padded = x.new_zeros(*x.shape[:-1], n_strata, longest, dtype=torch.float64)
    padded[..., strata[order], place] = centred[..., order]
    there = torch.zeros(n_strata, longest, dtype=torch.float64)
    there[strata[order], place] = 1
    n_right = torch.zeros(n_strata, dtype=torch.long).index_add_(0, strata, right.long())
    total, beta = (centred * right).sum(-1), x.new_zeros(x.shape[:-1], dtype=torch.float64)
    for _ in range(N_STEPS):
        mean, variance = _of_sums(beta, padded, there, n_right)
        information = variance + 2 * PRIOR
        beta = beta + ((total - mean - 2 * PRIOR * beta) / information).clamp(-1, 1)
    return Slope(beta, information.rsqrt())


def _of_sums(
    beta: Float[Tensor, "*sets"], x: Float[Tensor, "*sets strata m"], there: Float[Tensor, "strata m"],
    n_right: Int[Tensor, "strata"],
) -> tuple[Float[Tensor, "*sets"], Float[Tensor, "*sets"]]:  # fmt: skip
    """Mean and variance of the sum of x over ``n_right`` members of each stratum, all strata together, where a choice
    of members has odds exp(beta times its sum): from the elementary symmetric polynomials of exp(beta x) and their two
    derivatives by beta, one member after the other."""
    most = int(n_right.max())
    e = x.new_zeros(3, *x.shape[:-1], most + 1)
    e[0, ..., 0] = 1
    for j in range(x.shape[-1]):
        w, v = (beta[..., None] * x[..., j]).exp() * there[:, j], x[..., j, None]
        zeroth, first, second = e[..., :-1]
        added = torch.stack([zeroth, first + v * zeroth, second + 2 * v * first + v.square() * zeroth])
        e[..., 1:] += w[..., None] * added
        e = e / e[0].amax(-1, keepdim=True)
    zeroth, first, second = e.gather(-1, n_right.expand(e.shape[:-1])[..., None])[..., 0]
    mean = first / zeroth
    return mean.sum(-1), (second / zeroth - mean.square()).sum(-1)


def dealt_over_errors(answers: Int[Tensor, "n"], given: Int[Tensor, "n"], seed: int = 0) -> Int[Tensor, "n_draws n"]:
    """Wrong answers dealt anew over the errors, none to a list whose right answer it is: all such dealings are about
    equally likely after many exchanges among two errors and among three."""
    generator, dealt = torch.Generator().manual_seed(seed), given.repeat(N_PERMUTATIONS, 1)
    rows = torch.arange(len(dealt))[:, None]
    for _ in range(2 * len(given)):
        for among in (2, 3):
            at = torch.randint(len(given), (len(dealt), among), generator=generator)
            before = dealt[rows, at]
            after = before.roll(1, 1)
            same = (at.sort(1).values.diff(dim=1) == 0).any(1)
            refused = same | (after == answers[at]).any(1)
            dealt[rows, at] = torch.where(refused[:, None], before, after)
    return dealt


def dealt_within_index(answers: Int[Tensor, "n"], given: Int[Tensor, "n"], seed: int = 0) -> Int[Tensor, "n_draws n"]:
    """Wrong answers dealt anew among the errors of the same right answer."""
    generator, order = torch.Generator().manual_seed(seed), answers.argsort(stable=True)
    dealt = given.repeat(N_PERMUTATIONS, 1)
    shuffled = (torch.rand(dealt.shape, generator=generator, dtype=torch.float64) + answers).argsort(1)
    dealt[:, order] = given[shuffled]
    return dealt
