"""What chapter 3's tables measure of the paper's claims: what the rules of
:mod:`talking_heads_utils.experiments.rules` see."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.editing.removal import ChosenBy
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.rules import ALPHA, QUARTER
from talking_heads_utils.experiments.verdicts import Measured, where
from talking_heads_utils.prompts import ioi

if TYPE_CHECKING:
    import pandas as pd


def lowers(table: pd.DataFrame) -> Measured:
    """Share of the inhibition heads whose component, chosen on other prompts, takes a quarter of the movers' inhibition
    score with it on IOI, and more than matched components do."""
    part = where(table, task=ioi.TASK, chosen_by=ChosenBy.SELECTION)
    passes = (part["share_low"] >= QUARTER) & (part["p_holm"] <= ALPHA)
    best = part.loc[part["share"].fillna(-inf).idxmax()]
    return Measured("share_of_heads_whose_component_takes_a_quarter", float(passes.mean()), n=len(part), n_of="heads",
                    control_label="largest_share_of_the_inhibition_score", control=best["share"],
                    control_low=best["share_low"], control_high=best["share_high"], p=float(part["p_holm"].min()),
                    units={"heads": len(part),
                           "matched_components_a_head": int(part["n_draws"].min()) // len(part)})  # fmt: skip


def edit_gains(table: pd.DataFrame) -> Measured:
    """Gain of the edit that was best on other lists, in the longest on which random draws were scored as well, beside
    the best edit of each draw."""
    held = table[(table["part"] == Part.HELD_OUT) & table["best"].astype(bool)]
    drawn = held[held["draw"].notna()]
    n_items = drawn["n_items"].max()
    best = held[held["draw"].isna() & (held["n_items"] == n_items)].iloc[0]
    draws = drawn.loc[drawn["n_items"] == n_items, "gain"]
    return Measured("gain_of_the_best_edit", best["gain"], best["low"], best["high"], "points", int(best["n"]),
                    control_label="random_edits_with_the_same_search", control=float(draws.mean()),
                    control_low=float(draws.min()), control_high=float(draws.max()),
                    also={"percent_of_the_accuracy_before": best["relative"], "relative_low": best["relative_low"],
                          "relative_high": best["relative_high"], "beyond_low": best["beyond_low"],
                          "beyond_high": best["beyond_high"]},
                    units={"prompts": int(best["n"]), "random_draws": len(draws)})  # fmt: skip
