"""Every claim of both sources, its experiment, what the source says, and the rule that turns a table into a verdict.

The post's rules are those of chapter 4 (:mod:`~experiments.icl.claims`); the paper's are here. No rule looks at
a model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from talking_heads_utils.experiments.corpus import COMMA, OWN_TEXTS, REPEATED
from talking_heads_utils.experiments.editing.components import LIKE
from talking_heads_utils.experiments.icl import claims as icl
from talking_heads_utils.experiments.verdicts import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Verdict,
    counted,
    unsound,
    with_interval,
)
from talking_heads_utils.forward.head_sets import NOTHING
from talking_heads_utils.prompts.questions import OTHER_FUNCTION
from talking_heads_utils.settings import SEED

if TYPE_CHECKING:
    import pandas as pd

GRADIENT, GRID, KNOWN, RANDOM = "gradient", "grid", "held-out prompts", "random"
PLACE, NONE, ONE, PER_PLACE = "place", "no steering", "one setting", "one setting per place"
AT_RANDOM, COMPONENTS, RANDOM_TRIPLES = "apart at random", "the three components", "random triples"
PAPER, POST = "paper", "post"
UNREAD = "claimed; its number could not be read"
OVER_20 = "over 20%; of what could not be read"
POINTS = 20.0  # what the paper's gains are said to exceed
CHAPTERS = {
    1: "notebooks/01_inhibition_heads.ipynb",
    2: "notebooks/02_positional_subspace.ipynb",
    3: "notebooks/03_weight_editing.ipynb",
    4: "notebooks/04_icl_redundancy.ipynb",
}


@dataclass(frozen=True)
class Claim:
    """One claim of a source, and how it is judged.

    said: what the paper shows for it; of the post the key in :func:`~experiments.icl.post.said`, empty for what
        the last row of its patching shows.
    chapter, where: the page and the figure that test it.
    needs: the experiment whose table the rule takes. rule: turns that table into a verdict.
    """

    name: str
    source: str
    said: str
    chapter: int
    where: str
    needs: str
    rule: Callable[[pd.DataFrame], Verdict]

    @property
    def link(self) -> str:
        """Address of the figure, from the book's root."""
        return f"{CHAPTERS[self.chapter]}#{self.where}"


def stand_out(table: pd.DataFrame) -> Verdict:
    """Supported if the best components' z of the published heads beats all but 5% of the other choices of heads."""
    row = table.iloc[0]
    return Verdict(
        "",
        f"mean z of the {row['writers']:.0f} heads' best components in {row['readers']:.0f} name movers "
        f"{row['observed']:.1f}, exact p = {row['p']:.4f}",
        f"{row['null_mean']:.1f} on average over all {row['n']:,.0f} choices of as many heads of the same layers",
        SUPPORTED if row["p"] < 0.05 else NOT_SUPPORTED,
    )


@unsound("the planted model, where the claim holds by construction, does not pass the rule")
def predicted(table: pd.DataFrame) -> Verdict:
    """Supported if the rank correlation of scores and cross-validated effects lies above all that prompts' noise alone
    gives, and above every shuffle within heads (lower end)."""
    row = table.iloc[0]
    low, high = row["low"], row["high"]
    noise, shuffled = row["noise alone, largest"], row["shuffled within heads, largest"]
    null = max(noise, shuffled)
    verdict = SUPPORTED if low > null else NOT_SUPPORTED if high <= null else UNDECIDED
    return Verdict(
        "",
        f"Spearman {row['Spearman']:.2f} [{low:.2f}, {high:.2f}], {row['components']:,} components, "
        f"n = {row['prompts']}",
        f"noise alone at most {noise:.2f}, shuffled within heads {shuffled:.2f}; rotated bases "
        f"{row['rotated bases, mean']:.2f}",
        verdict,
    )


