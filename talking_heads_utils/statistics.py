"""Intervals and exact tests, small and vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Head


class Interval(NamedTuple):
    """A mean with the ends of its interval and the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int


class ExactTest(NamedTuple):
    """A statistic, its mean over all alternatives, the share of them that reach it, and how many there are."""

    observed: float
    null_mean: float
    p: float
    n: int


def bootstrap_mean(values: Float[Tensor, "n"], *, level: float = 0.95, n_boot: int = 10_000, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval. Raises :class:`OptionError` for fewer than two values."""
    if len(values) < 2:
        raise OptionError(f"An interval needs two values at least, not {len(values)}.")
    values, generator = values.double().cpu(), torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (n_boot, len(values)), generator=generator)
    means = values[draws].mean(1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(values.mean().item(), low, high, len(values))


def exact_head_test(values: Float[Tensor, "n_layers n_heads"], heads: Sequence[Head]) -> ExactTest:
    """Is the mean over ``heads`` larger than over other heads of the same layers? Every alternative is counted.

    The alternatives are all choices of as many heads from each layer as ``heads`` has there, itself included; a head
    without a value (NaN) is in none. Raises :class:`OptionError` if one of ``heads`` has none.
    """
    if lacking := [str(head) for head in heads if values[head.layer, head.head].isnan()]:
        raise OptionError(f"There is no value for {', '.join(lacking)}: a head must be earlier than what reads it.")
    sums = torch.zeros(1, dtype=torch.float64)
    for layer in sorted({head.layer for head in heads}):
        size = sum(head.layer == layer for head in heads)
        choices = torch.tensor(list(combinations((~values[layer].isnan()).nonzero().flatten().tolist(), size)))
        layer_sums = values[layer].double()[choices].sum(1)
        sums = (sums[:, None] + layer_sums).flatten()
    observed = sum(values[head.layer, head.head].double().item() for head in heads) / len(heads)
    sums = sums / len(heads)
    return ExactTest(observed, sums.mean().item(), (sums >= observed - 1e-9).double().mean().item(), len(sums))


def percentile_among(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Share of the other values that each one exceeds, ties half, in percent: 100 is the strongest.

    NaN counts for nothing and stays NaN.
    """
    defined = ~values.isnan()
    kept = values[defined].double()
    below = (kept[:, None] > kept).double().sum(1) + ((kept[:, None] == kept).double().sum(1) - 1) / 2
    out = torch.full(values.shape, torch.nan, dtype=torch.float64)
    out[defined] = 100 * below / (len(kept) - 1)
    return out
