"""What chapter 4 says of its tables: sentences whose numbers, and whose verbs, come from the rows. Of an empty table
nothing is said."""

from __future__ import annotations

from collections.abc import Collection
from math import isnan
from typing import Any

import pandas as pd

from talking_heads_utils.experiments.icl import measures
from talking_heads_utils.experiments.icl.backups import Who
from talking_heads_utils.experiments.icl.patching import Run
from talking_heads_utils.experiments.icl.post import AT_B, FUNCTION
from talking_heads_utils.experiments.icl.readers import Reader
from talking_heads_utils.experiments.icl.redundancy import OVER_TASKS, Set
from talking_heads_utils.experiments.icl.swaps import Where
from talking_heads_utils.experiments.rules import SUM
from talking_heads_utils.experiments.verdicts import listed, with_interval
from talking_heads_utils.figures.icl import most_examples, seen, task_name
from talking_heads_utils.figures.icl_evidence import flipped
from talking_heads_utils.prompts.relations import ANOTHER, ITS_OWN, SHUFFLED
from talking_heads_utils.site.sentences import bullets, said, share

READERS = {Reader.EXACT: "exact", Reader.SATURATION: "saturating", Reader.RECENCY: "recency", Reader.LAST: "last label",
           Reader.COUNT: "number only"}  # fmt: skip


def _range(values: Collection[Any], form: str = ".0%") -> str:
    """``12% to 40%``."""
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


# --- what the model can do ---


@said
def finding(sets: pd.DataFrame, model: str) -> str:
    """The chapter's finding, and its control."""
    found = measures.redundant(sets)
    matched = ""
    if not isnan(found.control):
        matched = f" For other heads with as much direct effect it is {found.control:.2f} times."
    if found.control > SUM[1]:
        matched += f" That too is above {SUM[1]:g}: a part of it is no matter of these heads."
    return (
        f"In {model}, the {measures.N_JUDGED} heads that matter most to a task cost, when they go together, "
        f"**{found.value:.2f}** [{found.low:.2f}, {found.high:.2f}] times the sum of what each costs alone, over "
        f"{found.n} tasks.{matched}"
    )


@said
def tasks(table: pd.DataFrame) -> str:
    """Which tasks are done better with their own examples than with either control."""
    rows, controls = most_examples(table), (SHUFFLED, ANOTHER)
    by = {kind: part.set_index("task") for kind, part in rows.groupby("examples")}
    own, highs = by[ITS_OWN], [by[kind]["high"] for kind in controls if kind in by]
    names = own.index.tolist()
    passed = [task for task in names if own.loc[task, "low"] > max((high.get(task, 0.0) for high in highs), default=0)]
    shuffled = by[SHUFFLED]["accuracy"] if SHUFFLED in by else {}
    kept = [shuffled.get(task, 0.0) / own.loc[task, "accuracy"] for task in passed]
    more = f" With shuffled labels, {_range(kept)} of their accuracy is left." if kept else ""
    return (
        f"Of {len(names)} tasks, {len(passed)} are clearly done better after their own examples than after either "
        f"control: {listed(map(task_name, passed)) if passed else 'none'}.{more}"
    )


@said
def functions(table: pd.DataFrame) -> str:
    """The post's own task."""
    most = table[table["n_examples"] == table["n_examples"].max()]
    told = []
    for function, rows in most.groupby("function", sort=False):
        by = rows.set_index("examples")
        told.append(f"{function}: {share(by.loc[ITS_OWN], 'accuracy')}; after shuffled labels "
                    f"{share(by.loc[SHUFFLED], 'accuracy')}")  # fmt: skip
    return bullets(told, f"Right whole answers after {most['n_examples'].max()} examples:")


# --- the post's experiment ---


