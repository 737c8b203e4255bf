"""The post's claims, each with its measure, its control and a verdict that follows from numbers by a fixed rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.icl.curves import LINE
from talking_heads_utils.experiments.icl.parts import ATTENTION, MLP
from talking_heads_utils.experiments.verdicts import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Verdict,
    by_verdict,
    counted,
    unsound,
    with_interval,
)
from talking_heads_utils.forward.head_sets import NOTHING
from talking_heads_utils.stats import fisher_exact

if TYPE_CHECKING:
    import pandas as pd


CLOSE = 0.25  # how near to 1 a ratio must be known to be for sums to add


@unsound("heads are ranked by what their own loss costs, which a perfect backup makes zero")
def redundant(strong: pd.DataFrame, random: pd.DataFrame) -> Verdict:
    """Do pairs of the strongest heads stand in for each other more than random pairs do?

    In log-odds, where what adds in the logit is 0; what log-probability and its ceiling would say stands beside it. A
    norm can make any two losses interact, hence the random pairs. A pair lies above or below 0 if its interval does.
    Supported if more of the strong pairs than of the random pairs lie above 0 (exact test at 5%, as if pairs were
    independent); not supported if none does.
    """
    up, down, up_random = (int(f.sum()) for f in (strong["low"] > 0, strong["high"] < 0, random["low"] > 0))
    best = strong.loc[strong["interaction"].idxmax()]
    p = fisher_exact(up, len(strong), up_random, len(random))
    verdict = NOT_SUPPORTED if not up else SUPPORTED if p < 0.05 else UNDECIDED
    return Verdict(
        "Many heads are redundant",
        f"log-odds: {counted(strong['low'] > 0)} pairs of the strongest heads above 0, {down} below; most {best['a']} "
        f"and {best['b']}: {best['interaction']:.2f} nats [{best['low']:.2f}, {best['high']:.2f}], n = {best['n']}; "
        f"log-probability: {int((strong['log_prob_low'] > 0).sum())} above",
        f"of random heads {counted(random['low'] > 0)} pairs above 0, {int((random['high'] < 0).sum())} below; "
        f"one-sided Fisher p = {p:.2f}, as if pairs were independent",
        verdict,
    )


@unsound("the shares before and after are not paired, and heads are set to zero alone")
def survives(table: pd.DataFrame) -> Verdict:
    """Does the model answer without the head whose loss costs most (chosen on other prompts)?

    table: of :func:`~experiments.icl.study.removal_table`. Supported if nine tenths of its right answers or more
    are left (lower end of the interval); not supported if fewer than half are (upper end); undecided where it does not
    answer half of the prompts with nothing out (lower end).
    """
    by_effect = table[table["order"] == "by effect"].set_index("out")
    plain, one, able = by_effect.loc[0, "exact"], by_effect.loc[1], by_effect.loc[0, "low"] >= 0.5
    half = by_effect.index[by_effect["exact"] < plain / 2]
    random = table[(table["order"] != "by effect") & (table["out"] == 1)]["exact"].mean()
    kept = SUPPORTED if one["low"] >= 0.9 * plain else NOT_SUPPORTED if one["high"] < plain / 2 else UNDECIDED
    verdict = kept if able else UNDECIDED
    return Verdict(
        "No single head is needed",
        f"without {one['head']} {with_interval(one, 'exact')} of {plain:.2f}, n = {one['n']}; half is lost with "
        f"{half[0] if len(half) else 'no number of'} head{'' if len(half) and half[0] == 1 else 's'} out",
        f"without a random head {random:.2f}",
        verdict,
    )


@unsound("exact answers are asked for where about 2x is what moves")
def moving_layer(table: pd.DataFrame, plain: str) -> Verdict:
    """Does the first layer whose residual stream carries the function move up as heads are taken out?

    Supported if it does for some set and never moves down, each move clear: where one of the two works first, their
    intervals are apart. Not supported if some set moves down clearly, or none moves; undecided if no patch works
    without ablation, none with, or moves are not clear.
    """
    first = first_working_layer(table)
    most = table[(table["set"] == plain) & (table["layer"] >= 0)]["exact"].max()
    b_alone = table[table["layer"] == -2]["exact"].iloc[0]
    start = first[plain]
    verdict = UNDECIDED
    if start is not None:
        others = {name: layer for name, layer in first.items() if layer is not None and name != plain}
        clear = {name: _apart(table, plain, name, min(start, layer)) for name, layer in others.items()}
        up, down = (any(clear[n] and sign * (k - start) > 0 for n, k in others.items()) for sign in (1, -1))
        stays = bool(others) and set(others.values()) == {start}
        verdict = NOT_SUPPORTED if down or stays else SUPPORTED if up else UNDECIDED
    said = ", ".join(f"{name}: {'none' if layer is None else layer}" for name, layer in first.items())
    if len(first) > 6:  # a set for each layer of a large model
        moved = sum(layer != start for layer in first.values())
        said = f"{plain}: {'none' if start is None else start}; another in {moved} of {len(first) - 1} sets of heads"
    return Verdict(
        "The first layer whose patch works moves up as heads go",
        f"first layer at which half the answers are right: {said}; at best {most:.2f} without ablation"
        f"{asked_for(table)}",
        f"B with nothing patched: {b_alone:.2f}",
        verdict,
    )


def first_working_layer(table: pd.DataFrame, share: float = 0.5) -> dict[str, int | None]:
    """For each set the first layer at which a patch gives A's function at B's x in ``share`` of the prompts or more."""
    found = {}
    for name, part in table[table["layer"] >= 0].groupby("set", sort=False):
        reached = part[part["exact"] >= share]["layer"]
        found[name] = int(reached.iloc[0]) if len(reached) else None
    return found


def asked_for(table: pd.DataFrame) -> str:
    """What a large model was asked for, where that was a task of words: its answers are told apart among themselves
    alone, so that a word which looks like the question is right without any example."""
    task = table["task"].iloc[0] if "task" in table else None
    return f"; asked for words ({task}), among this task's answers alone" if isinstance(task, str) and task else ""


def _apart(table: pd.DataFrame, one: str, other: str, layer: int) -> bool:
    """Whether the intervals of two sets' exact answers are apart at a layer."""
    rows = table[table["layer"] == layer].set_index("set")
    return bool(rows.loc[one, "high"] < rows.loc[other, "low"] or rows.loc[other, "high"] < rows.loc[one, "low"])


