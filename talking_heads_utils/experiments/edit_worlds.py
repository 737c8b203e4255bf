"""Worlds of removals and edits whose truth is known, as :mod:`talking_heads_utils.experiments.list_worlds` draws those
of lists."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from talking_heads_utils.experiments.editing import measures
from talking_heads_utils.experiments.editing.gains import EditRow
from talking_heads_utils.experiments.editing.removal import N_MATCHED, ChosenBy, RemovalRow
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.list_worlds import ACCURACY, N_ITEMS, gain
from talking_heads_utils.experiments.rows import Row, frame
from talking_heads_utils.experiments.verdicts import Measured, rank_p
from talking_heads_utils.experiments.worlds import Cell, Random, row
from talking_heads_utils.prompts import ioi
from talking_heads_utils.stats import holm

N_DRAWS = 20


def lowers(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: share of I(m) that goes with the component of each head that was strongest on other prompts.
    noise: standard deviation of it between matched components, and, times three, over prompts. ``one each``; ``one
    head``: of the first head alone. ``alike``: matched components take as much. ``winner``: what was strongest on
    other prompts is a component like any other."""
    for _ in range(n):
        own = np.full(cell.n_heads, cell.effect_size)
        own[1:] *= cell.world != "one head"
        own *= cell.world != "winner"
        drawn = rng.normal(size=(cell.n_heads, N_MATCHED)) * cell.noise
        if cell.world in ("alike", "winner"):
            drawn, own = drawn + own[:, None], own + rng.normal(size=cell.n_heads) * cell.noise
        error = 3 * cell.noise / cell.n_prompts**0.5
        share, drawn = (values + error * rng.normal(size=values.shape) for values in (own, drawn))
        p = [rank_p(a, b) for a, b in zip(share, drawn)]
        rows = [
            row(RemovalRow, task=ioi.TASK, chosen_by=ChosenBy.SELECTION, head=f"L0H{i}", share=share[i],
                share_low=share[i] - 1.96 * error, share_high=share[i] + 1.96 * error, p=p[i], p_holm=corrected,
                n_draws=N_MATCHED, n=cell.n_prompts)
            for i, corrected in enumerate(holm(torch.tensor(p)).tolist())
        ]  # fmt: skip
        yield measures.lowers(frame(rows))


def edit_gains(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: points that the best edit gains in lists of six, a third of which were answered before. noise:
    share of lists that flip either way besides, and standard deviation of the gains of random draws. ``gains``;
    ``bias``: a correction by index gains as much. ``random``: so does the best of 20 random draws. ``winner``:
    only the lists that chose gain."""
    before = ACCURACY[N_ITEMS]
    for _ in range(n):
        own = (cell.world != "winner") * cell.effect_size / 100
        found = gain(rng, before, own, cell.noise, cell.n_prompts)
        beyond = gain(rng, before, own * (cell.world != "bias"), cell.noise, cell.n_prompts)
        level = 100 * own if cell.world == "random" else 0.0
        rest = dict(part=Part.HELD_OUT, best=True, n_items=N_ITEMS, before=before, n=cell.n_prompts)
        rows: list[Row] = [
            row(EditRow, gain=found.mean, low=found.low, high=found.high, relative=found.mean / before,
                relative_low=found.low / before, relative_high=found.high / before, beyond=beyond.mean,
                beyond_low=beyond.low, beyond_high=beyond.high, **rest)
        ]  # fmt: skip
        draws = level + 100 * cell.noise * rng.normal(size=N_DRAWS) / 4
        rows += [row(EditRow, draw=i, gain=value, **rest) for i, value in enumerate(draws)]
        yield measures.edit_gains(frame(rows))
