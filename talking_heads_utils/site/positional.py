"""What chapter 2 says of its tables: sentences whose numbers, and whose verbs, come from the rows. Of an empty table
nothing is said."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional import interchange as interchanges
from talking_heads_utils.experiments.positional.decoding import Split
from talking_heads_utils.experiments.positional.steering import Method
from talking_heads_utils.experiments.positional.subspace import K, Subspace
from talking_heads_utils.experiments.positional.traversal import RANDOM
from talking_heads_utils.experiments.rules import ALPHA
from talking_heads_utils.experiments.verdicts import listed
from talking_heads_utils.figures.positional import FEATURES, lengths_of
from talking_heads_utils.site.scorecard import p_in_words, plain
from talking_heads_utils.site.sentences import said, share

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

HALF = 0.5  # of what the whole stream does
NARROW, WIDE = 0.5, 2.0  # scales of the cloud that are spoken of


def _where(table: pd.DataFrame, **keys: Any) -> pd.DataFrame:
    for name, value in keys.items():
        table = table[table[name] == value]
    return table


def _one(table: pd.DataFrame, **keys: Any) -> Any:
    """The first row with these values, None where there is none."""
    rows = _where(table, **keys)
    return None if rows.empty else rows.iloc[0]


def _lines(parts: Mapping[str, str] | list[str]) -> str:
    told = [f"{name}: {words}" for name, words in parts.items()] if isinstance(parts, dict) else parts
    return "\n".join(f"- {line}" for line in told)


def _points(row: Any, value: str = "gain", ends: str = "gain_") -> str:
    """``+3.0 [1.0, 5.5]``, in points."""
    return f"{row[value]:+.1f} [{row[f'{ends}low']:.1f}, {row[f'{ends}high']:.1f}]"


# --- which components, and where lists sit ---


def three(table: pd.DataFrame) -> list[str]:
    """Names of the chosen three, in their order; none of an empty table."""
    return _where(table, subspace=Subspace.CHOSEN).sort_values("rank")["component"].head(K).tolist()


@said
def components(table: pd.DataFrame) -> str:
    first = {kind: rows.sort_values("rank")["component"].head(K).tolist() for kind, rows in table.groupby("subspace")}
    own, any_head = first.get(Subspace.CHOSEN, []), first.get(Subspace.ANYWHERE, [])
    both = [c for c in any_head if c in own]
    told = f"; {listed(both)} of these {'is' if len(both) == 1 else 'are'} among the chosen" if both else ""
    return f"The chosen three are {listed(own)}. Over all heads below the movers: {listed(any_head)}{told}."


@said
def points(table: pd.DataFrame, names: list[str]) -> str:
    """How far the means of list indices lie apart, in the longest lists and in the shortest."""
    parts = []
    for n in dict.fromkeys((lengths_of(table)[-1], lengths_of(table)[0])):
        means = _where(table, n_items=n).groupby("list_index")[["x", "y", "z"]].mean()
        apart = (means.max() - means.min()).tolist()
        parts.append(f"{listed(f'{gap:.1f}' for gap in apart)} in lists of {n}")
    return (
        f"From the lowest mean of a list index to the highest, along {listed(names)}, in standard deviations: "
        f"{'; '.join(parts)}."
    )


@said
def decoding(table: pd.DataFrame) -> str:
    n = lengths_of(table)[0]
    rows = _where(table, n_items=n, subspace=Subspace.CHOSEN, k=K, split=Split.WORDINGS)
    index, item = (_one(rows, feature=feature) for feature in FEATURES)
    matched = _one(table, n_items=n, subspace=Subspace.MATCHED, feature="list_index", split=Split.WORDINGS)
    more = "more" if index["p"] <= ALPHA else "no clearly more"
    return (
        f"On other wordings, three coordinates tell the list index of {share(index, 'right')} of lists of {n} and the "
        f"item of {share(item, 'right')}, by chance {index['chance']:.0%}. They tell {more} of the index than matched "
        f"triples do, {matched['right']:.0%} on average ({p_in_words(index['p'])})."
    )


# --- how many dimensions behaviour needs ---


def _of_stream(table: pd.DataFrame, n: int, measure: str) -> pd.DataFrame:
    return _where(table, n_items=n, donor=interchanges.Donor.OTHER_ITEMS, measure=measure)


def _three(table: pd.DataFrame, n: int, measure: str) -> tuple[Any, str]:
    """The row of the chosen three, and what 95% of matched triples carry at most, of what the stream does."""
    rows = _of_stream(table, n, measure)
    row, whole = _one(rows, subspace=Subspace.CHOSEN, k=K), _one(rows, subspace=Subspace.WHOLE_STREAM)
    matched = row["matched"] / whole["effect"]
    return row, f"carry at most {matched:.0%}" if matched >= 0.005 else "carry none of it"


def _of(row: Any, name: str = "of_stream") -> str:
    """A share of what the whole stream does, or of what another does."""
    return share(row, name, f"{name}_")


NOTHING = "a donor's whole stream at the last token does nothing clear to the answer, so three dimensions have no share"


@said
def finding(table: pd.DataFrame, model: str) -> str:
    """The chapter's finding, in one sentence."""
    n = lengths_of(table)[0]
    row, matched = _three(table, n, interchanges.LOGIT_DIFFERENCE)
    if isnan(row["of_stream"]):
        return f"In {model}, in lists of {n}, {NOTHING}."
    return (
        f"In {model}, three dimensions at the last token, chosen from weights, carry **{_of(row)}** of what the whole "
        f"stream there tells of the item that is left, in lists of {n}; 95% of triples matched on layer and energy "
        f"{matched}."
    )


