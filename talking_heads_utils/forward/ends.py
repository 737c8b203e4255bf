"""Logits at a few positions of each prompt: those of all would take most of a run's memory, and much of its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

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
