"""What chapter 1 says of its tables: sentences whose numbers, and whose verbs, come from the rows. Of an empty table
nothing is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from talking_heads_utils.experiments.inhibition import exchange as exchanges
from talking_heads_utils.experiments.inhibition.basis import DIFFERENCE, EVERY
from talking_heads_utils.experiments.inhibition.exchange_study import LARGEST_SINGULAR_VALUE, LARGEST_VARIANCE
from talking_heads_utils.experiments.inhibition.links import JOINT
from talking_heads_utils.experiments.inhibition.rivals import BEST_COMPONENT
from talking_heads_utils.experiments.inhibition.slider import COMPONENT, FIRST, RANDOM, SECOND
from talking_heads_utils.experiments.rules import ALPHA, COMPONENTS
from talking_heads_utils.experiments.verdicts import listed, with_interval
from talking_heads_utils.site.claim_words import p_in_words, plain
from talking_heads_utils.site.sentences import said, share

if TYPE_CHECKING:
    import pandas as pd

FEW = COMPONENTS  # components of a head that the paper's claim allows


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
        f"Taken together, the known links {stand} ({p_in_words(joint['p'])}). "
        f"After Holm's correction {len(out)} of {len(own)} do so by themselves{f': {listed(out)}' if out else ''}."
    )


@said
def listeners(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        row = table[table["head"] == EVERY].iloc[0]
        stand = "stand out" if row["p"] < ALPHA else "do not clearly stand out"
        parts.append(
            f"- {model}: the {row['n_listeners']} movers and backups {stand} among {row['n']} later heads, AUC "
            f"{with_interval(row, 'auc')}, {p_in_words(row['p'])}; as many heads drawn from the same layers reach "
            f"{row['null_mean']:.2f} on average"
        )
    return "\n".join(parts)


@said
def basis(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        rows = table[(table["reader"] == EVERY) & (table["head"] == EVERY) & (table["group"] != DIFFERENCE)]
        each = ", ".join(f"{with_interval(row, 'ratio')} in {row['group']} heads" for _, row in rows.iterrows())
        less = table[table["group"] == DIFFERENCE]["p"].dropna()
        differ = [f"; {'they differ' if p < ALPHA else 'no clear difference'}, {p_in_words(p)}" for p in less]
        parts.append(f"- {model}: {each}{''.join(differ)}")
    return "Score of the best component, times the best of a random basis:\n\n" + "\n".join(parts)


@said
def rivals(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        rows = table[(table["link"] == EVERY) & (table["reader"] == EVERY)].set_index("measure")
        own = rows.loc[BEST_COMPONENT]
        beside = "; ".join(f"{plain(measure)} {row['auc']:.2f} ({_ahead(row)})"
                           for measure, row in rows.iterrows() if measure != BEST_COMPONENT)  # fmt: skip
        parts.append(f"- {model}: best component {with_interval(own, 'auc', 'auc_')}; {beside}")
    return f"AUC, mean over {listed(_readers(t) for t in tables.values())} readers:\n\n" + "\n".join(parts)


def _readers(table: pd.DataFrame) -> int:
    return int(table[(table["link"] == EVERY) & (table["reader"] == EVERY)]["n_readers"].iloc[0])


def _ahead(row: Any) -> str:
    """Whether the best component is better than this measure, by the interval of the difference."""
    if row["ahead_low"] > 0:
        return "the component is better"
    return "better than the component" if row["ahead_high"] < 0 else "no clear difference"


# --- what the model does ---


def _few(table: pd.DataFrame, **keys: str) -> Any:
    """The row of the first :data:`FEW` components of each head by some choice, or as many as there are up to that."""
    for name, value in ({"head": exchanges.ALL, "into": exchanges.QUERY, "set": exchanges.PREDICTED,
                         "measure": exchanges.LOG_ODDS} | keys).items():  # fmt: skip
        table = table[table[name] == value]
    rows = table[table["k"] <= FEW].sort_values("k")
    return None if rows.empty else rows.iloc[-1]


def _heads(table: pd.DataFrame) -> list[str]:
    return [head for head in table["head"].unique() if head != exchanges.ALL]


@said
def finding(exchange: pd.DataFrame, model: str) -> str:
    """The chapter's finding, in one sentence."""
    row = _few(exchange)
    few = "one component" if row["k"] == 1 else f"{row['k']} components"
    return (
        f"In {model}, {few} of each inhibition head ({listed(_heads(exchange))}), predicted from weights alone, carry "
        f"**{share(row, ends='share_')}** of what the whole heads tell the name movers; 95% of sets matched on layer "
        f"and energy carry less than {row['matched_share']:.0%}."
    )


