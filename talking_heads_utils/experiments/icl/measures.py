"""What chapter 4's tables measure of the post's claims: what the rules of
:mod:`talking_heads_utils.experiments.rules` see.

Tasks are the units: a number of several tasks is a mean, or a ratio of means, of what each task's own row says, with
Student's interval over tasks. Such an interval holds for other tasks of the kind, and prompts' noise is within it.
"""

from __future__ import annotations

from itertools import product
from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from talking_heads_utils.experiments.dealt import drawn_test, mean_over_draws, names_within_layers
from talking_heads_utils.experiments.icl.backups import Who
from talking_heads_utils.experiments.icl.parts import HEADS, MLPS, Attribute
from talking_heads_utils.experiments.icl.redundancy import OVER_TASKS, Set
from talking_heads_utils.experiments.icl.swaps import Where
from talking_heads_utils.experiments.rules import QUARTER, TENTH
from talking_heads_utils.experiments.verdicts import Measured, rank_p, where
from talking_heads_utils.labels import Head
from talking_heads_utils.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

N_JUDGED = 5  # heads of the sets that are judged, as many as the post named
N_DEALS = 1999  # of heads' names within layers
REACH = 10  # labels of signed evidence, over which a bend is told


def mean_of(values: pd.Series) -> Interval:
    """Mean of units with Student's 95% interval; NaN ends for fewer than two."""
    return ratio_of(values, values * 0 + 1)


def ratio_of(above: pd.Series, below: pd.Series) -> Interval:
    """Sum over units over sum over units, with the 95% interval of its linear part (Cochran 1977, section 6.4) by
    Student's quantile. NaN ends for fewer than two units."""
    from scipy.stats import t

    n, value = len(above), float(above.sum() / below.sum()) if len(above) and below.sum() else nan
    if n < 2:
        return Interval(value, nan, nan, n)
    off = float(((above - value * below) ** 2).sum() * n / (n - 1)) ** 0.5 / abs(float(below.sum()))
    reach = float(t.ppf(0.975, n - 1)) * off
    return Interval(value, value - reach, value + reach, n)


