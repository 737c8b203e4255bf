"""Every component of every earlier head, removed from a mover's query: closed forms for all of them at once.

Source: Merullo et al. (2024), Figure 2 (inhibition score). How it is computed is this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import LabelError
from talking_heads_utils.forward.closed_form import (
    direct_logit_effect,
    mover_of,
    pattern_after_query,
    pattern_after_shift,
)
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Component, Head, as_head
from talking_heads_utils.metrics import contrast

if TYPE_CHECKING:
    import pandas as pd

_ELEMENTS = 24_000_000  # numbers that one block of prompts may take


@dataclass(frozen=True)
class Effects:
    """What the removal of one component from one mover's query changes, by prompt, writer layer, head and component.

    inhibition: change of I(m), in shares of attention.
    pattern: total variation distance between the mover's attention before and after, 0 to 1.
    direct: change of the logit difference that goes from the mover straight to the logits, past all later layers.
    before: I(m) untouched.
    """

    mover: Head
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
def component_effects(recording: Recording, mover: Head | str) -> Effects:
    """All components of all writers below a mover, each removed by itself from what the mover's query reads.

    Raises :class:`LabelError` for a mover without earlier writers.
    """
    head = check_mover(recording, mover)
    prompts = recording.prompts
    weights, wanted = contrast(prompts).to(recording.final), wanted_direction(recording)
    directions = recording.directions[: head.layer].nan_to_num().flatten(0, 1)
    n_pos, n_components = prompts.tokens.shape[1], directions[..., 0].numel()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in batches.blocks(len(prompts), _ELEMENTS // (n_pos * n_components)):
        at = mover_of(recording, head, rows)
        activations = recording.activations(range(head.layer), rows=rows).flatten(-3, -2)
        change = pattern_after_query(at, directions, -activations).sub_(at.pattern[:, None, None])
        direct = direct_logit_effect(at, change, recording.final[rows], wanted[rows], recording.norm)
        inhibition = (change @ weights[rows, None, :, None])[..., 0]
        parts.append((inhibition, change.abs_().sum(-1) / 2, direct))
    shape = (head.layer, recording.weights.n_heads, recording.weights.d_head)
    inhibition, pattern, direct = (torch.cat(values).unflatten(1, shape[:2]) for values in zip(*parts))
    return Effects(head, inhibition, pattern, direct, inhibition_score(recording, head))


def wanted_direction(recording: Recording) -> Float[Tensor, "n d_model"]:
    """Mean unembedding of the right answers less that of the wrong ones, the last norm's scale folded in."""
    U = recording.unembed.T
    tokens, weights = (part.to(U.device) for part in recording.prompts.logit_weights)
    return torch.einsum("nc,ncm->nm", weights.to(U.dtype), U[tokens])
