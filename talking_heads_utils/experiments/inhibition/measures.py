"""What chapter 1's tables measure of the paper's claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from talking_heads_utils.experiments.verdicts import Measured, share_of

if TYPE_CHECKING:
    import pandas as pd

JOINT = "joint"  # the row of all links together
WEIGHTS, BASELINES = "weights", ("largest_singular_value", "largest_variance")  # predictors of the strongest component
ALL_HEADS, PREDICTED, QUERY = "all", "predicted", "query"  # of the exchange that the claim speaks of


def stand_out(table: pd.DataFrame) -> Measured:
    """All published links together; the smallest p of a single one, corrected for being several, beside it."""
    joint = table[table["link"] == JOINT].iloc[0]
    links = table[(table["link"] != JOINT) & (table["control"] == "")]
    return Measured("percentile_of_published_writers", joint["value"], joint["low"], joint["high"], n=len(links),
                    n_of="links", p=joint["p"], also={"smallest_holm_p": links["p_holm"].min()})  # fmt: skip


def listeners(table: pd.DataFrame) -> Measured:
    """How well movers are told from all other later heads by what their queries read."""
    row = table[table["auc"].notna()].iloc[0]
    readers = int(table["is_listener"].sum())
    return Measured("auc_of_movers_and_backups", row["auc"], row["low"], row["high"], n=readers, n_of="readers",
                    p=row["p"], units={"readers": readers})  # fmt: skip


def privileged(table: pd.DataFrame) -> Measured:
    """Best singular component over the best of a random basis, in these heads and in others."""
    row = table.iloc[0]
    return Measured("ratio_of_svd_to_random_bases", row["ratio"], n=int(row["n_heads"]), n_of="heads",
                    control_label="other_heads", control=row["ratio_of_others"], p=row["p"],
                    also={"p_against_random_bases": row["p_random"]},
                    units={"heads": int(row["n_heads"])})  # fmt: skip


def predicted(table: pd.DataFrame) -> Measured:
    """Typical rank, within its head, of the component that carries most: by the weights' prediction, and by the better
    of two baselines. p: exact, of so many heads whose first is the right one."""
    from scipy.stats import poisson_binom

    ours = table[table["predictor"] == WEIGHTS]
    hits = int(ours["hit_at_1"].sum())
    p = float(poisson_binom.sf(hits - 1, 1 / ours["n_components"].to_numpy(float)))
    ranks = {name: _typical(table.loc[table["predictor"] == name, "rank"]) for name in (WEIGHTS, *BASELINES)}
    return Measured("typical_rank_of_the_strongest_component", ranks[WEIGHTS], n=len(ours), n_of="heads",
                    control_label="by_the_better_baseline", control=min(ranks[name] for name in BASELINES), p=p,
                    also={"hits": hits}, units={"heads": len(ours)})  # fmt: skip


def _typical(ranks: pd.Series) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(ranks.to_numpy(float)).mean()))


def concentrated(table: pd.DataFrame) -> Measured:
    """Share of the whole heads' effect that the predicted components carry when all are exchanged at once."""
    row = table[(table["head"] == ALL_HEADS) & (table["set"] == PREDICTED) & (table["into"] == QUERY)].iloc[0]
    return Measured("share_of_the_whole_heads_effect", row["share"], row["share_low"], row["share_high"],
                    n=int(row["n"]), p=row["p"])  # fmt: skip


def in_lists(table: pd.DataFrame) -> Measured:
    """Share of the heads that attend there more than matched components' heads do."""
    return Measured("share_of_heads_above_matched_components", share_of(table["p_holm"] <= 0.05), n=len(table),
                    n_of="heads", units={"heads": len(table)})  # fmt: skip
