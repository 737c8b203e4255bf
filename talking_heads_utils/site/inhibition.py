"""What chapter 1 says of its tables: sentences whose numbers, and whose verbs, come from the rows. Of an empty table
nothing is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from talking_heads_utils.experiments.inhibition import exchange as exchanges
from talking_heads_utils.experiments.inhibition.basis import DIFFERENCE, EVERY
from talking_heads_utils.experiments.inhibition.exchange_study import LARGEST_SINGULAR_VALUE, LARGEST_VARIANCE
from talking_heads_utils.experiments.inhibition.links import JOINT
from talking_heads_utils.experiments.inhibition.rivals import BEST_COMPONENT
from talking_heads_utils.experiments.inhibition.slider import COMPONENT, RANDOM, SECOND
from talking_heads_utils.experiments.rules import ALPHA, COMPONENTS
from talking_heads_utils.experiments.verdicts import listed, where, with_interval
from talking_heads_utils.site.claim_words import p_in_words, plain
from talking_heads_utils.site.sentences import bullets, said, share

JUDGED = dict(head=exchanges.ALL, into=exchanges.QUERY, set=exchanges.PREDICTED, measure=exchanges.LOG_ODDS)
TARGETS = {
    "named_twice": "attention to words already named twice",
    "same_list": "attention to words of the same list",
    "in_list": "how often they are in a list themselves",
}


def strongest(effects: pd.DataFrame) -> list[str]:
    """The component whose removal lowers I(m) most, mean over movers; none of an empty table."""
    if effects.empty:
        return []
    head, component = effects.groupby(["head", "component"])["effect"].mean().idxmin()
    return [f"{head}.{component}"]


# --- weights alone ---


@said
def links(table: pd.DataFrame) -> str:
    own = table[(table["link"] != JOINT) & (table["control"] == "")]
    joint = table[table["link"] == JOINT].iloc[0]
    out = own[own["p_holm"] < ALPHA]["link"].tolist()
    stand = "stand out" if joint["p"] < ALPHA else "do not stand out"
    return (
        f"Taken together, the known links {stand} ({p_in_words(joint['p'])}). Taken one by one, {len(out)} of "
        f"{len(own)} stand out after Holm's correction{f': {listed(out)}' if out else ''}."
    )


@said
def listeners(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        row = table[table["head"] == EVERY].iloc[0]
        stand = "stand out" if row["p"] < ALPHA else "do not clearly stand out"
        parts.append(
            f"{model}: the {row['n_listeners']} movers and backups {stand} among {row['n']} later heads, with an AUC "
            f"of {with_interval(row, 'auc')} ({p_in_words(row['p'])}). Random heads of the same layers reach "
            f"{row['null_mean']:.2f} on average."
        )
    return bullets(parts)


@said
def basis(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        rows = table[(table["reader"] == EVERY) & (table["head"] == EVERY) & (table["group"] != DIFFERENCE)]
        each = listed(f"{with_interval(row, 'ratio')} in {row['group']} heads" for _, row in rows.iterrows())
        less = table[table["group"] == DIFFERENCE]["p"].dropna()
        differ = [f" The groups {'differ' if p < ALPHA else 'do not clearly differ'} ({p_in_words(p)})." for p in less]
        parts.append(f"{model}: {each}.{''.join(differ)}")
    told = "The score of the best singular component, divided by that of the best direction of a random basis:"
    return bullets(parts, told)


@said
def rivals(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        rows = where(table, link=EVERY, reader=EVERY).set_index("measure")
        own = rows.loc[BEST_COMPONENT]
        beside = "; ".join(f"{plain(measure)} {row['auc']:.2f} ({_ahead(row)})"
                           for measure, row in rows.iterrows() if measure != BEST_COMPONENT)  # fmt: skip
        parts.append(f"{model}, {own['n_readers']} readers: best component {with_interval(own, 'auc', 'auc_')}. "
                     f"Beside it: {beside}.")  # fmt: skip
    return bullets(parts, "AUC, mean over readers:")


def _ahead(row: Any) -> str:
    """Whether the best component is better than this measure, by the interval of the difference."""
    if row["ahead_low"] > 0:
        return "the component is better"
    return "better than the component" if row["ahead_high"] < 0 else "no clear difference"


# --- what the model does ---


def _few(table: pd.DataFrame, **keys: str) -> Any:
    """The row of the first :data:`COMPONENTS` of each head by some choice, or as many as there are up to that."""
    rows = where(table[table["k"] <= COMPONENTS], **JUDGED | keys).sort_values("k")
    return None if rows.empty else rows.iloc[-1]


def _heads(table: pd.DataFrame) -> list[str]:
    return [head for head in table["head"].unique() if head != exchanges.ALL]


@said
def finding(exchange: pd.DataFrame, model: str) -> str:
    """The chapter's finding, in one sentence, and its control."""
    row = _few(exchange)
    few = "one component" if row["k"] == 1 else f"{row['k']} components"
    return (
        f"In {model}, {few} of each S-inhibition head ({listed(_heads(exchange))}), chosen from weights alone, carry "
        f"**{share(row, ends='share_')}** of what the whole heads tell the name movers. Of control sets, matched for "
        f"layer and energy, 95% carry less than {row['matched_share']:.0%}."
    )


