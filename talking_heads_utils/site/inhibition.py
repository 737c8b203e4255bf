"""What chapter 1 says of its tables: sentences whose numbers, and whose verbs, come from the rows. Of an empty table
nothing is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from talking_heads_utils.experiments.inhibition import exchange as exchanges
from talking_heads_utils.experiments.inhibition.basis import DIFFERENCE, EVERY
from talking_heads_utils.experiments.inhibition.links import JOINT
from talking_heads_utils.experiments.inhibition.rivals import BEST_COMPONENT
from talking_heads_utils.experiments.inhibition.slider import COMPONENT, FIRST, RANDOM, SECOND
from talking_heads_utils.experiments.verdicts import listed

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
FEW = 2  # components of a head that the paper's claim allows


def _said(say: Callable[..., str]) -> Callable[..., Any]:
    """As Markdown; nothing where the first table is empty."""

    @wraps(say)
    def shown(table: Any, *more: Any) -> Any:
        from IPython.display import Markdown

        return Markdown("" if not len(table) else say(table, *more))

    return shown


def _share(row: Any, value: str = "share", ends: str = "") -> str:
    """``61% [58%, 64%]``."""
    return f"{row[value]:.0%} [{row[f'{ends}low']:.0%}, {row[f'{ends}high']:.0%}]"


def _number(row: Any, value: str, ends: str = "") -> str:
    return f"{row[value]:.2f} [{row[f'{ends}low']:.2f}, {row[f'{ends}high']:.2f}]"


def _p(value: float) -> str:
    return f"p = {value:.4f}" if value >= 0.0001 else "p < 0.0001"


def _few(table: pd.DataFrame, **keys: str) -> Any:
    """The row of the first :data:`FEW` components of each head by some choice, into all movers' queries at once."""
    keys = {"head": exchanges.ALL, "into": exchanges.QUERY, "set": exchanges.PREDICTED,
            "measure": exchanges.LOG_ODDS} | keys  # fmt: skip
    for name, value in keys.items():
        table = table[table[name] == value]
    rows = table[table["k"] <= FEW].sort_values("k")
    return None if rows.empty else rows.iloc[-1]


def strongest(effects: pd.DataFrame) -> list[str]:
    """The component whose removal lowers I(m) most, mean over movers; none of an empty table."""
    if effects.empty:
        return []
    mean = effects.groupby(["head", "component"])["effect"].mean()
    head, component = mean.idxmin()
    return [f"{head}.{component}"]


@_said
def finding(exchange: pd.DataFrame, shown: str) -> str:
    """The chapter's finding, in one sentence."""
    row = _few(exchange)
    heads = [head for head in exchange["head"].unique() if head != exchanges.ALL]
    one = f"one component of each inhibition head ({listed(heads)})" if row["k"] == 1 else (
        f"{row['k']} components of each inhibition head ({listed(heads)})")  # fmt: skip
    return (
        f"In {shown}, {one}, predicted from weights alone, carry **{_share(row, ends='share_')}** of what the whole "
        f"heads tell "
        f"the name movers, where 95% of sets matched on layer and energy carry less than {row['matched_share']:.0%}."
    )


@_said
def links(table: pd.DataFrame) -> str:
    own = table[(table["link"] != JOINT) & (table["control"] == "")]
    joint = table[table["link"] == JOINT].iloc[0]
    out = own[own["p_holm"] < ALPHA]["link"].tolist()
    each = f"{len(out)} of {len(own)} by themselves" + (f" ({'; '.join(out)})" if out else "")
    stands = "stand out" if joint["p"] < ALPHA else "do not stand out"
    return f"Together the known links {stands} ({_p(joint['p'])}); after Holm's correction {each}."


