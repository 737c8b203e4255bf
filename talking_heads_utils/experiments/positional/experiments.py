"""Chapter 2's experiments, as the catalogue has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.positional import study as positional
from talking_heads_utils.settings import N_ITEMS

if TYPE_CHECKING:
    import pandas as pd


def _channel(c: Context) -> positional.Channel:
    mover = None if c.is_own else c.mover
    return positional.channel(c.model, seed=c.seed, device=c.device, dtype=c.dtype, mover=mover)


def _decoding(c: Context) -> pd.DataFrame:
    return positional.decoding_table(c.kept(_channel), c.n_items(N_ITEMS), c.n(400))


def _crowding(c: Context) -> pd.DataFrame:
    return positional.crowding_table(c.kept(_channel), c.lengths, c.n(120))


def _places(c: Context) -> pd.DataFrame:
    return positional.accuracy_by_place(c.kept(_channel), c.lengths, c.n(120))


def _reach(c: Context) -> pd.DataFrame:
    at, n_items, (n_values, n_random) = c.kept(_channel), c.n_items(N_ITEMS), (5, 1) if c.quick else (9, 3)
    return positional.reach_table(at, n_items, positional.axis(at, n_items, n_values), c.n(100), n_random)


def _steering_gains(c: Context) -> pd.DataFrame:
    at, (n_values, n_random) = c.kept(_channel), (3, 1) if c.quick else (5, 2)
    found = {
        str(n): positional.steering_gains(at, n, positional.axis(at, n, n_values), c.n(800), n_random)
        for n in dict.fromkeys((c.n_items(N_ITEMS), c.n_items(12)))
    }
    table = positional.gains_table(found).rename(columns={"model": "n_items"})
    return table.assign(model=c.model)


EXPERIMENTS = (
    Experiment("decoding", 2, 4, None, _decoding, "from subspaces"),
    Experiment("crowding", 2, 4, None, _crowding, "by length"),
    Experiment("places", 2, 1, None, _places, "by place"),
    Experiment("reach", 2, 5, None, _reach, "where a setting brings the mover"),
    Experiment("steering-gains", 2, 45, None, _steering_gains, "accuracy by steering"),
)
