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
from talking_heads_utils.components import direction_of
from talking_heads_utils.editing import weights_to_edit
from talking_heads_utils.edits.edits import OV, QK
from talking_heads_utils.errors import EditError, OptionError
from talking_heads_utils.forward import engine
from talking_heads_utils.forward.engine import (
    ATTN_OUT,
    NORMED,
    RESID_PRE,
    Change,
    Forward,
    Q,
    Z,
    chained,
    reading,
    some_queries,
)
from talking_heads_utils.forward.layers import AttentionLayer
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.heads import Processing

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

    suffix: Forward
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
        upper, found = self.suffix, dict[Head, Tensor]()
        if mover is not None and not upper.start + (self.matrix == OV) <= mover.layer < upper.n_layers:
            raise OptionError(f"{mover} does not lie above the edit: its attention cannot change.")
        factors, at, start = factors.to(upper.unembed), upper.everywhere(), upper.start
        x = upper.plain(RESID_PRE, start, at, rows)[:, None]
        if self.middle is not None and self.amounts is not None:
            middle = self.middle[rows, None] + self.edited[start].write_of(self.amounts[rows, None], factors)
            x, start = middle + upper.mlp(start, x, middle), start + 1
        change = self._change(factors, upper.end[rows])
        change = change if mover is None else chained(change, reading([mover], found))
        x = upper.run(x, at, start=start, change=change, rows=rows, only_end=True)[:, :, 0].expand(-1, len(factors), -1)
        if mover is None:
            return x, None
        pattern = found[mover] if found[mover].shape[2] == 1 else some_queries(found[mover], upper.end[rows, None])
        return x, pattern[:, :, 0].expand(-1, len(factors), -1)

    def _change(self, factors: Float[Tensor, "k n_components"], end: Int[Tensor, "n"]) -> Change:
        """What scaling does to what attention writes, or to its queries. Variants part at the first edited layer."""
        read: dict[str, Tensor] = {}

        def change(site: str, layer: int, value: Tensor) -> Tensor:
            if layer not in self.edited:
                return value
            read[site] = value
            if self.matrix == OV and site == ATTN_OUT:
                return value + self.edited[layer].change(read[Z].flatten(-2), factors)
            if self.matrix == QK and site == Q:
                source = read[NORMED]
                source = source if source.shape[2] == value.shape[2] else some_queries(source, end[:, None])
                return value + self.edited[layer].change(source, factors).unflatten(-1, value.shape[-2:])
            return value

        return change

    def logits(
        self, factors: Float[Tensor, "k n_components"], rows: slice = slice(None)
    ) -> Float[Tensor, "n k n_candidates"]:
        """Logits of the candidates at ``end``, the answer first."""
        return self.suffix.logits(self.run(factors, rows)[0], self.candidates[rows])

    def blocks(self, n_variants: int) -> Iterator[slice]:
        """Prompts in blocks that fit into memory with so many variants."""
        upper = self.suffix
        width = max(upper.width, upper.layers[0].attention.W_Q[..., 0, :].numel())
        return batches.blocks(len(upper.end), _ELEMENTS // (n_variants * upper.n_pos * width))


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
    found = [direction_of(weights, c, matrix) for c in components]
    upper = engine.prepare(bridge, prompts, min(c.layer for c in components))
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
    upper, edited, at = made.suffix, made.edited[made.suffix.start], made.suffix.everywhere()
    middle, amounts = [], []
    for rows in made.blocks(1):
        x = upper.plain(RESID_PRE, upper.start, at, rows)[:, None]
        z = upper.attend(upper.start, x, at[rows], rows)
        middle.append((x + upper.write(upper.start, z))[:, 0])
        amounts.append((z.flatten(-2) @ edited.read - edited.constant)[:, 0])
    return replace(made, middle=torch.cat(middle), amounts=torch.cat(amounts))


def _edited(at: AttentionLayer, heads: list[int], columns: list[int], D: Tensor, matrix: str) -> _Edited:
    which = F.one_hot(torch.tensor(heads), len(at.W_Q)).to(D)  # [c, n_heads]
    if matrix == QK:
        write = torch.einsum("cm,cmd,ch->chd", D, at.W_Q[heads], which).flatten(1)
        return _Edited(columns, D.T, D.new_zeros(len(D)), write)
    read = torch.einsum("cdm,cm,ch->hdc", at.W_O[heads], D, which).flatten(0, 1)
    return _Edited(columns, read, at.b_V[at.kv_index].flatten() @ read, D)
