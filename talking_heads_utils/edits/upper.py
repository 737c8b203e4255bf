"""Prompts through the layers that an edit reaches, many scales at once and with gradients.

What can be reused: an edit in layer l leaves everything below l as it was, and in l itself all keys and values, and for
an OV edit the patterns too. Above l it does not: the edit writes at *every* position, so keys and values of the prefix
change. Cached keys and values of the prefix, one token per variant, are therefore exact for edits in the *last* layer
only, whatever reads them below. So: one run up to the first edited layer, kept; that layer's keys and values once for
all variants; the layers above anew, at every position; in the last layer one query, that of ``end``.

Scaling a component is projecting the activation (see ``algebra``), so no variant has weights of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.edits.algebra import direction
from talking_heads_utils.edits.apply import weights_to_edit
from talking_heads_utils.edits.edits import OV, QK
from talking_heads_utils.errors import EditError, OptionError
from talking_heads_utils.forward.layers import AttentionLayer, attention_of, project
from talking_heads_utils.forward.suffix import Suffix, stream
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.heads import Processing
from talking_heads_utils.weights.rotary import turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ELEMENTS = 30_000_000  # numbers that the largest tensor of one block may take


@dataclass(frozen=True)
class _Edited:
    """The components of one layer that are scaled, c of them, as one linear map from what they read to what is added.

    OV: they read the layer's ``z`` and add to what it writes. QK: they read its normed input and add to the queries.

    columns: where these components stand among all that are scaled.
    read, constant: how much of each component is there is ``x @ read - constant``; the constant is the value biases'.
    write: what one unit of each component adds.
    """

    columns: list[int]
    read: Float[Tensor, "d_in c"]
    constant: Float[Tensor, "c"]
    write: Float[Tensor, "c d_out"]

    def change(self, x: Float[Tensor, "n m q d_in"], factors: Float[Tensor, "k n_components"]) -> Tensor:
        """What scaling adds: ``[n, k, q, d_out]``, whether the k variants agreed before (m = 1) or not (m = k)."""
        return self.write_of(x @ self.read - self.constant, factors)

    def write_of(self, amounts: Float[Tensor, "n m q c"], factors: Float[Tensor, "k n_components"]) -> Tensor:
        """The same from what the components write or read already."""
        return (amounts * (factors[:, self.columns] - 1)[:, None]) @ self.write


@dataclass(frozen=True)
class Upper:
    """Prompts and a model, ready to be run with ``components`` scaled by any factors.

    suffix: what enters the first edited layer, and the layers from there on. matrix: ``OV`` or ``QK``.
    edited: layer -> its scaled components. candidates: token ids, the answer first.
    middle, amounts: of the first edited layer, where its patterns cannot change (OV) and it is not the last: the stream
        after attention, and how much of each scaled component is in it.
    """

    suffix: Suffix
    components: tuple[Component, ...]
    matrix: str
    edited: dict[int, _Edited]
    singular_values: Float[Tensor, "n_components"]
    candidates: Int[Tensor, "n n_candidates"]
    middle: Float[Tensor, "n n_pos d_model"] | None = None
    amounts: Float[Tensor, "n n_pos c"] | None = None

    def run(
        self, factors: Float[Tensor, "k n_components"], rows: slice = slice(None), mover: Head | None = None
    ) -> tuple[Float[Tensor, "n k d_model"], Float[Tensor, "n k n_pos"] | None]:
        """Residual stream at ``end`` after the last layer under every row of ``factors``, and, if a mover is named, its
        attention from ``end``. Raises :class:`OptionError` for a mover whose attention the edit cannot reach."""
        upper, found = self.suffix, None
        last = upper.start + len(upper.layers) - 1
        if mover is not None and not upper.start + (self.matrix == OV) <= mover.layer <= last:
            raise OptionError(f"{mover} does not lie above the edit: its attention cannot change.")
        factors = factors.to(upper.everywhere)
        x, end = upper.everywhere[rows, None], upper.end[rows]
        for layer, part in enumerate(upper.layers, upper.start):
            if layer == upper.start and self.middle is not None and self.amounts is not None:
                middle = self.middle[rows, None]
                middle = middle + self.edited[layer].write_of(self.amounts[rows, None], factors)
            else:
                read = self._read_at_end if layer == last else self._read
                z, before, pattern = read(layer, part.attention, x, factors, end, mover)
                found, x = (found if pattern is None else pattern), before
                middle = x + self._written(layer, part.attention, z, factors)
            x = upper.after_attention(part, x, middle)
        k = len(factors)
        return x[:, :, 0].expand(-1, k, -1), None if found is None else found.expand(-1, k, -1)

    def _written(self, layer: int, at: AttentionLayer, z: Float[Tensor, "n m q d_in"], factors: Tensor) -> Tensor:
        """What attention writes, the edit of this layer included."""
        out = z @ at.W_O.flatten(0, 1) + at.b_O
        return out + self.edited[layer].change(z, factors) if self.matrix == OV and layer in self.edited else out

    def _query(self, layer: int, at: AttentionLayer, source: Tensor, factors: Tensor) -> Tensor:
        query = project(source, at.W_Q, at.b_Q)
        if self.matrix == QK and layer in self.edited:
            query = query + self.edited[layer].change(source, factors).unflatten(-1, query.shape[-2:])
        return query

    def _read(
        self, layer: int, at: AttentionLayer, x: Tensor, factors: Tensor, end: Tensor, mover: Head | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``z`` ``[n, m, n_pos, n_heads * d_head]`` everywhere, ``x`` itself, and the mover's pattern from ``end``."""
        n, places = len(x), torch.arange(x.shape[2], device=x.device)[:, None]
        normed, rotary = at.norm(x), self.suffix.rotary
        query = turn(self._query(layer, at, normed, factors), rotary, places)
        key, value = turn(project(normed, at.W_K, at.b_K), rotary, places), project(normed, at.W_V, at.b_V)
        m = query.shape[1]
        q, k, v = (t.expand(-1, m, -1, -1, -1).flatten(0, 1).transpose(1, 2) for t in (query, key, value))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=len(at.W_K) < len(at.W_Q))
        pattern = None
        if mover is not None and mover.layer == layer:
            own = query[torch.arange(n, device=x.device), :, end, mover.head]
            scores = torch.einsum(
                "nmd,nmpd->nmp", own, key[:, :, :, int(at.kv_index[mover.head])].expand(-1, m, -1, -1)
            )
            pattern = attention_of(scores, q.shape[-1], places[:, 0] <= end[:, None, None])
        return z.transpose(1, 2).flatten(2).unflatten(0, (n, m)), x, pattern

    def _read_at_end(
        self, layer: int, at: AttentionLayer, x: Tensor, factors: Tensor, end: Tensor, mover: Head | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same for one query, that of ``end``. Without rotary positions no key is formed: the query meets the
        normalised stream through ``W_K``; and ``W_V`` acts on what the pattern has averaged."""
        normed, places = at.norm(x), torch.arange(x.shape[2], device=x.device)
        index = end[:, None, None, None].expand(-1, x.shape[1], 1, x.shape[-1])
        query = self._query(layer, at, normed.gather(2, index), factors)
        query = turn(query, self.suffix.rotary, end[:, None, None, None])[:, :, 0]
        kv = at.kv_index
        if self.suffix.rotary is None:
            scores = torch.einsum("nmhd,hcd->nmhc", query, at.W_K[kv]) @ normed.mT
            scores = scores + (query * at.b_K[kv]).sum(-1, keepdim=True)
        else:
            key = turn(project(normed, at.W_K, at.b_K), self.suffix.rotary, places[:, None])[:, :, :, kv]
            scores = torch.einsum("nmhd,nmphd->nmhp", query, key.expand(-1, query.shape[1], -1, -1, -1))
        pattern = attention_of(scores, query.shape[-1], places <= end[:, None, None, None])
        z = torch.einsum("nmhc,hcd->nmhd", pattern @ normed, at.W_V[kv]) + at.b_V[kv]
        read = pattern[:, :, mover.head] if mover is not None and mover.layer == layer else None
        return z.flatten(2)[:, :, None], x.gather(2, index), read

    def logits(
        self, factors: Float[Tensor, "k n_components"], rows: slice = slice(None)
    ) -> Float[Tensor, "n k n_candidates"]:
        """Logits of the candidates at ``end``, the answer first."""
        return self.suffix.logits(self.run(factors, rows)[0], self.candidates[rows])

    def blocks(self, n_variants: int) -> Iterator[slice]:
        """Prompts in blocks that fit into memory with so many variants."""
        n, n_pos, _ = self.suffix.everywhere.shape
        at = self.suffix.layers[0].attention
        width = max(4 * at.W_O.shape[-1], at.W_Q[..., 0, :].numel())
        return batches.blocks(n, _ELEMENTS // (n_variants * n_pos * width))


def prepare(bridge: TransformerBridge, prompts: PromptSet, components: Sequence[Component], matrix: str = OV) -> Upper:
    """Run the prompts once, up to the first of the components' layers and beyond.

    Raises :class:`LabelError` for a component that is not there, :class:`EditError` for one that is zero or a model
    whose weights are raw, :class:`OptionError` for no component.
    """
    if not components:
        raise OptionError("Nothing to scale: name one component at least, such as L8H10.1.")
    weights = weights_to_edit(bridge)
    if weights.processing != Processing.default(weights.norm):
        raise EditError("Scales are searched for in processed weights. Load the model without a processing of its own.")
    found = [direction(weights, weights.component(c), matrix) for c in components]
    upper = stream(bridge, prompts, min(c.layer for c in components))
    edited = {}
    for layer in sorted({c.layer for c in components}):
        columns = [i for i, c in enumerate(components) if c.layer == layer]
        at = upper.layers[layer - upper.start].attention
        D = torch.stack([found[i][0] for i in columns]).to(at.W_O)
        edited[layer] = _edited(at, [components[i].head for i in columns], columns, D, matrix)
    S = torch.stack([s for _, s in found])
    made = Upper(upper, tuple(components), matrix, edited, S, prompts.candidates.to(upper.end.device))
    return _with_first_layer(made) if matrix == OV and len(upper.layers) > 1 else made


@torch.no_grad()
def _with_first_layer(made: Upper) -> Upper:
    """Keep what attention of the first edited layer does: an OV edit changes no pattern there."""
    upper, x = made.suffix, made.suffix.everywhere
    at, edited = upper.layers[0].attention, made.edited[upper.start]
    none = x.new_ones(1, len(made.components))
    middle, amounts = [], []
    for rows in made.blocks(1):
        z = made._read(upper.start, at, x[rows, None], none, upper.end[rows], None)[0][:, 0]
        middle.append(x[rows] + z @ at.W_O.flatten(0, 1) + at.b_O)
        amounts.append(z @ edited.read - edited.constant)
    return replace(made, middle=torch.cat(middle), amounts=torch.cat(amounts))


def _edited(at: AttentionLayer, heads: list[int], columns: list[int], D: Tensor, matrix: str) -> _Edited:
    which = F.one_hot(torch.tensor(heads), len(at.W_Q)).to(D)  # [c, n_heads]
    if matrix == QK:
        write = torch.einsum("cm,cmd,ch->chd", D, at.W_Q[heads], which).flatten(1)
        return _Edited(columns, D.T, D.new_zeros(len(D)), write)
    read = torch.einsum("cdm,cm,ch->hdc", at.W_O[heads], D, which).flatten(0, 1)
    return _Edited(columns, read, at.b_V[at.kv_index].flatten() @ read, D)
