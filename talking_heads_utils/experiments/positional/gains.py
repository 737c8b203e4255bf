"""What steering buys: every choice is made on the selection half and scored on the held-out one."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.stats import Interval, share, share_change


class Strategy(StrEnum):
    """How a prompt's setting is chosen. The last two see what they are scored on: they are bounds, not methods."""

    NONE = "none"
    ONE = "one_setting"
    TOLD_INDEX = "told_the_answers_index"
    ORACLE = "oracle"


GAINS = (Strategy.ONE,)  # what may be called a gain: it is told nothing of the answers that it is scored on


class Gain(NamedTuple):
    """Accuracy on the held-out half, the paired difference to no steering (of no steering itself exactly 0), both with
    95% intervals over prompts, the settings that were used (none for the oracle), and the difference on the half that
    chose them. The noise of a choice takes from the gain on the held-out half and adds to the one where chosen."""

    accuracy: Interval
    gain: Interval
    settings: list[int]
    where_chosen: float


def gains(
    right: Bool[Tensor, "n n_settings"],
    selection: Bool[Tensor, "n"],
    index: Int[Tensor, "n"],
    settings: Float[Tensor, "n_settings k"],
) -> dict[str, Gain]:
    """Accuracy by strategy. right: whether each prompt is answered under each setting; the zero setting must be there.
    index: list index of each answer, which :attr:`Strategy.TOLD_INDEX` is told on the held-out half too.

    Among settings that do equally well on the selection half, the smallest counts. Raises :class:`OptionError` for an
    empty half or a grid without zero.
    """
    zero = zero_setting(settings)
    if not selection.any() or selection.all():
        raise OptionError("Choices need prompts in both halves.")
    chosen = right[selection].double()
    best = _best(chosen.mean(0), settings)
    told = {}
    for i in index.unique().tolist():
        rows = index[selection] == i
        told[i] = _best(chosen[rows].mean(0), settings) if rows.any() else best
    used = torch.tensor([told[i] for i in index.tolist()])
    strategies = {
        Strategy.NONE: (right[:, zero], [zero]),
        Strategy.ONE: (right[:, best], [best]),
        Strategy.TOLD_INDEX: (right[torch.arange(len(right)), used], sorted(set(told.values()))),
        Strategy.ORACLE: (right.any(1), []),
    }
    plain = right[:, zero]
    found: dict[str, Gain] = {}
    for name, (hit, which) in strategies.items():
        gain = share_change(hit[~selection], plain[~selection])
        if name == Strategy.NONE:
            gain = Interval(0.0, 0.0, 0.0, gain.n)
        where_chosen = (hit[selection].double() - plain[selection].double()).mean().item()
        found[name] = Gain(share(hit[~selection]), gain, which, where_chosen)
    return found


def zero_setting(settings: Float[Tensor, "n_settings k"]) -> int:
    """The row that changes nothing. Raises :class:`OptionError` unless there is one and one only."""
    zero = (settings == 0).all(1).nonzero().flatten().tolist()
    if len(zero) != 1:
        raise OptionError(f"A grid must hold the zero setting once, not {len(zero)} times.")
    return zero[0]


def _best(means: Float[Tensor, "n_settings"], settings: Float[Tensor, "n_settings k"]) -> int:
    """The best setting, of equals the smallest."""
    size = settings.double().norm(dim=1)
    top = means >= means.max() - 1e-9
    return int(size.masked_fill(~top, torch.inf).argmin())