@said
def patches(table: pd.DataFrame) -> str:
    """How far a patch comes, over tasks."""
    parts, table = [], table[table["task"] != OVER_TASKS]
    for b_sees, rows in table[table["out"] == ""].groupby("b_sees", sort=False):
        a, b = (rows[rows["run"] == run].groupby("task")["accuracy"].mean().mean() for run in (Run.A, Run.B))
        patched = rows[rows["run"] == Run.PATCHED].groupby("layer")[["accuracy", "copied"]].mean()
        best = patched["accuracy"].idxmax()
        parts.append(
            f"{seen(b_sees)}: B alone is right in {b:.0%}, with A's stream of layer {best} in "
            f"{patched['accuracy'].max():.0%}; A itself in {a:.0%}. Patches copy A's own answer in up to "
            f"{patched['copied'].max():.0%}."
        )
    return bullets(parts, f"Means over {table['task'].nunique()} tasks, with no head of A out:")


@said
def layers_out(table: pd.DataFrame) -> str:
    """The post's two layers among all pairs, over tasks."""
    parts = []
    for how, rows in (table[table["task"] == OVER_TASKS]).groupby("how", sort=False):
        own = rows[rows["posts"].astype(bool)].iloc[0]
        worse = (rows["change"] < own["change"]).sum()
        layers = sorted({*rows["a"], *rows["b"]})
        mildest = {layer: rows[(rows["a"] == layer) | (rows["b"] == layer)]["change"].max() for layer in layers}
        worst = min(mildest, key=mildest.__getitem__)
        by = f"by {'zeros' if how == 'zero' else 'exchange'}: {with_interval(own, 'change', form='+.0%')}"
        more = f"{worse} of the {len(rows) - 1} other pairs cost more, the worst {rows['change'].min():+.0%}"
        parts.append(f"{by}; {more}. Every pair with layer {worst} costs {mildest[worst]:+.0%} or more")
    own = table[table["posts"].astype(bool)].iloc[0]
    return bullets(parts, f"Change of accuracy without the post's layers, {own['a']} and {own['b']}, over tasks:")


@said
def first(table: pd.DataFrame) -> str:
    """By how much the first working layer moves without the post's layers, over tasks."""
    rows = table[(table["task"] == OVER_TASKS) & table["posts"].astype(bool) & table["moved"].notna()]
    told = [f"{seen(row['b_sees'])}, {'zeros' if row['how'] == 'zero' else 'exchange'}: "
            f"{with_interval(row, 'moved', form='+.1f')}" for _, row in rows.iterrows()]  # fmt: skip
    return bullets(told, "Layers by which it moves up without the post's two, over tasks:")


@said
def post_here(table: pd.DataFrame) -> str:
    """What this model answers to the post's own two prompts."""
    twice = FUNCTION[0] * AT_B
    told = []
    for (out, best), rows in table.groupby(["out", "a_top_five"], sort=False):
        layers = rows.loc[rows["b_patched"] == twice, "layer"].tolist()
        where = f"at layers {listed(layers)}" if layers else "nowhere"
        told.append(f"{out or 'nothing'} out: A's top five {best}; B answers {twice} (2x) {where}")
    return bullets(told, "The same prompts on this model:")


# --- redundancy ---


@said
def heads(table: pd.DataFrame) -> str:
    """How many heads cost something alone, and how much the strongest does."""
    parts = table[table["alone"].notna()].groupby("task")
    clear = [int((rows["low"] > 0).sum()) for _, rows in parts]
    worst = [float(rows["alone"].max()) for _, rows in parts]
    often = table[table["chosen"].notna()]["head"].value_counts()
    shared = [head for head, n in often.items() if n == table["task"].nunique()]
    n = int(table["chosen"].max())
    same = f"Among the {n} chosen in every task are {listed(shared)}." if shared else "No head is chosen in every task."
    return (
        f"In each task, {_range(clear, 'd')} heads clearly cost something when exchanged alone. The costliest of them "
        f"costs {_range(worst, '.2f')} nats. {same}"
    )


