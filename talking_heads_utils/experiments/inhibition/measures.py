"""What chapter 1's tables measure of the paper's claims."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.corpus import COMMA, REPEATED
from talking_heads_utils.experiments.verdicts import Measured, share_of

if TYPE_CHECKING:
    import pandas as pd


def stand_out(table: pd.DataFrame) -> Measured:
    """Mean z of the published heads' best components, against all other choices of as many heads."""
    row = table.iloc[0]
    return Measured("mean_z_of_best_components", row["observed"], n=int(row["n"]), n_of="choices of heads",
                    control_label="all_other_choices_of_heads", control=row["null_mean"], p=row["p"])  # fmt: skip


def predicted(table: pd.DataFrame) -> Measured:
    """Rank correlation of scores and effects, against the largest of its nulls."""
    row = table.iloc[0]
    null = max(row["noise_max"], row["permuted_max"])
    return Measured("spearman_of_scores_and_effects", row["spearman"], row["low"], row["high"], n=int(row["n_prompts"]),
                    control_label="largest_under_noise_or_shuffles", control=null)  # fmt: skip


def concentrated(table: pd.DataFrame) -> Measured:
    """Share of inhibition heads that need two components or fewer for 90% of their effect."""
    need = table["n_for_90"]
    stable = table["stable_rank"].median() if len(table) else nan
    return Measured("share_of_heads_with_two_components_or_fewer_for_90_percent", share_of(need <= 2), n=len(need),
                    n_of="heads", control_label="median_stable_rank_of_their_weights", control=stable)  # fmt: skip


def in_lists(table: pd.DataFrame) -> Measured:
    """How many times more often than the text the inhibition components are active in lists and at repetitions."""
    part = table[table["category"].isin((COMMA, REPEATED))]
    ratio = part.groupby(["inhibition", "component"])["ratio"].max().reset_index()
    own, other = (ratio.loc[ratio["inhibition"] == is_own, "ratio"] for is_own in (True, False))
    return Measured("median_ratio_to_the_texts_own_share", own.median(), own.min(), own.max(), n=len(own),
                    n_of="components", control_label="components_of_other_heads", control=other.median(),
                    control_low=other.min(), control_high=other.max())  # fmt: skip