@unsound("the control is not matched, and a change of the norm's divisor can pass for a backup")
def backups(real: pd.DataFrame, random: pd.DataFrame) -> Verdict:
    """Do other heads' direct effects rise when strong heads are out, with divisor and direction held fixed?

    Only heads above a layer with something out are counted: no other can change. A head rises or falls if its interval
    lies above or below 0. Supported if more rise than fall, and more than after random ablations (exact test at 5%, as
    if heads were independent); not supported if no more rise than fall; undecided if no head could change.
    """
    still = real[~real["above"]]
    real, random = (table[table["above"]] for table in (real, random))
    if real.empty or random.empty:
        after = "these heads are" if real.empty else "random ones are"
        return Verdict("Backup heads step in", f"no head can change when {after} out: none lies above", "", UNDECIDED)
    rise, fall, rise_random = (int(flags.sum()) for flags in (real["low"] > 0, real["high"] < 0, random["low"] > 0))
    p = fisher_exact(rise, len(real), rise_random, len(random))
    verdict = NOT_SUPPORTED if rise <= fall else SUPPORTED if p < 0.05 else UNDECIDED
    return Verdict(
        "Backup heads step in",
        f"held fixed: {counted(real['low'] > 0)} heads that can change rise, {counted(real['high'] < 0)} fall; "
        f"left free (the post's way): {counted(real['free_low'] > 0)} rise, {counted(real['free_high'] < 0)} fall, and "
        f"{counted(still['free_low'] > 0)} that cannot change rise",
        f"after random ablations {counted(random['low'] > 0)} rise, {counted(random['high'] < 0)} fall; one-sided "
        f"Fisher p = {p:.2f}, as if heads were independent",
        verdict,
    )


@unsound("an exact Bayesian reader does not pass the rule")
def line_in_n(fits: pd.DataFrame) -> Verdict:
    """Do log-odds follow a line in the number of examples better than the other laws, on examples held out?

    fits: of :func:`~experiments.icl.curves.fit_laws`. Supported if no other law's error is lower; not supported
    if that of the best law is clearly lower (upper end of the difference, on the same prompts).
    """
    errors = fits.set_index("law")
    best = min(errors.index, key=lambda law: errors.loc[law, "error"])
    clearly = errors.loc[best, "over_line_high"] < 0
    verdict = SUPPORTED if best == LINE else NOT_SUPPORTED if clearly else UNDECIDED
    told = f"best: {best} {with_interval(errors.loc[best], 'error')}"
    if best != LINE:
        less, at_least, at_most = -errors.loc[best, ["over_line", "over_line_high", "over_line_low"]]
        told += f", less than the line's by {less:.2f} [{at_least:.2f}, {at_most:.2f}]"
    return Verdict(
        "Log-odds are a line in n",
        f"error on held-out n: line {with_interval(errors.loc[LINE], 'error')}, n = {errors.loc[LINE, 'n']}",
        told,
        verdict,
    )


@unsound("after two exact examples nothing is left to learn, so sums must fail")
def adds(table: pd.DataFrame) -> Verdict:
    """Is the sum of what examples do alone what they do together?

    Supported if every ratio's interval lies within a quarter of 1, so that it is known well enough; not supported if
    none holds 1.
    """
    several = table[table["n_examples"] > 1]
    held = (several["low"] <= 1) & (several["high"] >= 1)
    close = (several["low"] >= 1 - CLOSE) & (several["high"] <= 1 + CLOSE)
    last = several.iloc[-1]
    return Verdict(
        "Contributions of examples add",
        f"alone, summed / together at {last['n_examples']} examples: {with_interval(last, 'ratio')}, n = {last['n']}",
        f"1 if they add; cosine of the two {last['cosine']:.2f}",
        SUPPORTED if close.all() else NOT_SUPPORTED if not held.any() else UNDECIDED,
    )