@said
def interchange(table: pd.DataFrame, measure: str = interchanges.LOGIT_DIFFERENCE) -> str:
    n = lengths_of(table)[0]
    (row, matched), rows = _three(table, n, measure), _of_stream(table, n, measure)
    if isnan(row["of_stream"]):
        return f"In lists of {n} {NOTHING}."
    low, high = row["of_stream_low"], row["of_stream_high"]
    much = "at least half" if low >= HALF else "less than half" if high < HALF else "about half"
    more = "more" if row["p"] <= ALPHA else "no clearly more"
    kinds = {Subspace.CHOSEN: "the chosen", Subspace.LEARNED: "the learned"}
    half = [f"{words} {_half(rows, kind)}" for kind, words in kinds.items() if len(_where(rows, subspace=kind))]
    return (
        f"The chosen three carry {much} of what the whole stream does to the answer, in lists of {n}: {_of(row)}, "
        f"{row['n']} pairs. That is {more} than matched triples, 95% of which {matched} ({p_in_words(row['p'])}), and "
        f"{_of(row, 'of_ten')} of what all chosen components carry.{_learned(rows)} Half of the stream's effect takes, "
        f"of {' and of '.join(half)}."
    )


def _learned(rows: pd.DataFrame) -> str:
    """Three learned dimensions and their controls, where there are any."""
    kinds = (Subspace.LEARNED, Subspace.LEARNED_ARBITRARY, Subspace.LEARNED_UNTRAINED)
    found = [_one(rows, subspace=kind, k=K) for kind in kinds]
    if None in [row if row is None else 0 for row in found]:
        return ""
    best, arbitrary, untrained = (_of(row) for row in found)
    return (
        f" The best three that were learned carry {best}; learned for arbitrary labels {arbitrary}, on an untrained "
        f"model {untrained}."
    )


def _half(rows: pd.DataFrame, kind: str) -> str:
    """The least k that carries half of what the stream does."""
    own = rows[rows["subspace"] == kind]
    enough = own[own["of_stream"] >= HALF]["k"]
    if enough.empty:
        return f"more than {own['k'].max()} dimensions"
    return "one dimension" if enough.min() == 1 else f"{enough.min()} dimensions"


# --- the point moved by hand ---


@said
def line(table: pd.DataFrame) -> str:
    """Of the component that changes attention most, from end to end: what it does to one item; and a random one's."""
    n = lengths_of(table)[0]
    found = {component: _from_end_to_end(_where(rows, n_items=n)) for component, rows in table.groupby("component")}
    random = found.pop(RANDOM)[0]
    component, (_, item, attention, answered) = max(found.items(), key=lambda pair: pair[1][0])
    return (
        f"In lists of {n}, {component} moves most: from end to end item {item} goes from {attention} of the attention, "
        f"and from {answered} of the answers. Along the random direction no item's attention changes by more than "
        f"{random:.0%}."
    )


def _from_end_to_end(rows: pd.DataFrame) -> tuple[float, int, str, str]:
    """The largest change of an item's attention, the item, its attention and its answers."""
    by_item = rows.sort_values("amount").groupby("list_index")
    attention, answered = (by_item[what].agg(["first", "last"]) for what in ("attention", "answered"))
    change = (attention["last"] - attention["first"]).abs()
    item = int(change.idxmax())
    return float(change.max()), item, _path(attention, item), _path(answered, item)


def _path(ends: pd.DataFrame, item: int) -> str:
    return f"{ends['first'][item]:.0%} to {ends['last'][item]:.0%}"


@said
def traversal(table: pd.DataFrame, reach: pd.DataFrame) -> str:
    """What the grid reaches, and what settings that were chosen on other lists bring."""
    n = lengths_of(table)[0]
    own, aimed = _where(table, n_items=n), _where(reach, n_items=n)
    follows = (own["attended"] == own["answer"]).mean()
    return (
        f"In lists of {n}, {own['attended'].nunique()} items are attended most somewhere, {own['answer'].nunique()} "
        f"are answered most; in {follows:.0%} of {len(own):,} settings both are the same item{_aimed(aimed)}."
    )


