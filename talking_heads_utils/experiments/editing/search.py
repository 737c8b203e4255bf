"""Scales of components by one objective, on the selection half alone: over a grid, and along its gradient.

An edit is searched for in *amounts* f = (g - 1) s, the Frobenius norm of what scaling by g does to a component of
singular value s. So edits of different components with the same amounts have the same size, and random components can
be given the same gradient search at the same size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.components import is_empty
from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward.upper import Upper
from talking_heads_utils.labels import Component, Head

N_STEPS = 4  # of the gradient search, for each size
LIKE = 2.0  # a random component's singular value is at most so many times the chosen one's, or less by it


class Scored(NamedTuple):
    """How n prompts are answered under k edits.

    log_prob: of the answer among the candidates, in nats. right: whether it leads them. attention: of a mover from
    ``end``, if one was named.
    """

    log_prob: Float[Tensor, "n k"]
    right: Bool[Tensor, "n k"]
    attention: Float[Tensor, "n k n_pos"] | None = None


class Tried(NamedTuple):
    """The k edits that one search went through.

    factors: by which each edit scales the components of the :class:`Upper` that was searched; 1 changes nothing.
    sizes: Frobenius norms of the edits.
    objective: mean log-probability of the answer on the prompts of the search, in nats.
    """

    factors: Float[Tensor, "k n_components"]
    sizes: Float[Tensor, "k"]
    objective: Float[Tensor, "k"]

    @property
    def best(self) -> int:
        """The edit with the highest objective."""
        return int(self.objective.argmax())


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


def by_grid(upper: Upper, columns: Sequence[int], amounts: Float[Tensor, "k c"]) -> Tried:
    """The objective at every point of a grid."""
    factors = factors_of(upper, columns, amounts)
    return Tried(factors, amounts.norm(dim=1), score(upper, factors).log_prob.mean(0))


def by_gradient(upper: Upper, columns: Sequence[int], size: float, *, n_steps: int = N_STEPS) -> Tried:
    """Edits of one Frobenius norm: from no edit along the gradient to the sphere of that norm, then uphill on it.
    A step that does not lead up is taken back and halved.

    Raises :class:`OptionError` for a size that is not positive or no step.
    """
    if not size > 0 or n_steps < 1:
        raise OptionError(f"A search needs a positive size and one step at least, not {size} and {n_steps}.")
    best, top, stride = torch.zeros(len(columns)), -torch.inf, 1.0
    gradient = _climb(upper, columns, best)[1]
    amounts, values = [], []
    for _ in range(n_steps):
        at = best + stride * size * gradient / gradient.norm().clamp(min=1e-30)
        at = size * at / at.norm().clamp(min=1e-30)
        value, slope = _climb(upper, columns, at)
        amounts.append(at)
        values.append(value)
        if value > top:
            best, top, gradient = at, value, slope
        else:
            stride /= 2
    found = torch.stack(amounts)
    return Tried(factors_of(upper, columns, found), found.norm(dim=1), torch.tensor(values))


def _climb(upper: Upper, columns: Sequence[int], amounts: Float[Tensor, "c"]) -> tuple[float, Float[Tensor, "c"]]:
    """The objective and its gradient."""
    n, value, gradient = len(upper.candidates), 0.0, torch.zeros_like(amounts)
    for rows in upper.blocks(2):
        own = amounts.clone().requires_grad_()
        part = upper.logits(factors_of(upper, columns, own[None]), rows)[:, 0].log_softmax(-1)[:, 0].sum() / n
        gradient += torch.autograd.grad(part, own)[0]
        value += part.item()
    return value, gradient


def random_like(
    S: Float[Tensor, "n_layers n_heads d_head"], chosen: Sequence[Component], taken: Sequence[Component], seed: int
) -> list[Component]:
    """For each chosen component another one of its layer, of like singular value where there is one, drawn at random.

    taken: components that must not be drawn. Where none is within :data:`LIKE`, one of the three nearest is drawn. It
    can be of quite another size, so what is said of single components must count those.
    Raises :class:`OptionError` for a layer without enough others.
    """
    generator = torch.Generator().manual_seed(seed)
    used, found = {*chosen, *taken}, []
    for c in chosen:
        values = S[c.layer].masked_fill(is_empty(S[c.layer]), torch.nan)
        apart = (values / S[c.layer, c.head, c.component]).log().abs()
        defined = [i for i in apart.flatten().argsort().tolist() if not apart.flatten()[i].isnan()]
        order = [Component(c.layer, *divmod(i, S.shape[2])) for i in defined]
        free = [other for other in order if other not in used]
        near = [other for other in free if apart[other.head, other.component] <= math.log(LIKE)]
        pool = near or free[:3]
        if not pool:
            raise OptionError(f"Layer {c.layer} has no other component to compare {c} with: ask for fewer draws.")
        found.append(pool[int(torch.randint(len(pool), (1,), generator=generator))])
        used.add(found[-1])
    return found
