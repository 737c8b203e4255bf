"""Lists run once up to the lowest mover's layer; from there the last token alone, with any stream in its place.

Nothing before ``end`` depends on what stands there, so a changed stream costs one token through the layers that are
left, on keys and values that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import movers_and_heads
from talking_heads_utils.experiments.list_prompts import Lists
from talking_heads_utils.experiments.positional.grid import item_scores
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
    def attention(
        self, stream: Float[Tensor, "n k d_model"], rows: Rows = slice(None)
    ) -> Float[Tensor, "n k n_movers n_items"]:
        """The movers' attention from ``end`` to the items' first mentions, as shares of their attention to all
        items."""
        return self._in_blocks(stream, rows, logits=False)[1].exp()

    @torch.no_grad()
    def both(
        self, stream: Float[Tensor, "n k d_model"], rows: Rows = slice(None)
    ) -> tuple[Float[Tensor, "n k n_items"], Float[Tensor, "n k n_movers n_items"]]:
        """Logits, and the logarithm of attention, finite where a share is too small for its own number."""
        return self._in_blocks(stream, rows)

    def right(self, logits: Float[Tensor, "n k n_items"], rows: Rows = slice(None)) -> Bool[Tensor, "n k"]:
        """Whether the answer alone has the largest logit."""
        return answered(logits, self.index[rows])

    def traced(
        self, stream: Float[Tensor, "n k d_model"], rows: Rows = slice(None), *, logits: bool = True,
        attention: bool = True,
    ) -> tuple[Float[Tensor, "n k n_items"], Float[Tensor, "n k n_movers n_items"]]:  # fmt: skip
        """As :meth:`both`, all at once and with gradients; what is not asked for is empty."""
        upper, x, found = self.forward, stream, dict[Head, Tensor]()
        last = upper.n_layers if logits else 1 + max(mover.layer for mover in self.movers)
        for layer in range(upper.start, last):
            here = [mover for mover in self.movers if mover.layer == layer] if attention else []
            if here:
                scores = item_scores(upper, layer, [m.head for m in here], x, self.items[rows], rows)
                found.update(zip(here, scores.unbind(2)))
            if logits or layer + 1 < last:
                x = upper.layer(layer, x[:, :, None], upper.at_end(), rows)[:, :, 0]
        n, k, n_items = *x.shape[:2], self.candidates.shape[1]
        seen = torch.stack([found[mover] for mover in self.movers], 2) if attention else x.new_zeros(n, k, 0, n_items)
        given = upper.logits(x, self.candidates[rows]) if logits else x.new_zeros(n, k, 0)
        return given, seen.log_softmax(-1)

    def _in_blocks(
        self, stream: Float[Tensor, "n k d_model"], rows: Rows, *, logits: bool = True, attention: bool = True
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`traced`, blocks of prompts and variants one after the other."""
        which = torch.arange(len(self), device=self.stream.device)[rows]
        if stream.ndim != 3 or len(stream) != len(which):
            raise OptionError(
                f"{len(which)} lists take a stream [n, k, d_model] of as many, not {tuple(stream.shape)}."
            )
        n_items, k = self.candidates.shape[1], stream.shape[1]
        given = stream.new_empty(len(which), k, n_items if logits else 0)
        seen = stream.new_empty(len(which), k, len(self.movers) if attention else 0, n_items)
        for some, variants in _blocks(len(which), k, BLOCK_BYTES // (4 * self.forward.width)):
            found = self.traced(stream[some, variants], which[some], logits=logits, attention=attention)
            given[some, variants], seen[some, variants] = found
        return given, seen


def _blocks(n: int, k: int, usual: int) -> Iterator[tuple[slice, slice]]:
    """n prompts and k variants of each, ``usual`` pairs of them at once."""
    some = list(batches.blocks(k, usual))
    for rows in batches.blocks(n, max(1, usual // k)):
        for variants in some:
            yield rows, variants


def answered(logits: Float[Tensor, "n k n_items"], index: Int[Tensor, "n"]) -> Bool[Tensor, "n k"]:
    """Whether the item at each prompt's ``index`` alone has the largest logit: a tie is no answer."""
    own = logits.gather(2, index[:, None, None].expand(-1, logits.shape[1], 1))
    return (logits >= own).sum(2) == 1


@dataclass(frozen=True)
class _OfLists:
    """Makes the ends of some lists; equal ones are made once per context."""

    lists: Lists

    def __call__(self, c: Context) -> Ends:
        return make_ends(c.bridge, c.kept(self.lists), *movers_and_heads(c))


def ends(c: Context, lists: Lists) -> Ends:
    """The lists of a context's model, run once per context and lists. Raises :class:`NotApplicable` for a model without
    name movers above an S-inhibition head."""
    return c.kept(_OfLists(lists))


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
