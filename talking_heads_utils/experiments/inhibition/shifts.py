"""Part of what heads write at the last token is exchanged with its twin's, in what movers read.

The twin of a prompt is the same prompt with its two names in the other order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.forward.engine import RESID_PRE, Change, Forward, Q, Z
from talking_heads_utils.forward.recording import Recording, mover_of
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.weights.rotary import turn

if TYPE_CHECKING:
    from talking_heads_utils.prompts.sets import PromptSet

QUERY, KEY, VALUE = "query", "key", "value"  # inputs of the movers
MOST = 10.0  # times that a control's shift is made longer, at most, to have the energy of another


class Part(NamedTuple):
    """Orthonormal directions of what one head writes."""

    head: Head
    basis: Float[Tensor, "k d_model"]


@dataclass(frozen=True)
class Exchange:
    """What is exchanged: along the parts' directions, each head's write at ``end`` becomes the twin's, ``scale`` times
    as far."""

    parts: tuple[Part, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Twins:
    """Prompts and their twins, recorded with the movers' layers as readers."""

    own: Recording
    twin: Recording
    movers: tuple[Head, ...]

    @cached_property
    def change(self) -> dict[int, Float[Tensor, "n n_heads d_model"]]:
        """By layer, what every head writes at ``end`` in the twin less what it writes."""
        return {layer: self.twin.write(layer) - self.own.write(layer) for layer in self.own.writes}

    def directions(self, head: Head) -> Float[Tensor, "d_head d_model"]:
        """Of all its components; zeros for one that writes nothing."""
        return self.own.directions[head.layer, head.head].nan_to_num()

    def of_components(self, components: Sequence[Component]) -> Exchange:
        """The exchange of these components' coefficients."""
        by_head: dict[Head, list[int]] = {}
        for c in components:
            by_head.setdefault(c.of_head, []).append(c.component)
        return Exchange(tuple(Part(head, self.directions(head)[some]) for head, some in by_head.items()))

    def of_heads(self, heads: Sequence[Head]) -> Exchange:
        """The exchange of all that these heads write."""
        return Exchange(tuple(Part(head, self.directions(head)) for head in heads))

    def random(self, heads: Sequence[Head], k: int, generator: torch.Generator) -> Exchange:
        """The exchange along ``k`` random directions of each head's output."""
        parts = []
        for head in heads:
            span = self.directions(head)
            span = span[span.any(1)]
            noise = torch.randn(len(span), min(k, len(span)), generator=generator).to(span)
            parts.append(Part(head, torch.linalg.qr(noise)[0].T @ span))
        return Exchange(tuple(parts))

    def shift(self, exchange: Exchange, below: int) -> Float[Tensor, "n d_model"]:
        """What an exchange adds at ``end`` to the input of a layer, from the layers below it."""
        total = torch.zeros_like(self.own.final)
        for head, basis in exchange.parts:
            if head.layer < below:
                total += (self.change[head.layer][:, head.head] @ basis.T) @ basis
        return exchange.scale * total

    def energy(self, exchange: Exchange) -> float:
        """Mean squared length of what an exchange adds to the stream."""
        return self.shift(exchange, len(self.own.writes)).square().sum(-1).mean().item()

    def scaled_to(self, exchange: Exchange, energy: float) -> Exchange:
        """The same with that energy, but no shift made longer than :data:`MOST` times."""
        own = self.energy(exchange)
        return Exchange(exchange.parts, min(MOST, (energy / own) ** 0.5) if own else 1.0)

    @torch.no_grad()
    def odds(self, exchanges: Sequence[Exchange]) -> Float[Tensor, "n k"]:
        """Change of the log-odds of attention, IO to S1, mean over movers, each seeing the exchange in its query."""
        weights, found = contrast(self.own.prompts).to(self.own.final)[:, None], []
        readers = []
        for head in self.movers:
            at = mover_of(self.own, head)
            toward = (weights @ at.keys)[:, 0] @ at.W_Q.T / at.W_Q.shape[-1] ** 0.5
            readers.append((head.layer, at, toward, (at.norm(at.x) * toward).sum(-1)))
        for exchange in exchanges:
            shifts = {layer: self.shift(exchange, layer) for layer, *_ in readers}
            moved = [(at.norm(at.x + shifts[layer]) * toward).sum(-1) - plain for layer, at, toward, plain in readers]
            found.append(torch.stack(moved).mean(0))
        return torch.stack(found, 1)

    @torch.no_grad()
    def odds_by_other_input(self, exchange: Exchange, into: str) -> Float[Tensor, "n"]:
        """The same with one exchange, at every position, in the movers' keys or values."""
        weights, found = contrast(self.own.prompts).to(self.own.final), []
        for head in self.movers:
            x = self.own.reader(head.layer).resid[self.own.rows, self.own.end]
            scores = [z_after(self, head, e, into, x)[0] for e in (exchange, Exchange(()))]
            after, before = (torch.where(weights == 0, 0.0, weights * s).sum(-1) for s in scores)
            found.append(after - before)
        return torch.stack(found).mean(0)


