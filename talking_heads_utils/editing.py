"""Editing single components of a model's weights: for the length of a ``with`` block, or baked into a checkpoint.

What each change does to a matrix stands in :mod:`talking_heads_utils.edits.edits`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from talking_heads_utils.edits.bake import bake
from talking_heads_utils.edits.edits import (
    OV,
    QK,
    REMOVE,
    ROTATE,
    SCALE,
    SET,
    Change,
    Changes,
    Edit,
    Move,
    make,
    moves_of,
    new_edit,
    read_edit,
)
from talking_heads_utils.errors import EditError
from talking_heads_utils.models import as_bridge
from talking_heads_utils.weights.bridge import head_weights_from_bridge, is_processed, norm_of
from talking_heads_utils.weights.heads import NO_NORM, HeadWeights, Processing, RawLayer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["OV", "QK", "REMOVE", "ROTATE", "SCALE", "SET", "Change", "Edit", "bake", "edit", "read_edit"]
_KEPT = "_weights_before_edits"  # on the bridge while an edit is in force: what components are stated in


@contextmanager
def edit(model: Any, changes: Changes, matrix: str = OV, *, tokenizer: Any = None) -> Iterator[TransformerBridge]:
    """The model with its weights edited; afterwards, also after an exception, every bit is as before.

    changes: component -> what its singular value is multiplied by (0 removes it, -1 flips it); or one or several
    :class:`~talking_heads_utils.edits.edits.Change`, which can also set a singular value or rotate a direction; or an
    edit that was made before. matrix: that of the mapping, ``OV`` or ``QK``. May be nested: the inner edit is stated in
    the untouched components and acts on what the outer one left.

    Components are those of the weights as loaded, into which :func:`~talking_heads_utils.models.load_model` folds the
    norm. A raw Hugging Face model or a bridge that is not processed keeps it apart: there a label of ``edit`` is a
    component of the unfolded weights, while the same label of ``ablate``, ``patch``, ``steer``, ``ask`` and ``bake`` is
    one of the folded weights, another direction. Within the block, those labels stay what they were before it.

    Raises, with the model untouched, :class:`EditError` for a change that makes no sense or a tensor that cannot be
    edited in place, :class:`LabelError` for a component that is not there, and as
    :func:`~talking_heads_utils.models.as_bridge` does.

    >>> from talking_heads_utils.planted.model import plant
    >>> bridge = plant().bridge
    >>> before = bridge.blocks[1].attn.W_O[0].norm().item()
    >>> with edit(bridge, {"L1H0.0": 0.0, "L1H0.1": 2}) as edited:
    ...     after = edited.blocks[1].attn.W_O[0].norm().item()
    >>> round(after / before, 2), bridge.blocks[1].attn.W_O[0].norm().item() == before
    (1.2, True)
    """
    bridge = as_bridge(model, tokenizer)
    weights = weights_to_edit(bridge)
    moves = moves_of(weights, new_edit(weights, changes, matrix))
    layers = [_layer(bridge, move) for move in moves]
    touched = [layer.W_O if move.matrix == OV else layer.W_Q for move, layer in zip(moves, layers)]
    touched += [layer.b_O for layer in layers if layer.b_O is not None]
    before = [tensor.clone() for tensor in touched]
    outermost = _KEPT not in vars(bridge)
    vars(bridge)[_KEPT] = weights
    try:
        for move, layer in zip(moves, layers):
            make(layer, move, unfold=False)
        yield bridge
    finally:
        for tensor, old in zip(touched, before):
            tensor.copy_(old)
        if outermost:
            del vars(bridge)[_KEPT]


def weights_to_edit(bridge: TransformerBridge) -> HeadWeights:
    """The weights whose components an edit of this bridge is stated in: as the bridge was loaded, processed or raw;
    within :func:`edit`, those from before any edit.

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


@torch.no_grad()
def _layer(bridge: TransformerBridge, move: Move) -> RawLayer:
    """The weights of the loaded model that a move changes, and those that it looks at.

    Raises :class:`EditError` for one that would change and cannot be written in place.
    """
    layer, attn = move.head.layer, bridge.blocks[move.head.layer].attn
    of_O = move.matrix == OV
    W_O = _writable(bridge, layer, "W_O") if of_O else attn.W_O
    W_Q = attn.W_Q if of_O else _writable(bridge, layer, "W_Q")
    held = of_O and attn.b_V is not None and attn.b_O is not None and attn.b_V.any()
    return RawLayer(W_Q, attn.W_K, attn.W_V, W_O, attn.b_V, _writable(bridge, layer, "b_O") if held else None)


def _writable(bridge: TransformerBridge, layer: int, name: str) -> Tensor:
    """A weight that may be written in place.

    Raises :class:`EditError` where it is made anew at each reading, or shared with another layer.
    """
    where = f"{name} of layer {layer} of {bridge.cfg.model_name}"
    tensor = getattr(bridge.blocks[layer].attn, name)
    memory = tensor.untyped_storage().data_ptr()
    if all(p.untyped_storage().data_ptr() != memory for p in bridge.parameters()):
        raise EditError(f"{where} is made anew whenever it is read: it cannot be edited in place. Load it unquantised.")
    parts = [getattr(block.attn, part) for block in bridge.blocks for part in ("W_Q", "W_O", "b_O")]
    if sum(part is not None and part.data_ptr() == tensor.data_ptr() for part in parts) > 1:
        raise EditError(f"{where} is tied to that of another layer: an edit would change both. Load the model untied.")
    return tensor.detach()
