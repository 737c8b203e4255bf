"""What chapter 3 says of its tables: sentences whose numbers, and whose verbs, come from the rows. Of an empty table
nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from talking_heads_utils.experiments.editing.costs import What
from talking_heads_utils.experiments.editing.moves import Extent
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional.steering import Method
from talking_heads_utils.experiments.positional.subspace import Subspace
from talking_heads_utils.experiments.rules import QUARTER, TWENTY
from talking_heads_utils.experiments.verdicts import listed, where, with_interval
from talking_heads_utils.figures.editing import pareto
from talking_heads_utils.prompts import ioi
from talking_heads_utils.site.claim_words import p_in_words, plain
from talking_heads_utils.site.sentences import bullets, said, share

EXTENTS = {Extent.SINGLE: "one component", Extent.LEADING: "leading components", Extent.HEAD: "the whole head"}


def best(table: pd.DataFrame, part: str = Part.HELD_OUT, n_items: int | None = None) -> Any:
    """The row of the best edit on some lists: by default the longest of those that all edits were measured on."""
    table = where(table, part=part)
    rows = table[table["best"] & table["draw"].isna()]
    if n_items is None:
        all_edits = table[~table["best"]]["n_items"]
        n_items = int((all_edits if len(all_edits) else rows["n_items"]).max())
    rows = where(rows, n_items=n_items)
    return None if rows.empty else rows.iloc[0]


def points(row: Any, value: str = "gain", ends: str = "") -> str:
    """``+3.1 [1.0, 5.2]``."""
    return with_interval(row, value, ends, "+.1f")


@said
def finding(table: pd.DataFrame, model: str) -> str:
    """The chapter's finding, and its control."""
    row, draws = best(table), _draws(table)
    n_tried = int(table.loc[table["draw"].isna(), "n_tried"].max())  # edits of all families together
    gains = "raises" if row["low"] > 0 else "lowers" if row["high"] < 0 else "does not clearly change"
    return (
        f"In {model}, the best of {n_tried:,} edits of the weights {gains} accuracy on held-out lists of "
        f"{row['n_items']}, by **{points(row)} points**. The same search among random heads, {len(draws)} times, gains "
        f"{draws['gain'].max():+.1f} at most."
    )


def _draws(table: pd.DataFrame) -> pd.DataFrame:
    """The best edits of random heads on the lists of :func:`best`."""
    return where(table[table["draw"].notna()], part=Part.HELD_OUT, n_items=best(table)["n_items"])


# --- one component removed ---


@said
def removal(table: pd.DataFrame) -> str:
    parts = []
    for (task, n_items, head), rows in table.groupby(["task", "n_items", "head"], sort=False):
        own = rows.set_index("chosen_by").loc["selection"]
        prompts = "IOI" if task == ioi.TASK else f"{task} of {n_items}"
        if own.isna()["share"]:
            parts.append(f"{prompts}, {head}: I(m) is not clearly above zero, so there is no share of it to lose.")
            continue
        enough = "at least a quarter" if own["share_low"] >= QUARTER else "less than a quarter" if (
            own["share_high"] < QUARTER) else "about a quarter"  # fmt: skip
        parts.append(f"{prompts}: without {own['component']}, {share(own, ends='share_')} of I(m) is gone, {enough}.")
    ps = table.loc[table["chosen_by"] == "selection", "p_holm"].dropna()
    less = " or less" if ps.nunique() > 1 else ""
    beside = f"\n\nMatched components: {p_in_words(ps.max())}{less} for each, after Holm's correction."
    return bullets(parts) + (beside if len(ps) else "")


# --- gains ---


@said
def gains(table: pd.DataFrame) -> str:
    row = best(table)
    draws = _draws(table)
    more = "more" if row["low"] > draws["gain"].max() else "not clearly more"
    beyond = "beyond" if row["beyond_low"] > 0 else "not clearly beyond" if row["beyond_high"] > 0 else "less than"
    passed = [unit for unit, value in (("points", "gain"), ("percent", "relative"))
              if row[value] >= TWENTY]  # fmt: skip
    over = f"is reached in {listed(passed)}" if passed else "is reached neither in points nor in percent"
    return (
        f"The best edit is {row['edit']}. On held-out lists of {row['n_items']}, accuracy goes from "
        f"{row['before']:.0%} to {row['after']:.0%}.\n\n"
        f"- That is {points(row)} points, or {points(row, 'relative', 'relative_')} percent of the accuracy before "
        f'(n = {row["n"]}). The paper\'s "over 20%" {over}.\n'
        f"- It is {more} than the best of {len(draws)} searches among random heads gains: "
        f"{draws['gain'].max():+.1f} points.\n"
        f"- It is {beyond} what a constant gains that is added to the logit of each list index, by "
        f"{points(row, 'beyond', 'beyond_')} points."
    )


