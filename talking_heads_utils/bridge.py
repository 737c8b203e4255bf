"""Attention weights out of a TransformerLens ``TransformerBridge`` that is already loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator

import torch
from torch import Tensor

from talking_heads_utils.errors import CheckpointError, ProcessingError
from talking_heads_utils.weights import LAYER_NORM, NO_NORM, RMS_NORM, HeadWeights, Processing, RawLayer, Source, assemble

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_NORMS = {"LN": LAYER_NORM, "LNPre": LAYER_NORM, "RMS": RMS_NORM, "RMSPre": RMS_NORM, None: NO_NORM}


def head_weights_from_bridge(
    bridge: TransformerBridge, *, processing: Processing | None = None, dtype: torch.dtype = torch.float32
) -> HeadWeights:
    """The same :class:`HeadWeights` as from the checkpoint, out of a loaded model.

    Works on a raw bridge and on one after ``enable_compatibility_mode()``: folding and centring a second time
    change nothing. Raises :class:`ProcessingError` where raw weights are asked of a bridge that has been
    processed, :class:`CheckpointError` where a weight is not finite.
    """
    norm = _NORMS[bridge.cfg.normalization_type]
    wanted = (processing or Processing.default(norm)).check(norm)
    if bridge._weights_processed and wanted != Processing.default(norm):
        raise ProcessingError(
            f"This bridge's weights are processed already, so {wanted.describe()!r} cannot be had from it. "
            "Boot it again without enable_compatibility_mode()."
        )
    return assemble(
        _raw_layers(bridge, dtype),
        bridge.cfg.n_layers,
        norm=norm,
        source=Source(str(bridge.cfg.model_name), str(bridge.cfg.architecture)),
        processing=wanted,
    )


def _raw_layers(bridge: TransformerBridge, dtype: torch.dtype) -> Iterator[RawLayer]:
    for layer, block in enumerate(bridge.blocks):
        attn, ln = block.attn, getattr(block, "ln1", None)
        parts = {
            "W_Q": attn.W_Q, "W_K": attn.W_K, "W_V": attn.W_V, "W_O": attn.W_O,
            "b_V": attn.b_V, "b_O": attn.b_O,
            "ln_scale": getattr(ln, "weight", None), "ln_bias": getattr(ln, "bias", None),
        }  # fmt: skip
        yield RawLayer(**{name: _own(tensor, f"blocks[{layer}] {name}", dtype) for name, tensor in parts.items()})


def _own(tensor: Tensor | None, name: str, dtype: torch.dtype) -> Tensor | None:
    if tensor is None:
        return None
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{name} holds NaN or infinite values. Load the model again.")
    return tensor.detach().to(dtype)
