"""Which components: the best of each inhibition head, fixed before lists are run; and what they are compared with.

A component's *value* is its composition score into the movers' queries (mean over movers and, with rotary positions,
over the distances that IOI has) times the standard deviation of its coefficient at ``end`` on IOI prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import NotApplicable, OptionError, UnsupportedModelError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import movers_and_heads
from talking_heads_utils.experiments.inhibition.prediction import task_distances
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.experiments.toys import longest_trained
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.scores.distance import scores_at_distances

N_COMPONENTS = 10  # that are chosen, the first three being the triple
K = 3  # dimensions that the claim speaks of
N_MATCHED = 99  # triples of other components
N_NEAREST = 20  # components of a layer, by energy, that a matched one is drawn from
NEW = 0.5  # share of a direction's squared length that must lie outside the span of those taken before
DEPENDENT = 1e-4  # smallest singular value, of the largest, of directions that still span a subspace
SILENT = 1e-6  # spread, of the largest, of what is rounding alone
SHOWN = range(3, 9)  # list lengths that are shown


class Subspace(StrEnum):
    """Whose write directions span it: components of inhibition heads, of any head below the movers, other components
    matched on layer and energy; or learned ones, with their two controls; or all there is."""

    CHOSEN = "chosen"
    ANYWHERE = "anywhere"
    MATCHED = "matched"
    LEARNED = "learned"
    LEARNED_ARBITRARY = "learned_arbitrary_labels"
    LEARNED_UNTRAINED = "learned_untrained_model"
    WHOLE_HEADS = "whole_heads"
    WHOLE_STREAM = "whole_stream"


@dataclass(frozen=True)
class ComponentRow(ModelRow):
    subspace: str = column("", "chosen: of inhibition heads; anywhere: of any head below the movers")
    rank: int = column("", "in the order in which they are taken, 1 for the first")
    component: str = column("", "such as L8H10.1")
    score: float = column("", "composition score into the movers' queries, mean over movers")
    spread: float = column("stream units", "standard deviation of its coefficient at end, on IOI prompts")
    value: float = column("stream units", "score times spread, by which it is ranked")
    outside: float = column("share", "of its direction's squared length outside the span of those taken before")
    head_energy: float = column("share", "of its head's mean squared write that lies along it, about the mean")
    matched_energy: float | None = column(
        "", "variance of matched components over its own, median; of the triple alone"
    )
    n: int = column("prompts", "IOI prompts")


@dataclass(frozen=True)
class Chosen:
    """Components and their unit write directions, largest entry positive, in single precision where the model is.

    movers: name movers. heads: S-inhibition heads below all of them, the strongest first. layer: the lowest mover's.
    writers: up to :data:`N_COMPONENTS` of those heads: the best of each head, then the rest by value, each with half
    of its direction at least outside the span of those before. anywhere: the same of all heads below the movers, by
    value alone. matched: triples of other components, one for each of the first three writers, of its layer and of
    like energy.
    """

    movers: tuple[Head, ...]
    heads: tuple[Head, ...]
    layer: int
    writers: tuple[Component, ...]
    directions: Float[Tensor, "k d_model"]
    anywhere: tuple[Component, ...]
    anywhere_directions: Float[Tensor, "k d_model"]
    matched: Float[Tensor, "n_draws 3 d_model"]
    matched_components: tuple[tuple[Component, ...], ...]


@dataclass(frozen=True)
class Measured:
    """Every component below the movers: its direction (NaN for one that writes nothing), composition score, and spread
    of its coefficient on ``n`` IOI prompts. In double precision on the CPU."""

    movers: tuple[Head, ...]
    heads: tuple[Head, ...]
    directions: Float[Tensor, "layers n_heads d_head d_model"]
    score: Float[Tensor, "layers n_heads d_head"]
    spread: Float[Tensor, "layers n_heads d_head"]
    n: int

    @property
    def value(self) -> Float[Tensor, "layers n_heads d_head"]:
        """-1 for a component that writes nothing, or nothing but rounding at ``end`` of these prompts."""
        used = self.spread > SILENT * self.spread.max()
        return torch.where(used, self.score * self.spread, -1.0).nan_to_num(-1.0)

    def direction(self, c: Component) -> Float[Tensor, "d_model"]:
        return self.directions[astuple(c)]


class Taken(NamedTuple):
    """A component, and the share of its direction's squared length outside the span of those taken before."""

    component: Component
    outside: float


