"""Every component of every earlier head, changed in movers' queries: closed forms for all of them at once.

Source: Merullo et al. (2024), Figure 2 (inhibition score). How it is computed is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.forward.recording import (
    Mover,
    Recording,
    mover_of,
    scale_along,
    scores_after_shift,
    scores_along,
)
from talking_heads_utils.labels import Component, Head, as_head
from talking_heads_utils.metrics import contrast

if TYPE_CHECKING:
    import pandas as pd

_ELEMENTS = 1 << 22  # numbers that one block of prompts may take


@dataclass(frozen=True)
class Effects:
    """What a change of one component in one mover's query does: by prompt, mover, writer layer, head and component.

    odds: change of the log-odds of the mover's attention, in nats: the score of the answer's first mention less the
        mean score of the others' (IOI: IO less S1).
    inhibition: change of I(m), in shares of attention; None where it was not asked for.
    NaN at a mover's own layer and above.
    """

    movers: tuple[Head, ...]
    odds: Float[Tensor, "n movers layers n_heads d_head"]
    inhibition: Float[Tensor, "n movers layers n_heads d_head"] | None

    def table(self) -> pd.DataFrame:
        """Means over prompts, a row per mover and component below it: mover, writer, layer, head, component, odds and
        inhibition."""
        import pandas as pd

        index = torch.cartesian_prod(*map(torch.arange, self.odds.shape[1:]))
        index = index[index[:, 1] < torch.tensor([mover.layer for mover in self.movers])[index[:, 0]]]
        frame = pd.DataFrame(index.numpy(), columns=["mover", "layer", "head", "component"])
        frame["mover"] = [str(self.movers[i]) for i in frame["mover"]]
        frame.insert(1, "writer", [str(Component(*row)) for row in index[:, 1:].tolist()])
        for name in ("odds", "inhibition"):
            if (values := getattr(self, name)) is not None:
                frame[name] = values.mean(0).cpu()[tuple(index.T)].numpy()
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
    after = scores_after_shift(mover_of(recording, check_mover(recording, mover)), shift).softmax(-1)
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
    recording: Recording, movers: Head | str | Sequence[Head | str], *, donor: Recording | None = None,
    inhibition: bool = True,
) -> Effects:  # fmt: skip
    """Every component of every head below a mover, changed by itself in what that mover's query reads at ``end``.

    It is removed, or given the activation that it has in the ``donor``, a recording of as many prompts. Without
    ``inhibition``, which takes most of the time, only log-odds are computed. Raises :class:`LabelError` for a mover
    without earlier writers, :class:`OptionError` for no mover or a donor with another number of prompts.
    """
    heads = [check_mover(recording, m) for m in ([movers] if isinstance(movers, Head | str) else movers)]
    if not heads:
        raise OptionError("Name one mover at least.")
    if donor is not None and len(donor.prompts) != len(recording.prompts):
        raise OptionError(f"The donor has {len(donor.prompts)} prompts, not {len(recording.prompts)}.")
    layers = range(max(head.layer for head in heads))
    amounts = -recording.activations(layers)
    amounts = amounts if donor is None else amounts + donor.activations(layers)
    shape, norm = amounts.shape[1:], recording.reader(heads[0].layer).weights.norm
    directions = norm.center(recording.directions[: len(layers)].nan_to_num().flatten(0, 2))
    found = amounts.new_full((1 + inhibition, len(amounts), len(heads), len(directions)), torch.nan)
    for layer in sorted({head.layer for head in heads}):
        below = slice(layer * shape[1] * shape[2])
        asked = [i for i, head in enumerate(heads) if head.layer == layer]
        _changes_in(recording, heads, asked, directions[below], amounts.flatten(1)[:, below], found[..., below])
    found = found.unflatten(-1, shape)
    return Effects(tuple(heads), found[0], found[1] if inhibition else None)


def _changes_in(
    recording: Recording, heads: Sequence[Head], asked: Sequence[int], v: Float[Tensor, "c d_model"],
    amounts: Float[Tensor, "n c"], found: Float[Tensor, "k n movers c"],
) -> None:  # fmt: skip
    """Fills in the changes of the ``asked`` movers, which are of one layer and share what their norm divides by."""
    weights = contrast(recording.prompts).to(amounts)
    W_Q = recording.reader(heads[asked[0]].layer).weights.W_Q
    reads = [v @ W_Q[heads[i].head] for i in asked]
    for rows in batches.blocks(len(amounts), _ELEMENTS // (weights.shape[1] * max(len(v), 1))):
        movers = [mover_of(recording, heads[i], rows) for i in asked]
        scale = scale_along(movers[0].norm, movers[0].norm.center(movers[0].x), v, amounts[rows])
        for i, mover, read in zip(asked, movers, reads):
            found[0, rows, i] = _odds_change(mover, read, amounts[rows], scale, weights[rows])
            if len(found) > 1:
                found[1, rows, i] = _inhibition_change(mover, read, amounts[rows], scale, weights[rows])


def _odds_change(
    mover: Mover, read: Tensor, amounts: Tensor, scale: Tensor, weights: Float[Tensor, "n n_pos"]
) -> Float[Tensor, "n c"]:
    toward = weights[:, None] @ mover.keys
    before = ((mover.norm(mover.x) @ mover.W_Q + mover.b_Q)[:, None] * toward).sum(-1) / toward.shape[-1] ** 0.5
    return scores_along(mover, read, amounts, scale, toward)[:, 0] - before


def _inhibition_change(
    mover: Mover, read: Tensor, amounts: Tensor, scale: Tensor, weights: Float[Tensor, "n n_pos"]
) -> Float[Tensor, "n c"]:
    scores = scores_along(mover, read, amounts, scale, mover.keys)
    pattern = scores.masked_fill_(~mover.visible[..., None], -torch.inf).softmax(1)
    return (weights[:, None] @ pattern)[:, 0] - (mover.pattern * weights).sum(-1, keepdim=True)


def wanted_direction(recording: Recording) -> Float[Tensor, "n d_model"]:
    """Mean unembedding of the right answers less that of the wrong ones, the last norm's scale folded in."""
    U = recording.unembed.T
    tokens, weights = (part.to(U.device) for part in recording.prompts.logit_weights)
    return torch.einsum("nc,ncm->nm", weights.to(U.dtype), U[tokens])
