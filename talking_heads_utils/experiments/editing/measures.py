"""What chapter 3's tables measure of the paper's claims."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.editing.search import LIKE
from talking_heads_utils.experiments.editing.study import GRADIENT, GRID, KNOWN, RANDOM
from talking_heads_utils.experiments.verdicts import Measured

if TYPE_CHECKING:
    import pandas as pd


def lowers(table: pd.DataFrame) -> Measured:
    """Change of I(m) without the component whose removal lowers it most, against random ones of like size."""
    kinds = {kind: part for kind, part in table.groupby("kind")}
    change = "change of I(m)"
    best = kinds["channel"].loc[kinds["channel"][change].idxmin()]
    like = kinds["random"]["size"].between(best["size"] / LIKE, best["size"] * LIKE)
    random = kinds["random"].loc[like, change]
    return Measured("change_of_inhibition_score_without_the_best_component", best[change], best[f"{change} low"],
                    best[f"{change} high"], n=int(best["n"]), control_label="random_components_of_like_size",
                    control=random.mean() if len(random) else nan, control_low=random.min(),
                    control_high=random.max())  # fmt: skip


def edit_gains(table: pd.DataFrame) -> Measured:
    """Gain of the edit with the best objective on other prompts, against random edits of its norm, in points."""
    held = table[table["prompts"] == KNOWN].set_index("edit")
    name = held.loc[[GRADIENT, GRID], "objective"].idxmax()
    best = held.loc[name]
    return Measured("gain_of_the_best_edit_on_other_prompts", best["gain"], best["low"], best["high"], "points",
                    n=int(best["n"]), control_label="random_edits_of_the_same_norm",
                    control=held.loc[f"{RANDOM} {name}", "gain"])  # fmt: skip
