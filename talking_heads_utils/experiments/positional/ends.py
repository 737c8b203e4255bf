"""Lists run once up to the lowest mover's layer; from there the last token alone, with any stream in its place.

Nothing before ``end`` depends on what stands there, so a changed stream costs one token through the layers that are
left, on keys and values that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import movers_and_heads
from talking_heads_utils.experiments.list_prompts import Lists
from talking_heads_utils.experiments.positional import grid
from talking_heads_utils.experiments.positional.grid import Steering, answer, blocks, item_scores
from talking_heads_utils.experiments.positional.subspace import K, chosen
from talking_heads_utils.forward.engine import Forward, Rows, prepare
from talking_heads_utils.forward.layers import wide
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.sets import PromptSet, item_positions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BLOCK_BYTES = 16_000_000  # what the widest layer may take at once


@dataclass(frozen=True)
class Ends:
    """n lists of one length, run once.

    forward: their layers from the lowest mover's on. stream: what enters that layer at ``end``. candidates: the items'
    tokens in list order. items: where each is first named. index: the answer's list index. written: what some heads
    below, the S-inhibition heads, write at ``end`` together. In all that takes ``rows`` a stream is of those prompts,
    k variants each.
    """

    prompts: PromptSet
    forward: Forward
    stream: Float[Tensor, "n d_model"]
    candidates: Int[Tensor, "n n_items"]
    items: Int[Tensor, "n n_items"]
    index: Int[Tensor, "n"]
    movers: tuple[Head, ...]
    written: Float[Tensor, "n d_model"]

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def layer(self) -> int:
        """The lowest mover's, which :attr:`stream` enters."""
        return self.forward.start

    @torch.no_grad()
    def logits(self, stream: Float[Tensor, "n k d_model"], rows: Rows = slice(None)) -> Float[Tensor, "n k n_items"]:
        """The candidates' logits, in list order."""
        return self._in_blocks(stream, rows, attention=False)[0]

    @torch.no_grad()
    def both(
        self, stream: Float[Tensor, "n k d_model"], rows: Rows = slice(None)
    ) -> tuple[Float[Tensor, "n k n_items"], Float[Tensor, "n k n_movers n_items"]]:
        """Logits, and the logarithm of the movers' attention from ``end`` to the items' first mentions, as shares of
        their attention to all items: finite where a share is too small for its own number."""
        return self._in_blocks(stream, rows)

    def right(self, logits: Float[Tensor, "n k n_items"], rows: Rows = slice(None)) -> Bool[Tensor, "n k"]:
        """Whether the answer alone has the largest logit."""
        return answer(logits) == self.index[rows, None]

    def traced(
        self, stream: Float[Tensor, "n k d_model"], rows: Rows = slice(None), *, attention: bool = True
    ) -> tuple[Float[Tensor, "n k n_items"], Float[Tensor, "n k n_movers n_items"]]:
        """As :meth:`both`, all at once and with gradients; attention that is not asked for is empty."""
        upper, x, found = self.forward, stream, dict[Head, Tensor]()
        for layer in range(upper.start, upper.n_layers):
            here = [mover for mover in self.movers if mover.layer == layer] if attention else []
            if here:
                scores = item_scores(upper, layer, [m.head for m in here], x, self.items[rows], rows)
                found.update(zip(here, scores.unbind(2)))
            x = upper.layer(layer, x[:, :, None], upper.at_end(), rows)[:, :, 0]
        none = x.new_zeros(*x.shape[:2], 0, self.candidates.shape[1])
        seen = torch.stack([found[mover] for mover in self.movers], 2) if attention else none
        return upper.logits(x, self.candidates[rows]), seen.log_softmax(-1)

    def _in_blocks(
        self, stream: Float[Tensor, "n k d_model"], rows: Rows, *, attention: bool = True
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`traced`, blocks of prompts and variants one after the other."""
        which = torch.arange(len(self), device=self.stream.device)[rows]
        if stream.ndim != 3 or len(stream) != len(which):
            raise OptionError(
                f"{len(which)} lists take a stream [n, k, d_model] of as many, not {tuple(stream.shape)}."
            )
        n_items, k = self.candidates.shape[1], stream.shape[1]
        given = stream.new_empty(len(which), k, n_items)
        seen = stream.new_empty(len(which), k, len(self.movers) if attention else 0, n_items)
        for some, variants in blocks(len(which), k, BLOCK_BYTES // (4 * self.forward.width)):
            found = self.traced(stream[some, variants], which[some], attention=attention)
            given[some, variants], seen[some, variants] = found
        return given, seen


def ends(c: Context, lists: Lists) -> Ends:
    """Some lists of a context's model: use ``c.kept(ends, lists)``. Raises :class:`NotApplicable` for a model without
    name movers above an S-inhibition head."""
    return make_ends(c.bridge, c.kept(lists), *movers_and_heads(c))


def make_ends(
    bridge: TransformerBridge, prompts: PromptSet, movers: Sequence[Head], heads: Sequence[Head] = ()
) -> Ends:
    """The same of any model, lists, movers and heads, of which those below the movers count. Raises
    :class:`OptionError` for no mover."""
    if not movers:
        raise OptionError("Lists are run up to the lowest mover's layer: name one mover at least, such as L9H9.")
    layer = min(mover.layer for mover in movers)
    gathered: dict[Head, list[Tensor]] = {head: [] for head in heads if head.layer < layer}

    def gather(z: Tensor, hook: Any) -> None:
        for head, parts in gathered.items():
            if head.layer == hook.layer():
                done = sum(map(len, parts))
                end = prompts.positions["end"][done : done + len(z)].to(z.device)
                parts.append(wide(z[torch.arange(len(z)), end, head.head]))

    names = dict.fromkeys(f"blocks.{head.layer}.attn.hook_z" for head in gathered)
    with bridge.hooks(fwd_hooks=[(name, gather) for name in names]):
        upper = prepare(bridge, prompts, layer)
    written = torch.zeros_like(upper.resid)
    for head, parts in gathered.items():
        written += torch.cat(parts) @ wide(bridge.blocks[head.layer].attn.W_O)[head.head]
    items, candidates = (part.to(upper.end.device) for part in item_positions(prompts))
    index = torch.as_tensor(prompts.info["index"], device=upper.end.device)
    return Ends(prompts, upper, upper.resid, candidates, items, index, tuple(movers), written)


@dataclass(frozen=True)
class Listed:
    """Lists run once from the lowest writer's layer on: to be steered where components write, and with any stream where
    the movers read."""

    steering: Steering
    ends: Ends


@torch.no_grad()
def listed(c: Context, lists: Lists) -> Listed:
    """Some lists, to be steered along the chosen triple: use ``c.kept(listed, lists)``."""
    of, prompts = c.kept(chosen), c.kept(lists)
    steering = grid.prepare(c.bridge, prompts, of.writers[:K])
    lower = steering.suffix
    stream = lower.run(lower.resid[:, None, None], lower.at_end(), stop=of.layer)[:, 0, 0]
    some = slice(of.layer - lower.start, None)
    upper = replace(
        lower, start=of.layer, layers=lower.layers[some], keys=lower.keys[some], values=lower.values[some], kept={}
    )
    index = torch.as_tensor(prompts.info["index"], device=stream.device)
    none = torch.zeros_like(stream)  # of what heads write nothing is asked
    return Listed(steering, Ends(prompts, upper, stream, steering.candidates, steering.items, index, of.movers, none))