@said
def sets(table: pd.DataFrame) -> str:
    """What more heads, and whole layers, cost together."""
    whole = table[(table["task"] == OVER_TASKS) & (table["where"] == Where.END)]
    chosen = whole[(whole["heads_are"] == Set.CHOSEN) & whole["ratio"].notna()].sort_values("n_heads")
    told = [f"{row['n_heads']} heads: {with_interval(row, 'ratio')}, and accuracy goes from {row['before']:.0%} to "
            f"{row['accuracy']:.0%}" for _, row in chosen.iterrows()]  # fmt: skip
    layers = whole[whole["heads_are"] == Set.LAYER]
    worst = layers.loc[layers["accuracy"].idxmin()] if len(layers) else None
    cost = 0 if worst is None else worst["before"] - worst["accuracy"]
    more = "" if worst is None else f"\n\nAll heads of one layer cost at most {cost:.0%} of answers ({worst['heads']})."
    head = "Joint loss over the sum of single losses, at the last token, over tasks:"
    return bullets(told, head) + more if told else ""


@said
def pairs(table: pd.DataFrame) -> str:
    """How many pairs stand in for each other, and how many need each other."""
    n, above, below = len(table), int((table["low"] > 0).sum()), int((table["high"] < 0).sum())
    return (
        f"The same for all {n:,} pairs of heads in {table['task'].nunique()} tasks: {above / n:.0%} clearly cost more "
        f"together than the sum of both, so each stands in for the other. {below / n:.0%} clearly cost less, so each "
        "needs the other."
    )


@said
def backups(table: pd.DataFrame) -> str:
    """Who recovers how much, over tasks, and what the post's yardstick says."""
    rows = table[(table["task"] == OVER_TASKS) & (table["heads_are"] == Set.CHOSEN) & table["share"].notna()]
    if rows.empty:
        return ""
    by = rows[rows["n_heads"] == rows["n_heads"].max()].drop_duplicates("who").set_index("who")
    names = {Who.ALL: "other heads and MLPs", Who.NORM: "the final norm", Who.POST: "by the post's yardstick",
             Who.POST_HELD: "by the post's yardstick, held frozen"}  # fmt: skip
    if Who.POST not in by.index:
        moved = "by the post's yardstick, moved to the last layer"
        names |= {Who.FINAL: moved, Who.FINAL_HELD: "the same, held frozen"}
    told = [f"{name}: {share(by.loc[who])}" for who, name in names.items() if who in by.index]
    less = "\n\nBelow 0: they, too, write less of the answer." if (
        Who.ALL in by.index and by.loc[Who.ALL, "share"] < 0) else ""  # fmt: skip
    head = f"Share of the lost direct effect that is recovered when {by['n_heads'].iloc[0]} heads go, over tasks:"
    return bullets(told, head) + less


@said
def sufficient(table: pd.DataFrame) -> str:
    """The smallest sets, and how many there are without a head in common."""
    enough = table[table["suffices"].astype(bool)]
    sizes = {task: rows.sort_values("which")["n_heads"].tolist() for task, rows in enough.groupby("task", sort=False)}
    told = [f"{task_name(task)} {found[0]} ({', '.join(map(str, found[1:])) or 'no second set'})"
            for task, found in sizes.items()]  # fmt: skip
    lacking = [task for task in table["task"].unique() if task not in sizes]
    most = table.loc[table["task"].isin(lacking), "n_heads"].max()
    none = f"More than {most} are needed in {listed(map(task_name, lacking))}. " if lacking else ""
    held = enough[enough["which"] == 1]
    kept = f"\n\nOn held-out prompts the first sets keep {_range(held['kept'])} of the accuracy" if len(held) else ""
    gone = held["without"].dropna()
    without = f"; with the first set alone exchanged, {_range(gone)} is left" if len(gone) else ""
    more = f"{kept}{without}." if kept else ""
    first = f"Heads of the smallest set that keeps 90% of the accuracy: {', '.join(told)}. " if told else ""
    return f"{first}{none}".strip() + more


# --- evidence ---


@said
def labels(table: pd.DataFrame) -> str:
    """How well two labels are learned, by rate of flips."""
    table = table[table["n_examples"] == table["n_examples"].max()]
    half = "held-out" if (table["half"] == "held-out").any() else "selection"
    rows = table[table["half"] == half]
    told = []
    for names, part in rows.groupby("labels", sort=False):
        by = [f"{flipped(row['flip'])} {share(row, 'accuracy')}" for _, row in part.iterrows()]
        told.append(f"{names}: {', '.join(by)}")
    return bullets(told, f"Right labels after {rows['n_examples'].max()} examples ({half} half):")


