"""Prompts through the layers that an edit reaches, many scales at once and with gradients.

What can be reused: an edit in layer l leaves everything below l as it was, and in l itself all keys and values, and for
an OV edit the patterns too. Above l it does not: the edit writes at *every* position, so keys and values of the prefix
change. Cached keys and values of the prefix, one token per variant, are therefore exact for edits in the *last* layer
only, whatever reads them below. So: one run up to the first edited layer, kept; that layer's keys and values once for
all variants; the layers above anew, at every position; in the last layer one query, that of ``end``.

Scaling a component is projecting the activation (see ``algebra``), so no variant has weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.editing.algebra import direction
from talking_heads_utils.editing.apply import weights_to_edit
from talking_heads_utils.editing.edits import OV, QK
from talking_heads_utils.errors import EditError, OptionError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.rotary import turn
from talking_heads_utils.runs.layers import AttentionLayer
from talking_heads_utils.runs.suffix import Suffix, suffix
from talking_heads_utils.tasks.prompts import PromptSet
from talking_heads_utils.weights import Processing

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ELEMENTS = 30_000_000  # numbers that the largest tensor of one block may take


@dataclass(frozen=True)
class _Edited:
    """The components of one layer and matrix that are scaled: which columns of the factors, what of the layer's ``z``
    or input they read, and along what they write or turn the queries."""

    columns: list[int]
    read: Float[Tensor, "d_in c"]
    constant: Float[Tensor, "c"]
    write: Float[Tensor, "c d_out"]

    def change(self, x: Float[Tensor, "n m q d_in"], factors: Float[Tensor, "k n_components"]) -> Tensor:
        """What scaling adds: ``[n, k, q, d_out]``, whether the k variants agreed before (m = 1) or not (m = k)."""
        amounts = (x @ self.read - self.constant) * (factors[:, self.columns] - 1)[:, None]
        return amounts @ self.write


@dataclass(frozen=True)
class Upper:
    """Prompts and a model, ready for scales of ``components``."""

    suffix: Suffix
    components: tuple[Component, ...]
    matrix: str
    edited: dict[int, _Edited]
    singular_values: Float[Tensor, "n_components"]
    candidates: Int[Tensor, "n n_candidates"]

    def run(
        self, factors: Float[Tensor, "k n_components"], rows: slice = slice(None), mover: Head | None = None
    ) -> tuple[Float[Tensor, "n k d_model"], Float[Tensor, "n k n_pos"] | None]:
        """Residual stream at ``end`` after the last layer under every row of ``factors``, and, if a mover is named, its
        attention from ``end``. Raises :class:`OptionError` for a mover below the first edited layer."""
        upper, pattern = self.suffix, None
        if mover is not None and not upper.start <= mover.layer < upper.start + len(upper.layers):
            raise OptionError(f"{mover} lies below the edit: nothing changes there.")
        factors = factors.to(upper.stream)
        x = upper.stream[rows, None]
        end = upper.end[rows]
        for layer, part in enumerate(upper.layers, upper.start):
            last = part is upper.layers[-1]
            z, x_in, found = self._attend(layer, part.attention, x, factors, end, last, mover)
            pattern = pattern if found is None else found
            middle = x_in + z.flatten(-2) @ part.attention.W_O.flatten(0, 1) + part.attention.b_O
            if self.matrix == OV and layer in self.edited:
                middle = middle + self.edited[layer].change(z.flatten(-2), factors)
            x = upper.after_attention(part, x_in, middle)
        k = len(factors)
        return x[:, :, 0].expand(-1, k, -1), None if pattern is None else pattern.expand(-1, k, -1)

    def _attend(self, layer: int, at: AttentionLayer, x: Tensor, factors: Tensor, end: Tensor, last: bool, mover):
        """``z`` ``[n, m, q, n_heads, d_head]`` of the positions that are still needed, what stands there before
        (``[n, m, q, d_model]``), and the mover's pattern if it is in this layer."""
        n, _, n_pos, d_model = x.shape
        places = torch.arange(n_pos, device=x.device)
        normed = at.norm(x)
        key, value = (_heads(normed, W, b) for W, b in ((at.W_K, at.b_K), (at.W_V, at.b_V)))
        key = turn(key, self.suffix.rotary, places[:, None])
        source, x_in, at_places = normed, x, places[:, None]
        if last:
            index = end[:, None, None, None].expand(-1, x.shape[1], 1, d_model)
            source, x_in, at_places = normed.gather(2, index), x.gather(2, index), end[:, None, None, None]
        query = _heads(source, at.W_Q, at.b_Q)
        if self.matrix == QK and layer in self.edited:
            query = query + self.edited[layer].change(source, factors).unflatten(-1, query.shape[-2:])
        query = turn(query, self.suffix.rotary, at_places)
        m = query.shape[1]
        q, k, v = (t.expand(-1, m, -1, -1, -1).flatten(0, 1).transpose(1, 2) for t in (query, key, value))
        seen = (places <= end[:, None]).repeat_interleave(m, 0)[:, None, None]
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen if last else None, is_causal=not last, enable_gqa=len(at.W_K) < len(at.W_Q)
        )
        pattern = None
        if mover is not None and mover.layer == layer:
            own = q[:, mover.head] if last else _at_end(q[:, mover.head], end, m)
            pattern = _pattern(own, k[:, int(at.kv_index[mover.head])], seen[:, 0]).unflatten(0, (n, m))
        return z.transpose(1, 2).unflatten(0, (n, m)), x_in, pattern

    def logits(
        self, factors: Float[Tensor, "k n_components"], rows: slice = slice(None)
    ) -> Float[Tensor, "n k n_candidates"]:
        """Logits of the candidates at ``end``, the answer first."""
        return self.suffix.logits(self.run(factors, rows)[0], self.candidates[rows])

    def blocks(self, n_variants: int) -> list[slice]:
        """Prompts in blocks that fit into memory with so many variants."""
        n, n_pos, _ = self.suffix.stream.shape
        at = self.suffix.layers[0].attention
        width = max(4 * at.W_O.shape[-1], at.W_Q[..., 0, :].numel())
        size = max(1, _ELEMENTS // (n_variants * n_pos * width))
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]


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
    upper = suffix(bridge, prompts, min(c.layer for c in components), whole_stream=True)
    edited = {}
    for layer in sorted({c.layer for c in components}):
        columns = [i for i, c in enumerate(components) if c.layer == layer]
        at = upper.layers[layer - upper.start].attention
        D = torch.stack([found[i][0] for i in columns]).to(at.W_O)
        edited[layer] = _edited(at, [components[i].head for i in columns], columns, D, matrix)
    S = torch.stack([s for _, s in found])
    return Upper(upper, tuple(components), matrix, edited, S, prompts.candidates.to(upper.end.device))