def _aimed(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    mean, beyond = rows[["plain", "steered", "plain_answered", "answered"]].mean(), (rows["p"] <= ALPHA).sum()
    more = "more" if rows["mean_p"].iloc[0] <= ALPHA else "no clearly more"
    return (
        f". Aimed at each item in turn, attention there goes from {mean['plain']:.0%} to {mean['steered']:.0%}, "
        f"answers from {mean['plain_answered']:.0%} to {mean['answered']:.0%}: {more} attention than along matched "
        f"triples ({p_in_words(rows['mean_p'].iloc[0])}; single items {beyond} of {len(rows)})"
    )


# --- crowding and order ---


@said
def margins(table: pd.DataFrame) -> str:
    parts, costs = [], []
    for n in lengths_of(table):
        own = _where(table, n_items=n)
        quarters = _where(own, statistic="accuracy").sort_values("quarter")["value"]
        parts.append(f"{quarters.iloc[0]:.0%} to {quarters.iloc[-1]:.0%} in lists of {n}")
        slope = _one(own, statistic="slope")
        costs += [n] if slope is not None and slope["low"] > 0 and slope["p"] <= ALPHA else []
    return (
        f"Beyond matched triples, crowded lists are answered less often than others of their index, wording and order "
        f"{_at(costs)}. Accuracy from the most crowded quarter to the least: {', '.join(parts)}."
    )


@said
def scales(table: pd.DataFrame) -> str:
    """At which lengths a narrower cloud is answered worse, and a wider one better, than matched triples make it."""
    own = _where(table, subspace=Subspace.CHOSEN)
    own = own[own["p"] <= ALPHA]
    worse = _where(own, scale=NARROW)
    worse, better = worse[worse["change_high"] < 0], _where(own, scale=WIDE)
    better = better[better["change_low"] > 0]
    return (
        f"Beyond matched triples, a cloud at {NARROW:g} of its width is answered worse {_at(worse['n_items'])}, one at "
        f"{WIDE:g} times its width better {_at(better['n_items'])}."
    )


def _at(lengths: Iterable[int]) -> str:
    """``in lists of 4 and 6``."""
    names = sorted(set(lengths))
    return f"in lists of {listed(names)}" if names else "at no length"


@said
def order(table: pd.DataFrame) -> str:
    parts, n = [], lengths_of(table)[len(lengths_of(table)) // 2]
    for kind, rows in _where(table, n_items=n).groupby("order"):
        low, high = rows.loc[rows["accuracy"].idxmin()], rows.loc[rows["accuracy"].idxmax()]
        parts.append(f"{low['accuracy']:.0%} at index {low['list_index']} to {high['accuracy']:.0%} at "
                     f"{high['list_index']} in {kind} order ({p_in_words(low['range_p'])})")  # fmt: skip
    through = table.loc[table["through_p"] <= ALPHA, "n_items"]
    return (
        f"In lists of {n} accuracy goes from {listed(parts)}. With all coordinates at one point its range narrows more "
        f"than with matched triples there, in one order at least, {_at(through)}."
    )


# --- what it gains ---


@said
def gains(table: pd.DataFrame) -> str:
    held_out = _where(table, subspace=Subspace.CHOSEN, part=Part.HELD_OUT)
    alone = [row for method in (Method.ONE_SETTING, Method.SCALING)
             for _, row in _where(held_out, method=method).iterrows()]  # fmt: skip
    better = [f"{plain(row['method'])} in lists of {row['n_items']}" for row in alone if row["beyond_low"] > 0]
    more = "more than the correction is gained by "
    beats = more + listed(better) if better else "neither way to steer beats the correction"
    both = _where(held_out, method=Method.BOTH)
    adds = [f"{_points(row, 'beyond', 'beyond_')} in lists of {row['n_items']}" for _, row in both.iterrows()]
    return f"On held-out lists: {beats}. To it, a setting adds {listed(adds)}, in points."


# --- the known answer ---


@said
def known(tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> str:
    """Models whose answer is known. tables: what a sentence calls a model -> its interchange and its decoding."""
    parts = {}
    for model, (interchanged, decoded) in tables.items():
        told = []
        if len(interchanged):
            row, matched = _three(interchanged, lengths_of(interchanged)[0], interchanges.LOGIT_DIFFERENCE)
            told.append(
                NOTHING
                if isnan(row["of_stream"])
                else f"three dimensions carry {_of(row)} of what the stream does, 95% of matched triples {matched}"
            )
        if len(decoded):
            n = lengths_of(decoded)[0]
            keys = dict(n_items=n, subspace=Subspace.CHOSEN, k=K, split="wordings")
            index, item = (_one(decoded, feature=feature, **keys) for feature in FEATURES)
            told.append(f"on other wordings they tell the list index of {index['right']:.0%} of lists of {n}, the item "
                        f"of {item['right']:.0%}, by chance {index['chance']:.0%}")  # fmt: skip
        parts[model] = "; ".join(told)
    return _lines({model: words for model, words in parts.items() if words})
