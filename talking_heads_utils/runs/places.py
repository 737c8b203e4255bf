"""Logits at some places of each prompt alone: the unembedding of all the others is never computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.runs import batches

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge


@torch.no_grad()
def logits_at(
    bridge: TransformerBridge, tokens: Int[Tensor, "n n_pos"], places: Int[Tensor, "n n_places"], **options: Any
) -> Float[Tensor, "n n_places d_vocab"]:
    """Logits at ``places`` of each row, in one forward pass. options: of the model's own forward, such as a cache."""
    tokens, places = tokens.to(bridge.cfg.device), places.to(bridge.cfg.device)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]

    def gather(stream: Tensor, hook: HookPoint) -> Tensor:
        return stream[rows, places]

    with bridge.hooks(fwd_hooks=[("unembed.hook_in", gather)]):
        return bridge(tokens, **options)


def logits_in_blocks(
    bridge: TransformerBridge, tokens: Int[Tensor, "n n_pos"], places: Int[Tensor, "n n_places"], *, batch: int = 64
) -> Iterator[tuple[slice, Float[Tensor, "rows n_places d_vocab"]]]:
    """:func:`logits_at`, ``batch`` rows at a time: which rows, and their logits, on the CPU in float32."""
    for rows in batches.blocks(len(tokens), batch):
        yield rows, logits_at(bridge, tokens[rows], places[rows]).float().cpu()