def chosen(c: Context) -> Chosen:
    """Fixed by weights and IOI prompts, before any list is run: use ``c.kept(chosen)``.

    Raises :class:`NotApplicable` for a model without S-inhibition heads below its name movers, with fewer than three
    usable components there, or with too few others to compare them with.
    """
    at = c.kept(measured)
    writers, anywhere = ([t.component for t in some] for some in taken(at).values())
    if len(writers) < K:
        raise NotApplicable(
            f"{c.model} has {len(writers)} usable components in its S-inhibition heads, fewer than {K}."
        )
    triples = matched_triples(at, writers, seed=c.seed)
    stack = [torch.stack([at.direction(w) for w in some]) for some in (writers, anywhere, sum(triples, ()))]
    own, other, drawn = (directions.float().to(c.bridge.cfg.device) for directions in stack)
    return Chosen(
        at.movers, at.heads, len(at.directions), tuple(writers), own, tuple(anywhere), other,
        drawn.unflatten(0, (-1, K)), tuple(triples),
    )  # fmt: skip


def basis(directions: Float[Tensor, "*sets k d_model"]) -> Float[Tensor, "*sets k d_model"]:
    """An orthonormal basis of each set's span. Raises :class:`OptionError` for directions that depend on each other."""
    sizes = torch.linalg.svdvals(directions)
    if directions.shape[-2] > directions.shape[-1] or not (sizes[..., -1] > DEPENDENT * sizes[..., 0]).all():
        raise OptionError(
            f"{directions.shape[-2]} directions depend on each other, so they span fewer dimensions. Leave one out."
        )
    return torch.linalg.qr(directions.mT)[0].mT


def lengths(c: Context) -> list[int]:
    """List lengths that are asked about. Raises :class:`NotApplicable` where there is none."""
    if not (asked := [n for n in c.lengths if n in SHOWN]):
        raise NotApplicable(f"{c.model} can be asked about no lists of {SHOWN[0]} to {SHOWN[-1]} items.")
    return asked


def nearest_lengths(c: Context, *wanted: int) -> list[int]:
    """For each wanted list length the nearest that is asked about, of two the shorter, none twice."""
    asked = lengths(c)
    return sorted({min(asked, key=lambda n: (abs(n - one), n)) for one in wanted})


def shown_lengths(c: Context) -> list[int]:
    """List lengths that are shown, asked about or not: all of :data:`SHOWN` that a model of the book was trained on."""
    lengths(c)
    return [n for n in SHOWN if not c.is_own or n <= longest_trained(c.model)]


def measured(c: Context) -> Measured:
    """Raises :class:`NotApplicable` as :func:`chosen` does."""
    movers, heads = movers_and_heads(c)
    layer = min(mover.layer for mover in movers)
    if not (heads := tuple(head for head in heads if head.layer < layer)):
        raise NotApplicable(f"{c.model} has no S-inhibition head below its lowest name mover.")
    prompts = c.ioi(c.n(400, 80))
    recording = record(c.bridge, prompts, [layer])
    distances, times = (
        task_distances(prompts).unique(return_counts=True)
        if c.weights.rotary
        else (torch.zeros(1).long(), torch.ones(1))
    )
    writers = list(heads_in(range(layer), c.weights.n_heads))
    try:
        each = scores_at_distances(c.weights, writers, movers, "Q", distances).mean(-1).double().cpu()
    except UnsupportedModelError as error:
        raise NotApplicable(str(error)) from error
    score = torch.einsum("d,dwc->wc", (times / times.sum()).double(), each).unflatten(0, (layer, -1))
    v = recording.directions[:layer].double().cpu()
    largest = v.gather(-1, v.abs().argmax(-1, keepdim=True))
    spread = recording.activations(range(layer)).double().std(0).cpu()
    return Measured(movers, heads, v * largest.sign(), score, spread, len(prompts))


def taken(at: Measured) -> dict[Subspace, list[Taken]]:
    """Components of the inhibition heads, and of any head, in the order in which they are taken."""
    other = torch.ones_like(at.value, dtype=torch.bool)
    for head in at.heads:
        other[head.layer, head.head] = False
    return {
        Subspace.CHOSEN: take(at.value.masked_fill(other, -1.0), at.directions, at.heads),
        Subspace.ANYWHERE: take(at.value, at.directions),
    }