@said
def families(table: pd.DataFrame) -> str:
    """Which family and extent gain, and whether a gain needs the whole head."""
    n_items = best(table)["n_items"]
    rows = where(table[table["draw"].isna() & table["extent"].isin(EXTENTS)], part=Part.HELD_OUT, n_items=n_items)
    parts, needs = [], []
    for family, own in rows.groupby("family", sort=False):
        by = own.drop_duplicates("extent").set_index("extent")
        told = ", ".join(f"{EXTENTS[extent]} {points(row)}" for extent, row in by.iterrows())
        parts.append(f"{plain(family)}: {told}")
        some = [by.loc[e, "high"] for e in (Extent.SINGLE, Extent.LEADING) if e in by.index]
        whole = by.loc[Extent.HEAD] if Extent.HEAD in by.index and some else None
        if whole is not None and whole["low"] > 0 and whole["gain"] > max(some):
            needs.append(f"*{plain(family)}*")
    low_rank = (f"In the family {listed(needs)}, a gain needs the whole head: few of its components are not enough."
                if needs else "In no family does a gain clearly need the whole head.")  # fmt: skip
    told = f"Points gained on {rows['n'].max()} lists of {n_items}, by family and by how much of a head is edited:"
    return f"{bullets(parts, told)}\n\n{low_rank}"


@said
def elsewhere(table: pd.DataFrame) -> str:
    """The same edit on lists of another kind."""
    n_items = best(table)["n_items"]
    told = [f"{name} {points(row)} points (n = {row['n']})"
            for name, part in (("a wording that no choice saw", Part.NEW_WORDING), ("new objects", Part.NEW_OBJECTS))
            for row in [best(table, part, n_items)] if row is not None]  # fmt: skip
    return f"The same edit on lists of {n_items} of another kind: {'; '.join(told)}." if told else ""


# --- costs ---


@said
def costs(table: pd.DataFrame) -> str:
    parts = []
    for edit, rows in table.groupby("edit", sort=False):
        told = []
        for what, unit in ((What.IOI, "points on IOI"), (What.WORDS, "points on words in context, mean over tasks"),
                           (What.TEXT_LOSS, "nats a token of loss on running text")):  # fmt: skip
            part = rows[rows["what"] == what]
            if len(part) == 1:
                digits = 1 if what == What.IOI else 3
                told.append(f"{with_interval(part.iloc[0], 'change', form=f'+.{digits}f')} {unit}")
            elif len(part):
                told.append(f"{part['change'].mean():+.1f} {unit}")
        parts.append(f"{edit}: {'; '.join(told)}")
    return bullets(parts)


@said
def tried(table: pd.DataFrame) -> str:
    front = pareto(table)
    free, most = front[front["text_loss"] <= 0], front.iloc[-1]
    costless = (f"{len(free)} of these cost{'s' * (len(free) == 1)} no loss on text" if len(free)
                else "each of these costs some loss on text")  # fmt: skip
    return (
        f"Of {len(table)} edits, {len(front)} are beaten by no other in both gain and cost; {costless}. The one that "
        f"gains most, {most['edit']}, gains {points(most)} points, mean over two lengths of lists, and costs "
        f"{most['text_loss']:+.3f} nats a token."
    )


@said
def baked(table: pd.DataFrame) -> str:
    parts = []
    for n_items, rows in table.groupby("n_items"):
        told = "; ".join(f"{row['by']} {row['before']:.1%} to {row['after']:.1%}" for _, row in rows.iterrows())
        parts.append(f"lists of {n_items}: {told}. Logits differ by {rows['apart'].max():.1e} at most")
    return bullets(parts, "Accuracy before and after, by this package and by `transformers`:")


@said
def beside_steering(table: pd.DataFrame, steering: pd.DataFrame) -> str:
    """The best edit beside steering and the correction by index, on lists of the same kind and length."""
    row, n_items = best(table), best(table)["n_items"]
    rows = where(steering, part=Part.HELD_OUT, n_items=n_items, subspace=Subspace.CHOSEN).set_index("method")
    named = {Method.ONE_SETTING: "one setting for all lists", Method.CORRECTION: "a constant for each index",
             Method.BOTH: "both"}  # fmt: skip
    told = [f"{name}: {points(rows.loc[m], 'gain', 'gain_')} points" for m, name in named.items() if m in rows.index]
    return bullets([f"the best edit: {points(row)} points", *told]) if told else ""


@said
def known(table: pd.DataFrame) -> str:
    """The same search in the planted model, whose noise head can be removed."""
    row = best(table)
    return (
        f"*Known answer:* in the planted model one head writes noise into the channel. Without it, lists are answered "
        f"better. The same search finds {row['edit']}: accuracy goes from {row['before']:.0%} to {row['after']:.0%} on "
        f"held-out lists of {row['n_items']}."
    )


def edit_of(tables: Mapping[str, pd.DataFrame]) -> str:
    """The name of the best edit; empty where there is none."""
    table = tables["edit-gains"]
    return "" if not len(table) else str(best(table)["edit"])
