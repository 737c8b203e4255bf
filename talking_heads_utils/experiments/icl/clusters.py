"""Intervals of means where prompts of one cluster (one function, or one right answer) are alike: clusters are drawn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError

N_DRAWS = 1000


class Ends(NamedTuple):
    """A statistic of the prompts themselves, and its 95% percentile interval over draws of clusters."""

    value: Tensor
    low: Tensor
    high: Tensor


def drawn_weights(clusters: Int[Tensor, "n"], *, n_draws: int = N_DRAWS, seed: int = 0) -> Float[Tensor, "n_draws_1 n"]:
    """Weights of prompts, summing to 1: first all alike, then of draws of whole clusters with replacement (Davison and
    Hinkley 1997, section 3.8). Raises :class:`OptionError` for fewer than two clusters."""
    kinds, which = clusters.cpu().unique(return_inverse=True)
    if len(kinds) < 2:
        raise OptionError(f"An interval needs two clusters at least, not {len(kinds)}.")
    drawn = torch.randint(len(kinds), (n_draws, len(kinds)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(n_draws, len(kinds)).scatter_add_(1, drawn, torch.ones(drawn.shape)).double()
    weights = torch.cat([torch.ones(1, len(which), dtype=torch.float64), times[:, which]])
    return weights / weights.sum(1, keepdim=True)


def ends(draws: Float[Tensor, "n_draws_1 *cells"]) -> Ends:
    """From a statistic under :func:`drawn_weights`."""
    low, high = torch.quantile(draws[1:], torch.tensor([0.025, 0.975], dtype=draws.dtype), dim=0)
    return Ends(draws[0], low, high)


def mean_in_clusters(values: Float[Tensor, "n *cells"], clusters: Int[Tensor, "n"], *, seed: int = 0) -> Ends:
    """Mean over prompts of every cell, with its interval."""
    weights = drawn_weights(clusters, seed=seed)
    found = ends(weights @ values.double().cpu().reshape(len(values), -1))
    return Ends(*(part.view(values.shape[1:]) for part in found))
