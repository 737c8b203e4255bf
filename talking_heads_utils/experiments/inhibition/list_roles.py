"""Movers and inhibition heads of the book's own small models, which live on lists. A language model's roles are found
on IOI, by :mod:`talking_heads_utils.roles.ioi`.

Source of the method: path patching, Wang et al. (2022); in closed form here, since only a mover's query is patched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.effects import inhibition_change, wanted_direction
from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward.recording import Recording, record
from talking_heads_utils.labels import Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.prompts.halves import half_rows
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.roles.ioi import effects_along
from talking_heads_utils.settings import SEED

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARE_OF_BEST = 0.25  # a head has a role if its score is at least this share of the best head's
LEAST_CHANGE = 0.01  # of I(m), which lies between -1 and 1; below it nothing is called inhibition
LEAST_SCORE = 1e-5  # logits, of a mover; less is rounding: no head tells the answer from the other candidates
SOLVED_BY_MOVERS = 0.5  # share of the direct logit difference below which there is no mover to speak of


@dataclass(frozen=True)
class FoundRoles:
    """Movers and inhibition heads of a model, the strongest first. share: of the whole logit difference, what the
    movers write."""

    movers: list[Head]
    inhibition: list[Head]
    share: float

    @property
    def through_movers(self) -> bool:
        """Whether the answer runs through movers at all. Where it does not, their inhibition explains nothing."""
        return self.share >= SOLVED_BY_MOVERS


@torch.no_grad()
def roles_on_lists(bridge: TransformerBridge, prompts: PromptSet, *, seed: int = SEED) -> FoundRoles:
    """Roles by what heads do on the selection half of these prompts; writes are exchanged with those of another prompt.

    Where no head tells the answer from the other candidates, as in the planted control, movers are the heads that copy
    it with them. Raises :class:`OptionError` if no head copies it.
    """
    prompts = prompts.select(half_rows(prompts)[0])
    recording = record(bridge, prompts, range(1, bridge.cfg.n_layers))
    wanted = wanted_direction(recording)
    scores, direct = mover_scores(recording, wanted)
    movers = heads_with_a_role(scores, least=LEAST_SCORE)
    movers = movers or heads_with_a_role(mover_scores(recording, copied_direction(recording))[0])
    if not movers:
        raise OptionError("No head attends to the answer and writes it: there is no mover to inhibit.")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).to(recording.rows.device)
    patched = torch.stack([patch_into_query(recording, order, mover) for mover in movers]).nanmean(0)
    whole = ((recording.norm(recording.final) * wanted).sum(-1)).mean()
    share = (sum(direct[m.layer, m.head] for m in movers) / whole).item()
    return FoundRoles(movers, heads_with_a_role(-patched.nan_to_num(), least=LEAST_CHANGE), share)


def mover_scores(
    recording: Recording, wanted: Float[Tensor, "n d_model"]
) -> tuple[Float[Tensor, "n_layers n_heads"], Float[Tensor, "n_layers n_heads"]]:
    """Mean attention from ``end`` to the answer times mean direct effect along ``wanted`` (logits), and that effect.
    The first layer counts as zero: it has no earlier writer."""
    to_answer = contrast(recording.prompts).clamp(min=0).to(recording.final)
    direct = effects_along(recording, wanted, torch.ones_like(to_answer)[:, None])[..., 0].mean(0)
    attention = torch.zeros_like(direct)
    for layer, reader in recording.readers.items():
        attention[layer] = (reader.pattern * to_answer[:, None]).sum(-1).mean(0).cpu()
    return attention * direct, direct


def copied_direction(recording: Recording) -> Float[Tensor, "n d_model"]:
    """Unembedding of the answer less the mean of the vocabulary's, the last norm's scale folded in."""
    U = recording.unembed.T
    return U[recording.prompts.answers.to(U.device)] - U.mean(0)


def patch_into_query(recording: Recording, order: Tensor, mover: Head) -> Float[Tensor, "n_layers n_heads"]:
    """Mean change of I(m) when one head's write into the mover's query is that of another prompt; NaN at and above."""
    found = torch.full((recording.weights.n_layers, recording.weights.n_heads), torch.nan)
    for layer in range(mover.layer):
        shift = recording.write(layer)[order] - recording.write(layer)
        found[layer] = inhibition_change(recording, mover, shift).mean(0)
    return found


def heads_with_a_role(scores: Float[Tensor, "n_layers n_heads"], *, least: float = 0.0) -> list[Head]:
    """Heads with at least :data:`SHARE_OF_BEST` of the best one's score and more than ``least``, the best first."""
    found = [Head(*index) for index in ((scores >= SHARE_OF_BEST * scores.max()) & (scores > least)).nonzero().tolist()]
    return sorted(found, key=lambda head: -scores[head.layer, head.head].item())