@unsound("it does not ask whether the heads that matter look there more than others do")
def looks_back(table: pd.DataFrame) -> Verdict:
    """Do heads look from the token before an answer to earlier answers?

    Supported if some head gives them at least twice what evenly spread attention would (lower end of the interval) and
    more than it gives to earlier x; not supported if none does. One head out of many is a little above even by chance.
    """
    above = (table["low"] >= 2 * table["even"]) & (table["low"] > table["to_x"])
    best = table.loc[table["to_y"].idxmax()]
    return Verdict(
        "The token before y attends to earlier y",
        f"{counted(above)} heads at twice the even share or more; most {best['head']} {with_interval(best, 'to_y')}, "
        f"n = {best['n']}",
        f"spread evenly: {best['even']:.2f}; of the same head to earlier x: {best['to_x']:.2f}",
        SUPPORTED if above.any() else NOT_SUPPORTED,
    )


@unsound("it does not test what the post claims of subtasks")
def in_parts(table: pd.DataFrame) -> Verdict:
    """Does an MLP hold parity alone: without it parity is no better than a copy's, while answers stay near?

    table: of :func:`~experiments.icl.parts.layer_table`. Supported if more MLPs clearly hold it than attention
    layers, the control, possibly do (:func:`splits`); not supported if no more MLPs possibly do than attention layers
    clearly do. Undecided between the two, and where parity is no better than a copy's with nothing out. The reverse
    split, answers far off while parity is kept, is told beside it. Undecided for words, which have neither.
    """
    claim = "MLPs hold subtasks (parity apart from size)"
    if table["parity"].isna().all():
        return Verdict(claim, "asked for words, which have neither parity nor size", "", UNDECIDED)
    mlps, attention = (splits(table[table["part"] == part]) for part in (MLP, ATTENTION))
    plain = table[table["part"] == NOTHING].iloc[0]
    able = len(mlps) and plain["parity_low"] > plain["parity_copied"]
    verdict = UNDECIDED
    if able and mlps["clear"].sum() > attention["possible"].sum():
        verdict = SUPPORTED
    elif able and mlps["possible"].sum() <= attention["clear"].sum():
        verdict = NOT_SUPPORTED
    return Verdict(
        claim,
        f"parity alone is lost without {_split_of(mlps, 'MLPs')}; {_least_parity(mlps)}" if len(mlps) else "no MLP",
        f"{_split_of(attention, 'attention layers')}; parity with nothing out {plain['parity']:.2f}, of copied answers "
        f"{plain['parity_copied']:.2f}",
        verdict,
    )


def splits(rows: pd.DataFrame) -> pd.DataFrame:
    """What goes apart without each layer: columns ``clear, possible, reverse``.

    Parity alone is lost if its interval reaches down to what copied answers get, and up to one half, while at least
    half of the answers stay near: clearly so by the lower end of that share's interval, possibly by its upper end.
    reverse: fewer than half stay near (upper end), while parity is better than a copy's (lower end).
    """
    lost = (rows["parity_low"] <= rows["parity_copied"]) & (rows["parity_high"] >= 0.5)
    return rows.assign(
        clear=lost & (rows["near_low"] >= 0.5),
        possible=lost & (rows["near_high"] >= 0.5),
        reverse=(rows["near_high"] < 0.5) & (rows["parity_low"] > rows["parity_copied"]),
    )


def _split_of(found: pd.DataFrame, name: str) -> str:
    possible = int(found["possible"].sum() - found["clear"].sum())
    return (
        f"{int(found['clear'].sum())}{f' or, possibly, {possible} more' if possible else ''} of {len(found)} {name}, "
        f"size alone without {int(found['reverse'].sum())}"
    )


def _least_parity(mlps: pd.DataFrame) -> str:
    row = mlps.loc[mlps["parity"].idxmin()]
    parity, near = (with_interval(row, name, f"{name}_") for name in ("parity", "near"))
    return f"least parity without MLP {int(row['layer'])}: {parity}, near {near}, n = {row['n']}"


def answer(verdicts: Mapping[str, list[Verdict]]) -> str:
    """The claim that was judged last, and of which models it holds."""
    last = {name: some[-1] for name, some in verdicts.items()}
    (claim,) = {verdict.claim for verdict in last.values()}
    return f"*{claim}*: {by_verdict({name: verdict.verdict for name, verdict in last.items()})}."


def measured(verdicts: Mapping[str, list[Verdict]]) -> dict[str, str]:
    """What each model's last verdict rests on, with its control."""
    return {name: f"{some[-1].measured} ({some[-1].control})" for name, some in verdicts.items()}


def verdict_table(verdicts: Mapping[str, list[Verdict]]) -> pd.DataFrame:
    """Claim by claim, in the order in which they were judged: columns ``claim, verdict``, models by verdict."""
    import pandas as pd

    by_claim: dict[str, dict[str, str]] = {}
    for model, some in verdicts.items():
        for verdict in some:
            by_claim.setdefault(verdict.claim, {})[model] = verdict.verdict
    return pd.DataFrame([dict(claim=claim, verdict=by_verdict(models)) for claim, models in by_claim.items()])