def take(
    value: Float[Tensor, "layers n_heads d_head"],
    directions: Float[Tensor, "layers n_heads d_head d_model"],
    first: Sequence[Head] = (),
) -> list[Taken]:
    """Up to :data:`N_COMPONENTS`: the best of each of ``first``, then the others by value. Those with a negative value
    are no candidates, and one with less than :data:`NEW` outside the span of those taken before is passed over."""
    V, outside, found = directions.nan_to_num(), torch.ones_like(value), list[Taken]()
    span, of_heads = V.new_zeros(0, V.shape[-1]), [(head.layer, head.head) for head in first]
    for where in [*of_heads, *[()] * N_COMPONENTS]:  # () is everywhere
        usable = torch.zeros_like(value, dtype=torch.bool)
        usable[where] = ((outside >= NEW) & (value >= 0))[where]
        if len(found) == N_COMPONENTS or not usable.any():
            continue
        best = Component(*map(int, torch.unravel_index(value.masked_fill(~usable, -1.0).argmax(), value.shape)))
        v = V[astuple(best)]
        rest = torch.nn.functional.normalize(v - (v @ span.T) @ span, dim=0)
        found.append(Taken(best, outside[astuple(best)].item()))
        span = torch.cat([span, rest[None]])
        outside = outside - (V @ rest).square()
    return found


def matched_triples(at: Measured, writers: Sequence[Component], seed: int = 0) -> list[tuple[Component, ...]]:
    """:data:`N_MATCHED` different triples of components, for each of the first three ``writers`` one of its layer among
    the :data:`N_NEAREST` with the nearest variance on IOI; none of the writers, none twice in a triple.

    Each has :data:`NEW` of its direction at least outside the span of the three, so that it is another direction where
    heads share one. Raises :class:`NotApplicable` for a model with too few such components.
    """
    own = basis(torch.stack([at.direction(w) for w in writers[:K]]))
    outside = 1 - (at.directions.nan_to_num() @ own.mT).square().sum(-1)
    other = (outside >= NEW) & ~at.directions.isnan().any(-1)
    for w in writers:
        other[astuple(w)] = False
    pools = [_nearest(at.spread, other, w) for w in writers[:K]]
    generator, found = torch.Generator().manual_seed(seed), dict[tuple[Component, ...], None]()
    for _ in range(20 * N_MATCHED):
        triple = tuple(pool[int(torch.randint(len(pool), (1,), generator=generator))] for pool in pools if pool)
        directions = [at.direction(x) for x in dict.fromkeys(triple)]
        if len(directions) == K and torch.linalg.svdvals(torch.stack(directions))[-1] > DEPENDENT:
            found[triple] = None
        if len(found) == N_MATCHED:
            return list(found)
    raise NotApplicable(
        f"Beside {', '.join(map(str, writers[:K]))} their layers have too few other components to draw {N_MATCHED} "
        "triples from."
    )


def _nearest(spread: Tensor, usable: Tensor, w: Component) -> list[Component]:
    """Usable components of ``w``'s layer, those of the most similar variance."""
    energy = spread[w.layer].clamp(min=1e-6).log()
    apart = (energy - energy[w.head, w.component]).abs().masked_fill(~usable[w.layer], torch.inf)
    order = apart.flatten().argsort(stable=True)[: min(N_NEAREST, int(usable[w.layer].sum()))]
    return [Component(w.layer, *divmod(int(i), spread.shape[2])) for i in order]


def run(c: Context) -> list[ComponentRow]:
    """Raises :class:`NotApplicable` as :func:`chosen` does."""
    triples, at = c.kept(chosen).matched_components, c.kept(measured)
    energy = at.spread.square()
    share = energy / energy.nansum(-1, keepdim=True)
    rows = []
    for subspace, found in taken(at).items():
        for i, (component, outside) in enumerate(found):
            where = astuple(component)
            ratio = None
            if subspace == Subspace.CHOSEN and i < K:
                matched = torch.stack([energy[astuple(triple[i])] for triple in triples])
                ratio = (matched.median() / energy[where]).item()
            score, spread, value, part = (t[where].item() for t in (at.score, at.spread, at.value, share))
            rows.append(ComponentRow(
                c.model, subspace, i + 1, str(component), score, spread, value, outside, part, ratio, at.n
            ))  # fmt: skip
    return rows