@unsound("the rule has no null: small heads have few effective components anyway")
def concentrated(table: pd.DataFrame) -> Verdict:
    """Supported if most inhibition heads need two components or fewer for 90% of their effect; undecided if none."""
    if not len(table):
        return Verdict("", "no inhibition head found", "none", UNDECIDED)
    need = table["components for 90%"]
    few = int((need <= 2).sum())
    verdict = SUPPORTED if few > len(need) / 2 else NOT_SUPPORTED
    return Verdict(
        "",
        f"{few} of {len(need)} inhibition heads need two or fewer of {table['of'].max()} components for 90%; median "
        f"{need.median():.0f}, {need.min()} to {need.max()}",
        f"stable rank of their weights {table['stable rank'].min():.1f} to {table['stable rank'].max():.1f}",
        verdict,
    )


@unsound("the component is the best of those tried on the prompts that score it")
def lowers(table: pd.DataFrame) -> Verdict:
    """Supported if some channel component lowers I(m) (upper end below 0) by more than every random one of like size
    (upper end below their means); undecided where it lowers it, but none is of like size or one comes near."""
    kinds = {kind: part for kind, part in table.groupby("kind")}
    change = "change of I(m)"
    best = kinds["channel"].loc[kinds["channel"][change].idxmin()]
    like = kinds["random"]["size"].between(best["size"] / LIKE, best["size"] * LIKE)
    random, high = kinds["random"].loc[like, change], best[f"{change} high"]
    more = len(random) > 0 and high < random.min()
    verdict = NOT_SUPPORTED if high >= 0 else SUPPORTED if more else UNDECIDED
    return Verdict(
        "",
        f"{best['removed']} out: I(m) {best[change]:+.3f} [{best[f'{change} low']:+.3f}, "
        f"{best[f'{change} high']:+.3f}] "
        f"of {table[table['kind'] == 'untouched']['I(m)'].iloc[0]:.3f}, lists of {best['n_items']}, "
        f"n = {best['n']}",
        f"{counted(like)} random components of the same layers are of its size, within a factor of {LIKE:.0f}"
        + (f": {random.min():+.3f} to {random.max():+.3f}" if len(random) else ""),
        verdict,
    )


@unsound("the three components need not be those of inhibition heads")
def indexes(table: pd.DataFrame) -> Verdict:
    """Supported if place is decoded across wordings from the three components above every random triple (lower end) and
    in more than half of the lists; not supported if not above the mean of the random triples."""
    part = table[(table["split"] == "across wordings") & (table["carries"] == PLACE)].set_index("subspace")
    own, random = part.loc[COMPONENTS], part.loc[RANDOM_TRIPLES]
    above_mean, above_all = own["low"] > random["high"], own["low"] > random["largest"]
    verdict = SUPPORTED if above_all and own["low"] > 0.5 else UNDECIDED if above_mean else NOT_SUPPORTED
    return Verdict(
        "",
        f"place decoded in {with_interval(own, 'right')} of lists of {own['n_items']}, n = {own['n']}",
        f"random triples {random['smallest']:.2f} to {random['largest']:.2f}, mean {with_interval(random, 'right')}, "
        f"chance {own['chance']:.2f}",
        verdict,
    )


@unsound("a few random draws are no null")
def traversed(table: pd.DataFrame) -> Verdict:
    """Supported if a setting, chosen on other prompts, brings half of the attention or more (lower end) to most places,
    and more on average than along any draw of random directions."""
    own = table[table["along"] == COMPONENTS]
    random = table[table["along"] != COMPONENTS]
    reached = (own["low"] >= 0.5) & (own["low"] > own["plain"])
    draws = random.groupby("along")["steered"].mean()
    more = own["steered"].mean() > draws.max()
    verdict = SUPPORTED if reached.mean() > 0.5 and more else NOT_SUPPORTED if not reached.any() else UNDECIDED
    return Verdict(
        "",
        f"{int(reached.sum())} of {len(own)} places reached; attention there {own['plain'].mean():.2f} unsteered, "
        f"{own['steered'].mean():.2f} steered ({own['low'].min():.2f} at least), n = {own['n'].iloc[0]}",
        f"random directions of the same norm {draws.max():.2f} at most, of {len(draws)} draws",
        verdict,
    )