def _edited(at: AttentionLayer, heads: list[int], columns: list[int], D: Tensor, matrix: str) -> _Edited:
    which = F.one_hot(torch.tensor(heads), len(at.W_Q)).to(D)  # [c, n_heads]
    if matrix == QK:
        write = torch.einsum("cm,cmd,ch->chd", D, at.W_Q[heads], which).flatten(1)
        return _Edited(columns, D.T, D.new_zeros(len(D)), write)
    read = torch.einsum("cdm,cm,ch->hdc", at.W_O[heads], D, which).flatten(0, 1)
    return _Edited(columns, read, at.b_V[at.kv_index].flatten() @ read, D)


def _heads(x: Float[Tensor, "n m p d_model"], W: Tensor, b: Tensor) -> Float[Tensor, "n m p n_heads d_head"]:
    return (x @ W.permute(1, 0, 2).flatten(1)).unflatten(-1, W.shape[::2]) + b


def _at_end(x: Float[Tensor, "b n_pos d"], end: Int[Tensor, "n"], m: int) -> Float[Tensor, "b 1 d"]:
    return x[torch.arange(len(x), device=x.device), end.repeat_interleave(m)][:, None]


def _pattern(query: Float[Tensor, "b 1 d"], keys: Float[Tensor, "b n_pos d"], seen: Tensor) -> Float[Tensor, "b n_pos"]:
    scores = (query @ keys.mT) / query.shape[-1] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)[:, 0]
