"""Do crowded points cost accuracy? Distances beside errors, then the cloud made wider or narrower.

A list's *point* is its three coordinates in the triple's span at ``end``, entering the lowest mover's layer. Its
*margin* is how far it lies from the nearest other index's mean, less how far from its own, in spreads within an index;
means and spread are those of the selection lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.batches import blocks
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.correction import right as alone
from talking_heads_utils.experiments.positional.ends import Ends, check_index, ends
from talking_heads_utils.experiments.positional.subspace import K, Subspace, basis, chosen, shown_lengths
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.stats import Z, drawn_test, share, share_change

LENGTHS = (4, 6, 8)  # of lists, where the model was trained on them or is shown with them
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
N_LISTS, N_MATCHED_LISTS, N_FIT = 1000, 300, 400  # to score, to score matched triples on, to fit means on
N_PERMUTATIONS = 999
MOST = 10.0  # times that a matched triple's shift is made longer, at most, to be as long as the chosen one's
PRIOR = 0.005  # penalty on a squared slope: without one it runs away where a margin tells all
N_STEPS = 30  # of Newton's method


@dataclass(frozen=True)
class CrowdingRow(Row):
    """Errors beside distances: how far a list's point lies from the nearest other index's mean, fitted on other lists,
    less that from its own."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    statistic: str = column("", "accuracy: of a quarter of the lists; slope: of the log-odds of being right on the "
                            "margin, within index, wording and order, per standard deviation; neighbours: share of "
                            "errors that go to an index next to the answer's, less that of wrong answers dealt anew "
                            "over the errors; nearest: share of errors that go to the other index whose mean lies "
                            "nearest, less that of wrong answers dealt anew within the answer's index")  # fmt: skip
    quarter: int | None = column("", "of lists by margin within index, 1 the most crowded; empty for other statistics")
    value: float = column("", "of the statistic")
    low: float = column("", "95% interval over lists, lower end")
    high: float = column("", "upper end")
    p: float | None = column("", "slope: share of matched triples, this one included, with as steep a one; neighbours, "
                             "nearest: by permutation")  # fmt: skip
    n_draws: int | None = column("", "triples or permutations behind p")
    n: int = column("prompts", "lists, or errors")


@dataclass(frozen=True)
class ScaleRow(Row):
    """The deviations of all lists' coordinates from their mean are scaled, blind to the answer."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "chosen; matched: triples with as long a shift, mean over draws and their 2.5% and "
                           "97.5% points")  # fmt: skip
    scale: float = column("", "of the deviations; 1 changes nothing, 0 puts all lists at one point")
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    change: float = column("share", "of accuracy, against no scaling, paired")
    change_low: float = column("share", "95% interval, lower end")
    change_high: float = column("share", "upper end")
    spread: float = column("share", "largest less smallest accuracy over the answer's indices")
    p: float | None = column("", "share of matched triples, this one included, with as large a rise, for a scale below "
                             "1 as large a fall, on the lists that these were run on; of chosen alone")  # fmt: skip
    n_draws: int | None = column("triples", "matched ones")
    n: int = column("prompts", "lists")


# --- statistics ---


class Cloud(NamedTuple):
    """Where lists of each index lie: their means, and what makes the spread within an index one."""

    means: Float[Tensor, "*sets n_items k"]
    whiten: Float[Tensor, "*sets k k"]

    @classmethod
    def of(cls, points: Float[Tensor, "*sets n k"], index: Int[Tensor, "n"]) -> Cloud:
        points = points.double()
        own = torch.nn.functional.one_hot(index).double()
        means = (own.T @ points) / own.sum(0)[:, None]
        within = points - own @ means
        spread = within.mT @ within / (len(index) - own.shape[1])
        least = 1e-9 * spread.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-12
        spread = spread + least[..., None, None] * torch.eye(spread.shape[-1], dtype=spread.dtype)
        return cls(means, torch.linalg.cholesky(torch.linalg.inv(spread)))

    def distances(self, points: Float[Tensor, "*sets n k"]) -> Float[Tensor, "*sets n n_items"]:
        """From every index's mean, in spreads within an index."""
        return torch.cdist(points.double() @ self.whiten, self.means @ self.whiten)


def margins(distances: Float[Tensor, "*sets n n_items"], index: Int[Tensor, "n"]) -> Float[Tensor, "*sets n"]:
    """Distance from the nearest other index's mean, less that from the answer's own."""
    own = torch.nn.functional.one_hot(index, distances.shape[-1]).bool()
    return distances.masked_fill(own, torch.inf).amin(-1) - (distances * own).sum(-1)


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
    centred = x.double() - _stratum_means(x.double(), strata)
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


def _stratum_means(x: Float[Tensor, "*sets n"], strata: Int[Tensor, "n"]) -> Float[Tensor, "*sets n"]:
    own = torch.nn.functional.one_hot(strata).to(x)
    return (x @ own / own.sum(0)) @ own.T


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


def dealt_over_errors(
    answers: Int[Tensor, "n"], given: Int[Tensor, "n"], n_draws: int = N_PERMUTATIONS, seed: int = 0
) -> Int[Tensor, "n_draws n"]:
    """Wrong answers dealt anew over the errors, none to a list whose right answer it is: all such dealings are equally
    likely after many exchanges of two."""
    generator, dealt = torch.Generator().manual_seed(seed), given.repeat(n_draws, 1)
    rows = torch.arange(n_draws)
    for pair in torch.randint(len(given), (10 * len(given), 2, n_draws), generator=generator):
        (i, j), (a, b) = pair, (dealt[rows, pair[0]], dealt[rows, pair[1]])
        allowed = (a != answers[j]) & (b != answers[i])
        dealt[rows, i], dealt[rows, j] = torch.where(allowed, b, a), torch.where(allowed, a, b)
    return dealt


def dealt_within_index(
    answers: Int[Tensor, "n"], given: Int[Tensor, "n"], n_draws: int = N_PERMUTATIONS, seed: int = 0
) -> Int[Tensor, "n_draws n"]:
    """Wrong answers dealt anew among the errors of the same right answer."""
    generator, order = torch.Generator().manual_seed(seed), answers.argsort(stable=True)
    dealt = torch.empty(n_draws, len(given), dtype=given.dtype)
    shuffled = (torch.rand(n_draws, len(given), generator=generator, dtype=torch.float64) + answers).argsort(1)
    dealt[:, order] = given[shuffled]
    return dealt


# --- errors beside distances ---


@dataclass(frozen=True)
class Scored:
    """Lists of one length, scored, with those that means and spreads are fitted on. answers: the index whose item has
    the largest logit."""

    fitted: Ends
    at: Ends
    right: Bool[Tensor, "n"]
    answers: Int[Tensor, "n"]