@unsound("accuracy falls and distances shrink with the number of items whatever the cause")
def crowds(table: pd.DataFrame) -> Verdict:
    """Supported if accuracy falls from the shortest to the longest lists (intervals apart) and places come closer that
    were further apart than along any random triple; undecided where it falls but places never were apart: then nothing
    can crowd."""
    short, long = table.loc[table["n_items"].idxmin()], table.loc[table["n_items"].idxmax()]
    falls, closer = long["high"] < short["low"], short["apart"] > max(long["apart"], short[AT_RANDOM])
    verdict = SUPPORTED if falls and closer else NOT_SUPPORTED if not falls else UNDECIDED
    return Verdict(
        "",
        f"accuracy {with_interval(short, 'accuracy')} at {short['n_items']} items, "
        f"{with_interval(long, 'accuracy')} at {long['n_items']}, n = {long['n']} each; "
        f"nearest places {short['apart']:.1f} and {long['apart']:.1f} spreads apart",
        f"along random triples {short[AT_RANDOM]:.1f} and {long[AT_RANDOM]:.1f} at most",
        verdict,
    )


@unsound("lists in kept and in shuffled order are pooled, so recency and induction look alike")
def order_matters(table: pd.DataFrame, n_draws: int = 4000) -> Verdict:
    """Supported if accuracy differs more between places of the longest list than by chance (p < 0.05), whatever makes
    it differ; undecided where all answers are right or wrong, for then nothing can differ. Places that no prompt's
    answer has are left out."""
    part = table[(table["n_items"] == table["n_items"].max()) & (table["n"] > 0)]
    n = part["n"].to_numpy()
    right = np.rint(part["accuracy"] * n).to_numpy()
    share = right.sum() / n.sum()
    rng = np.random.default_rng(SEED)
    drawn = rng.multivariate_hypergeometric(n, int(right.sum()), size=n_draws)
    spread = lambda counts: (n * (counts / n - share) ** 2).sum(-1)  # noqa: E731
    p = ((spread(drawn) >= spread(right) - 1e-9).sum() + 1) / (n_draws + 1)
    flat = share in (0.0, 1.0)
    verdict = UNDECIDED if flat else SUPPORTED if p < 0.05 else NOT_SUPPORTED
    return Verdict(
        "",
        f"accuracy by place {part['accuracy'].min():.2f} to {part['accuracy'].max():.2f} at {part['n_items'].iloc[0]} "
        f"items, n = {n.sum()}",
        f"{share:.0%} right: nothing can differ" if flat else f"answers shuffled over places: p = {p:.3f}",
        verdict,
    )


@unsound("one shift for all prompts can help only where the model prefers some places")
def steering_gains(table: pd.DataFrame) -> Verdict:
    """On the longest lists that were steered: supported if one setting for all prompts gains 20 points or more on
    held-out prompts, its interval above 0 and above random directions; not supported if no interval reaches 20, nor the
    gain on the prompts that settings were chosen on, which a noisy choice raises, and so much is left to gain;
    undecided otherwise, also where only a setting per place gains it, which is told the answer's place."""
    lengths = table["n_items"].astype(int)
    rows = table[lengths == lengths.max()].set_index("strategy")
    one, per_place, before = rows.loc[ONE], rows.loc[PER_PLACE], rows.loc[NONE, "accuracy"]
    good = one["gain, points"] >= POINTS and one["low"] > max(0.0, one["random directions, points"])
    fitted = [row["where chosen, points"] for row in (one, per_place)]
    out_of_reach = max(one["high"], per_place["high"], *fitted) < POINTS and _room(before)
    return Verdict(
        "",
        f"at {lengths.max()} items, from {100 * before:.0f}: one setting for all {_gain(one)}; one per place, which is "
        f"told the answer's place, {_gain(per_place)}; on the prompts that chose them {fitted[0]:+.1f} and "
        f"{fitted[1]:+.1f}; n = {one['n']}",
        "random directions of the same norm, in brackets" + _full(before),
        SUPPORTED if good else NOT_SUPPORTED if out_of_reach else UNDECIDED,
    )


def _gain(row: pd.Series) -> str:
    return (
        f"{row['gain, points']:+.1f} points [{row['low']:+.1f}, {row['high']:+.1f}] "
        f"({row['random directions, points']:+.1f})"
    )


def _room(before: float) -> bool:
    """Can an accuracy rise by 20 points?"""
    return 100 * (1 - before) >= POINTS


