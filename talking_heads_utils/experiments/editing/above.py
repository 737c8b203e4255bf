"""An untouched model and edited ones on the same tokens: what lies below the first edit is run once for all of them.

Where the weights differ, the layers are the edited model's own, copied while the edit is in force; so this is another
route than :mod:`~talking_heads_utils.experiments.editing.upper`, which projects activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.editing import edit as edited
from talking_heads_utils.edits.edits import Edit
from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward import engine
from talking_heads_utils.forward.engine import PATTERN, RESID_PRE, Change, Forward, some_queries
from talking_heads_utils.forward.layers import attention_layer, wide
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Ran(NamedTuple):
    """One model's run over n rows of tokens.

    final: the stream after the last layer, at all q positions, or at the last one alone (q = 1). patterns: layer ->
    attention from the last position, of the layers that were run; empty where they were not asked for.
    """

    final: Float[Tensor, "n q d_model"]
    patterns: dict[int, Float[Tensor, "n n_heads n_pos"]]


@dataclass(frozen=True)
class Above:
    """plain: the layers from the first edited one on. edits: the same layers under each edit, and where it begins."""

    bridge: TransformerBridge
    plain: Forward
    edits: tuple[tuple[int, Forward], ...]

    @torch.no_grad()
    def runs(
        self, tokens: Int[Tensor, "n q"], last: Int[Tensor, "n"] | None = None, *, everywhere: bool = False,
        patterns: bool = False,
    ) -> Iterator[Ran]:  # fmt: skip
        """The untouched model's run, then that of every edit. last: each row's last token; what stands after it is
        padding. everywhere: the stream at all positions, not at the last token alone."""
        tokens = tokens.to(self.plain.end)
        n, q = tokens.shape
        end = tokens.new_full((n,), q - 1) if last is None else last.to(tokens)
        at, start = torch.arange(q, device=tokens.device).expand(n, -1), self.plain.start
        entering: dict[int, Tensor] = {start: wide(self.bridge(tokens, stop_at_layer=start))[:, None]}
        untouched: dict[int, Tensor] = {}
        for i, (first, forward) in enumerate(((start, self.plain), *self.edits)):
            seen: dict[int, Tensor] = {}
            look = _looking(end, seen if patterns else None, {f for f, _ in self.edits} if i == 0 else (), entering)
            final = replace(forward, end=end).run(
                entering[first], at, start=first, change=look, only_end=not everywhere
            )
            untouched = untouched or seen
            yield Ran(final[:, 0], {**untouched, **seen})


def _looking(
    end: Int[Tensor, "n"], patterns: dict[int, Tensor] | None, layers: Sequence[int] | set[int],
    entering: dict[int, Tensor],
) -> Change:  # fmt: skip
    """A change that changes nothing, and keeps attention from ``end`` and what enters some ``layers``."""

    def look(site: str, layer: int, value: Tensor) -> Tensor:
        if site == RESID_PRE and layer in layers:
            entering[layer] = value
        if site == PATTERN and patterns is not None:
            rows = value.transpose(2, 3).flatten(3)[:, :1]  # [n, 1, q, n_heads * n_pos]
            own = rows if value.shape[3] == 1 else some_queries(rows, end[:, None])
            patterns[layer] = own[:, 0, 0].unflatten(-1, value.shape[2::2])
        return value

    return look


def prepare(bridge: TransformerBridge, some: PromptSet, edits: Sequence[Edit]) -> Above:
    """The layers that edits reach. some: a few prompts, on which the layers are held against the model's own run.

    Raises :class:`OptionError` for no edit, and as :func:`~talking_heads_utils.forward.engine.prepare` and
    :func:`~talking_heads_utils.editing.edit` do.
    """
    if not edits or not all(edit.changes for edit in edits):
        raise OptionError("Nothing is edited: give one edit at least, of one change or more.")
    firsts = [min(change.component.layer for change in edit.changes) for edit in edits]
    plain = engine.prepare(bridge, some, min(firsts))
    return Above(bridge, plain, tuple((f, _edited(bridge, plain, edit)) for f, edit in zip(firsts, edits)))


def _edited(bridge: TransformerBridge, plain: Forward, edit: Edit) -> Forward:
    layers, touched = list(plain.layers), {change.component.layer for change in edit.changes}
    with edited(bridge, edit):
        for layer in touched:
            at = attention_layer(bridge, layer)  # whose weights are put back when the edit ends
            at = replace(at, **{name: getattr(at, name).clone() for name in ("W_Q", "b_Q", "W_O", "b_O")})
            layers[layer - plain.start] = replace(layers[layer - plain.start], attention=at)
    return replace(plain, layers=layers)