@said
def exchange(table: pd.DataFrame) -> str:
    row, lines = _few(table), []
    for head in _heads(table):
        one, two = _few(table[table["k"] <= 1], head=head), _few(table, head=head)
        first = f"{one['components']} alone carries {share(one, ends='share_')}"
        lines.append(f"{head}: {first}, the first {two['k']} carry {share(two, ends='share_')}.")
    much = "at least half" if row["share_low"] >= 0.5 else "less than half" if row["share_high"] < 0.5 else "about half"
    more = "more" if row["share"] > row["matched_share"] else "no more"
    sets = (exchanges.RANDOM_DIRECTIONS, exchanges.OTHER_COMPONENT)
    controls = {plain(name): _few(table, set=name) for name in sets}
    controls |= {f"exchange into the {into}": _few(table, into=into) for into in (exchanges.KEY, exchanges.VALUE)}
    told = ", ".join(f"{name} {abs(found['share']):.0%}" for name, found in controls.items() if found is not None)
    return (
        f"The predicted components carry {much} of the heads' effect: {share(row, ends='share_')}. That is {more} than "
        f"95% of the matched sets, which carry less than {row['matched_share']:.0%} ({p_in_words(row['p'])}). Other "
        f"controls: {told}.\n\n{bullets(lines)}"
    )


@said
def known(table: pd.DataFrame) -> str:
    """The same exchange in the planted model, of as many components as its channel has dimensions and of fewer."""
    rows = where(table, **JUDGED).sort_values("k")
    numbers, shares = listed(rows["k"]), listed(f"{share:.0%}" for share in rows["share"])
    return (
        "*Known answer:* in the planted model the channel has three dimensions. There the first "
        f"{numbers} components of each head carry {shares} of its effect."
    )


@said
def outcomes(table: pd.DataFrame) -> str:
    """What the same exchange does to the model's answer, beside what the whole heads' does."""
    parts, probability = [], (exchanges.PROBABILITY, "the probability of IO")
    for measure, name in ((exchanges.LOGIT_DIFFERENCE, "the logit difference, IO less S,"), probability):
        row = _few(table, measure=measure)
        whole = where(table, **JUDGED | dict(set=exchanges.WHOLE_HEAD, measure=measure))
        beside = f" (by the whole heads: {with_interval(whole.iloc[0], 'effect')})" if len(whole) else ""
        if row is not None:
            parts.append(f"{name} by {with_interval(row, 'effect')}{beside}")
    return f"The same exchange changes the answer: {' and '.join(parts)}." if parts else ""