def _full(before: float) -> str:
    return "" if _room(before) else f"; {before:.0%} right untouched: {POINTS:.0f} points cannot be gained"


@unsound("the search misses a gain that was planted, so the rule fails its positive control")
def edit_gains(table: pd.DataFrame) -> Verdict:
    """Supported if the edit with the best objective on other prompts gains 20 points or more on held-out prompts and
    beyond random edits of the same norm (interval above 0); not supported if its interval does not reach 20 and so much
    is left to gain."""
    held = table[table["prompts"] == KNOWN].set_index("edit")
    name = held.loc[[GRADIENT, GRID], "objective"].idxmax()
    best = held.loc[name]
    good = best["gain"] >= POINTS and best["low"] > 0 and best["beyond random, low"] > 0
    out_of_reach = best["high"] < POINTS and _room(best["before"])
    verdict = SUPPORTED if good else NOT_SUPPORTED if out_of_reach else UNDECIDED
    return Verdict(
        "",
        f"best on other prompts: {name}, {best['gain']:+.0f} points [{best['low']:+.0f}, {best['high']:+.0f}] from "
        f"{100 * best['before']:.0f}, n = {best['n']}",
        f"{RANDOM} edits of the same norm {held.loc[f'{RANDOM} {name}', 'gain']:+.0f}; beyond them "
        f"{best['beyond random']}{_full(best['before'])}",
        verdict,
    )


@unsound("where the head attends is not measured, and function words count as repeated")
def in_lists(table: pd.DataFrame) -> Verdict:
    """Supported if inhibition components are more often active than the corpus' own share on commas of lists or on
    repeated words, each by a larger ratio than any control component; undecided on text that was made of the task."""
    part = table[table["category"].isin((COMMA, REPEATED))]
    of = part.groupby(["inhibition", "component"])["ratio"].max()
    if not any(inhibition for inhibition, _ in of.index):
        return Verdict("", "no inhibition head found", "none", UNDECIDED)
    own = of[True]
    control = of[False] if any(not inhibition for inhibition, _ in of.index) else own[:0]
    above = int((own > control.max()).sum()) if len(control) else 0
    clear, texts = above > len(own) / 2 and own.min() > 1, table["texts"].iloc[0]
    verdict = NOT_SUPPORTED if own.max() <= 1 else SUPPORTED if clear and texts != OWN_TEXTS else UNDECIDED
    return Verdict(
        "",
        f"{above} of {len(own)} components above every control; {own.min():.1f} to {own.max():.1f} times the text's "
        f"own share, top {table['n'].iloc[0]} positions, {texts}",
        f"{len(control)} components of other heads {control.min():.1f} to {control.max():.1f} times",
        verdict,
    )


@unsound("B sees another function's examples, and only exact answers count as copied")
def copies_late(table: pd.DataFrame) -> Verdict:
    """With the largest set out: supported if B nowhere answers about a x more often than unpatched (intervals aside, by
    ten points) while the answer that A then gives itself is copied in half of the prompts or more at some layer, and
    more often than B gives it unpatched; undecided if a patch does not carry "about a x" in the plain run either."""
    of = table[table["b"] == OTHER_FUNCTION]
    part, untouched = of[of["layer"] >= 0], of[of["layer"] == -2].set_index("set")
    base = untouched["about"].iloc[0]
    best = part.groupby("set", sort=False)[["about", "copied"]].max()
    last = best.index[-1]
    carried, copied = best["about"] > base + 0.1, best.loc[last, "copied"]
    if not carried[NOTHING]:
        verdict = UNDECIDED
    else:
        late = copied >= 0.5 and copied > untouched.loc[last, "copied"] + 0.1
        verdict = SUPPORTED if not carried[last] and late else NOT_SUPPORTED
    return Verdict(
        "",
        f"{last} out: about a x at best in {_share(best.loc[last, 'about'])}, A's own answer then in {copied:.2f}, "
        f"n = {part['n'].iloc[0]}{icl.asked_for(table)}",
        f"nothing out: {_share(best.loc[NOTHING, 'about'])} and {best.loc[NOTHING, 'copied']:.2f}; B unpatched "
        f"{_share(base)} and {untouched.loc[last, 'copied']:.2f}",
        verdict,
    )


