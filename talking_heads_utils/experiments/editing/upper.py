"""Prompts through the layers that edits reach, many edits at once.

What can be reused: an edit in layer l leaves everything below l as it was, and in l itself all keys and values, and,
being of OV, the patterns too. Above l it does not: the edit writes at *every* position, so keys and values of the
prefix change. So: one run, kept; every edit costs the layers from its first one on, at every position; in the last
layer one query, that of ``end``. Edited at ``end`` alone, the prefix stays, and an edit costs one position: no edit of
weights does this, but it tells cheaply which are worth the whole.

Scaling a component is projecting the activation (see :mod:`talking_heads_utils.edits.edits`), so no edit has weights of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import LabelError
from talking_heads_utils.experiments.editing.moves import Parts
from talking_heads_utils.forward import engine
from talking_heads_utils.forward.engine import ATTN_OUT, RESID_PRE, Change, Forward, Z
from talking_heads_utils.labels import Component
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ELEMENTS = 30_000_000  # numbers that the largest tensor of one block may take
Factors = Mapping[Component, float]


class Scored(NamedTuple):
    """How n prompts are answered under k edits. log_prob: of the answer among the candidates, in nats. right: whether
    it leads them."""

    log_prob: Float[Tensor, "n k"]
    right: Bool[Tensor, "n k"]


class _Layer(NamedTuple):
    """The c components of one layer that some of k edits scale, as a linear map: each is there by ``z @ read -
    constant``, the constant being the value biases', and writes ``write``; ``added`` is by how much of itself."""

    read: Float[Tensor, "d_in c"]
    constant: Float[Tensor, "c"]
    write: Float[Tensor, "c d_model"]
    added: Float[Tensor, "k c"]

    def change(self, z: Float[Tensor, "n m q d_in"]) -> Float[Tensor, "n k q d_model"]:
        """What is added, whether the edits agreed before (m = 1) or not (m = k)."""
        return ((z @ self.read - self.constant) * self.added[:, None]) @ self.write


@dataclass(frozen=True)
class Upper:
    """Prompts and a model, ready to be run with any components from layer ``made.start`` on scaled by any factors.

    candidates: token ids, the answer first.
    """

    made: Forward
    parts: Parts
    candidates: Int[Tensor, "n n_candidates"]

    @torch.no_grad()
    def logits(
        self, edits: Sequence[Factors], *, at_end: bool = False, n: int | None = None
    ) -> Float[Tensor, "n k n_candidates"]:
        """Logits of the candidates at ``end``, the answer first, under each edit; an empty one changes nothing.

        at_end: edited at the last token alone. n: of the first n prompts alone. Raises :class:`LabelError` for a
        component that is not there, is zero or lies below the layers that are kept.
        """
        firsts = [self._first(edit) for edit in edits]
        width = max(self.made.width, self.made.n_heads * self.made.n_pos) * (1 if at_end else self.made.n_pos)
        size = batches.size(max(1, _ELEMENTS // width))  # prompts times edits that fit into memory at once
        n = len(self.candidates) if n is None else n
        out = self.made.final.new_empty(n, len(edits), self.candidates.shape[1])
        for first in sorted(set(firsts)):
            which = [i for i, layer in enumerate(firsts) if layer == first]
            for i in range(0, len(which), size):
                part = which[i : i + size]
                scaled = self._layers([edits[i] for i in part])
                for rows in batches.blocks(n, max(1, size // len(part))):
                    out[rows, part] = self._run(first, scaled, len(part), rows, at_end)
        return out.cpu()

    def score(self, edits: Sequence[Factors], *, at_end: bool = False, n: int | None = None) -> Scored:
        """What the answers become under each edit; see :meth:`logits`. A tie is no correct answer."""
        logits = self.logits(edits, at_end=at_end, n=n)
        return Scored(logits.log_softmax(-1)[..., 0], logits[..., 0] > logits[..., 1:].amax(-1))

    def _first(self, edit: Factors) -> int:
        """The first layer that an edit changes, the number of layers for none."""
        first = min((component.layer for component in edit), default=self.made.n_layers)
        if first < self.made.start:
            raise LabelError(f"Layer {first} lies below the layers that were kept, which begin at {self.made.start}.")
        return first

    def _run(
        self, first: int, scaled: Mapping[int, _Layer], k: int, rows: slice, at_end: bool
    ) -> Float[Tensor, "rows k n_candidates"]:
        made = self.made
        if first == made.n_layers:
            return made.logits(made.final[rows, None], self.candidates[rows]).expand(-1, k, -1)
        at = made.at_end() if at_end else made.everywhere()
        x = made.plain(RESID_PRE, first, at, rows)[:, None]
        x = made.run(x, at, start=first, change=_scaling(scaled), rows=rows, only_end=True)
        return made.logits(x[:, :, 0], self.candidates[rows])

    def _layers(self, edits: Sequence[Factors]) -> dict[int, _Layer]:
        found = {}
        for layer in sorted({component.layer for edit in edits for component in edit}):
            components = sorted({c for edit in edits for c in edit if c.layer == layer})
            at = self.made.layers[layer - self.made.start].attention
            heads = [c.head for c in components]
            D = torch.stack([self.parts.direction(c) for c in components]).to(at.W_O)
            along = torch.einsum("chm,cm->ch", at.W_O[heads], D)  # what a head's z gives of its component
            read = along.new_zeros(len(components), len(at.W_O), along.shape[1])
            read[range(len(heads)), heads] = along
            read = read.flatten(1).T
            added = [[edit.get(c, 1.0) - 1 for c in components] for edit in edits]
            found[layer] = _Layer(read, at.b_V[at.kv_index].flatten() @ read, D, torch.tensor(added).to(D))
        return found


def _scaling(scaled: Mapping[int, _Layer]) -> Change:
    """Edits of the weights as a change of what attention writes. Edits part at the first edited layer."""
    z: dict[int, Tensor] = {}

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        if layer in scaled and site == Z:
            z[layer] = value
        elif layer in scaled and site == ATTN_OUT:
            return value + scaled[layer].change(z.pop(layer).flatten(-2))
        return value

    return change


def prepare(bridge: TransformerBridge, prompts: PromptSet, start: int, parts: Parts | None = None) -> Upper:
    """Run the prompts once, and keep what edits from layer ``start`` on need. parts: the model's, if they are there.

    Raises as :meth:`Parts.of_model` and :func:`~talking_heads_utils.forward.engine.prepare` do.
    """
    made = engine.prepare(bridge, prompts, start, keep=[RESID_PRE])
    return Upper(made, parts or Parts.of_model(bridge), prompts.candidates.to(made.end.device))
