"""What an edit may do: families of heads, parts of them, and what becomes of these."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import factored_svd, is_empty
from talking_heads_utils.editing import weights_to_edit
from talking_heads_utils.edits.edits import OV, SCALE, Change, Edit, new_edit
from talking_heads_utils.effects import wanted_direction
from talking_heads_utils.errors import EditError, LabelError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import movers_and_heads
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.forward.recording import Recording, mover_of, record, scores_after_shift
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.roles.ioi import ROUNDING, effects_along
from talking_heads_utils.weights.heads import HeadWeights, Processing

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FACTORS = (0.0, 0.5, 1.5, 2.0, 3.0, -1.0)
N_SINGLE = 6  # components of a head that are scaled one by one
LEADING = (2, 4, 8)  # that are scaled together
N_HEADS = 4  # of a family, at most
N_DRAWS = 20
N_CHOOSE = 100  # lists of each length that choose heads and the order of their components
_MOVE = re.compile(r"(L\d+H\d+)(?:\.(\d+(?:\+\d+)*))? x (-?[\d.]+)")


class Family(StrEnum):
    """Heads whose components are edited: those that write into the movers' queries, the name movers, those with the
    largest direct effect on the answer whatever their role; these three together; and random heads of the same
    layers."""

    INTO_QUERIES = "into_queries"
    MOVERS = "movers"
    DIRECT = "direct"
    ANY = "any"
    RANDOM = "random"


class Extent(StrEnum):
    """How much is scaled: one component of a head, its leading ones together, all of it; several such moves of
    different heads."""

    SINGLE = "single"
    LEADING = "leading"
    HEAD = "whole_head"
    COMBINED = "combined"


@dataclass(frozen=True)
class Move:
    """Some components of a head scaled by one factor; all that write anything where none are named.

    >>> Move.parse("L20H0.0+3 x 1.5")
    Move(head=Head(layer=20, head=0), components=(0, 3), factor=1.5)
    >>> str(Move(Head(23, 1), None, 0.0))
    'L23H1 x 0'
    """

    head: Head
    components: tuple[int, ...] | None
    factor: float

    @property
    def extent(self) -> Extent:
        if self.components is None:
            return Extent.HEAD
        return Extent.SINGLE if len(self.components) == 1 else Extent.LEADING

    def __str__(self) -> str:
        part = "" if self.components is None else "." + "+".join(map(str, self.components))
        return f"{self.head}{part} x {self.factor:g}"

    @classmethod
    def parse(cls, text: str) -> Move:
        """What ``str`` wrote. Raises :class:`LabelError` for anything else."""
        if (found := _MOVE.fullmatch(text.strip())) is None:
            raise LabelError(f"{text!r} is no move of a head. Write it as in 'L20H0.0 x 2' or 'L23H1 x 0'.")
        components = None if found[2] is None else tuple(map(int, found[2].split("+")))
        return cls(Head.parse(found[1]), components, float(found[3]))


Moves = tuple[Move, ...]  # of different heads, made together: an edit


def label(moves: Moves) -> str:
    """An edit's name in tables."""
    return ", ".join(map(str, moves))


def parse(text: str) -> Moves:
    """The edit of a name in tables. Raises :class:`LabelError` for anything else."""
    return tuple(map(Move.parse, text.split(",")))


class HeadParts(NamedTuple):
    """Components of one head that write anything: write directions and singular values, the largest first."""

    directions: Float[Tensor, "k d_model"]
    singular_values: Float[Tensor, "k"]