def _share(value: float) -> str:
    return "none (words have no a x)" if np.isnan(value) else f"{value:.2f}"


def _redundant(table: pd.DataFrame) -> Verdict:
    return icl.redundant(*(table[table["heads"] == kind].reset_index() for kind in ("strongest", "random")))


def _moving(table: pd.DataFrame) -> Verdict:
    return icl.moving_layer(table[table["b"] == OTHER_FUNCTION], NOTHING)


def _backups(table: pd.DataFrame) -> Verdict:
    real = table["set"] == "strongest"
    return icl.backups(table[real], table[~real])


WEIGHTS = "weights"  # needs no experiment: the scores that ship with the book
CLAIMS = (
    Claim("The published inhibition heads' best components stand out in the movers' queries, by weights alone",
          PAPER, UNREAD, 1, "fig-ranks", WEIGHTS, stand_out),
    Claim("Channels between heads are predicted from weights alone",
          PAPER, UNREAD, 1, "fig-effects", "agreement", predicted),
    Claim("A head's inhibition sits in one or two of its components",
          PAPER, "claimed of GPT-2 small's inhibition heads", 1, "fig-concentration", "concentration", concentrated),
    Claim("Removing one such component lowers the mover's inhibition",
          PAPER, "claimed; no number could be read", 3, "fig-removal", "removal", lowers),
    Claim("A 3D subspace indexes list items by place",
          PAPER, UNREAD, 2, "fig-decoding", "decoding", indexes),
    Claim("That subspace can be traversed by hand",
          PAPER, "claimed, with a grid of 21 x 21 x 21 settings", 2, "fig-traversal", "reach", traversed),
    Claim("Long lists crowd it, and accuracy falls",
          PAPER, UNREAD, 2, "fig-crowding", "crowding", crowds),
    Claim("Accuracy depends on the answer's place in the list", PAPER,
          "claimed of the order of items, through the subspace: that link is not tested here; no number could be read",
          2, "fig-crowding", "places", order_matters),
    Claim("Steering improves accuracy, often by over 20%",
          PAPER, OVER_20, 2, "fig-gains", "steering-gains", steering_gains),
    Claim("Weight edits improve accuracy, often by over 20%",
          PAPER, OVER_20, 3, "fig-edit-gains", "edit-gains", edit_gains),
    Claim("In running text the heads are active in lists and at repetitions",
          PAPER, "claimed of Open Web Text", 1, "fig-active", "activity", in_lists),
    Claim("Many heads are redundant",
          POST, "Many heads are redundant", 4, "fig-pairs", "pairs", _redundant),
    Claim("No single head is needed",
          POST, "No single head is needed", 4, "fig-heads-out", "heads-out", icl.survives),
    Claim("The first layer whose patch works moves up as heads go",
          POST, "The first layer whose patch works moves up as heads go", 4, "fig-patch", "patch", _moving),
    Claim("With the most heads out, the answer itself is copied late",
          POST, "", 4, "fig-patch", "patch", copies_late),
    Claim("Backup heads step in",
          POST, "Backup heads step in", 4, "fig-compensation", "backups", _backups),
    Claim("Log-odds are a line in the number of examples",
          POST, "Log-odds are a line in n", 4, "fig-belief", "log-odds", icl.line_in_n),
    Claim("Contributions of examples add",
          POST, "Contributions of examples add", 4, "fig-additivity", "additivity", icl.adds),
    Claim("The token before y attends to earlier y",
          POST, "The token before y attends to earlier y", 4, "fig-attention", "looks-back", icl.looks_back),
    Claim("MLPs hold subtasks",
          POST, "MLPs hold subtasks (parity apart from size)", 4, "fig-parts", "parts", icl.in_parts),
)  # fmt: skip


def judge(claim: Claim, tables: Mapping[str, pd.DataFrame]) -> Verdict | None:
    """The verdict on a claim from a model's tables; None where its experiment is not among them."""
    table = tables.get(claim.needs)
    return None if table is None else replace(claim.rule(table), claim=claim.name)
