"""A family of functions y = a x + b, examples drawn from it, and the Bayes-optimal predictor that knows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

from talking_heads_utils.errors import TaskError


@dataclass(frozen=True)
class Family:
    """Functions y = a x + b with a in 1..n_a, b in 0..n_b - 1 and x in 0..n_x - 1.

    noise: the probability that an example's y is replaced by the value at the same x of a function drawn at random, so
    that a wrong label looks like a right one. held_share: of the functions, held out of training.
    """

    n_a: int = 5
    n_b: int = 10
    n_x: int = 24
    noise: float = 0.0
    held_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1:
            raise TaskError(f"Noise is a probability from 0 to below 1, not {self.noise}.")
        if min(self.n_a, self.n_b, self.n_x) < 1:
            raise TaskError(f"A family needs values of a, b and x; {self.n_a}, {self.n_b} and {self.n_x} are given.")

    @cached_property
    def functions(self) -> Int[Tensor, "n_functions 2"]:
        """(a, b) of every function."""
        return torch.cartesian_prod(torch.arange(1, self.n_a + 1), torch.arange(self.n_b))

    @property
    def n_numbers(self) -> int:
        """Numbers that a prompt may hold: 0 to the largest y."""
        return self.n_a * (self.n_x - 1) + self.n_b

    @cached_property
    def values(self) -> Int[Tensor, "n_functions n_x"]:
        """y of every function at every x."""
        return self.functions[:, :1] * torch.arange(self.n_x) + self.functions[:, 1:]

    @cached_property
    def held_out(self) -> Bool[Tensor, "n_functions"]:
        """Which functions no training prompt is of; a random choice, always the same."""
        order = torch.randperm(len(self.functions), generator=torch.Generator().manual_seed(0))
        return order.argsort() < round(self.held_share * len(self.functions))

    @cached_property
    def likelihood(self) -> Float[Tensor, "n_functions n_x n_numbers"]:
        """Probability of each label at each x, if the function is this one. Replaced labels come from all functions."""
        own = one_hot(self.values, self.n_numbers).double()
        return (1 - self.noise) * own + self.noise * own.mean(0)

    def draw(
        self, n: int, n_pairs: int, generator: torch.Generator, among: Bool[Tensor, "n_functions"],
        xs: Int[Tensor, "n_xs"] | None = None,
    ) -> Examples:  # fmt: skip
        """``n`` lists of examples with different x each, functions drawn from ``among`` and x from ``xs`` (all of them
        by default).

        Raises :class:`TaskError` for more pairs than there are x, or if no function is left to draw from.
        """
        xs = torch.arange(self.n_x) if xs is None else xs
        if not 1 <= n_pairs <= len(xs):
            raise TaskError(f"{n_pairs} pairs of different x cannot be drawn from {len(xs)} values of x.")
        allowed = among.nonzero().flatten()
        if len(allowed) == 0:
            raise TaskError("No function is left to draw from.")
        which = allowed[torch.randint(len(allowed), (n,), generator=generator)]
        x = xs[torch.rand(n, len(xs), generator=generator).argsort(1)[:, :n_pairs]]
        clean = self.values[which[:, None], x]
        other = self.values[torch.randint(len(self.functions), x.shape, generator=generator), x]
        replaced = torch.rand(x.shape, generator=generator) < self.noise
        return Examples(which, x, torch.where(replaced, other, clean), clean)


@dataclass(frozen=True)
class Examples:
    """Lists of examples. function: its row in the family. x, y: as they are shown. clean: y = a x + b."""

    function: Int[Tensor, "n"]
    x: Int[Tensor, "n n_pairs"]
    y: Int[Tensor, "n n_pairs"]
    clean: Int[Tensor, "n n_pairs"]


def trained_prior(family: Family) -> Float[Tensor, "n_functions"]:
    """Uniform over the functions that training showed."""
    kept = (~family.held_out).double()
    return kept / kept.sum()


def bayes_accuracy(
    family: Family, examples: Examples, prior: Float[Tensor, "n_functions"]
) -> Float[Tensor, "n n_pairs"]:
    """Whether the Bayes-optimal predictor's first choice for pair k, after the k pairs before it, is the function's own
    value.

    Where no function fits the examples (a held-out one under a prior without it), it has no belief (NaN), which counts
    as wrong; of several first choices each counts by its share.
    """
    steps = family.likelihood[:, examples.x, examples.y].log().permute(1, 2, 0)[:, :-1]
    belief = (pad(steps.cumsum(1), (0, 0, 1, 0)) + prior.double().log()).softmax(-1)
    chance = torch.zeros(*examples.x.shape, family.n_numbers, dtype=belief.dtype)
    chance.scatter_add_(2, family.values.T[examples.x], belief)  # of each number to be the function's own value
    top = chance >= chance.amax(-1, keepdim=True) - 1e-12
    hit = top.gather(2, examples.clean[..., None])[..., 0]
    return (hit / top.sum(-1).clamp(min=1)).nan_to_num(0.0)