@said
def hits(table: pd.DataFrame) -> str:
    found = table.groupby("predictor", sort=False)["hit_at_1"].sum()
    counts = listed(f"{plain(name)} in {int(n)}" for name, n in found.items())
    baselines = found.loc[[LARGEST_SINGULAR_VALUE, LARGEST_VARIANCE]]
    better = baselines[baselines > found[exchanges.WEIGHTS]].index
    verdict = f"By {listed(map(plain, better))} more are found." if len(better) else "Neither plain rule finds more."
    n = table["head"].nunique()
    return f"Of {n} heads, each rule puts the strongest component first in so many: {counts}. {verdict}"


@said
def effects(table: pd.DataFrame) -> str:
    mean, parts = table.groupby(["head", "component"], sort=False)[["effect", "score"]].mean(), []
    for head, rows in mean.groupby(level="head", sort=False):
        rows = rows.droplevel("head")
        first, second = rows["effect"].nsmallest(2).index
        by_score = int(rows["score"].rank(ascending=False)[first])
        parts.append(f"{head}: I(m) changes by {rows['effect'][first]:+.3f} without {head}.{first}, and by "
                     f"{rows['effect'][second]:+.3f} without {head}.{second}, the next strongest. By its score "
                     f"{head}.{first} ranks {by_score} of {len(rows)}.")  # fmt: skip
    return bullets(parts, "Means over movers:")


def _features(rows: pd.DataFrame) -> str:
    return ", ".join(f"{plain(row['feature'])} {share(row, 'value')}" for _, row in rows.iterrows())


@said
def says(table: pd.DataFrame) -> str:
    rows = where(table, statistic="version_share", task="ioi").groupby("component", sort=False)
    told = "What each component's variation over the four versions goes by (by chance, a third each):"
    return bullets([f"{component}: {_features(own)}" for component, own in rows], told)


@said
def lists(says: pd.DataFrame) -> str:
    """What the same components say on lists."""
    rows = where(says, task="laundry", statistic="variance_share", split="across_templates")
    parts = [f"{component}: {_features(own)}, n = {own['n'].iloc[0]} lists"
             for component, own in rows.groupby("component", sort=False)]  # fmt: skip
    told = (
        "On lists, the share of each component's variance that a feature predicts, on wordings that were not fitted "
        "(below zero: worse than the mean):"
    )
    return bullets(parts, told)


@said
def moved(table: pd.DataFrame) -> str:
    """From the setting of one name order to that of the other, mean over prompts."""
    mean = table[table["prompt"].isna()]

    def path(direction: str, what: str) -> str:
        rows = where(mean, direction=direction, name=SECOND).set_index("setting")[what]
        return f"from {rows[-1.0]:.0%} to {rows[1.0]:.0%}"

    return (
        f"As the coefficient goes from -1 to 1, attention to the second name goes {path(COMPONENT, 'attention')}, and "
        f"the probability that it is answered {path(COMPONENT, 'probability')} (means over {mean['n'].iloc[0]} "
        f"prompts). Along the random direction attention to it goes {path(RANDOM, 'attention')}."
    )


@said
def attends(table: pd.DataFrame) -> str:
    mean = table[(table["role"] == "mean") & ~table["target"].isin(["first_token", "seen"])]
    parts = [f"{TARGETS[row['target']]}: {with_interval(row, 'excess', form='+.1%')}; matched components "
             f"{row['control']:+.1%} ({p_in_words(row['p'])})" for _, row in mean.iterrows()]  # fmt: skip
    return bullets(parts, "Where the components are largest, beyond an even share, mean over heads:")


@said
def free(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the rule that looks for movers and inhibition heads finds in the model that trained freely, seed by seed."""
    found = [run for run in runs if run["model"] == "mini-free"]
    movers = [len(run["movers"]) for run in found]
    inhibit = sum(bool(run["inhibition_heads"]) for run in found)
    return (
        f"A small model that trained on the same kinds of prompts without this constraint solves the task too. An "
        f"inhibition head is found in {inhibit} of its {len(found)} seeds. This result is weak: the rule that looks "
        f"for name movers calls {min(movers)} to {max(movers)} of its heads name movers."
    )
