"""What chapter 4's tables measure of the post's claims."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.icl.curves import LINE
from talking_heads_utils.experiments.icl.pairing import OTHER_FUNCTION
from talking_heads_utils.experiments.icl.parts import ATTENTION, MLP
from talking_heads_utils.experiments.icl.study import first_working_layer
from talking_heads_utils.experiments.verdicts import Measured, share_of
from talking_heads_utils.forward.head_sets import NOTHING
from talking_heads_utils.stats import fisher_exact

if TYPE_CHECKING:
    import pandas as pd


def redundant(table: pd.DataFrame) -> Measured:
    """Share of pairs of the strongest heads whose interaction lies above 0, against random pairs (exact test, as if
    pairs were independent)."""
    strong, random = (table.loc[table["heads"] == kind, "low"] > 0 for kind in ("strongest", "random"))
    p = fisher_exact(int(strong.sum()), len(strong), int(random.sum()), len(random))
    return Measured("share_of_pairs_of_the_strongest_heads_above_0", share_of(strong), n=len(strong), n_of="pairs",
                    control_label="random_pairs", control=share_of(random), p=p)  # fmt: skip


def survives(table: pd.DataFrame) -> Measured:
    """Exact answers without the head whose loss costs most, against a random head out."""
    by_effect = table[table["order"] == "by effect"].set_index("out")
    one = by_effect.loc[1]
    random = table[(table["order"] != "by effect") & (table["out"] == 1)]["exact"]
    return Measured("exact_answers_without_the_strongest_head", one["exact"], one["low"], one["high"], "share",
                    n=int(one["n"]), control_label="without_a_random_head", control=random.mean())  # fmt: skip


def moves_up(table: pd.DataFrame) -> Measured:
    """First layer whose patch works with the most heads out, against that with none out; NaN for none."""
    part = table[table["b"] == OTHER_FUNCTION]
    first = first_working_layer(part)
    layers = [nan if layer is None else float(layer) for layer in first.values()]
    plain = first[NOTHING]
    return Measured("first_layer_whose_patch_works_with_the_most_heads_out", layers[-1], n=int(part["n"].iloc[0]),
                    control_label="with_none_out", control=nan if plain is None else float(plain))  # fmt: skip


def copies_late(table: pd.DataFrame) -> Measured:
    """Share of prompts in which B gives A's own answer at the best layer, with the most heads out."""
    part = table[(table["b"] == OTHER_FUNCTION) & (table["layer"] >= 0)]
    best = part.groupby("set", sort=False)["copied"].max()
    return Measured("answers_copied_from_a_with_the_most_heads_out", best.iloc[-1], unit="share",
                    n=int(part["n"].iloc[0]), control_label="with_none_out", control=best[NOTHING])  # fmt: skip


def backups(table: pd.DataFrame) -> Measured:
    """Share of heads above an ablation whose direct effect rises, divisor and direction held fixed, against random
    ablations (exact test, as if heads were independent)."""
    above = table[table["above"]]
    real, random = (above.loc[(above["set"] == "strongest") == own, "low"] > 0 for own in (True, False))
    p = fisher_exact(int(real.sum()), len(real), int(random.sum()), len(random)) if len(real) and len(random) else nan
    return Measured("share_of_heads_that_rise", share_of(real), n=len(real), n_of="heads",
                    control_label="after_random_ablations", control=share_of(random), p=p)  # fmt: skip


def line_in_n(table: pd.DataFrame) -> Measured:
    """Error of the line on held-out numbers of examples, against the best other law's."""
    errors = table.set_index("law")
    line, others = errors.loc[LINE], errors.drop(index=LINE)
    best = others.loc[others["error"].idxmin()]
    return Measured("error_of_the_line", line["error"], line["low"], line["high"], "nats", n=int(line["n"]),
                    control_label="best_other_law", control=best["error"], control_low=best["low"],
                    control_high=best["high"])  # fmt: skip


def adds(table: pd.DataFrame) -> Measured:
    """What most examples do alone, summed, over what they do together."""
    last = table[table["n_examples"] > 1].iloc[-1]
    return Measured(f"alone_and_summed_over_together_at_{last['n_examples']}_examples", last["ratio"], last["low"],
                    last["high"], n=int(last["n"]), control_label="if_they_add", control=1.0)  # fmt: skip


def looks_back(table: pd.DataFrame) -> Measured:
    """Attention from the token before an answer to earlier answers, of the head with most, against even attention."""
    best = table.loc[table["to_y"].idxmax()]
    return Measured("attention_to_earlier_y_of_the_head_with_most", best["to_y"], best["low"], best["high"], "share",
                    n=int(best["n"]), control_label="spread_evenly", control=best["even"])  # fmt: skip


def in_parts(table: pd.DataFrame) -> Measured:
    """Least parity without an MLP, against that without an attention layer; NaN for words, which have no parity."""
    mlps, attention = (table[table["part"] == part] for part in (MLP, ATTENTION))
    if table["parity"].isna().all():
        return Measured("least_parity_without_an_mlp", nan)
    least, other = (rows.loc[rows["parity"].idxmin()] for rows in (mlps, attention))
    return Measured("least_parity_without_an_mlp", least["parity"], least["parity_low"], least["parity_high"], "share",
                    n=int(least["n"]), control_label="without_an_attention_layer", control=other["parity"],
                    control_low=other["parity_low"], control_high=other["parity_high"])  # fmt: skip
