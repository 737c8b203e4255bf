"""Attention weights out of a TransformerLens ``TransformerBridge`` that is already loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from talking_heads_utils.errors import CheckpointError, ProcessingError, UnsupportedModelError
from talking_heads_utils.weights.families import check_bilinear, family_of
from talking_heads_utils.weights.heads import (
    LAYER_NORM,
    NO_NORM,
    RMS_NORM,
    HeadWeights,
    Processing,
    RawLayer,
    Rotary,
    Source,
    assemble,
)

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge

    Hook = Callable[[Tensor, HookPoint], Tensor]  # what a run with hooks calls

_NORMS = {"LN": LAYER_NORM, "LNPre": LAYER_NORM, "RMS": RMS_NORM, "RMSPre": RMS_NORM, None: NO_NORM}


def head_weights_from_bridge(
    bridge: TransformerBridge, *, processing: Processing | None = None, dtype: torch.dtype = torch.float32
) -> HeadWeights:
    """The same :class:`HeadWeights` as from the checkpoint, out of a loaded model.

    Works on a raw bridge and on one after ``enable_compatibility_mode()``: folding and centring a second time
    change nothing. Raises :class:`ProcessingError` where raw weights are asked of a bridge that has been
    processed or whose norms are of another kind, :class:`CheckpointError` where a weight is not finite or the model
    is of no known family (in others the norm may come after attention, and folding would change the model).
    """
    norm = norm_of(bridge)
    wanted = (processing or Processing.default(norm)).check(norm)
    if wanted != Processing.default(norm) and is_processed(bridge):
        raise ProcessingError(
            f"This bridge's weights are processed already, so {wanted.describe()!r} cannot be had from it. "
            "Boot it again without enable_compatibility_mode()."
        )
    family, rotary = _family_and_rotary(bridge)
    return assemble(
        _raw_layers(bridge, dtype),
        bridge.cfg.n_layers,
        norm=norm,
        source=Source(str(bridge.cfg.model_name), family),
        processing=wanted,
        rotary=rotary,
    )


def norm_of(bridge: TransformerBridge) -> str:
    """Which kind of norm stands before attention. Raises :class:`ProcessingError` for one that is not known."""
    kind = bridge.cfg.normalization_type
    if kind not in _NORMS or (kind is not None and not all(hasattr(block, "ln1") for block in bridge.blocks)):
        raise ProcessingError(f"{bridge.cfg.model_name} has norms of the kind {kind!r}, which cannot be folded here.")
    return _NORMS[kind]


@torch.no_grad()
def is_processed(bridge: TransformerBridge) -> bool:
    """Whether the weights are as :class:`Processing` makes them by default, told from the weights themselves: every
    norm before attention scales by one and adds nothing and, with LayerNorm, what attention writes has mean zero."""
    if (norm := norm_of(bridge)) == NO_NORM:
        return False
    for block in bridge.blocks:
        scale, bias = (getattr(block.ln1, name, None) for name in ("weight", "bias"))
        if (scale is not None and not (scale == 1).all()) or (bias is not None and bias.any()):
            return False
    written = bridge.blocks[0].attn.W_O
    return norm != LAYER_NORM or bool(written.mean(-1).abs().max() <= 1e-3 * written.abs().max())


def _family_and_rotary(bridge: TransformerBridge) -> tuple[str, Rotary | None]:
    """Out of the Hugging Face config behind the bridge, if there is one, as for a checkpoint folder."""
    cfg = bridge.cfg
    config = getattr(bridge.original_model, "config", None)
    config = {} if config is None or not hasattr(config, "to_dict") else config.to_dict()
    if not config and cfg.positional_embedding_type != "rotary":  # built natively: pre-norm, no rotary positions
        return str(cfg.architecture), None
    family = family_of(config, f"The model {cfg.model_name}")
    return family.name, family.rotary(config, family.shape(config))


def rotary_of(bridge: TransformerBridge) -> Rotary | None:
    """The rotary positions of a loaded model, None where it has none."""
    return _family_and_rotary(bridge)[1]


def check_attention(bridge: TransformerBridge, n_pos: int) -> None:
    """Raises :class:`UnsupportedModelError` where attention over ``n_pos`` tokens does not follow from a head's weights
    alone: queries and keys that are normalised, a window that is shorter than the prompts."""
    name = str(bridge.cfg.model_name)
    check_bilinear(Source(name, _family_and_rotary(bridge)[0]))
    config = getattr(bridge.original_model, "config", None)
    window, kinds = (getattr(config, part, None) for part in ("sliding_window", "layer_types"))
    if window is not None and (kinds is None or "sliding_attention" in kinds) and n_pos > window:
        raise UnsupportedModelError(
            f"{name} attends within a window of {window} tokens, and these prompts have {n_pos}: what runs its "
            f"attention by itself knows whole attention only. Take prompts of {window} tokens at most."
        )


def _raw_layers(bridge: TransformerBridge, dtype: torch.dtype) -> Iterator[RawLayer]:
    for layer, block in enumerate(bridge.blocks):
        ln = getattr(block, "ln1", None)
        parts = {name: getattr(block.attn, name) for name in ("W_Q", "W_K", "W_V", "W_O", "b_V", "b_O")}
        parts |= {"ln_scale": getattr(ln, "weight", None), "ln_bias": getattr(ln, "bias", None)}
        held = {name: tensor.detach() for name, tensor in parts.items() if tensor is not None}
        if bad := [name for name, tensor in held.items() if not torch.isfinite(tensor).all()]:
            raise CheckpointError(f"blocks[{layer}] {bad[0]} holds NaN or infinite values. Load the model again.")
        yield RawLayer(**{name: tensor.to(dtype) for name, tensor in held.items()})
