"""Moving the point by hand: where it brings the mover's attention, and what it buys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.positional.coordinates import index_of_answer
from talking_heads_utils.experiments.positional.decoding import channel, points
from talking_heads_utils.experiments.positional.gains import Gain, gains, zero_setting
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.steer import ATTENTION, LOGITS, Steering, grid, prepare, random_directions, steer
from talking_heads_utils.prompts.halves import halves, in_selection
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import bootstrap_mean

REACH = 2.0  # of a steering axis: so many times the largest coordinate that prompts have by themselves


@dataclass(frozen=True)
class ReachRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    draw: int | None = column("", "random directions that were steered along; empty: the three components'")
    list_index: int = column("", "where attention is to be brought, from 0")
    plain: float = column("share", "of the mover's attention there, unsteered")
    steered: float = column("share", "the same under the setting that did best on the other half")
    low: float = column("share", "95% interval over prompts, lower end")
    high: float = column("share", "95% interval over prompts, upper end")
    n: int = column("prompts", "held-out lists")


@dataclass(frozen=True)
class GainRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    draw: int | None = column("", "random directions that were steered along; empty: the three components'")
    strategy: str = column("", "none, one_setting; the bounds told_the_answers_index and oracle see the answers")
    accuracy: float = column("share", "held-out lists answered")
    accuracy_low: float = column("share", "95% interval over prompts, lower end")
    accuracy_high: float = column("share", "95% interval over prompts, upper end")
    gain: float = column("points", "accuracy less that without steering, held-out lists")
    low: float = column("points", "95% interval of the gain over prompts, paired, lower end")
    high: float = column("points", "95% interval of the gain over prompts, paired, upper end")
    where_chosen: float = column("points", "gain on the lists that the setting was chosen on")
    n: int = column("prompts", "held-out lists")


class Traversal(NamedTuple):
    """Mean attention of a mover to each item over a grid of three alphas, and the values of each axis."""

    attention: np.ndarray  # [v, v, v, n_items]
    values: Sequence[float]


def axis(run: Context, n_items: int, n_values: int, directions: Tensor | None = None) -> list[float]:
    """Values of a steering axis for this model, zero among them: :data:`REACH` times the largest centred coordinate of
    prompts on the selection half along the channel's directions, or others, to both sides. Raises :class:`OptionError`
    for an even number of values or fewer than three."""
    if n_values < 3 or n_values % 2 != 1:
        raise OptionError(f"An axis has an odd number of values, three at least, zero in their middle; not {n_values}.")
    directions = run.kept(channel).directions if directions is None else directions
    recording = run.record(halves(run.lists(n_items, 100))[0], [run.mover.layer])
    values = points(recording, run.mover, directions)
    reach = REACH * (values - values.mean(0)).abs().max().item()
    return [reach * (2 * i / (n_values - 1) - 1) for i in range(n_values)]


def traversal(run: Context, n_items: int, values: Sequence[float], n_prompts: int = 40) -> Traversal:
    """Mean attention of the mover to each item, over the whole grid of three alphas."""
    at = run.kept(channel)
    steering = prepare(run.bridge, run.lists(n_items, n_prompts), at.writers)
    found = steer(steering, grid(values), movers=[at.mover])[ATTENTION][:, :, 0].mean(0)
    return Traversal(found.view(*[len(values)] * 3, n_items).cpu().numpy(), values)


def reach(
    run: Context, n_items: int, values: Sequence[float], n_prompts: int = 100, n_random: int = 3
) -> list[ReachRow]:
    """Can the mover be brought to an item of the list by hand? For each list index the setting that brings most of its
    attention there, chosen on the selection half, scored on the other; also along random directions of equal norm.

    Raises :class:`OptionError` for values without zero, or for no random directions.
    """
    prompts, settings, rows = run.lists(n_items, n_prompts), grid(values), []
    plain, selection = zero_setting(settings), in_selection(prompts)
    for draw, steering in _steerings(run, prompts, n_random):
        found = steer(steering, settings, movers=[run.kept(channel).mover])[ATTENTION][:, :, 0].cpu()
        for i, setting in enumerate(found[selection].mean(0).argmax(0).tolist()):
            steered = bootstrap_mean(found[~selection, setting, i], n_boot=1000)
            rows.append(ReachRow(run.model, n_items, draw, i, found[~selection, plain, i].mean().item(), *steered))
    return rows


def steering_gains(
    run: Context, n_items: int, values: Sequence[float], n_prompts: int = 200, n_random: int = 3
) -> list[GainRow]:
    """What steering along the three components buys, and along random directions of equal norm with the same grid and
    the same search. Raises :class:`OptionError` for values without zero, or for no random directions."""
    prompts, settings, rows = run.lists(n_items, n_prompts), grid(values), []
    for draw, steering in _steerings(run, prompts, n_random):
        right = right_under(steering, prompts, settings)
        found = gains(right, in_selection(prompts), index_of_answer(prompts), settings)
        rows += gain_rows(run.model, n_items, draw, found)
    return rows


def gain_rows(model: str, n_items: int, draw: int | None, found: Mapping[str, Gain]) -> list[GainRow]:
    """A row for each strategy, or whatever else gains are called by."""
    return [
        GainRow(model, n_items, draw, strategy, *g.accuracy[:3], 100 * g.gain.mean, 100 * g.gain.low,
                100 * g.gain.high, 100 * g.where_chosen, g.gain.n)
        for strategy, g in found.items()
    ]  # fmt: skip


def _steerings(run: Context, prompts: PromptSet, n_random: int) -> Iterator[tuple[int | None, Steering]]:
    """Along the components' own directions, then along each draw of random ones."""
    writers = run.kept(channel).writers
    random = random_directions(n_random, len(writers), run.bridge.cfg.d_model, run.seed)
    for draw, directions in ((None, None), *enumerate(random)):
        yield draw, prepare(run.bridge, prompts, writers, directions)


def right_under(steering: Steering, prompts: PromptSet, settings: Tensor) -> Bool[Tensor, "n n_settings"]:
    """Whether each list is answered under each setting: the answer alone has the largest logit."""
    logits = steer(steering, settings, logits=True)[LOGITS].cpu()
    index = index_of_answer(prompts)[:, None, None].expand(-1, len(settings), 1)
    return (logits.gather(2, index) > logits.scatter(2, index, -torch.inf)).all(-1)