@_said
def listeners(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        row = table[table["head"] == EVERY].iloc[0]
        tells = "tell" if row["p"] < ALPHA else "do not clearly tell"
        parts.append(
            f"In {model} these queries {tells} the {row['n_listeners']} movers and backups from "
            f"{row['n'] - row['n_listeners']} "
            f"other later heads: AUC {_number(row, 'auc')}, {_p(row['p'])}; heads drawn from the same layers reach "
            f"{row['null_mean']:.2f} on average."
        )
    return "\n\n".join(parts)


@_said
def basis(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        rows = table[(table["reader"] == EVERY) & (table["head"] == EVERY)].set_index("group")
        own, other = rows.iloc[0], rows.iloc[1]
        less = table[table["group"] == DIFFERENCE]
        more = f"; the two differ, {_p(less['p'].iloc[0])}" if len(less) and less["p"].iloc[0] < ALPHA else (
            f"; no clear difference, {_p(less['p'].iloc[0])}" if len(less) else "")  # fmt: skip
        parts.append(f"{model}: {_number(own, 'ratio')} times in S-inhibition heads, {_number(other, 'ratio')} in "
                     f"the other "
                     f"heads of their layers{more}.")  # fmt: skip
    return "Best singular component over the best direction of a random basis. " + " ".join(parts)


@_said
def rivals(tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for model, table in tables.items():
        rows = table[(table["link"] == EVERY) & (table["reader"] == EVERY)].set_index("measure")
        own = rows.loc[BEST_COMPONENT]
        beside = [f"{_plain(measure)} {row['auc']:.2f} ({_ahead(row)})"
                  for measure, row in rows.iterrows() if measure != BEST_COMPONENT]  # fmt: skip
        parts.append(f"- {model}, AUC over {own['n_readers']} readers: best component {_number(own, 'auc', 'auc_')}; "
                     f"{'; '.join(beside)}")  # fmt: skip
    return "\n".join(parts)


def _ahead(row: Any) -> str:
    """Whether the best component is better than this measure, by the interval of the difference."""
    if row["ahead_low"] > 0:
        return "the component is better"
    return "better than the component" if row["ahead_high"] < 0 else "no clear difference"


@_said
def exchange(table: pd.DataFrame) -> str:
    row, lines = _few(table), []
    for head in [h for h in table["head"].unique() if h != exchanges.ALL]:
        one, two = (_few(table[table["k"] <= k], head=head) for k in (1, FEW))
        lines.append(f"- {head}: {one['components']} alone {_share(one, ends='share_')}, the first {two['k']} "
                     f"{_share(two, ends='share_')}")  # fmt: skip
    enough = (
        "at least half" if row["share_low"] >= 0.5 else "less than half" if row["share_high"] < 0.5 else "about half"
    )
    beyond = "more" if row["share"] > row["matched_share"] else "no more"
    drawn = [f"{_plain(name)} {found['share']:.0%}" for name in (exchanges.RANDOM_DIRECTIONS, exchanges.OTHER_COMPONENT)
             if (found := _few(table, set=name)) is not None]  # fmt: skip
    drawn += [f"into the {into} {found['share']:.0%}" for into in (exchanges.KEY, exchanges.VALUE)
              if (found := _few(table, into=into)) is not None]  # fmt: skip
    return (
        f"The predicted components carry {enough} of the heads' effect: {_share(row, ends='share_')}, n = "
        f"{row['n']} prompts. "
        f"That is {beyond} than 95% of {row['n_draws'] or 99} matched sets, which carry {row['matched_share']:.0%} "
        f"at most "
        f"({_p(row['p'])}). Other controls: {', '.join(drawn)}.\n\n" + "\n".join(lines)
    )


@_said
def outcomes(table: pd.DataFrame) -> str:
    """What the same exchange does to the model's answer."""
    found = {m: _few(table, measure=m) for m in (exchanges.LOGIT_DIFFERENCE, exchanges.PROBABILITY)}
    said = [f"{'the logit difference' if m == exchanges.LOGIT_DIFFERENCE else 'the probability of the answer'} "
            f"changes by "
            f"{_number(row, 'effect')}" for m, row in found.items() if row is not None]  # fmt: skip
    return f"The same exchange in the model's answer: {' and '.join(said)}." if said else ""


@_said
def hits(table: pd.DataFrame) -> str:
    counts = [f"{_plain(str(name))} {int(part['hit_at_1'].sum())} at first, {int(part['hit_at_3'].sum())} in three"
              for name, part in table.groupby("predictor", sort=False)]  # fmt: skip
    return f"Of {table['head'].nunique()} heads, the component that does most is found by: {'; '.join(counts)}."


@_said
def effects(table: pd.DataFrame) -> str:
    mean = table.groupby(["head", "component"])[["effect", "score"]].mean()
    parts = []
    for head, rows in mean.groupby(level="head", sort=False):
        rows = rows.droplevel("head")
        first, second = rows["effect"].nsmallest(2).index
        by_score = int(rows["score"].rank(ascending=False)[first])
        parts.append(f"- {head}: taking out {head}.{first} changes I(m) by {rows['effect'][first]:+.3f}, "
                     f"{head}.{second} by {rows['effect'][second]:+.3f}; {head}.{first} ranks {by_score} of "
                     f"{len(rows)} by score")  # fmt: skip
    return "Mean over movers:\n\n" + "\n".join(parts)


@_said
def says(table: pd.DataFrame) -> str:
    shares = table[(table["statistic"] == "version_share") & (table["task"] == "ioi")]
    means = table[(table["statistic"] == "group_mean") & (table["template"] == "")]
    parts = []
    for component, rows in shares.groupby("component", sort=False):
        told = ", ".join(f"{_plain(row['feature'])} {_share(row, 'value')}" for _, row in rows.iterrows())
        of = means[means["component"] == component].set_index("group")["value"]
        where = ", ".join(f"{group} {value:+.2f}" for group, value in of.items())
        parts.append(f"- {component}: {told}. Mean, in standard deviations: {where}")
    return "What makes up its variation over a prompt's four versions (by chance a third each):\n\n" + "\n".join(parts)


@_said
def moved(table: pd.DataFrame) -> str:
    """From the setting of one name order to that of the other, mean over prompts."""
    mean = table[table["prompt"].isna()]

    def path(direction: str, name: str, what: str) -> str:
        rows = mean[(mean["direction"] == direction) & (mean["name"] == name)].set_index("setting")[what]
        return f"{rows[-1.0]:.0%} to {rows[1.0]:.0%}"

    n, component = mean["n"].iloc[0], mean["component"].iloc[0]
    return (
        f"Mean over {n} prompts, as {component} goes from where the first name is the answer to where the second is: "
        f"attention to the first name goes from {path(COMPONENT, FIRST, 'attention')}, to the second from "
        f"{path(COMPONENT, SECOND, 'attention')}; the probability of the first from "
        f"{path(COMPONENT, FIRST, 'probability')}, of "
        f"the second from {path(COMPONENT, SECOND, 'probability')}. Along a random direction, moved as far, "
        f"attention to the "
        f"first name goes from {path(RANDOM, FIRST, 'attention')}."
    )


@_said
def attends(table: pd.DataFrame) -> str:
    mean = table[table["role"] == "mean"].set_index("target")
    parts = [
        f"{_plain(str(target))} {row['excess']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}], matched components "
        f"{row['control']:+.1%}, {_p(row['p'])}"
        for target, row in mean.iterrows() if target != "first_token"
    ]  # fmt: skip
    return (
        f"Attention beyond even attention, mean over heads, {mean['n'].iloc[0]} positions each: "
        + "; ".join(parts)
        + "."
    )


def _plain(name: str) -> str:
    return name.replace("_", " ")
