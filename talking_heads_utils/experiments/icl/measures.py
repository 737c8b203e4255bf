"""What chapter 4's tables measure of the post's claims. Nothing is chosen by the prompts that it is measured on."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.icl.ablations import NOTHING
from talking_heads_utils.experiments.icl.curves import LINE, SATURATING
from talking_heads_utils.experiments.icl.pairing import OTHER_FUNCTION
from talking_heads_utils.experiments.icl.parts import ATTENTION, MLP
from talking_heads_utils.experiments.icl.patching import PATCHED
from talking_heads_utils.experiments.icl.redundancy import BY_EFFECT
from talking_heads_utils.experiments.icl.study import OTHERS, STRONGEST
from talking_heads_utils.experiments.verdicts import Measured, share_of
from talking_heads_utils.stats import fisher_exact

if TYPE_CHECKING:
    import pandas as pd

WORKS = 0.5  # share of right answers at which a patch works


def redundant(table: pd.DataFrame) -> Measured:
    """Share of pairs of the strongest heads whose interaction lies above 0, against random pairs (exact test, as if
    pairs were independent)."""
    strong, random = (table.loc[table["heads"] == kind, "low"] > 0 for kind in (STRONGEST, OTHERS))
    p = fisher_exact(int(strong.sum()), len(strong), int(random.sum()), len(random))
    return Measured("share_of_pairs_of_the_strongest_heads_above_0", share_of(strong), n=len(strong), n_of="pairs",
                    control_label="random_pairs", control=share_of(random), p=p)  # fmt: skip


def survives(table: pd.DataFrame) -> Measured:
    """Exact answers without the head whose loss costs most on other prompts, against a random head out."""
    out = table[table["out"] == 1].set_index("order")
    one, random = out.loc[BY_EFFECT], out.drop(index=BY_EFFECT)["exact"]
    return Measured("exact_answers_without_the_strongest_head", one["exact"], one["low"], one["high"], "share",
                    n=int(one["n"]), control_label="without_a_random_head", control=random.mean())  # fmt: skip


def moves_up(table: pd.DataFrame) -> Measured:
    """First layer whose patch works with the most heads out, against that with none out; NaN for none."""
    part = _patched(table)
    first = part[part["exact"] >= WORKS].groupby("out")["layer"].min()
    most, none = (float(first.get(name, nan)) for name in (part["out"].iloc[-1], NOTHING))
    return Measured("first_layer_whose_patch_works_with_the_most_heads_out", most, n=int(part["n"].iloc[0]),
                    control_label="with_none_out", control=none)  # fmt: skip


def copies_late(table: pd.DataFrame) -> Measured:
    """Share of prompts in which B gives A's own answer where the last layer is patched, with the most heads out."""
    part = _patched(table)
    copied = part[part["layer"] == part["layer"].max()].set_index("out")["copied"]
    return Measured("answers_copied_from_a_at_the_last_layer_with_the_most_heads_out", copied.iloc[-1], unit="share",
                    n=int(part["n"].iloc[0]), control_label="with_none_out", control=copied[NOTHING])  # fmt: skip


def _patched(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["b_sees"] == OTHER_FUNCTION) & (table["run"] == PATCHED)]


def backups(table: pd.DataFrame) -> Measured:
    """Share of heads above an ablation whose direct effect rises, divisor and direction held fixed, against random
    ablations (exact test, as if heads were independent)."""
    above = table[table["above"]]
    real, random = (above.loc[(above["out"] == STRONGEST) == own, "low"] > 0 for own in (True, False))
    p = fisher_exact(int(real.sum()), len(real), int(random.sum()), len(random)) if len(real) and len(random) else nan
    return Measured("share_of_heads_that_rise", share_of(real), n=len(real), n_of="heads",
                    control_label="after_random_ablations", control=share_of(random), p=p)  # fmt: skip


def line_in_n(table: pd.DataFrame) -> Measured:
    """Error of the line on held-out numbers of examples, against a saturating curve's."""
    line, other = (table.set_index("law").loc[law] for law in (LINE, SATURATING))
    return Measured("error_of_the_line", line["error"], line["low"], line["high"], "nats", n=int(line["n"]),
                    control_label="saturating_curve", control=other["error"], control_low=other["low"],
                    control_high=other["high"])  # fmt: skip


def adds(table: pd.DataFrame) -> Measured:
    """What most examples do alone, summed, over what they do together."""
    last = table[table["n_examples"] > 1].iloc[-1]
    return Measured(f"alone_and_summed_over_together_at_{last['n_examples']}_examples", last["ratio"], last["low"],
                    last["high"], n=int(last["n"]), control_label="if_they_add", control=1.0)  # fmt: skip


def looks_back(table: pd.DataFrame) -> Measured:
    """Share of heads that give earlier answers clearly more than twice what even attention would, against those that
    give earlier x as much."""
    to_y, to_x = table["low"] > 2 * table["even"], table["to_x"] > 2 * table["even"]
    return Measured("share_of_heads_with_twice_the_even_attention_to_earlier_y", share_of(to_y), n=len(table),
                    n_of="heads", control_label="to_earlier_x", control=share_of(to_x))  # fmt: skip


def in_parts(table: pd.DataFrame) -> Measured:
    """Share of MLPs without which parity is no better than a copy's while half of the answers stay near, against
    attention layers; NaN for words, which have no parity."""
    what, control = "share_of_mlps_without_which_parity_alone_is_lost", "share_of_attention_layers"
    if table["parity"].isna().all():
        return Measured(what, nan)
    lost = (table["parity_low"] <= table["parity_copied"]) & (table["near_low"] >= WORKS)
    mlps, attention = (lost[table["part"] == part] for part in (MLP, ATTENTION))
    return Measured(what, share_of(mlps), n=len(mlps), n_of="MLPs", control_label=control,
                    control=share_of(attention))  # fmt: skip
