"""Random folds, and tests by draws, above all of heads whose names are dealt anew within their layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.verdicts import rank_p
from talking_heads_utils.labels import Head


def names_within_layers(
    n_draws: int, n_layers: int, n_heads: int, seed: int = 0
) -> Int[Tensor, "n_draws layers heads"]:
    """Draws of which head bears which name, dealt anew within every layer: ``[draw, layer, head]`` is the head that is
    called ``head`` then."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_draws, n_layers, n_heads, generator=generator).argsort(-1)


def random_folds(n: int, seed: int) -> Int[Tensor, "n"]:
    """Five folds of equal size, up to one, at random."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % 5


def numbered(values: Iterable[Any]) -> Int[Tensor, "n"]:
    """Which of the different values, in their order, each one is."""
    found = list(values)
    places = {value: i for i, value in enumerate(sorted(set(found)))}
    return torch.tensor([places[value] for value in found])


class DrawnTest(NamedTuple):
    """A statistic, the mean and the 95th percentile of what draws gave, the share of draws, and it, that reach it, and
    how many draws there are."""

    observed: float
    null_mean: float
    null_high: float
    p: float
    n: int


def drawn_test(observed: float, drawn: Float[Tensor, "n_draws"]) -> DrawnTest:
    """One-sided p of a statistic by draws of it under the null. Raises :class:`OptionError` for fewer than 99 draws."""
    if len(drawn) < 99:
        raise OptionError(f"A null needs 99 draws at least, not {len(drawn)}.")
    p, drawn = rank_p(observed - 1e-9, drawn), drawn.double()
    return DrawnTest(observed, drawn.mean().item(), drawn.quantile(0.95).item(), p, len(drawn))


def mean_over_draws(
    values: Float[Tensor, "n_layers n_heads"], heads: Sequence[Head], names: Int[Tensor, "n_draws layers heads"]
) -> Float[Tensor, "n_draws"]:
    """Mean of ``values`` over the heads that are called ``heads``, in each draw of :func:`names_within_layers`."""
    return torch.stack([values[head.layer].double()[names[:, head.layer, head.head]] for head in heads]).mean(0)
