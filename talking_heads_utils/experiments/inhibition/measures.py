"""What chapter 1's tables measure of the paper's claims: what the rules of
:mod:`talking_heads_utils.experiments.rules` see."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from talking_heads_utils.experiments.inhibition import basis, exchange, links
from talking_heads_utils.experiments.inhibition import listeners as listening
from talking_heads_utils.experiments.rules import ALPHA, COMPONENTS
from talking_heads_utils.experiments.verdicts import Measured, where
from talking_heads_utils.labels import Head
from talking_heads_utils.roles import S_INHIBITION
from talking_heads_utils.stats import holm

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS, BASELINES = "weights", ("largest_singular_value", "largest_variance")  # predictors, in the table of hits
SEEN = "seen"  # what the heads are said to attend to in running text


def stand_out(table: pd.DataFrame) -> Measured:
    """All links together; the smallest p of a single one, corrected for being several, beside it."""
    joint = table[table["link"] == links.JOINT].iloc[0]
    single = table[(table["link"] != links.JOINT) & (table["control"] == "")]
    return Measured("percentile_of_known_writers", joint["value"], n=len(single), n_of="links",
                    control_label="percentile_of_other_heads", control=joint["null_mean"], p=joint["p"],
                    also={"smallest_p_of_a_link": float(single["p_holm"].min())},
                    units={"writers": int(joint["n_writers"])})  # fmt: skip


def listeners(table: pd.DataFrame) -> Measured:
    """How well movers and their backups are told from all other later heads by what their queries read."""
    row = where(table, head=listening.EVERY, by="value").iloc[0]
    readers, single = int(row["n_listeners"]), table[table["head"] != listening.EVERY]
    return Measured("auc_of_movers_and_backups", row["auc"], row["low"], row["high"], n=readers, n_of="listeners",
                    control_label="auc_of_other_heads", control=row["null_mean"], p=row["p"],
                    units={"listeners": readers,
                           "choices_of_heads": _choices(single["layer"], single["listener"])})  # fmt: skip


def privileged(table: pd.DataFrame) -> Measured:
    """Best singular component over the best of a random basis: of S-inhibition heads against others."""
    groups = table[table["head"] == basis.EVERY].set_index("group")
    ours, less = groups.loc[S_INHIBITION], groups.loc[basis.DIFFERENCE]
    others = groups[~groups.index.isin((S_INHIBITION, basis.DIFFERENCE))].iloc[0]
    single = table[table["head"] != basis.EVERY].drop_duplicates("head")
    choices = _choices(single["head"].map(lambda name: Head.parse(name).layer), single["group"] == S_INHIBITION)
    heads = int((single["group"] == S_INHIBITION).sum())
    return Measured("ratio_of_singular_to_random_bases", ours["ratio"], ours["low"], ours["high"], n=heads,
                    n_of="heads", control_label="ratio_of_other_heads", control=others["ratio"],
                    control_low=others["low"], control_high=others["high"], p=less["p"],
                    also={"p_against_random_bases": float(ours["p"])},
                    units={"heads": heads, "choices_of_heads": choices})  # fmt: skip


def _choices(layers: pd.Series, chosen: pd.Series) -> int:
    """How many choices of as many heads from the same layers there are."""
    by_layer = chosen.astype(bool).groupby(layers)
    return math.prod(math.comb(len(group), int(group.sum())) for _, group in by_layer)


def predicted(table: pd.DataFrame) -> Measured:
    """Share of heads in which the component that the weights name is the one that carries most, and that of the better
    of two baselines. p: exact, of so many. also: typical rank of the component that carries most, by either."""
    from scipy.stats import poisson_binom

    ours = table[table["predictor"] == WEIGHTS]
    p = float(poisson_binom.sf(int(ours["hit_at_1"].sum()) - 1, 1 / ours["n_components"].to_numpy(float)))
    baselines = [table[table["predictor"] == name] for name in BASELINES]
    return Measured("share_of_heads_whose_first_is_right", float(ours["hit_at_1"].mean()), n=len(ours), n_of="heads",
                    control_label="by_the_better_baseline", control=float(max(b["hit_at_1"].mean() for b in baselines)),
                    p=p, also={"typical_rank": _typical(ours), "baseline_rank": min(map(_typical, baselines))},
                    units={"heads": len(ours)})  # fmt: skip


def _typical(table: pd.DataFrame) -> float:
    """Geometric mean rank."""
    return float(np.exp(np.log(table["rank"].to_numpy(float)).mean()))


def concentrated(table: pd.DataFrame) -> Measured:
    """Share of the whole heads' effect on the movers' log-odds that the predicted components carry, all exchanged at
    once."""
    query, predicted = exchange.QUERY, exchange.PREDICTED
    of = dict(head=exchange.ALL, into=query, set=predicted, k=COMPONENTS, measure=exchange.LOG_ODDS)
    row = where(table, **of).iloc[0]
    return Measured("share_of_the_whole_heads_effect", row["share"], row["share_low"], row["share_high"],
                    n=int(row["n"]), control_label="95_percent_of_matched_sets_below", control=row["matched_share"],
                    p=row["p"], units={"prompts": int(row["n"])})  # fmt: skip


def in_lists(table: pd.DataFrame) -> Measured:
    """Share of the S-inhibition heads that attend to what was seen more than matched components' heads do: their p by
    100 of these, Holm over heads."""
    ours = where(table, role=S_INHIBITION, target=SEEN)
    corrected = holm(torch.tensor(ours["p"].to_numpy(float)))
    return Measured("share_of_heads_above_matched_components", float((corrected <= ALPHA).double().mean()), n=len(ours),
                    n_of="heads", control_label="attention_there_beyond_matched_components",
                    control=float((ours["excess"] - ours["control"]).mean()),
                    units={"matched_components_a_head": int(ours["n_controls"].min()) // len(ours),
                           "heads": len(ours)})  # fmt: skip
