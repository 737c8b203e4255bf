"""A model's own run, of logits at a few positions: those of all would take most of its memory, and much of its time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.prompts.sets import PromptSet

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


class Batch(NamedTuple):
    """What a run of some prompts gave: at hooks by name, and at ``end`` after the last layer and as logits."""

    at: Mapping[str, Tensor]
    rows: Int[Tensor, "n"]
    end: Int[Tensor, "n"]
    final: Float[Tensor, "n d_model"]
    logits: Float[Tensor, "n d_vocab"]


@torch.no_grad()
def runs(bridge: TransformerBridge, prompts: PromptSet, hooks: Collection[str]) -> Iterator[Batch]:
    """The model's own run, 64 prompts after the other."""
    last = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    for some in batches.blocks(len(prompts), 64):
        tokens, end = prompts.tokens[some].to(bridge.cfg.device), prompts.positions["end"][some]
        with logits_at(bridge, end[:, None]):
            logits, at = bridge.run_with_cache(tokens, names_filter=lambda name: name in hooks or name == last)
        rows = torch.arange(len(end))
        yield Batch(at, rows, end, at[last][rows, end.to(bridge.cfg.device)], logits[:, 0])
