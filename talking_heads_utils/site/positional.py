"""What chapter 2 says of its tables: sentences whose numbers, and whose verbs, come from the rows. Of an empty table
nothing is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional import interchange as interchanges
from talking_heads_utils.experiments.positional.decoding import Split
from talking_heads_utils.experiments.positional.steering import Method
from talking_heads_utils.experiments.positional.subspace import K, Subspace
from talking_heads_utils.experiments.positional.traversal import RANDOM
from talking_heads_utils.experiments.rules import ALPHA
from talking_heads_utils.experiments.verdicts import listed, where, with_interval
from talking_heads_utils.figures.positional import FEATURES, lengths_of
from talking_heads_utils.site.claim_words import p_in_words, plain
from talking_heads_utils.site.sentences import bullets, said, share

WHOLE = (Subspace.WHOLE_HEADS, Subspace.WHOLE_STREAM)
NARROW, WIDE = 0.5, 2.0  # scales of the cloud that are spoken of


def _one(table: pd.DataFrame, **keys: Any) -> Any:
    """The first row with these values, None where there is none."""
    rows = where(table, **keys)
    return None if rows.empty else rows.iloc[0]


# --- which components, and where lists sit ---


def three(table: pd.DataFrame) -> list[str]:
    """Names of the chosen three, in their order; none of an empty table."""
    return where(table, subspace=Subspace.CHOSEN).sort_values("rank")["component"].head(K).tolist()


@said
def components(table: pd.DataFrame) -> str:
    first = {kind: rows.sort_values("rank")["component"].head(K).tolist() for kind, rows in table.groupby("subspace")}
    own, any_head = first.get(Subspace.CHOSEN, []), first.get(Subspace.ANYWHERE, [])
    both = [c for c in any_head if c in own]
    told = f", of which {listed(both)} {'is' if len(both) == 1 else 'are'} among the chosen" if both else ""
    energies = where(table, subspace=Subspace.CHOSEN).sort_values("rank")["matched_energy"].dropna()
    like = f" The components matched with them have {listed(f'{e:.0%}' for e in energies)} of their energy."
    return (
        f"The chosen three are {listed(own)}. A choice among all heads below the movers would be "
        f"{listed(any_head)}{told}.{like if len(energies) else ''}"
    )


@said
def points(table: pd.DataFrame, names: list[str]) -> str:
    """How far the means of list indices lie apart, in the longest lists and in the shortest."""
    parts = []
    for n in dict.fromkeys((lengths_of(table)[0], lengths_of(table)[-1])):
        means = where(table, n_items=n).groupby("list_index")[["x", "y", "z"]].mean()
        apart = (means.max() - means.min()).tolist()
        parts.append(f"{listed(f'{gap:.1f}' for gap in apart)} in lists of {n}")
    return (
        f"How far the mean points of the list indices lie apart, in standard deviations along {listed(names)}: "
        f"{'; '.join(parts)}."
    )


@said
def decoding(table: pd.DataFrame) -> str:
    n = lengths_of(table)[-1]
    rows = where(table, n_items=n, subspace=Subspace.CHOSEN, k=K, split=Split.WORDINGS)
    index, item = (_one(rows, feature=feature) for feature in FEATURES)
    matched = _one(table, n_items=n, subspace=Subspace.MATCHED, feature="list_index", split=Split.WORDINGS)
    more = "more" if index["p"] <= ALPHA else "no clearly more"
    return (
        f"On wordings that were not fitted, the three coordinates give the right list index for "
        f"{share(index, 'right')} of lists of {n}, and the right item for {share(item, 'right')}; chance is "
        f"{index['chance']:.0%}. For the index that is {more} than matched triples, with {matched['right']:.0%} on "
        f"average ({p_in_words(index['p'])})."
    )


# --- how many dimensions behaviour needs ---


def _of_stream(table: pd.DataFrame, n: int, measure: str) -> pd.DataFrame:
    return where(table, n_items=n, donor=interchanges.Donor.OTHER_ITEMS, measure=measure)


def _logits(row: Any) -> str:
    """``0.52 [0.44, 0.60]``."""
    return with_interval(row, "effect")


def _dimensions(rows: pd.DataFrame, kind: str) -> dict[int, Any]:
    """Number of dimensions -> row of a subspace: one, three and the most there are."""
    own = rows[rows["subspace"] == kind].set_index("k", drop=False)
    return {k: own.loc[k] for k in sorted({1, K, int(own["k"].max())}) if k in own.index} if len(own) else {}


NUMBERS = {1: "one", K: "three", 10: "ten"}


def _by_number(found: Mapping[int, Any]) -> str:
    return ", ".join(f"{NUMBERS.get(k, k)} {_logits(row)}" for k, row in found.items())


@said
def finding(table: pd.DataFrame, model: str) -> str:
    """The chapter's finding: what one direction moves, and the scale of that."""
    n = lengths_of(table)[0]
    rows = _of_stream(table, n, interchanges.LOGIT_DIFFERENCE)
    one = _dimensions(rows, Subspace.CHOSEN)[1]
    part = "carries part of" if one["low"] > 0 else "does not clearly carry"
    return (
        f"In {model}, one direction at the last token, chosen without any list, {part} the place in a list. With "
        f"another list's coordinate along it, the answer moves by **{_logits(one)}** logits to that list's index, in "
        f"lists of {n}. The whole stream moves it by {_logits(_one(rows, subspace=Subspace.WHOLE_STREAM))}."
    )


