"""What chapter 2's tables measure of the paper's claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from talking_heads_utils.experiments.positional.coordinates import Feature
from talking_heads_utils.experiments.positional.decoding import Split, Subspace
from talking_heads_utils.experiments.positional.gains import Strategy
from talking_heads_utils.experiments.verdicts import Measured
from talking_heads_utils.settings import SEED

if TYPE_CHECKING:
    import pandas as pd


def indexes(table: pd.DataFrame) -> Measured:
    """Share of lists in which the answer's index is decoded across wordings."""
    part = table[(table["split"] == Split.WORDINGS) & (table["feature"] == Feature.LIST_INDEX)].set_index("subspace")
    own, random = part.loc[Subspace.COMPONENTS], part.loc[Subspace.RANDOM]
    return Measured("share_of_lists_whose_index_is_decoded", own["right"], own["low"], own["high"], n=int(own["n"]),
                    control_label="random_triples", control=random["right"], control_low=random["smallest"],
                    control_high=random["largest"])  # fmt: skip


def traversed(table: pd.DataFrame) -> Measured:
    """Mean attention that a setting brings to an item, over list indices."""
    own, random = table[table["draw"].isna()], table[table["draw"].notna()]
    draws = random.groupby("draw")["steered"].mean()
    return Measured("mean_attention_to_the_item_aimed_at", own["steered"].mean(), n=int(own["n"].iloc[0]),
                    control_label="along_random_directions", control=draws.mean(),
                    control_low=draws.min(), control_high=draws.max())  # fmt: skip


def crowds(table: pd.DataFrame) -> Measured:
    """Accuracy on the longest lists, against that on the shortest."""
    short, long = table.loc[table["n_items"].idxmin()], table.loc[table["n_items"].idxmax()]
    return Measured(f"accuracy_on_lists_of_{long['n_items']}", long["accuracy"], long["low"], long["high"],
                    n=int(long["n"]), control_label=f"on_lists_of_{short['n_items']}", control=short["accuracy"],
                    control_low=short["low"], control_high=short["high"])  # fmt: skip


def order_matters(table: pd.DataFrame, n_draws: int = 4000) -> Measured:
    """Largest less smallest accuracy by the answer's index in the longest lists, against answers shuffled over indices.
    Indices that no prompt's answer has are left out."""
    part = table[(table["n_items"] == table["n_items"].max()) & (table["n"] > 0)]
    n = part["n"].to_numpy()
    right = np.rint(part["accuracy"] * n).to_numpy()
    drawn = np.random.default_rng(SEED).multivariate_hypergeometric(n, int(right.sum()), size=n_draws)
    spread = lambda counts: (n * (counts / n - right.sum() / n.sum()) ** 2).sum(-1)  # noqa: E731
    p = ((spread(drawn) >= spread(right) - 1e-9).sum() + 1) / (n_draws + 1)
    return Measured("range_of_accuracy_over_indices", float(np.ptp(right / n)), n=int(n.sum()),
                    control_label="answers_shuffled_over_indices", control=float(np.ptp(drawn / n, axis=1).mean()),
                    p=float(p))  # fmt: skip


def steering_gains(table: pd.DataFrame) -> Measured:
    """Gain of one setting for all prompts on the longest lists, in points."""
    part = table[(table["n_items"] == table["n_items"].max()) & (table["strategy"] == Strategy.ONE)]
    (one,), draws = part[part["draw"].isna()].to_dict("records"), part.loc[part["draw"].notna(), "gain"]
    return Measured("gain_of_one_setting_for_all_prompts", one["gain"], one["low"], one["high"], "points",
                    n=int(one["n"]), control_label="random_directions", control=draws.mean(), control_low=draws.min(),
                    control_high=draws.max())  # fmt: skip
