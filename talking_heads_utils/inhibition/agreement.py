"""What weights predict against what activations show: rank correlation over components, an interval and two nulls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.composition import reading_maps, score_directions
from talking_heads_utils.inhibition.effects import REMOVE, Effects, component_effects
from talking_heads_utils.labels import Head
from talking_heads_utils.progress import follow
from talking_heads_utils.runs.recording import Recording
from talking_heads_utils.settings import SEED
from talking_heads_utils.tasks.halves import check_enough


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation between composition score and size of effect, over ``n_components`` components.

    low, high: 95% bootstrap interval over ``n_prompts`` prompts. permuted: effects shuffled within each head.
    rotated: the same measure in random bases of each head's OV space, scores and effects computed anew.
    """

    value: float
    low: float
    high: float
    n_components: int
    n_prompts: int
    permuted: Float[Tensor, "n_draws"]
    rotated: Float[Tensor, "n_rotations"]


def composition_into(recording: Recording, mover: Head) -> Float[Tensor, "layers n_heads d_head"]:
    """Composition scores (kind Q) of the recording's own directions into one mover."""
    maps = reading_maps(recording.weights, mover.layer, "Q")[mover.head][None]
    directions = recording.directions[: mover.layer]
    return score_directions(directions.flatten(0, 2), maps.to(directions))[:, 0].view(directions.shape[:3])


def agreement(
    recording: Recording,
    effects: Effects,
    *,
    n_boot: int = 500,
    n_draws: int = 200,
    n_rotations: int = 5,
    seed: int = SEED,
) -> Agreement:
    """Over all components of all earlier heads. Raises :class:`TaskError` for fewer than 20 prompts."""
    check_enough(recording.prompts)
    generator = torch.Generator().manual_seed(seed)
    scores = composition_into(recording, effects.mover)
    mean = effects.inhibition.mean(0).abs()
    keep = ~scores.isnan()
    n = len(effects.inhibition)
    draws = torch.randint(n, (n_boot, n), generator=generator)
    counts = torch.zeros(n_boot, n).scatter_add_(1, draws, torch.ones(n_boot, n)) / n
    booted = (counts.to(effects.inhibition) @ effects.inhibition[:, keep]).abs()
    ends = torch.quantile(spearman(scores[keep], booted).cpu(), torch.tensor([0.025, 0.975], dtype=torch.float64))
    orders = torch.rand(n_draws, *mean.shape, generator=generator).argsort(-1).to(mean.device)
    shuffled = mean.expand(n_draws, -1, -1, -1).gather(-1, orders)
    rotated = [
        rotated_agreement(recording, effects.mover, generator) for _ in follow(range(n_rotations), "random bases")
    ]
    return Agreement(
        value=spearman(scores[keep], mean[keep][None]).item(),
        low=ends[0].item(),
        high=ends[1].item(),
        n_components=int(keep.sum()),
        n_prompts=n,
        permuted=spearman(scores[keep], shuffled[:, keep]),
        rotated=torch.tensor(rotated),
    )


def rotated_agreement(recording: Recording, mover: Head, generator: torch.Generator) -> float:
    """The correlation when each head's OV space is cut along random orthonormal directions instead of its SVD's."""
    shape = recording.directions.shape
    noise = torch.randn(*shape[:2], shape[2], shape[2], generator=generator).to(recording.directions)
    turned = torch.linalg.qr(noise)[0] @ recording.directions.nan_to_num()
    other = replace(recording, directions=turned)
    scores, effects = composition_into(other, mover), component_effects(other, mover, REMOVE)
    defined = ~recording.directions[: mover.layer].isnan().any(-1)
    return spearman(scores[defined], effects.inhibition.mean(0).abs()[defined][None]).item()


def spearman(x: Float[Tensor, "k"], y: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Rank correlation of ``x`` with every row of ``y``; ties get the mean of their ranks."""
    ranks_x, ranks_y = _ranks(x[None]), _ranks(y)
    ranks_x, ranks_y = (r - r.mean(-1, keepdim=True) for r in (ranks_x, ranks_y))
    return (ranks_y @ ranks_x[0]) / (ranks_x.norm() * ranks_y.norm(dim=-1)).clamp(min=1e-12)


def _ranks(values: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    ordered, order = values.sort(dim=-1)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] > ordered[:, :-1]
    group = new.cumsum(-1) - 1  # equal values share a group
    places = torch.arange(values.shape[-1], dtype=torch.float64, device=values.device).expand_as(values)
    zeros = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
    total = zeros.scatter_add(1, group, places)
    count = zeros.scatter_add(1, group, torch.ones_like(places))
    ranks = (total / count.clamp(min=1)).gather(1, group)
    return torch.empty_like(ranks).scatter_(1, order, ranks)