@said
def slopes(table: pd.DataFrame) -> str:
    """The slope over all rates of flips, and what the order of examples does beside it."""
    told = []
    for names, part in table.groupby("labels", sort=False):
        whole = part[part["flip"] == 0].iloc[0]
        told.append(
            f"{names}: {with_interval(whole, 'slope', 'slope_', '.3f')} nats a label. The variance over orders of the "
            f"same examples is {with_interval(whole, 'order', 'order_', '.0%')} of the variance that goes by evidence."
        )
    return bullets(told, "Slope of the log-odds on signed evidence, all rates together:")


@said
def readers(table: pd.DataFrame) -> str:
    """How much the exact reader and its best rival explain."""
    told = []
    for names, part in table.groupby("labels", sort=False):
        by = part.set_index("reader")
        rivals = by.drop(index=Reader.EXACT)
        best = rivals.loc[rivals["explained"].idxmax()]
        name, more = READERS[Reader(best.name)], with_interval(best, "beyond_exact", "beyond_", "+.1%")
        told.append(f"{names}: the exact reader {share(by.loc[Reader.EXACT], 'explained')}, the best rival ({name}) "
                    f"{best['explained']:.0%}, a difference of {more}")  # fmt: skip
    return bullets(told, "Variance of held-out sequences explained:")


@said
def sums(table: pd.DataFrame) -> str:
    """What examples contribute together over alone, all rates together."""
    told = []
    for names, part in table[table["flip"] == 0].groupby("labels", sort=False):
        rows = part[part["ratio"].notna()].sort_values("n_changed")
        by = [f"{with_interval(row, 'ratio')} for {row['n_changed']} examples" for _, row in rows.iterrows()]
        told.append(f"{names}: {', '.join(by)}")
    return bullets(told, "Joint over summed contribution, all rates together:")


# --- parts ---


@said
def looks_back(table: pd.DataFrame) -> str:
    """Attention to earlier answers of heads that matter, and of others, over tasks, and what the rule makes of them."""
    judged = measures.looks_back(table)
    table = table.assign(beyond=table["to_y"] - table["even"])
    by = table.groupby(table["important"].astype(bool))[["beyond", "to_y", "to_x"]].mean()
    told = [f"{name}: {row['to_y']:.0%} ({row['beyond']:+.0%} from an even share); to earlier x "
            f"{row['to_x']:.0%}" for key, name in ((True, "heads that matter"), (False, "others")) if key in by.index
            for row in [by.loc[key]]]  # fmt: skip
    rule = (
        f"\n\nThe rule compares heads of one layer: beyond an even share, those that matter look back "
        f"{judged.value:+.1%} more than the others. 95% of deals of their names within layers stay below "
        f"{judged.control:+.1%}."
    )
    return bullets(told, "Mean attention to earlier answers, from the tokens before answers:") + rule


@said
def parts(table: pd.DataFrame) -> str:
    """The MLPs without which one attribute is lost most while another is kept."""
    rows = table[table["layer"].notna() & (table["part"] == "mlp")]
    told = []
    for task, part in rows.groupby("task", sort=False):
        wide = part.pivot_table(index="layer", columns="attribute", values="change")
        wide = wide.drop(columns="exact", errors="ignore")
        if wide.shape[1] < 2:
            continue
        apart = wide.max(axis=1) - wide.min(axis=1)
        layer = apart.idxmax()
        lost, kept = wide.loc[layer].idxmin(), wide.loc[layer].idxmax()
        told.append(f"{task_name(task)}: MLP {layer:.0f}, {lost} {wide.loc[layer, lost]:+.0%}, {kept} "
                    f"{wide.loc[layer, kept]:+.0%}")  # fmt: skip
    return bullets(told, "Where two attributes part most:")
