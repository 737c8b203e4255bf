"""Every component of every earlier head: removed from a mover's input, kept alone in it, flipped, held at its mean.

Source: Merullo et al. (2024), Figure 2 (inhibition score). How it is computed is this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.forward.closed_form import (
    direct_logit_effect,
    mover_of,
    pattern_after_keys,
    pattern_after_query,
    pattern_after_shift,
)
from talking_heads_utils.forward.engine import ATTN_OUT, Forward
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Component, Head, as_head
from talking_heads_utils.metrics import contrast

if TYPE_CHECKING:
    import pandas as pd

REMOVE, KEEP, FLIP, MEAN = "remove", "keep only", "flip", "mean"
INTERVENTIONS = (REMOVE, KEEP, FLIP, MEAN)
QUERY, KEY = "query", "key"
_ELEMENTS = 24_000_000  # numbers that one block of prompts may take


@dataclass(frozen=True)
class Effects:
    """What one intervention on one mover's input changes, by prompt, writer layer, writer head and component.

    intervention: one of :data:`INTERVENTIONS`. side: whether the mover's query or its keys read the changed input.
    inhibition: change of I(m), in shares of attention.
    pattern: total variation distance between the mover's attention before and after, 0 to 1.
    direct: change of the logit difference that goes from the mover straight to the logits, past all later layers.
    before: I(m) untouched.
    """

    mover: Head
    intervention: str
    side: str
    inhibition: Float[Tensor, "n layers n_heads d_head"]
    pattern: Float[Tensor, "n layers n_heads d_head"]
    direct: Float[Tensor, "n layers n_heads d_head"]
    before: Float[Tensor, "n"]

    def of(self, component: Component) -> Float[Tensor, "n"]:
        """Change of I(m), prompt by prompt, for one component."""
        return self.inhibition[:, component.layer, component.head, component.component]

    def table(self) -> pd.DataFrame:
        """Means over prompts, one row per component: writer, layer, head, component, inhibition, pattern, direct."""
        import pandas as pd

        layers, n_heads, d_head = self.inhibition.shape[1:]
        index = torch.cartesian_prod(*(torch.arange(size) for size in (layers, n_heads, d_head)))
        frame = pd.DataFrame(index.numpy(), columns=["layer", "head", "component"])
        frame.insert(0, "writer", [str(Component(*row)) for row in index.tolist()])
        for name in ("inhibition", "pattern", "direct"):
            frame[name] = getattr(self, name).mean(0).flatten().cpu().numpy()
        return frame


def inhibition_score(recording: Recording, mover: Head | str) -> Float[Tensor, "n"]:
    """I(m) of every prompt: the mover's attention from ``end`` to the answer less that to what is to be inhibited."""
    head = check_mover(recording, mover)
    weights = contrast(recording.prompts).to(recording.final)
    return (recording.reader(head.layer).pattern[:, head.head] * weights).sum(-1)


def inhibition_change(
    recording: Recording, mover: Head | str, shift: Float[Tensor, "n k d_model"]
) -> Float[Tensor, "n k"]:
    """Change of I(m) when the input of the mover's query is moved by whole vectors."""
    weights = contrast(recording.prompts).to(recording.final)
    after = pattern_after_shift(mover_of(recording, check_mover(recording, mover)), shift)
    return (after * weights[:, None]).sum(-1) - inhibition_score(recording, mover)[:, None]


def check_mover(recording: Recording, mover: Head | str) -> Head:
    """Raises :class:`LabelError` for a head that is not there or has no earlier writer."""
    head = recording.weights.head(as_head(mover))
    if head.layer == 0:
        raise LabelError(f"{head} is in the first layer: no earlier head writes what it reads. Choose a later mover.")
    recording.reader(head.layer)
    return head


