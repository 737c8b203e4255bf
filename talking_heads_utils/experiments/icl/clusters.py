"""Intervals where prompts of one cluster (one right answer, or one function) are alike, and over tasks: clusters are
drawn, and tasks before them. Any statistic of means may be taken of the drawn means, such as a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError

N_DRAWS = 1000


class Ends(NamedTuple):
    """A statistic of the prompts themselves, and its 95% percentile interval over draws."""

    value: Tensor
    low: Tensor
    high: Tensor

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Of a single statistic."""
        return self.value.item(), self.low.item(), self.high.item()


def drawn_weights(clusters: Int[Tensor, "n"], *, seed: int = 0) -> Float[Tensor, "n_draws_1 n"]:
    """Weights of prompts, summing to 1: first all alike, then of draws of whole clusters with replacement (Davison and
    Hinkley 1997, section 3.8). Raises :class:`OptionError` for fewer than two clusters."""
    kinds, which = clusters.cpu().unique(return_inverse=True)
    if len(kinds) < 2:
        raise OptionError(f"An interval needs two clusters at least, not {len(kinds)}.")
    drawn = torch.randint(len(kinds), (N_DRAWS, len(kinds)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(N_DRAWS, len(kinds)).scatter_add_(1, drawn, torch.ones(drawn.shape)).double()
    weights = torch.cat([torch.ones(1, len(which), dtype=torch.float64), times[:, which]])
    return weights / weights.sum(1, keepdim=True)


def drawn_means(
    values: Float[Tensor, "n *cells"], clusters: Int[Tensor, "n"], *, seed: int = 0
) -> Float[Tensor, "n_draws_1 *cells"]:
    """Means over prompts of every cell: first of all, then of each draw."""
    weights = drawn_weights(clusters, seed=seed)
    return (weights @ values.double().cpu().reshape(len(values), -1)).view(-1, *values.shape[1:])


def drawn_over_tasks(means: Sequence[Float[Tensor, "n_draws_1 *cells"]], *, seed: int = 0) -> Tensor:
    """Means over tasks, ``[n_draws_1, *cells]``: first of all, then of tasks drawn with replacement, each time with
    another draw of its prompts. means: of each task, as :func:`drawn_means` gives them, all of one shape; NaN, where a
    task has no value, is left out. Raises :class:`OptionError` for fewer than two tasks."""
    n = len(means)
    if n < 2:
        raise OptionError(f"An interval over tasks needs two tasks at least, not {n}.")
    stacked = torch.stack(list(means))
    n_draws = stacked.shape[1] - 1
    generator = torch.Generator().manual_seed(seed)
    which, draw = (torch.randint(k, (n_draws, n), generator=generator) for k in (n, n_draws))
    return torch.cat([stacked[:, :1].nanmean(0), stacked[which, 1 + draw].nanmean(1)])


def ends(draws: Float[Tensor, "n_draws_1 *cells"]) -> Ends:
    """From a statistic of all and of every draw, those without a value (NaN) left out."""
    low, high = torch.nanquantile(draws[1:], torch.tensor([0.025, 0.975], dtype=draws.dtype), dim=0)
    return Ends(draws[0], low, high)


def mean_in_clusters(values: Float[Tensor, "n *cells"], clusters: Int[Tensor, "n"], *, seed: int = 0) -> Ends:
    """Mean over prompts of every cell, with its interval."""
    return ends(drawn_means(values, clusters, seed=seed))