def _of_tasks(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Rows of single tasks with these values."""
    return where(table[table["task"] != OVER_TASKS], **values)


def _beyond_sum(joint: Any, summed: Any) -> Any:
    """From -1 to 1: 0 where a joint loss is the sum, 1 where nothing is lost by one alone. Finite whatever is lost."""
    return (joint - summed) / (abs(joint) + abs(summed))


def redundant(table: pd.DataFrame) -> Measured:
    """Loss of the chosen heads together over the sum of their losses alone, at the last token, over tasks.

    Its interval is that of the inverse, which is finite where each head has a perfect stand-in. A matched set that
    loses less than a tenth of what the chosen one does counts as a sum."""
    part = _of_tasks(table, where=Where.END)
    own = part[(part["heads_are"] == Set.CHOSEN) & (part["n_heads"] <= N_JUDGED)]
    own = own[own["n_heads"] == own["n_heads"].max()]
    lost, alone = mean_of(own["joint"]), ratio_of(own["summed"], own["joint"])
    drawn = part[part["heads_are"] == Set.MATCHED].groupby("draw")[["joint", "summed"]].mean()
    drawn["summed"] = drawn["summed"].where(drawn["joint"] >= TENTH * lost.mean, drawn["joint"])
    p = rank_p(_beyond_sum(lost.mean, own["summed"].mean()), _beyond_sum(drawn["joint"], drawn["summed"]))
    value, low, high = (inf if over <= 0 else 1 / over for over in (alone.mean, alone.high, alone.low))
    return Measured("joint_over_summed_loss_of_the_chosen_heads", value, low, high, n=len(own), n_of="tasks",
                    control_label="of_matched_sets", **_drawn(drawn["joint"] / drawn["summed"]), p=p,
                    also={"joint_low": lost.low, "joint_high": lost.high},
                    units={"tasks": len(own), "prompts": _least(own), "matched_sets": len(drawn)})  # fmt: skip


def _drawn(values: pd.Series) -> dict[str, Any]:
    """Controls that were drawn: their median, and where 95% of them lie."""
    at = values.astype(float).quantile([0.5, 0.025, 0.975]) if len(values) else [nan] * 3
    return dict(zip(("control", "control_low", "control_high"), at))


def _least(rows: pd.DataFrame) -> int:
    return int(rows["n"].min()) if len(rows) else 0


def survives(table: pd.DataFrame) -> Measured:
    """Change of accuracy over accuracy before, without the heads of the post's two layers, over tasks: of two ways to
    take them out the one that costs more, with the lower of the lower and of the upper ends. Beside it, all other pairs
    of layers."""
    part = _of_tasks(table)
    part = part.assign(before=part["accuracy"] - part["change"])
    own = part[part["posts"]]
    ways = [ratio_of(rows["change"], rows["before"]) for _, rows in own.groupby("how")]
    others = part[~part["posts"]].groupby(["how", "a", "b"])[["change", "before"]].sum()
    value, low, high = (min(ends) for ends in list(zip(*ways))[:3])
    return Measured("change_of_accuracy_without_two_layers_over_accuracy", value, low, high,
                    n=own["task"].nunique(), n_of="tasks", control_label="without_two_other_layers",
                    **_drawn(others["change"] / others["before"]),
                    units={"tasks": own["task"].nunique(), "prompts": _least(own), "ways": len(ways)})  # fmt: skip


def moves_up(table: pd.DataFrame) -> Measured:
    """Layers by which the first working patch moves up without the heads of the post's two layers, over tasks: mean
    over what B sees and over two ways to take them out, where a patch works with them and without. Beside it, other
    neighbouring pairs below the first layer."""
    part = _of_tasks(table).dropna(subset=["plain"])
    own, others = part[part["posts"]], part[~part["posts"] & part["below"].fillna(False).astype(bool)]
    moved = own.dropna(subset=["moved"]).groupby("task")["moved"].mean()
    theirs = others.dropna(subset=["moved"]).groupby("task")["moved"].mean()
    both = moved.index.intersection(theirs.index)
    found, more = mean_of(moved), mean_of(moved[both] - theirs[both])
    control = mean_of(theirs[both])
    return Measured("layers_that_the_first_working_patch_moves_up", *found[:3], "layers", len(moved), "tasks",
                    "without_two_other_layers_below", *control[:3],
                    also={"more_low": more.low, "more_high": more.high,
                          "works": float(own["moved"].notna().mean()) if len(own) else nan},
                    units={"tasks": len(both), "prompts": _least(own)})  # fmt: skip


def backups(table: pd.DataFrame) -> Measured:
    """Share of the chosen heads' lost direct effect that others recover where each is exchanged alone, with direction
    and scale of the untouched run, over tasks. A matched draw that loses less than a tenth of what the chosen heads do
    counts as unrecovered."""
    part = _of_tasks(table, who=Who.ALL, alone=True)
    own = part[part["heads_are"] == Set.CHOSEN].groupby("task")[["lost", "recovered"]].mean()
    lost, found = mean_of(own["lost"]), ratio_of(own["recovered"], own["lost"])
    drawn = part[part["heads_are"] == Set.MATCHED].groupby("draw")[["lost", "recovered"]].mean()
    shares = (drawn["recovered"] / drawn["lost"]).where(drawn["lost"] >= TENTH * lost.mean, 0.0)
    return Measured("share_of_lost_direct_effect_that_others_recover", *found[:3], n=len(own), n_of="tasks",
                    control_label="of_matched_heads", **_drawn(shares), p=rank_p(found.mean, shares),
                    also={"lost_low": lost.low, "lost_high": lost.high},
                    units={"tasks": len(own), "prompts": _least(part), "matched_draws": len(drawn)})  # fmt: skip


def evidence(table: pd.DataFrame) -> Measured:
    """How the slope of the log-odds at signed evidence grows with log((1 - e) / e) over rates of flips e: 1 where it is
    in proportion, as an exact reader's is, 0 where no rate is heeded; and whether the log-odds are straight, blind to
    order, and told best by signed evidence."""
    rates, whole = table[table["flip"] > 0], table[table["flip"] == 0].iloc[0]
    scale = np.log(1 / rates["flip"].to_numpy(float) - 1).mean() / whole["slope"]
    low, high = sorted((scale * whole["follows_low"], scale * whole["follows_high"]))
    bend = sorted(REACH * whole[f"curvature_{end}"] / whole["slope"] for end in ("low", "high"))
    names = ("slope", "slope_low", "slope_high", "order_low", "order_high", "rival_low", "rival_high")
    return Measured("growth_of_the_slope_with_the_log_odds_of_one_label", scale * whole["follows"], low, high,
                    n=int(rates["n"].sum()), n_of="sequences", control_label="of_an_exact_reader", control=1.0,
                    also={name: whole[name] for name in names} | dict(zip(("bend_low", "bend_high"), bend)),
                    units={"rates": len(rates), "sequences": _least(rates)})  # fmt: skip


def adds(table: pd.DataFrame) -> Measured:
    """What the most examples contribute together over the sum of what each does alone, all rates of flips together."""
    part = table[table["flip"] == 0]
    own = part[part["n_changed"] == part["n_changed"].max()].sort_values("summed").iloc[-1]
    return Measured("contribution_of_examples_together_over_their_sum", own["ratio"], own["low"], own["high"],
                    n=int(own["n"]), n_of="sequences", control_label="if_they_add", control=1.0,
                    also={"summed": own["summed"], "summed_low": own["summed_low"]},
                    units={"sequences": int(own["n"])})  # fmt: skip


def looks_back(table: pd.DataFrame) -> Measured:
    """Attention to earlier answers beyond an even one, of heads that matter less that of others of their layers, over
    tasks; heads' names are dealt anew within layers, once for all tasks. also: the same of attention to earlier answers
    beyond that to earlier x."""
    heads = {name: Head.parse(name) for name in table["head"].unique()}
    shape = (1 + max(head.layer for head in heads.values()), 1 + max(head.head for head in heads.values()))
    names = torch.cat([torch.arange(shape[1]).expand(1, *shape), names_within_layers(N_DEALS, *shape)])
    kinds: dict[str, list[Tensor]] = {"even": [], "to_x": []}
    tasks = [rows for _, rows in table.groupby("task") if rows["important"].any()]
    for (kind, found), rows in product(kinds.items(), tasks):
        beyond = torch.zeros(shape, dtype=torch.float64)
        at = [[getattr(heads[name], part) for name in rows["head"]] for part in ("layer", "head")]
        beyond[tuple(at)] = torch.tensor((rows["to_y"] - rows[kind]).to_numpy(float))
        found.append(mean_over_draws(beyond, [heads[name] for name in rows.loc[rows["important"], "head"]], names))
    what = "attention_to_earlier_answers_of_heads_that_matter_beyond_others"
    if not tasks:
        return Measured(what, nan)
    means = {kind: torch.stack(found).mean(0) for kind, found in kinds.items()}
    test, beyond_x = (drawn_test(float(found[0]), found[1:]) for found in means.values())
    return Measured(what, test.observed - test.null_mean, unit="share", n=_least(table), p=test.p,
                    control_label="95_percent_of_deals_within_layers_below", control=test.null_high - test.null_mean,
                    also={"p_beyond_x": beyond_x.p},
                    units={"tasks": len(tasks), "heads": table.loc[table["important"], "head"].nunique()})  # fmt: skip


def in_parts(table: pd.DataFrame) -> Measured:
    """MLPs a task without which one attribute is clearly lost, by a quarter of its share at least, and another kept but
    for a tenth at most, beside attention layers of which the same is true, over tasks with two attributes beside the
    exact answer."""
    what = "mlps_a_task_without_which_one_attribute_is_lost_and_another_kept"
    part = table[table["attribute"] != Attribute.EXACT]
    before = part[part["part"] == ""].set_index(["task", "attribute"])["share"].rename("before")
    part = part[part["layer"].notna()].join(before, on=["task", "attribute"])
    part = part[part.groupby("task")["attribute"].transform("nunique") > 1]
    found = part.assign(lost=part["high"] < -QUARTER * part["before"], kept=part["low"] > -TENTH * part["before"])
    found = found.groupby(["task", "part", "layer"])[["lost", "kept"]].any().all(axis=1).groupby(["task", "part"]).sum()
    mlps, attention = (found.xs(kind, level="part").astype(float) if kind in found.index.unique("part") else None
                       for kind in (MLPS, HEADS))  # fmt: skip
    if mlps is None or attention is None:
        return Measured(what, nan)
    more = mean_of(mlps - attention)
    return Measured(what, float(mlps.mean()), n=len(mlps), n_of="tasks", control_label="attention_layers",
                    control=float(attention.mean()), also={"more_low": more.low, "more_high": more.high},
                    units={"tasks": len(mlps), "prompts": _least(part)})  # fmt: skip
