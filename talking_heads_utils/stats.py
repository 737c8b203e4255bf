"""Intervals, exact tests and rank correlation: small and vectorised."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError

Z = 1.959963984540054  # of a standard normal variable, 95% lie within it to both sides


class Interval(NamedTuple):
    """A mean with the ends of its interval and the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int


def middle(values: Float[Tensor, "n"]) -> tuple[float, float]:
    """The ends of the middle 95% of some values."""
    low, high = values.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64).to(values.device)).tolist()
    return low, high


def resamples(n: int, n_boot: int = 2000, seed: int = 0) -> Float[Tensor, "n_boot n"]:
    """Weights of n prompts in bootstrap samples; each row sums to one."""
    return _drawn(n, n_boot, seed) / n


def _drawn(n: int, n_boot: int, seed: int) -> Float[Tensor, "n_boot n"]:
    """How often each of n is in each resample."""
    draws = torch.randint(n, (n_boot, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(n_boot, n, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws).double())


def bootstrap_mean(values: Float[Tensor, "n"], *, n_boot: int = 10_000, seed: int = 0) -> Interval:
    """Mean of measured values with its 95% percentile bootstrap interval; of hits see :func:`share`. Raises
    :class:`OptionError` for fewer than two values."""
    _check_enough(values)
    found = summary(values[:, None], n_boot=n_boot, seed=seed)
    return Interval(found.mean.item(), found.low.item(), found.high.item(), found.n)


def bootstrap_ratio(
    above: Float[Tensor, "n *k"], below: Float[Tensor, "n *k"], *, n_boot: int = 2000, seed: int = 0
) -> Interval:
    """Sum over n units over sum over units, with its 95% percentile bootstrap interval: all that a unit has is drawn
    together. Of k ratios the mean. Raises :class:`OptionError` for fewer than two units."""
    _check_enough(above)
    n, both = len(above), torch.cat([part.double().cpu().view(len(above), -1) for part in (above, below)], 1)
    times = torch.cat([torch.ones(1, n).double(), _drawn(n, n_boot, seed)])
    sums = (times @ both).view(n_boot + 1, 2, -1)
    ratios = (sums[:, 0] / sums[:, 1]).mean(1)
    return Interval(ratios[0].item(), *middle(ratios[1:]), n)


class Summary(NamedTuple):
    """Means over n prompts of k measures, with the ends of their 95% intervals; NaN there for a single prompt."""

    mean: Float[Tensor, "k"]
    low: Float[Tensor, "k"]
    high: Float[Tensor, "k"]
    n: int


def summary(
    values: Float[Tensor, "n k"],
    before: Float[Tensor, "n k"] | Float[Tensor, "n 1"] | None = None,
    *,
    hits: bool = False,
    n_boot: int = 2000,
    seed: int = 0,
) -> Summary:
    """Means over prompts with their 95% intervals, of each column; of the change from ``before`` if it is given.

    Percentile bootstrap over prompts, the same resamples for all columns. hits: values are 0 or 1, so that shares have
    Wilson's interval, and changes of them that of :func:`share_change`.
    """
    values = values.double().cpu()
    before = None if before is None else before.double().cpu().expand_as(values)
    change = values if before is None else values - before
    n, mean = len(values), change.mean(0)
    if n < 2:
        none = torch.full_like(mean, torch.nan)
        return Summary(mean, none, none, n)
    if hits:
        pairs = [share(v) for v in values.T] if before is None else [share_change(*p) for p in zip(values.T, before.T)]
        ends = torch.tensor([[found.low, found.high] for found in pairs], dtype=torch.float64).view(-1, 2).T
        return Summary(mean, ends[0], ends[1], n)
    weights, at = resamples(n, n_boot, seed), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ends = torch.cat([torch.quantile(weights @ part, at, 0) for part in change.split(512, 1)], 1)
    return Summary(mean, ends[0], ends[1], n)


def share(hits: Bool[Tensor, "n"]) -> Interval:
    """Share of hits with its 95% score interval (Wilson 1927), which has a width where all are hits or none is. Raises
    :class:`OptionError` for fewer than two."""
    _check_enough(hits)
    return _wilson(hits.double().mean().item(), len(hits), len(hits))


def share_in_clusters(hits: Bool[Tensor, "n"], clusters: Int[Tensor, "n"]) -> Interval:
    """Share of hits where those of one cluster may be alike, as the prompts of one function are.

    Wilson's interval for as many independent hits as tell equally much: ``n`` over the design effect (Kish 1965), the
    variance of the share between clusters over that of independent hits, 1 at least. Where all are hits or none is,
    clusters cannot be seen to differ, and it is that of :func:`share`. Raises :class:`OptionError` for fewer than two
    clusters.
    """
    kinds, which = clusters.unique(return_inverse=True)
    _check_enough(kinds)
    n, mean = len(hits), hits.double().mean().item()
    off = torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, which, hits.double() - mean)
    between = off.square().sum().item() / n**2 * len(kinds) / (len(kinds) - 1)
    independent = mean * (1 - mean) / n
    return _wilson(mean, n / max(1.0, between / independent) if independent else n, n)