@dataclass(frozen=True)
class Parts:
    """Components of a model's heads, computed when they are asked for and kept."""

    weights: HeadWeights
    _kept: dict[Head, HeadParts] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_model(cls, bridge: TransformerBridge) -> Parts:
        """Those that an edit of this model is stated in. Raises :class:`EditError` for one whose weights are raw or
        cannot be read as plain matrices."""
        weights = weights_to_edit(bridge)
        if weights.processing != Processing.default(weights.norm):
            raise EditError(
                "Edits are searched for in processed weights. Load the model without a processing of its own."
            )
        return cls(weights)

    def of(self, head: Head) -> HeadParts:
        """All at once what :func:`~talking_heads_utils.components.direction_of` gives one by one, in float64, signs
        left as they come; none of a head that writes nothing. Raises :class:`LabelError` for one that is not there."""
        if head not in self._kept:
            at = self.weights.head(head)
            W_V, W_O = self.weights.W_V[at.layer], self.weights.W_O[at.layer, at.head]
            found = factored_svd(W_V[self.weights.kv_index[at.head]].double(), W_O.double())
            n = int((~is_empty(found.S.to(W_O.dtype))).sum())
            self._kept[head] = HeadParts(found.V.T[:n], found.S[:n])
        return self._kept[head]

    def direction(self, component: Component) -> Float[Tensor, "d_model"]:
        """Where one writes. Raises :class:`LabelError` for one that is not there or is zero."""
        directions = self.of(component.of_head).directions
        if self.weights.component(component).component >= len(directions):
            raise LabelError(f"{component} is zero: it writes nothing. Choose an earlier component.")
        return directions[component.component]

    def factors(self, moves: Moves) -> dict[Component, float]:
        """Component -> what its singular value is multiplied by; nothing for no move. Raises :class:`EditError` for a
        head that is moved twice."""
        heads = [move.head for move in moves]
        if twice := [head for head in heads if heads.count(head) > 1]:
            raise EditError(f"{twice[0]} is moved twice. An edit is one move of each of its heads.")
        found: dict[Component, float] = {}
        for move in moves:
            which = range(len(self.of(move.head).singular_values)) if move.components is None else move.components
            found |= {Component(move.head.layer, move.head.head, i): move.factor for i in which}
        return found

    def size(self, moves: Moves) -> float:
        """Frobenius norm of the change of all OV matrices."""
        scaled = self.factors(moves).items()
        changes = (float((factor - 1) * self.of(c.of_head).singular_values[c.component]) for c, factor in scaled)
        return sum(change**2 for change in changes) ** 0.5


def parts_of(c: Context) -> Parts:
    """Of a context's model; give it to :meth:`Context.kept`."""
    return Parts.of_model(c.bridge)


def edit_of(c: Context, moves: Moves) -> Edit:
    """An edit as data: what applies it, saves it or bakes it takes. Raises as :meth:`Parts.factors` and
    :func:`~talking_heads_utils.edits.edits.new_edit` do."""
    parts = c.kept(parts_of)
    changes = [Change(component, OV, SCALE, factor) for component, factor in parts.factors(moves).items()]
    return new_edit(parts.weights, changes, model=c.model)


def moves_of(head: Head, order: Sequence[int]) -> list[Move]:
    """All moves of one head. order: its components that write anything, the first first."""
    parts: list[tuple[int, ...] | None] = [(i,) for i in order[:N_SINGLE]]
    parts += [tuple(sorted(order[:k])) for k in LEADING if k < len(order)]
    return [Move(head, part, factor) for part in [*parts, None] for factor in FACTORS]


@dataclass(frozen=True)
class Heads:
    """Which heads are edited, by lists that choose.

    families: the first three. draws: random heads, as many in each layer as the three families have there, or as many
    as are left. orders: head -> its components, the largest singular value times spread at ``end`` first.
    """

    families: dict[Family, tuple[Head, ...]]
    draws: tuple[tuple[Head, ...], ...]
    orders: dict[Head, tuple[int, ...]]

    @property
    def named(self) -> tuple[Head, ...]:
        """Those of any family, each once."""
        return tuple(dict.fromkeys(head for heads in self.families.values() for head in heads))

    @property
    def every(self) -> tuple[Head, ...]:
        return tuple(self.orders)


def heads_of(c: Context, lengths: Sequence[int]) -> Heads:
    """The heads of a context's model, by lists of these lengths; those that write nothing are left out. Raises
    :class:`NotApplicable` for a model without a mover or without an inhibition head below one."""
    movers, inhibition = movers_and_heads(c)
    readers = range(1, c.bridge.cfg.n_layers)
    lists = (c.kept(Lists(Part.SELECTION, n, c.n(N_CHOOSE))) for n in lengths)
    recordings = [record(c.bridge, prompts, readers) for prompts in lists]  # not kept, for they are large
    found = {
        Family.INTO_QUERIES: into_queries(recordings, movers, inhibition),
        Family.MOVERS: movers[:N_HEADS],
        Family.DIRECT: direct(recordings),
    }
    draws, parts = random_heads(found, c.weights, c.seed), c.kept(parts_of)
    every = {head for heads in (*found.values(), *draws) for head in heads}
    orders = {head: order(recordings, head, parts.of(head)) for head in sorted(every)}
    orders = {head: components for head, components in orders.items() if components}
    families = {family: tuple(head for head in heads if head in orders) for family, heads in found.items()}
    return Heads(families, tuple(tuple(head for head in draw if head in orders) for draw in draws), orders)


