"""Scales of components by one objective, on the selection half alone: over a grid, and along its gradient.

An edit is searched for in *amounts* f = (g - 1) s, the Frobenius norm of what scaling by g does to a component of
singular value s. So edits of different components with the same amounts have the same size, and random components can
be given the same gradient search at the same size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing.components import Components, Prompts
from talking_heads_utils.experiments.editing.upper import Upper
from talking_heads_utils.labels import Head

N_STEPS = 4  # of the gradient search, for each size
SIZES = (0.05, 0.15, 0.4)  # of an edit: shares of the Frobenius norm of all chosen components together
VALUES = (0.0, 0.5, 2.0)  # scales of the grid


class Search(StrEnum):
    """How an edit was found: every component alone and all together at a few scales, or up the objective's gradient."""

    GRADIENT = "gradient"
    GRID = "grid"


@dataclass(frozen=True)
class Candidate:
    """An edit that was tried.

    draw: random components that were scaled in place of the chosen ones, None for these. factors: by which every
    component is scaled, 1 changes nothing. size: Frobenius norm of the edit. objective: mean log-probability of the
    answer among the candidates on the selection half, in nats.
    """

    search: Search
    draw: int | None
    factors: Float[Tensor, "n_components"]
    size: float
    objective: float


class Scored(NamedTuple):
    """How n prompts are answered under k edits.

    log_prob: of the answer among the candidates, in nats. right: whether it leads them. attention: of a mover from
    ``end``, if one was named.
    """

    log_prob: Float[Tensor, "n k"]
    right: Bool[Tensor, "n k"]
    attention: Float[Tensor, "n k n_pos"] | None = None


@torch.no_grad()
def score(upper: Upper, factors: Float[Tensor, "k n_components"], mover: Head | None = None) -> Scored:
    """What the answers become under every row of ``factors``."""
    parts = []
    for rows in upper.blocks(len(factors)):
        final, attention = upper.run(factors, rows, mover)
        logits = upper.suffix.logits(final, upper.candidates[rows])
        right = logits[..., 0] > logits[..., 1:].amax(-1)
        parts.append((logits.log_softmax(-1)[..., 0], right, *([] if mover is None else [attention])))
    return Scored(*(torch.cat(part).cpu() for part in zip(*parts)))


def with_untouched(candidates: Sequence[Candidate]) -> Float[Tensor, "k n_components"]:
    """Factors of no edit, then of each."""
    return torch.stack([torch.ones_like(candidates[0].factors), *(c.factors for c in candidates)])


def factors_of(upper: Upper, columns: Sequence[int], amounts: Float[Tensor, "k c"]) -> Float[Tensor, "k n_components"]:
    """Factors that change the components in ``columns`` by some amounts, and no other."""
    S = upper.singular_values.to(amounts)
    factors = amounts.new_ones(len(amounts), len(S))
    return factors.index_add(1, torch.tensor(list(columns), device=amounts.device), amounts / S[list(columns)])


def grid_amounts(S: Float[Tensor, "c"], values: Sequence[float]) -> Float[Tensor, "k c"]:
    """Every component alone at every scale but 1, then all of them together: as amounts."""
    S = S.float().cpu()
    each = [(value - 1) * s * row for row, s in zip(torch.eye(len(S)), S) for value in values if value != 1]
    return torch.stack(each + [(value - 1) * S for value in values if value != 1])


def at_norm(amounts: Float[Tensor, "k c"], size: float) -> Float[Tensor, "m c"]:
    """The same edits, all of one Frobenius norm; those that then agree, once."""
    scaled = size * amounts / amounts.norm(dim=1, keepdim=True)
    first = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist").le(1e-4 * size).int().argmax(1)
    return scaled[first == torch.arange(len(scaled))]


def by_grid(
    upper: Upper, columns: Sequence[int], amounts: Float[Tensor, "k c"], draw: int | None = None
) -> list[Candidate]:
    """The objective at every point of a grid."""
    factors = factors_of(upper, columns, amounts)
    found = zip(factors, amounts.norm(dim=1).tolist(), score(upper, factors).log_prob.mean(0).tolist())
    return [Candidate(Search.GRID, draw, *one) for one in found]


def by_gradient(
    upper: Upper, columns: Sequence[int], size: float, draw: int | None = None, *, n_steps: int = N_STEPS
) -> list[Candidate]:
    """Edits of one Frobenius norm: from no edit along the gradient to the sphere of that norm, then uphill on it.
    A step that does not lead up is taken back and halved.

    Raises :class:`OptionError` for a size that is not positive or no step.
    """
    if not size > 0 or n_steps < 1:
        raise OptionError(f"A search needs a positive size and one step at least, not {size} and {n_steps}.")
    best, top, stride = torch.zeros(len(columns)), -torch.inf, 1.0
    gradient = _climb(upper, columns, best)[1]
    found = []
    for _ in range(n_steps):
        at = best + stride * size * gradient / gradient.norm().clamp(min=1e-30)
        at = size * at / at.norm().clamp(min=1e-30)
        value, slope = _climb(upper, columns, at)
        (factors,) = factors_of(upper, columns, at[None])
        found.append(Candidate(Search.GRADIENT, draw, factors, at.norm().item(), value))
        if value > top:
            best, top, gradient = at, value, slope
        else:
            stride /= 2
    return found


def _climb(upper: Upper, columns: Sequence[int], amounts: Float[Tensor, "c"]) -> tuple[float, Float[Tensor, "c"]]:
    """The objective and its gradient."""
    n, value, gradient = len(upper.candidates), 0.0, torch.zeros_like(amounts)
    for rows in upper.blocks(2):
        own = amounts.clone().requires_grad_()
        part = upper.logits(factors_of(upper, columns, own[None]), rows)[:, 0].log_softmax(-1)[:, 0].sum() / n
        gradient += torch.autograd.grad(part, own)[0]
        value += part.item()
    return value, gradient


def search(
    run: Context, at: Components, *, sizes: Sequence[float] = SIZES, values: Sequence[float] = VALUES
) -> list[Candidate]:
    """All edits that were tried on the selection half. The chosen components by the grid and, for each size, by the
    gradient. Then every draw by both, at the Frobenius norm of ours that did best: the same grid with all its edits
    brought to that norm, and the gradient. Raises :class:`OptionError` for no size, or no scale but 1, which changes
    nothing."""
    if not sizes or all(value == 1 for value in values):
        raise OptionError(
            f"A search needs one size and one scale other than 1 at least, not {tuple(sizes)} and {tuple(values)}."
        )
    upper = at.on(run, Prompts.SELECTION)[1]
    S = upper.singular_values[at.columns()]
    amounts = grid_amounts(S, values)
    found = by_grid(upper, at.columns(), amounts)
    for part in sizes:
        found += by_gradient(upper, at.columns(), part * float(S.norm()))
    size, same = best(found, Search.GRADIENT).size, at_norm(amounts, best(found, Search.GRID).size)
    for draw in range(len(at.random)):
        found += by_gradient(upper, at.columns(draw), size, draw)
        found += by_grid(upper, at.columns(draw), same, draw)
    return found


def best(candidates: Iterable[Candidate], search: Search, draw: int | None = None) -> Candidate:
    """The edit with the highest objective among those of one search."""
    return max((c for c in candidates if (c.search, c.draw) == (search, draw)), key=lambda c: c.objective)


def winners(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best edit of every search, those of the chosen components first."""
    keys = dict.fromkeys((c.search, c.draw) for c in candidates)
    return [best(candidates, *key) for key in sorted(keys, key=lambda key: -1 if key[1] is None else key[1])]