def in_queries(movers: Sequence[Head], ends: Forward, shifts: Mapping[int, Float[Tensor, "n k d_model"]]) -> Change:
    """What moves the input of all movers' queries at ``end``. shifts: by the movers' layers."""
    seen: dict[int, Tensor] = {}

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        if site == RESID_PRE:
            seen[layer] = value
        elif site == Q and layer in shifts:
            W, value = ends.layers[layer - ends.start].attention, value.clone()
            normed = W.norm(seen[layer] + shifts[layer][:, :, None])
            for head in movers:
                if head.layer == layer:
                    value[..., head.head, :] = normed @ W.W_Q[head.head] + W.b_Q[head.head]
        return value

    return change


def z_after(
    twins: Twins, mover: Head, exchange: Exchange, into: str, x: Float[Tensor, "n d_model"]
) -> tuple[Float[Tensor, "n n_pos"], Float[Tensor, "n d_head"]]:
    """A mover's scores from ``end`` and what it gathers, with an exchange at every position in its keys or values.

    x: what enters its layer at ``end``.
    """
    own, reader = twins.own, twins.own.reader(mover.layer)
    at, kv = reader.weights, int(reader.weights.kv_index[mover.head])
    resid, added = reader.resid.clone(), torch.zeros_like(reader.resid)
    resid[own.rows, own.end] = x
    for head, basis in exchange.parts:
        if head.layer < mover.layer:
            z = (twins.twin.writes[head.layer] - own.writes[head.layer])[:, :, head.head]
            added += (z @ own.weights.W_O[head.layer, head.head].to(z) @ basis.T) @ basis
    moved, plain = at.norm(resid + exchange.scale * added), at.norm(resid)
    keys = (moved if into == KEY else plain) @ at.W_K[kv] + at.b_K[kv]
    values = (moved if into == VALUE else plain) @ at.W_V[kv] + at.b_V[kv]
    distances = own.end[:, None] - torch.arange(resid.shape[1], device=own.end.device)
    query = at.norm(x) @ at.W_Q[mover.head] + at.b_Q[mover.head]
    keys = turn(keys, own.weights.rotary, -distances)
    scores = ((keys @ query[..., None])[..., 0] / query.shape[-1] ** 0.5).masked_fill(~own.visible, -torch.inf)
    return scores, (scores.softmax(-1)[:, None] @ values)[:, 0]


def in_keys_or_values(twins: Twins, exchange: Exchange, into: str) -> Change:
    """The change of one exchange, at every position, in all movers' keys or values at once. Of all prompts."""
    seen: dict[int, Tensor] = {}

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        if site == RESID_PRE:
            seen[layer] = value
        elif site == Z and any(head.layer == layer for head in twins.movers):
            value = value.clone()
            for head in twins.movers:
                if head.layer == layer:
                    value[:, 0, 0, head.head] = z_after(twins, head, exchange, into, seen[layer][:, 0, 0])[1]
        return value

    return change


class Answers(NamedTuple):
    """What the model answers: logit of IO less that of S, and the probability of IO."""

    logit_difference: Float[Tensor, "n k"]
    probability: Float[Tensor, "n k"]


def answers(
    ends: Forward, prompts: PromptSet, final: Float[Tensor, "n k d_model"], rows: slice = slice(None), *,
    names_only: bool = False,
) -> Answers:  # fmt: skip
    """Out of final streams at ``end``. names_only: without the probability, which takes the logits of all words."""
    names = torch.cat([prompts.answers[:, None], prompts.distractors], 1)[rows].to(final.device)
    io, s = ends.logits(final, names).unbind(2)
    every = io.new_full((), torch.nan) if names_only else ends.logits(final).logsumexp(-1)
    return Answers(io - s, (io - every).exp())


@torch.no_grad()
def exchanged_answers(
    twins: Twins, ends: Forward, exchanges: Sequence[Exchange], into: str = QUERY, *, names_only: bool = False
) -> Answers:
    """The answers with each exchange in all movers' queries; or with one, at every position, in their keys or values.
    ``ends`` starts at the lowest mover's layer. names_only: as :func:`answers` takes it."""
    if into != QUERY:
        change = in_keys_or_values(twins, exchanges[0], into)
        return answers(
            ends, twins.own.prompts, ends.run(ends.resid[:, None, None], ends.at_end(), change=change)[:, :, 0]
        )
    found, k = [], len(exchanges)
    layers = {head.layer for head in twins.movers}
    shifts = {layer: torch.stack([twins.shift(e, layer) for e in exchanges], 1) for layer in layers}
    for rows in batches.blocks(len(ends.end), max(1, 256 // k)):
        change = in_queries(twins.movers, ends, {layer: shift[rows] for layer, shift in shifts.items()})
        x = ends.resid[rows, None, None].expand(-1, k, -1, -1)
        final = ends.run(x, ends.at_end(), change=change, rows=rows)[:, :, 0]
        found.append(answers(ends, twins.own.prompts, final, rows, names_only=names_only))
    return Answers(*map(torch.cat, zip(*found)))