@said
def interchange(table: pd.DataFrame) -> str:
    """In the shortest lists, effects by number of dimensions, beside matched, learned and arbitrary ones and all there
    is; and what the first component alone does."""
    n, alone = lengths_of(table)[0], []
    rows = _of_stream(table, n, interchanges.LOGIT_DIFFERENCE)
    chosen, learned, arbitrary = (
        _dimensions(rows, kind) for kind in (Subspace.CHOSEN, Subspace.LEARNED, Subspace.LEARNED_ARBITRARY)
    )
    three, heads, stream = chosen[K], *(_one(rows, subspace=kind) for kind in WHOLE)
    told = {
        "the chosen components": _by_number(chosen),
        "matched triples": f"95% of them at most {three['matched']:.2f} ({p_in_words(three['p'])})",
    }
    if learned:
        told["the best that was learned for this"] = _by_number({k: row for k, row in learned.items() if k <= K})
        told["three learned for arbitrary labels"] = _logits(arbitrary[K])
    against = ""
    if heads is not None:
        told["the inhibition heads whole"] = _logits(heads)
        against = ". Something else in it works against the heads" if heads["low"] > stream["high"] else ""
    told["the whole stream"] = f"{_logits(stream)}{against}"
    for length in lengths_of(table):
        found = _dimensions(_of_stream(table, length, interchanges.LOGIT_DIFFERENCE), Subspace.CHOSEN)
        alone.append(f"{found[1]['effect'] / found[K]['effect']:.0%} in lists of {length}")
    return (
        f"Change of the logit difference in lists of {n}, by number of dimensions:\n\n"
        f"{bullets(f'{name}: {words}' for name, words in told.items())}\n\nOf what the "
        f"three components do, the first alone does {listed(alone)}."
    )


# --- the point moved by hand ---


@said
def line(table: pd.DataFrame) -> str:
    """Of the component that changes attention most, from end to end: what it does to one item; and a random one's."""
    n = lengths_of(table)[0]
    found = {component: _from_end_to_end(where(rows, n_items=n)) for component, rows in table.groupby("component")}
    random = found.pop(RANDOM)[0]
    component, (_, item, attention, answered) = max(found.items(), key=lambda pair: pair[1][0])
    return (
        f"In lists of {n}, {component} changes attention most. From one end to the other, attention to item {item} "
        f"goes from {attention}, and the share of lists answered with it from {answered}. Along the random direction, "
        f"attention to no item changes by more than {random:.0%}."
    )


def _from_end_to_end(rows: pd.DataFrame) -> tuple[float, int, str, str]:
    """The largest change of an item's attention, the item, its attention and its answers."""
    by_item = rows.sort_values("amount").groupby("list_index")
    attention, answered = (by_item[what].agg(["first", "last"]) for what in ("attention", "answered"))
    change = (attention["last"] - attention["first"]).abs()
    item = int(change.idxmax())
    looks, says = (f"{ends['first'][item]:.0%} to {ends['last'][item]:.0%}" for ends in (attention, answered))
    return float(change.max()), item, looks, says


@said
def traversal(table: pd.DataFrame, reach: pd.DataFrame) -> str:
    """What the grid reaches, and what settings that were chosen on other lists bring."""
    n = lengths_of(table)[-1]
    own, aimed = where(table, n_items=n), where(reach, n_items=n)
    follows = (own["attended"] == own["answer"]).mean()
    return (
        f"In lists of {n}, {own['attended'].nunique()} of the items are attended most somewhere on the grid, and "
        f"{own['answer'].nunique()} are answered most. Both are the same item in {follows:.0%} of {len(own):,} "
        f"settings.{_aimed(aimed)}"
    )