@torch.no_grad()
def into_queries(
    recordings: Sequence[Recording], movers: Sequence[Head], inhibition: Sequence[Head]
) -> tuple[Head, ...]:
    """Inhibition heads, then those below the lowest mover whose write at ``end``, put at its mean in the movers'
    queries, changes the log-odds of their attention to the answer most: either way, list by list, mean over lists."""
    below, n_heads = min(mover.layer for mover in movers), recordings[0].weights.n_heads
    change = torch.zeros(below, n_heads)
    for recording in recordings:
        weights = contrast(recording.prompts).to(recording.final)
        for layer, mover in product(range(below), movers):
            write = recording.write(layer)
            shift = torch.cat([torch.zeros_like(write[:, :1]), write.mean(0) - write], 1)
            scores = scores_after_shift(mover_of(recording, mover), shift).nan_to_num(neginf=0)
            odds = (scores * weights[:, None]).sum(-1)
            change[layer] += (odds[:, 1:] - odds[:, :1]).abs().mean(0).cpu()
    change /= len(recordings) * len(movers)
    return tuple(dict.fromkeys([*inhibition, *_largest(change)]))[:N_HEADS]


def _largest(effects: Float[Tensor, "n_layers n_heads"]) -> list[Head]:
    """Heads by size of effect, the largest first, those without one left out."""
    ranked = effects.abs().flatten().argsort(descending=True, stable=True).tolist()
    heads = [Head(*divmod(i, effects.shape[1])) for i in ranked]
    return [head for head in heads if effects[head.layer, head.head].abs() > ROUNDING]


def direct(recordings: Sequence[Recording]) -> tuple[Head, ...]:
    """Those with the largest direct effect on the answer's logit difference, either way; the first layer aside."""
    effects = []
    for recording in recordings:
        sources = torch.ones(len(recording.prompts), 1, recording.prompts.tokens.shape[1])
        effects.append(effects_along(recording, wanted_direction(recording), sources)[..., 0].mean(0))
    return tuple(_largest(torch.stack(effects).mean(0))[:N_HEADS])


def random_heads(
    families: dict[Family, tuple[Head, ...]], weights: HeadWeights, seed: int
) -> tuple[tuple[Head, ...], ...]:
    """Draws of heads that no family has, of the same layers."""
    named = {head for heads in families.values() for head in heads}
    draws = []
    for draw in range(N_DRAWS):
        rng, found = np.random.default_rng([seed, draw]), []
        for layer in sorted({head.layer for head in named}):
            free = [head for head in range(weights.n_heads) if Head(layer, head) not in named]
            n = min(len(free), weights.n_heads - len(free))
            found += [Head(layer, int(head)) for head in sorted(rng.choice(free, n, replace=False))]
        draws.append(tuple(found))
    return tuple(draws)


def order(recordings: Sequence[Recording], head: Head, parts: HeadParts) -> tuple[int, ...]:
    """A head's components by singular value times standard deviation of the coefficient at ``end``; none of a head
    that writes nothing."""
    if not len(parts.singular_values):
        return ()
    coefficients = []
    for recording in recordings:
        z = z_at_end(recording, head)
        read = recording.weights.W_O[head.layer, head.head].to(z) @ parts.directions.to(z).T
        coefficients.append(z @ read)
    value = parts.singular_values.cpu() * torch.cat(coefficients).std(0).double().cpu()
    return tuple(value.argsort(descending=True, stable=True).tolist())


def z_at_end(recording: Recording, head: Head) -> Float[Tensor, "n d_head"]:
    """What a head gathers at ``end``, value bias left out; also of the last layer."""
    if head.layer in recording.writes:
        return recording.z(head.layer)[:, head.head]
    reader = recording.reader(head.layer)
    kv = int(reader.weights.kv_index[head.head])
    values = reader.values[:, :, kv] - reader.weights.b_V[kv]
    return (reader.pattern[:, head.head, :, None] * values).sum(1)
