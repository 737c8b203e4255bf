"""Chapter 2's experiments, as the catalogue has them."""

from __future__ import annotations

from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.positional.decoding import (
    CrowdingRow,
    DecodingRow,
    IndexRow,
    by_list_index,
    crowding,
    decoding,
)
from talking_heads_utils.experiments.positional.steering import GainRow, ReachRow, axis, reach, steering_gains
from talking_heads_utils.settings import N_ITEMS

LONG = 12  # items of the long lists that are steered


def _reach(run: Context) -> list[ReachRow]:
    n_items, (n_values, n_random) = run.n_items(N_ITEMS), (5, 1) if run.quick else (9, 3)
    return reach(run, n_items, axis(run, n_items, n_values), run.n(100), n_random)


def _steering_gains(run: Context) -> list[GainRow]:
    n_values, n_random = (3, 1) if run.quick else (5, 2)
    lengths = dict.fromkeys((run.n_items(N_ITEMS), run.n_items(LONG)))
    return [row for n in lengths for row in steering_gains(run, n, axis(run, n, n_values), run.n(800), n_random)]


EXPERIMENTS = (
    Experiment("decoding", 2, 4, DecodingRow, lambda run: decoding(run, run.n_items(N_ITEMS), run.n(400)),
               "from subspaces"),
    Experiment("crowding", 2, 4, CrowdingRow, lambda run: crowding(run, run.lengths, run.n(120)), "by length"),
    Experiment("places", 2, 1, IndexRow, lambda run: by_list_index(run, run.lengths, run.n(120)), "by list index"),
    Experiment("reach", 2, 5, ReachRow, _reach, "where a setting brings the mover"),
    Experiment("steering-gains", 2, 45, GainRow, _steering_gains, "accuracy by steering"),
)  # fmt: skip