def _aimed(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    mean, beyond = rows[["plain", "steered", "plain_answered", "answered"]].mean(), (rows["p"] <= ALPHA).sum()
    more = "more" if rows["mean_p"].iloc[0] <= ALPHA else "no clearly more"
    return (
        f"\n\nAimed at each item in turn, attention to it goes from {mean['plain']:.0%} to {mean['steered']:.0%}, and "
        f"answers with it from {mean['plain_answered']:.0%} to {mean['answered']:.0%}. That is {more} attention than "
        f"along matched triples ({p_in_words(rows['mean_p'].iloc[0])}), clearly so for {beyond} of {len(rows)} items."
    )


# --- crowding and order ---


@said
def margins(table: pd.DataFrame) -> str:
    parts, costs, near = [], list[int](), list[int]()
    for n in lengths_of(table):
        own = where(table, n_items=n)
        quarters = where(own, statistic="accuracy").sort_values("quarter")["value"]
        parts.append(f"{quarters.iloc[0]:.0%} to {quarters.iloc[-1]:.0%} in lists of {n}")
        for statistic, lengths in (("slope", costs), ("nearest", near)):
            row = _one(own, statistic=statistic)
            lengths += [n] if row is not None and row["low"] > 0 and row["p"] <= ALPHA else []
    return (
        f"Accuracy from the most crowded quarter to the least: {', '.join(parts)}. Crowding costs more than along "
        f"matched triples {_at(costs)}. Errors go to the nearest other index more often "
        f"than by chance {_at(near)}."
    )


@said
def scales(table: pd.DataFrame) -> str:
    """At which lengths a narrower cloud is answered worse, and a wider one better, than matched triples make it."""
    own = where(table, subspace=Subspace.CHOSEN)
    own = own[own["p"] <= ALPHA]
    worse = where(own[own["change_high"] < 0], scale=NARROW)
    better = where(own[own["change_low"] > 0], scale=WIDE)
    matched = listed(sorted(set(where(table, subspace=Subspace.MATCHED)["n"])))
    return (
        f"Beyond what matched triples do, on the {matched} lists that these were run on, a cloud "
        f"{WIDE:g} times as wide is answered better {_at(better['n_items'])}, and one {NARROW:g} times as wide is "
        f"answered worse {_at(worse['n_items'])}. The curve is over more lists, and may lie within the grey band even "
        "there."
    )


def _at(lengths: Iterable[int]) -> str:
    """``in lists of 4 and 6``."""
    names = sorted(set(lengths))
    return f"in lists of {listed(names)}" if names else "at no length"


@said
def order(table: pd.DataFrame) -> str:
    parts, n = [], lengths_of(table)[len(lengths_of(table)) // 2]
    for kind, rows in where(table, n_items=n).groupby("order"):
        low, high = rows.loc[rows["accuracy"].idxmin()], rows.loc[rows["accuracy"].idxmax()]
        parts.append(f"{kind} order: {low['accuracy']:.0%} at index {low['list_index']}, {high['accuracy']:.0%} at "
                     f"index {high['list_index']} ({p_in_words(low['range_p'])})")  # fmt: skip
    through = table.loc[table["through_p"] <= ALPHA, "n_items"]
    return (
        f"Lowest and highest accuracy over the answer's list index, in lists of {n}:\n\n{bullets(parts)}\n\nWith all "
        f"coordinates at one point, the range between them narrows clearly more than with those of matched triples, in "
        f"at least one order, {_at(through)}."
    )


# --- what it gains ---


@said
def gains(table: pd.DataFrame) -> str:
    held_out = where(table, subspace=Subspace.CHOSEN, part=Part.HELD_OUT)
    alone = [row for method in (Method.ONE_SETTING, Method.SCALING)
             for _, row in where(held_out, method=method).iterrows()]  # fmt: skip
    better = [f"{plain(row['method'])} in lists of {row['n_items']}" for row in alone if row["beyond_low"] > 0]
    more = "more than by the correction is gained by "
    beats = more + listed(better) if better else "neither way to steer gains more than the correction of the logits"
    both = where(held_out, method=Method.BOTH)
    adds = [f"{row['beyond']:+.1f} [{row['beyond_low']:.1f}, {row['beyond_high']:.1f}] in lists of {row['n_items']}"
            for _, row in both.iterrows()]  # fmt: skip
    return f"On held-out lists, {beats}. Points that a setting adds to the correction: {listed(adds)}."


# --- the known answer ---


@said
def known(tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> str:
    """Models whose answer is known. tables: what a sentence calls a model -> its interchange and its decoding."""
    parts, unused = {}, []
    for model, (interchanged, decoded) in tables.items():
        told, moves = [], True
        if len(interchanged):
            rows = _of_stream(interchanged, lengths_of(interchanged)[0], interchanges.LOGIT_DIFFERENCE)
            three, stream = _one(rows, subspace=Subspace.CHOSEN, k=K), _one(rows, subspace=Subspace.WHOLE_STREAM)
            told.append(f"three dimensions move the answer by {_logits(three)} logits, the whole stream by "
                        f"{_logits(stream)}")  # fmt: skip
            moves = three["low"] > 0.01
        if len(decoded):
            n = lengths_of(decoded)[-1]
            chosen = where(decoded, n_items=n, subspace=Subspace.CHOSEN, k=K, split=Split.WORDINGS)
            index = _one(chosen, feature=next(iter(FEATURES)))
            told.append(f"the list index is decoded for {index['right']:.0%} of lists of {n}, chance "
                        f"{index['chance']:.0%}")  # fmt: skip
            unused += [] if moves or index["low"] <= index["chance"] else [model]
        parts[model] = "; ".join(told)
    more = f"\n\nWhat can be decoded need not be used: see *{listed(unused)}*." if unused else ""
    return bullets(f"{model}: {words}" for model, words in parts.items() if words) + more