def _wilson(mean: float, n_independent: float, n: int) -> Interval:
    """Wilson's interval of a share that ``n_independent`` independent hits gave, ``n`` in all."""
    widening = 1 + Z**2 / n_independent
    centre = (mean + Z**2 / (2 * n_independent)) / widening
    reach = Z * (mean * (1 - mean) / n_independent + Z**2 / (4 * n_independent**2)) ** 0.5 / widening
    return Interval(mean, max(0.0, min(mean, centre - reach)), min(1.0, max(mean, centre + reach)), n)


def share_change(
    after: Bool[Tensor, "n"] | Float[Tensor, "n"], before: Bool[Tensor, "n"] | Float[Tensor, "n"]
) -> Interval:
    """Change of the share of hits among the same prompts with its 95% interval (Agresti and Min 2005): Wald's, with a
    half added to each of the four counts. The mean is that without them. Either may be a share per prompt, 0 to 1,
    such as the mean over draws. Raises :class:`OptionError` for fewer than two, or if the prompts are not as many."""
    _check_enough(after)
    if after.shape != before.shape:
        raise OptionError(
            f"Paired values must be of the same prompts, not {tuple(after.shape)} and {tuple(before.shape)}."
        )
    change = after.double() - before.double()
    n, total, square = len(change), change.sum().item(), change.square().sum().item()
    mean, centre = total / n, total / (n + 2)
    reach = Z * (square + 1 - total**2 / (n + 2)) ** 0.5 / (n + 2)
    return Interval(mean, max(-1.0, min(mean, centre - reach)), min(1.0, max(mean, centre + reach)), n)


def points(found: Interval) -> tuple[float, float, float]:
    """A difference of shares and the ends of its interval, in percentage points."""
    return 100 * found.mean, 100 * found.low, 100 * found.high


def _check_enough(values: Tensor) -> None:
    if len(values) < 2:
        raise OptionError(f"An interval needs two values at least, not {len(values)}.")


def sign_flip_p(values: Float[Tensor, "n k"], *, n_draws: int = 99_999) -> Float[Tensor, "k"]:
    """Two-sided p of each column's mean by random signs of its rows (Fisher 1935): the share of ``n_draws`` draws, and
    the values as they are, whose mean lies as far from zero. All columns share a draw's signs. Raises
    :class:`OptionError` for fewer than two rows."""
    _check_enough(values)
    values, generator = values.double().cpu(), torch.Generator().manual_seed(0)
    least = values.sum(0).abs() * (1 - 1e-9)
    reached = torch.ones(values.shape[1], dtype=torch.float64)
    for start in range(0, n_draws, 2048):
        rows = min(2048, n_draws - start)
        signs = torch.randint(2, (rows, len(values)), generator=generator).double() * 2 - 1
        reached += ((signs @ values).abs() >= least).sum(0)
    return reached / (n_draws + 1)


def holm(p: Float[Tensor, "k"], n: int | None = None) -> Float[Tensor, "k"]:
    """p values corrected for being several (Holm 1979). n: how many there are, where only the smallest are given."""
    order = p.argsort()
    left = (n or len(p)) - torch.arange(len(p), dtype=p.dtype, device=p.device)
    return torch.empty_like(p).scatter_(0, order, (p[order] * left).cummax(0).values.clamp(max=1))


def percentile_among(values: Float[Tensor, "n *k"]) -> Float[Tensor, "n *k"]:
    """Share of the other values (of its column) that each one exceeds, ties half, in percent: 100 is the strongest.
    NaN counts for nothing and stays NaN."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(values.double().cpu().numpy(), axis=0, nan_policy="omit"))
    return 100 * (ranks - 1) / ((~values.isnan()).sum(0) - 1).cpu()


def spearman(x: Float[Tensor, "k"], y: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Spearman's rank correlation of ``x`` with every row of ``y``, on the CPU; ties get the mean of their ranks."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(torch.cat([x[None].double(), y.double()]).cpu().numpy(), axis=1))
    of_x, *_ = of_all = ranks - ranks.mean(1, keepdim=True)
    return ((of_all @ of_x) / (of_x.norm() * of_all.norm(dim=1)).clamp(min=1e-12))[1:]