@torch.no_grad()
def component_effects(
    recording: Recording, mover: Head | str, intervention: str = REMOVE, *, side: str = QUERY
) -> Effects:
    """All components of all writers below a mover, in closed form.

    Raises :class:`LabelError` for a mover without earlier writers, :class:`OptionError` for an unknown intervention or
    side.
    """
    head = check_mover(recording, mover)
    if intervention not in INTERVENTIONS or side not in (QUERY, KEY):
        raise OptionError(
            f"No intervention {intervention!r} on side {side!r}: use {', '.join(INTERVENTIONS)} on {QUERY} or {KEY}."
        )
    prompts = recording.prompts
    weights, wanted = contrast(prompts).to(recording.final), wanted_direction(recording)
    directions = recording.directions[: head.layer].nan_to_num().flatten(0, 1)
    n_pos, n_components = prompts.tokens.shape[1], directions[..., 0].numel()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    means = _means(recording, head, side) if intervention == MEAN else None
    for rows in batches.blocks(len(prompts), _ELEMENTS // (n_pos * n_components)):
        at = mover_of(recording, head, rows)
        amounts = _amounts(intervention, _activations(recording, head, rows, side), means)
        shift = _shift(recording, head, rows, intervention, side)
        after = (pattern_after_query if side == QUERY else pattern_after_keys)(at, directions, amounts, shift)
        change = after.sub_(at.pattern[:, None, None])
        direct = direct_logit_effect(at, change, recording.final[rows], wanted[rows], recording.norm)
        inhibition = (change @ weights[rows, None, :, None])[..., 0]
        parts.append((inhibition, change.abs_().sum(-1) / 2, direct))
    shape = (head.layer, recording.weights.n_heads, recording.weights.d_head)
    inhibition, pattern, direct = (torch.cat(values).unflatten(1, shape[:2]) for values in zip(*parts))
    return Effects(head, intervention, side, inhibition, pattern, direct, inhibition_score(recording, head))


@torch.no_grad()
def attention_without(
    recording: Recording, mover: Head | str, component: Component, row: int
) -> Float[Tensor, "2 n_pos"]:
    """One prompt: a mover's attention from ``end``, untouched and with one component out of its query.

    Raises :class:`LabelError` for a component that does not come before the mover, :class:`OptionError` for a prompt
    that is not there.
    """
    head = check_mover(recording, mover)
    recording.weights.head(component.of_head)
    if component.layer >= head.layer or not 0 <= component.component < recording.weights.d_head:
        raise LabelError(f"{head} reads no {component}. Choose an earlier head, and one of its components.")
    if not 0 <= row < len(recording.prompts):
        raise OptionError(f"There is no prompt {row}: there are {len(recording.prompts)}, counted from 0.")
    rows = slice(row, row + 1)
    at = mover_of(recording, head, rows)
    flat = component.layer * recording.weights.n_heads + component.head
    amount = -_activations(recording, head, rows, QUERY)[:, flat, component.component]
    direction = recording.directions[component.layer, component.head, component.component].nan_to_num()
    after = pattern_after_query(at, direction[None, None], amount[:, None, None])[0, 0]
    return torch.cat([at.pattern, after])


def _amounts(intervention: str, activations: Tensor, means: Tensor | None) -> Tensor:
    """How far an intervention moves along each write direction; ``keep only`` puts back what its shift took away."""
    if means is not None:
        return means - activations
    return activations * {REMOVE: -1.0, KEEP: 1.0, FLIP: -2.0}[intervention]


def _shift(recording: Recording, head: Head, rows: slice, intervention: str, side: str) -> Tensor | None:
    """``keep only`` first takes the whole head away: ``[n, *n_pos, g, d_model]``."""
    if intervention != KEEP:
        return None
    writes = [recording.write(layer, at_end=side == QUERY, rows=rows) for layer in range(head.layer)]
    return -torch.cat(writes, -2)


def _activations(recording: Recording, head: Head, rows: slice, side: str) -> Float[Tensor, "n *n_pos g c"]:
    """Every earlier component's coefficient along its write direction, heads of all layers in one row."""
    return recording.activations(range(head.layer), at_end=side == QUERY, rows=rows).flatten(-3, -2)


def _means(recording: Recording, head: Head, side: str) -> Float[Tensor, "*n_pos g c"]:
    """Mean over the prompts; on the key side position by position, over the prompts that reach so far."""
    if side == QUERY:
        return _activations(recording, head, slice(None), side).mean(0)
    total = torch.zeros(())
    for rows in batches.blocks(len(recording.prompts), 16):
        seen = recording.visible[rows, :, None, None]
        total = total + (_activations(recording, head, rows, side) * seen).sum(0)
    return total / recording.visible.sum(0).clamp(min=1)[:, None, None]


def wanted_direction(recording: Recording) -> Float[Tensor, "n d_model"]:
    """Mean unembedding of the right answers less that of the wrong ones, the last norm's scale folded in."""
    U = recording.unembed.T
    tokens, weights = (part.to(U.device) for part in recording.prompts.logit_weights)
    return torch.einsum("nc,ncm->nm", weights.to(U.dtype), U[tokens])


@torch.no_grad()
def total_effect(
    recording: Recording, suffix: Forward, effects: Effects, components: list[Component], *, block: int = 32
) -> Float[Tensor, "n k"]:
    """Change of the logit difference through everything above the mover, for some components: the mover's write at
    ``end`` is replaced, and the last token runs through the layers above.

    suffix: of the same model and prompts, starting at the mover's layer. Query side only. Raises
    :class:`OptionError` otherwise.
    """
    head = effects.mover
    if suffix.start != head.layer or len(suffix.resid) != len(recording.prompts) or effects.side != QUERY:
        raise OptionError(f"The suffix must start at the mover's layer {head.layer}, on the same prompts; query side.")
    flat = torch.tensor([c.layer * recording.weights.n_heads + c.head for c in components])
    which = torch.tensor([c.component for c in components])
    candidates, weights = (part.to(recording.final.device) for part in recording.prompts.logit_weights)
    means = _means(recording, head, QUERY) if effects.intervention == MEAN else None
    directions = recording.directions[: head.layer].nan_to_num().flatten(0, 1)
    parts = []
    for rows in batches.blocks(len(candidates), block):
        at = mover_of(recording, head, rows)
        shift = _shift(recording, head, rows, effects.intervention, QUERY)
        activations = _activations(recording, head, rows, QUERY)[:, flat, which]
        amounts = _amounts(effects.intervention, activations, None if means is None else means[flat, which])
        after = pattern_after_query(
            at, directions[flat, which][:, None], amounts[..., None], None if shift is None else shift[:, flat]
        )[:, :, 0]
        change = (after - at.pattern[:, None]) @ at.moved
        run = partial(_added_at, suffix, head.layer, rows)
        logits = [
            suffix.logits(run(added), candidates[rows]) for added in (change, torch.zeros_like(change[:, :1]))
        ]  # fmt: skip
        differences = [(values * weights[rows, None].to(values)).sum(-1) for values in logits]
        parts.append(differences[0] - differences[1])
    return torch.cat(parts)


def _added_at(run: Forward, layer: int, rows: slice, added: Float[Tensor, "n k d_model"]) -> Tensor:
    """The final stream at ``end`` where this is added to what a layer's attention writes."""

    def add(site: str, at: int, value: Tensor) -> Tensor:
        return value + added[:, :, None] if (site, at) == (ATTN_OUT, layer) else value

    return run.run(run.resid[rows, None, None], run.at_end(), change=add, rows=rows)[:, :, 0]
