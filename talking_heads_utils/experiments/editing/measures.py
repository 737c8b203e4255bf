"""What chapter 3's tables measure of the paper's claims."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.editing.components import LIKE, Prompts
from talking_heads_utils.experiments.editing.removal import Kind
from talking_heads_utils.experiments.verdicts import Measured

if TYPE_CHECKING:
    import pandas as pd


def lowers(table: pd.DataFrame) -> Measured:
    """Change of I(m) without the component whose removal lowers it most, against random ones of like size."""
    chosen, random = (table[table["kind"] == kind] for kind in (Kind.CHOSEN, Kind.RANDOM))
    best = chosen.loc[chosen["inhibition_change"].idxmin()]
    like = random.loc[random["size"].between(best["size"] / LIKE, best["size"] * LIKE), "inhibition_change"]
    return Measured("change_of_inhibition_score_without_the_best_component", best["inhibition_change"],
                    best["inhibition_low"], best["inhibition_high"], n=int(best["n"]),
                    control_label="random_components_of_like_size", control=like.mean() if len(like) else nan,
                    control_low=like.min(), control_high=like.max())  # fmt: skip


def edit_gains(table: pd.DataFrame) -> Measured:
    """Gain of the edit with the best objective on other prompts, against random edits of its norm, in points."""
    held = table[table["prompts"] == Prompts.KNOWN]
    own = held[held["draw"].isna()]
    best = own.loc[own["objective"].idxmax()]
    draws = held.loc[held["draw"].notna() & (held["search"] == best["search"]), "gain"]
    return Measured("gain_of_the_best_edit_on_other_prompts", best["gain"], best["low"], best["high"], "points",
                    n=int(best["n"]), control_label="random_edits_of_the_same_norm", control=draws.mean(),
                    control_low=draws.min(), control_high=draws.max())  # fmt: skip
