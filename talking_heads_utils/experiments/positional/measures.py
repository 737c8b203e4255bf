"""What chapter 2's tables measure of the paper's claims: what the rules of
:mod:`talking_heads_utils.experiments.rules` see."""

from __future__ import annotations

from collections.abc import Iterable
from math import hypot, inf, isnan, nan
from typing import TYPE_CHECKING, Any

import torch

from talking_heads_utils.experiments.gate import AT_LEAST, N_PROMPTS
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional.crowding import ACCURACY, NEAREST, SLOPE
from talking_heads_utils.experiments.positional.decoding import Feature, Split
from talking_heads_utils.experiments.positional.interchange import LOGIT_DIFFERENCE
from talking_heads_utils.experiments.positional.pairs import Donor
from talking_heads_utils.experiments.positional.steering import Method
from talking_heads_utils.experiments.positional.subspace import N_COMPONENTS, K, Subspace
from talking_heads_utils.experiments.rules import SCALE
from talking_heads_utils.experiments.verdicts import Measured, where
from talking_heads_utils.prompts.lists import KEPT, SHUFFLED
from talking_heads_utils.stats import share

if TYPE_CHECKING:
    import pandas as pd

SHORT = 4  # items of the lists beside which longer ones are held


def longest(accuracies: Iterable[tuple[Any, Any]]) -> int:
    """The longest lists that a model may be asked about, of pairs of a length and its accuracy: the gate's rule, with
    the gate's number of prompts, however many there are. Where it may be asked about none, the shortest."""
    found = sorted((int(n_items), float(accuracy)) for n_items, accuracy in accuracies)
    hits = torch.arange(N_PROMPTS)
    asked = [n for n, accuracy in found if share(hits < accuracy * N_PROMPTS).low >= AT_LEAST / n]
    return max(asked, default=found[0][0])


def less(a: pd.Series, b: pd.Series, name: str, low: str = "low", high: str = "high") -> tuple[float, float]:
    """Interval of the difference of two numbers with intervals of their own (Newcombe 1998)."""
    by = a[name] - b[name]
    return (by - hypot(a[name] - a[low], b[high] - b[name]), by + hypot(a[high] - a[name], b[name] - b[low]))


def indexes(table: pd.DataFrame) -> Measured:
    """Share of the longest lists in which the answer's index is decoded across wordings, beside the item's identity."""
    part = where(table, n_items=table["n_items"].max(), split=Split.WORDINGS, k=K)
    own = where(part, subspace=Subspace.CHOSEN, feature=Feature.LIST_INDEX).iloc[0]
    identity = where(part, subspace=Subspace.CHOSEN, feature=Feature.IDENTITY).iloc[0]
    matched = where(part, subspace=Subspace.MATCHED, feature=Feature.LIST_INDEX).iloc[0]
    low, high = less(own, identity, "right")
    return Measured("share_of_lists_whose_index_is_decoded", own["right"], own["low"], own["high"], n=int(own["n"]),
                    control_label="matched_triples", control=matched["right"], control_low=matched["low"],
                    control_high=matched["high"], p=own["p"],
                    also={"chance": own["chance"], "beyond_identity_low": low, "beyond_identity_high": high},
                    units={"prompts": int(own["n"]), "matched_triples": int(own["n_draws"])})  # fmt: skip


def three_dimensions(table: pd.DataFrame) -> Measured:
    """Effect of three coordinates of a donor with other items, as a share of that of ten, mean over the lengths."""
    part = where(table, measure=LOGIT_DIFFERENCE)
    chosen = where(part, subspace=Subspace.CHOSEN, k=K).set_index("n_items")
    three, same = where(chosen, donor=Donor.OTHER_ITEMS), where(chosen, donor=Donor.SAME_ITEMS)
    stream = where(part, subspace=Subspace.WHOLE_STREAM, donor=Donor.OTHER_ITEMS)
    value, low, high = _mean(three, "of_ten")
    _, stream_low, stream_high = _mean(three, "of_stream")
    of_same = three[["low", "high"]].div(same.loc[three.index, "effect"], axis=0).assign(
        mean=three["effect"] / same.loc[three.index, "effect"])  # fmt: skip
    _, same_low, same_high = _mean(of_same, "mean", "low", "high")
    return Measured(f"effect_of_{K}_dimensions_over_that_of_{N_COMPONENTS}", value, low, high, n=int(three["n"].sum()),
                    n_of="pairs", control_label="95_percent_of_matched_triples_below_in_logits",
                    control=float(three["matched"].mean()), p=float(three["p"].max()),
                    also={"of_stream_low": stream_low, "of_stream_high": stream_high,
                          "of_same_items_low": same_low, "of_same_items_high": same_high,
                          "effect_low": float(three["low"].min()), "stream_low": float(stream["low"].min())},
                    units={"pairs": int(three["n"].min()),
                           "matched_triples": int(three["n_draws"].min())})  # fmt: skip


def _mean(part: pd.DataFrame, name: str, low: str = "", high: str = "") -> tuple[float, float, float]:
    """Mean over rows of other lists, and its interval out of theirs."""
    mean, n = float(part[name].mean()), len(part)
    low, high = low or f"{name}_low", high or f"{name}_high"
    return (mean, mean - float((part[name] - part[low]).pow(2).sum()) ** 0.5 / n,
            mean + float((part[high] - part[name]).pow(2).sum()) ** 0.5 / n)  # fmt: skip