@said
def exchange(table: pd.DataFrame) -> str:
    row, lines = _few(table), []
    for head in _heads(table):
        one, two = _few(table[table["k"] <= 1], head=head), _few(table, head=head)
        lines.append(f"- {head}: {one['components']} alone {share(one, ends='share_')}, the first {two['k']} "
                     f"{share(two, ends='share_')}")  # fmt: skip
    much = "at least half" if row["share_low"] >= 0.5 else "less than half" if row["share_high"] < 0.5 else "about half"
    more = "more" if row["share"] > row["matched_share"] else "no more"
    sets = (exchanges.RANDOM_DIRECTIONS, exchanges.OTHER_COMPONENT)
    controls = {plain(name): _few(table, set=name) for name in sets}
    controls |= {f"into the {into}": _few(table, into=into) for into in (exchanges.KEY, exchanges.VALUE)}
    told = ", ".join(f"{name} {abs(found['share']):.0%}" for name, found in controls.items() if found is not None)
    return (
        f"The predicted components carry {much} of the heads' effect: {share(row, ends='share_')}, {row['n']} pairs. "
        f"That is {more} than 95% of the matched sets, which carry less than {row['matched_share']:.0%} "
        f"({p_in_words(row['p'])}). Other controls: {told}.\n\n" + "\n".join(lines)
    )


@said
def known(table: pd.DataFrame) -> str:
    """The same exchange in the planted model, of as many components as its channel has dimensions and of fewer."""
    rows = table.query("head == @exchanges.ALL and into == @exchanges.QUERY and set == @exchanges.PREDICTED")
    rows = rows[rows["measure"] == exchanges.LOG_ODDS].sort_values("k")
    told = ", ".join(f"the first {row['k']} {row['share']:.0%}" for _, row in rows.iterrows())
    return f"*Known answer:* in the planted model the channel has three dimensions. Of each head there carry {told}."


@said
def outcomes(table: pd.DataFrame) -> str:
    """What the same exchange does to the model's answer, beside what the whole heads' does."""
    parts = []
    for measure, name in (
        (exchanges.LOGIT_DIFFERENCE, "logit difference, IO less S"),
        (exchanges.PROBABILITY, "probability of IO"),
    ):
        row = _few(table, measure=measure)
        whole = table[(table["set"] == exchanges.WHOLE_HEAD) & (table["measure"] == measure)]
        whole = whole[(whole["head"] == exchanges.ALL) & (whole["into"] == exchanges.QUERY)]
        beside = f", the whole heads {with_interval(whole.iloc[0], 'effect')}" if len(whole) else ""
        if row is not None:
            parts.append(f"{name} {with_interval(row, 'effect')}{beside}")
    return f"The same exchange changes the answer: {'; '.join(parts)}." if parts else ""


@said
def hits(table: pd.DataFrame) -> str:
    counts = [f"{plain(name)} {int(part['hit_at_1'].sum())}, among its first three {int(part['hit_at_3'].sum())}"
              for name, part in table.groupby("predictor", sort=False)]  # fmt: skip
    found = table.groupby("predictor")["hit_at_1"].sum()
    baselines = found.loc[[LARGEST_SINGULAR_VALUE, LARGEST_VARIANCE]]
    better = baselines[baselines > found[exchanges.WEIGHTS]].index
    verdict = f"By {listed(map(plain, better))} more are found." if len(better) else "Neither plain rule finds more."
    return f"Heads, of {table['head'].nunique()}, whose strongest component comes first: {'; '.join(counts)}. {verdict}"


