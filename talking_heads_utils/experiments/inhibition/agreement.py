"""What weights predict against what activations show: rank correlation over components, an interval and three nulls.

The squared effect is cross-validated: it is the product of a component's mean effects on two random halves of the
prompts. The plain square of a mean would be larger where a component varies more from prompt to prompt, whatever its
true mean; the product of two independent means is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.effects import Effects, component_effects
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Head
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.halves import check_enough
from talking_heads_utils.scores.composition import reading_maps, score_directions
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import spearman

SCORE_ROUNDING, EFFECT_ROUNDING = 1e-5, 1e-6  # below it single precision holds nothing: such values are tied at zero
N_SPLITS, N_GROUPS = 20, 20
T_GROUPS = 2.093  # 97.5% point of Student's t with N_GROUPS - 1 degrees of freedom


@dataclass(frozen=True)
class AgreementRow(Row):
    """Composition score against squared effect on I(m), over all components of all heads below the strongest mover."""

    model: str = column("", "name of the model")
    spearman: float = column("", "rank correlation, mean over random splits of the prompts into halves")
    low: float = column("", "lower end of its 95% interval, by a jackknife over groups of prompts")
    high: float = column("", "upper end")
    noise_max: float = column("", "largest of the draws in which every component's true mean is zero")
    permuted_max: float = column("", "largest of the draws in which effects are shuffled among a head's components")
    rotated_mean: float = column("", "mean along random orthonormal directions of each head's span, not its SVD's")
    n_components: int = column("components", "how many count: those that write anything")
    n_prompts: int = column("prompts", "of the held-out half")


def run(c: Context) -> list[AgreementRow]:
    """The agreement of a model's weights and effects, into its strongest mover."""
    at = c.kept(mover_runs)
    return [agreement(at.held_out, at.effects, model=c.model, seed=c.seed)]


def composition_into(recording: Recording, mover: Head) -> Float[Tensor, "layers n_heads d_head"]:
    """Composition scores (kind Q) of the recording's own directions into one mover."""
    maps = reading_maps(recording.weights, mover.layer, "Q")[mover.head][None]
    directions = recording.directions[: mover.layer]
    return score_directions(directions.flatten(0, 2), maps.to(directions))[:, 0].view(directions.shape[:3])


def agreement(
    recording: Recording,
    effects: Effects,
    *,
    model: str = "",
    n_draws: int = 200,
    n_rotations: int = 5,
    seed: int = SEED,
) -> AgreementRow:
    """Do components that the mover's weights read more also do more to its attention?

    recording: must have the mover's layer among its readers. effects: of removing each component from the mover's
    query, on the same prompts. n_draws, n_rotations: sizes of the nulls. All components of all earlier heads count,
    save those that write nothing. Raises :class:`TaskError` for fewer than 20 prompts.
    """
    check_enough(recording.prompts)
    generator = torch.Generator().manual_seed(seed)
    every = composition_into(recording, effects.movers[0])
    keep = ~every.isnan()
    scores, found = _without_rounding(every[keep], effects.inhibition[:, 0, keep])
    halves = _random_halves(len(found), generator)
    value = cross_validated(scores, found, halves)
    error = _jackknife_error(scores, found, halves, generator)
    centred = found - found.mean(0)
    signs = 2.0 * torch.randint(2, (n_draws, len(found), 1), generator=generator) - 1
    orders = (_within_heads(keep.cpu(), generator) for _ in range(n_draws))
    rotations = follow(range(n_rotations), "random bases")
    return AgreementRow(
        model=model,
        spearman=value,
        low=max(-1.0, value - T_GROUPS * error),
        high=min(1.0, value + T_GROUPS * error),
        noise_max=max(cross_validated(scores, sign * centred, halves) for sign in signs),
        permuted_max=max(cross_validated(scores, found[:, order], halves) for order in orders),
        rotated_mean=fmean(rotated_agreement(recording, effects.movers[0], halves, generator) for _ in rotations),
        n_components=len(scores),
        n_prompts=len(found),
    )


def cross_validated(
    scores: Float[Tensor, "k"], effects: Float[Tensor, "n k"], halves: Sequence[Float[Tensor, "n_splits n"]]
) -> float:
    """Rank correlation of scores with the product of the effects' sums over two halves of the prompts, mean over
    splits. halves: 1 where a prompt is in the first, and in the second."""
    first, second = (half @ effects for half in halves)
    return spearman(scores, first * second).mean().item()


def rotated_agreement(
    recording: Recording, mover: Head, halves: Sequence[Float[Tensor, "n_splits n"]], generator: torch.Generator
) -> float:
    """The correlation when each head's span is cut along random orthonormal directions instead of its SVD's."""
    other = replace(recording, directions=rotated(recording.directions, generator))
    scores, effects = composition_into(other, mover), component_effects(other, mover)
    defined = ~scores.isnan()
    return cross_validated(*_without_rounding(scores[defined], effects.inhibition[:, 0, defined]), halves)


def rotated(
    directions: Float[Tensor, "n_layers n_heads d_head d_model"], generator: torch.Generator
) -> Float[Tensor, "n_layers n_heads d_head d_model"]:
    """As many random orthonormal directions in the span of each head's own; NaN where a head has no direction."""
    defined = ~directions.isnan().any(-1)
    noise = torch.randn(*defined.shape, defined.shape[-1], generator=generator).to(directions)
    within = defined[..., None] & defined[..., None, :]
    turn = torch.linalg.qr(noise * within + torch.diag_embed((~defined).to(noise)))[0]
    return (turn @ directions.nan_to_num()).masked_fill(~defined[..., None], torch.nan)


def _without_rounding(
    scores: Float[Tensor, "k"], effects: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "k"], Float[Tensor, "n k"]]:
    """Both in double precision, with what is rounding alone at zero: ranks would make something of it."""
    scores, effects = scores.cpu().double(), effects.cpu().double()
    return (
        scores.masked_fill(scores < SCORE_ROUNDING, 0.0),
        effects.masked_fill(effects.abs() < EFFECT_ROUNDING, 0.0),
    )


def _random_halves(n: int, generator: torch.Generator) -> list[Float[Tensor, "n_splits n"]]:
    first = (torch.rand(N_SPLITS, n, generator=generator).argsort(1) < n // 2).double()
    return [first, 1 - first]


def _jackknife_error(
    scores: Float[Tensor, "k"],
    effects: Float[Tensor, "n k"],
    halves: Sequence[Float[Tensor, "n_splits n"]],
    generator: torch.Generator,
) -> float:
    """Standard error of :func:`cross_validated` over prompts: one group of them left out at a time."""
    group = torch.randperm(len(effects), generator=generator) % N_GROUPS
    without = torch.tensor(
        [cross_validated(scores, effects, [half * (group != left) for half in halves]) for left in range(N_GROUPS)],
        dtype=torch.float64,
    )
    return ((N_GROUPS - 1) / N_GROUPS * (without - without.mean()).square().sum()).sqrt().item()


def _within_heads(keep: Bool[Tensor, "layers n_heads d_head"], generator: torch.Generator) -> Int[Tensor, "k"]:
    """A random order of the kept components, each within its own head."""
    d = keep.shape[-1]
    order = (torch.rand(keep.shape, generator=generator) + (~keep).float()).argsort(-1)  # the kept ones come first
    flat = order + d * torch.arange(keep[..., 0].numel()).view(*keep.shape[:-1], 1)
    chosen = flat[torch.arange(d) < keep.sum(-1, keepdim=True)]
    return (keep.flatten().cumsum(0) - 1)[chosen]
