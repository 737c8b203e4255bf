"""Logits at a few positions of each prompt: those of all would take most of a run's memory, and much of its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils import batches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def logits_at(bridge: TransformerBridge, places: Int[Tensor, "n k"]) -> Iterator[None]:
    """Within, a run of n prompts gives logits ``[n, k, d_vocab]``: those after the tokens at these places.

    What hooks see below the unembedding is unchanged.
    """

    def chosen(module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        stream, *more = given
        rows = torch.arange(len(stream), device=stream.device)[:, None]
        return stream[rows, places.to(stream.device)], *more

    handle = bridge.unembed.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits_in_blocks(
    bridge: TransformerBridge, tokens: Int[Tensor, "n n_pos"], places: Int[Tensor, "n k"], *, batch: int = 64
) -> Iterator[tuple[slice, Float[Tensor, "rows k d_vocab"]]]:
    """Logits at ``places``, ``batch`` rows at a time: which rows, and their logits, on the CPU in float32."""
    for rows in batches.blocks(len(tokens), batch):
        with logits_at(bridge, places[rows]):
            yield rows, bridge(tokens[rows].to(bridge.cfg.device)).float().cpu()