@said
def effects(table: pd.DataFrame) -> str:
    mean, parts = table.groupby(["head", "component"], sort=False)[["effect", "score"]].mean(), []
    for head, rows in mean.groupby(level="head", sort=False):
        rows = rows.droplevel("head")
        first, second = rows["effect"].nsmallest(2).index
        by_score = int(rows["score"].rank(ascending=False)[first])
        parts.append(f"- {head}: without {head}.{first} I(m) changes by {rows['effect'][first]:+.3f}, without "
                     f"{head}.{second}, the next, by {rows['effect'][second]:+.3f}. By score {head}.{first} ranks "
                     f"{by_score} of {len(rows)}")  # fmt: skip
    return "Mean over movers:\n\n" + "\n".join(parts)


@said
def says(table: pd.DataFrame) -> str:
    shares, parts = table[(table["statistic"] == "version_share") & (table["task"] == "ioi")], []
    for component, rows in shares.groupby("component", sort=False):
        told = ", ".join(f"{plain(row['feature'])} {share(row, 'value')}" for _, row in rows.iterrows())
        parts.append(f"- {component}: {told}")
    return "What makes up its variation over the four versions, by chance a third each:\n\n" + "\n".join(parts)


@said
def lists(says: pd.DataFrame) -> str:
    """What the same components say on lists."""
    rows = says[(says["task"] == "laundry") & (says["statistic"] == "variance_share")]
    rows, parts = rows[rows["split"] == "across_templates"], []
    for component, own in rows.groupby("component", sort=False):
        told = ", ".join(f"{plain(row['feature'])} {share(row, 'value')}" for _, row in own.iterrows())
        parts.append(f"- {component}: {told}, n = {own['n'].iloc[0]} lists")
    told = "On lists, what predicts its variance on wordings that were not fitted (below zero: worse than the mean):"
    return f"{told}\n\n" + "\n".join(parts) if parts else ""


@said
def moved(table: pd.DataFrame) -> str:
    """From the setting of one name order to that of the other, mean over prompts."""
    mean = table[table["prompt"].isna()]

    def path(direction: str, name: str, what: str) -> str:
        rows = mean[(mean["direction"] == direction) & (mean["name"] == name)].set_index("setting")[what]
        return f"{rows[-1.0]:.0%} to {rows[1.0]:.0%}"

    attention, answer = (
        f"the first name from {path(COMPONENT, FIRST, what)}, the second from {path(COMPONENT, SECOND, what)}"
        for what in ("attention", "probability")
    )
    return (
        f"Mean over {mean['n'].iloc[0]} prompts, from -1 to 1: attention to {attention}; probability of {answer}. "
        f"Along the random direction, attention to the first name from {path(RANDOM, FIRST, 'attention')}."
    )


@said
def attends(table: pd.DataFrame) -> str:
    mean = table[(table["role"] == "mean") & (table["target"] != "first_token")]
    parts = [f"- {plain(row['target'])}: {row['excess']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}], matched "
             f"components {row['control']:+.1%}, {p_in_words(row['p'])}" for _, row in mean.iterrows()]  # fmt: skip
    return "Attention beyond even attention, mean over heads:\n\n" + "\n".join(parts)


@said
def free(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the rule that looks for movers and inhibition heads finds in the model that trained freely, seed by seed."""
    found = [run for run in runs if run["model"] == "mini-free"]
    movers = [len(run["movers"]) for run in found]
    inhibit = sum(bool(run["inhibition_heads"]) for run in found)
    return (
        f"A small model trained on prompts of the same kinds without that constraint solves the task, and in {inhibit} "
        f"of {len(found)} seeds an inhibition head is found. That null has its doubts: the rule that looks for movers "
        f"takes {min(movers)} to {max(movers)} of its heads for movers."
    )