def traversed(table: pd.DataFrame) -> Measured:
    """Share of the longest lists' indices at which more lists are answered with the item there, once attention is
    brought to it."""
    part = table[table["n_items"] == table["n_items"].max()]
    follows = float((part["answered_low"] > part["plain_answered"]).mean())
    return Measured("share_of_indices_whose_answer_follows", follows, n=int(part["n"].iloc[0]),
                    control_label="attention_brought_there_beyond_matched_triples",
                    control=float((part["steered"] - part["matched"]).mean()), p=float(part["mean_p"].iloc[0]),
                    units={"prompts": int(part["n"].min()), "indices": len(part),
                           "matched_triples": int(part["n_draws"].min())})  # fmt: skip


def errors_near(table: pd.DataFrame) -> Measured:
    """Share of errors that go to the index whose mean lies nearest, less that of wrong answers dealt anew within the
    answer's index; and how steeply the log-odds of being right rise with the margin. In the longest lists that the
    model may be asked about."""
    accuracy = table[table["statistic"] == ACCURACY].groupby("n_items")["value"].mean()
    part = table[table["n_items"] == longest(accuracy.items())].set_index("statistic")
    slope, lists = part.loc[SLOPE], int(part.loc[ACCURACY, "n"].sum())
    near = part.loc[NEAREST] if NEAREST in part.index else part.loc[SLOPE] * nan  # nothing is said of a single error
    errors = 0 if isnan(near["n"]) else int(near["n"])
    return Measured("share_of_errors_that_go_to_the_nearest_index_beyond_chance", near["value"], near["low"],
                    near["high"], n=errors, n_of="errors", control_label="slope_of_the_log_odds_on_the_margin",
                    control=slope["value"], control_low=slope["low"], control_high=slope["high"], p=slope["p"],
                    also={"slope_low": slope["low"], "slope_high": slope["high"], "p_of_nearest": near["p"]},
                    units={"prompts": lists, "errors": errors, "matched_triples": int(slope["n_draws"])})  # fmt: skip


def crowds(table: pd.DataFrame) -> Measured:
    """Change of accuracy where the cloud is widened, in the longest lists that the model may be asked about."""
    plain = where(table, subspace=Subspace.CHOSEN, scale=1)
    n_items = longest(zip(plain["n_items"], plain["accuracy"]))
    wide = where(table, scale=SCALE)
    own, matched = (where(wide, subspace=s, n_items=n_items).iloc[0] for s in (Subspace.CHOSEN, Subspace.MATCHED))
    accuracy, low, high = where(plain, n_items=n_items)["accuracy"].iloc[0], -inf, inf
    if n_items > SHORT:
        low, high = less(own, where(wide, subspace=Subspace.CHOSEN, n_items=SHORT).iloc[0], "change", "change_low",
                         "change_high")  # fmt: skip
    return Measured("change_of_accuracy_by_a_cloud_twice_as_wide", own["change"], own["change_low"],
                    own["change_high"], "points", int(own["n"]), control_label="along_matched_triples",
                    control=matched["change"], control_low=matched["change_low"], control_high=matched["change_high"],
                    p=own["p"],
                    also={"accuracy": accuracy, "more_low": low, "more_high": high},
                    units={"prompts": int(own["n"]), "matched_triples": int(own["n_draws"])})  # fmt: skip


def order_matters(table: pd.DataFrame) -> Measured:
    """Range of accuracy over the answer's indices in shuffled order, in the longest lists that the model may be asked
    about; beside it, the range where all lists' coordinates are at one point."""
    n_items = longest(table.groupby("n_items")["accuracy"].mean().items())
    part = table[table["n_items"] == n_items]
    by_order = {order: part[part["order"] == order] for order in (KEPT, SHUFFLED)}
    of = by_order[SHUFFLED]
    return Measured("range_of_accuracy_over_indices", _range(of["accuracy"]), n=int(of["n"].sum()),
                    control_label="range_without_the_coordinates", control=_range(of["removed"]),
                    p=max(float(rows["range_p"].iloc[0]) for rows in by_order.values()),
                    units={"prompts_an_order": min(int(rows["n"].sum()) for rows in by_order.values())})  # fmt: skip


def _range(values: pd.Series) -> float:
    return float(values.max() - values.min()) if len(values) else nan


def steering_gains(table: pd.DataFrame) -> Measured:
    """What steering adds to a correction of the logits by index, both chosen on other lists, in the longest."""
    both = where(table, part=Part.HELD_OUT, method=Method.BOTH)
    both = where(both, n_items=both["n_items"].max())
    own, matched = (where(both, subspace=kind).iloc[0] for kind in (Subspace.CHOSEN, Subspace.MATCHED))
    return Measured("accuracy_of_steering_and_correction_less_that_of_correction", own["beyond"], own["beyond_low"],
                    own["beyond_high"], "points", int(own["n"]), control_label="along_matched_triples",
                    control=matched["beyond"], control_low=matched["beyond_low"], control_high=matched["beyond_high"],
                    p=own["p"],
                    units={"prompts": int(own["n"]), "matched_triples": int(own["n_draws"])})  # fmt: skip
