"""Editing a loaded model for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from talking_heads_utils.edits.algebra import Move, change_of_W_O, change_of_W_Q, moves_of
from talking_heads_utils.edits.edits import OV, Edit
from talking_heads_utils.errors import EditError
from talking_heads_utils.weights.bridge import head_weights_from_bridge, is_processed, norm_of
from talking_heads_utils.weights.heads import NO_NORM, HeadWeights, Processing, grouped_index

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_KEPT = "_weights_before_edits"  # on the bridge while an edit is in force: what components are stated in


def weights_to_edit(bridge: TransformerBridge) -> HeadWeights:
    """The weights whose components an edit of this bridge is stated in: as the bridge was loaded, processed or raw;
    within :func:`apply`, those from before any edit.

    Raises :class:`EditError` for weights that cannot be read as plain matrices: quantised, packed, not loaded.
    """
    kept = vars(bridge).get(_KEPT)
    if kept is not None:
        return kept
    norm = norm_of(bridge)
    try:
        processed = is_processed(bridge) or norm == NO_NORM
        processing = Processing.default(norm) if processed else Processing(False, False)
        return head_weights_from_bridge(bridge, processing=processing)
    except NotImplementedError as error:  # TransformerLens' word for a packed weight
        raise EditError(f"{bridge.cfg.model_name} cannot be edited: {error}") from error


@contextmanager
def apply(bridge: TransformerBridge, edit: Edit) -> Iterator[TransformerBridge]:
    """The model with the edit in force; afterwards, also after an exception, every bit is as before.

    May be nested: the inner edit is stated in the same untouched components and acts on what the outer one left, so two
    scales of one component multiply. Raises, with the model untouched, :class:`EditError` for an edit made for another
    model or processing, or of a tensor that cannot be edited in place, and :class:`LabelError` for a component that is
    not there.
    """
    weights = weights_to_edit(bridge)
    changed = changed_tensors(bridge, moves_of(weights, edit))
    before = [(tensor, tensor.clone()) for tensor, _ in changed]
    outermost = _KEPT not in vars(bridge)
    vars(bridge)[_KEPT] = weights
    try:
        for tensor, new in changed:
            tensor.copy_(new)
        yield bridge
    finally:
        for tensor, old in before:
            tensor.copy_(old)
        if outermost:
            del vars(bridge)[_KEPT]


@torch.no_grad()
def changed_tensors(bridge: TransformerBridge, moves: list[Move]) -> list[tuple[Tensor, Tensor]]:
    """``(part of the model, what it becomes)``: one head's ``W_O`` or ``W_Q``, or a layer's ``b_O``."""
    found: list[tuple[Tensor, Tensor]] = []
    constants: dict[int, Tensor] = {}
    for move in moves:
        layer, head = move.head.layer, move.head.head
        attn = bridge.blocks[layer].attn
        W = _writable(bridge, layer, f"W_{'O' if move.matrix == OV else 'Q'}")[head]
        if move.matrix != OV:
            found.append((W, W + change_of_W_Q(W, move)))
            continue
        change = change_of_W_O(W, move)
        found.append((W, W + change))
        if attn.b_V is not None and attn.b_V.any():  # the constant that this head writes stays what it was
            kv = int(grouped_index(len(attn.W_O), len(attn.b_V))[head])
            constants[layer] = constants.get(layer, 0) + attn.b_V[kv] @ change
    for layer, constant in constants.items():
        b_O = _writable(bridge, layer, "b_O")
        found.append((b_O, b_O - constant))
    return found


def _writable(bridge: TransformerBridge, layer: int, name: str) -> Tensor:
    """A weight that may be written in place.

    Raises :class:`EditError` where it is made anew at each reading, or shared with another layer.
    """
    where = f"{name} of layer {layer} of {bridge.cfg.model_name}"
    tensor = getattr(bridge.blocks[layer].attn, name)
    if tensor is None:
        raise EditError(f"{where} is missing, and the edit would move a constant that only it could hold.")
    memory = tensor.untyped_storage().data_ptr()
    if all(p.untyped_storage().data_ptr() != memory for p in bridge.parameters()):
        raise EditError(f"{where} is made anew whenever it is read: it cannot be edited in place. Load it unquantised.")
    parts = [getattr(block.attn, part) for block in bridge.blocks for part in ("W_Q", "W_O", "b_O")]
    if sum(part is not None and part.data_ptr() == tensor.data_ptr() for part in parts) > 1:
        raise EditError(f"{where} is tied to that of another layer: an edit would change both. Load the model untied.")
    return tensor.detach()
