"""How many dimensions behaviour needs: a donor's coordinates are put into a recipient.

At ``end``, where the stream enters the lowest mover's layer, the recipient's coordinates in a subspace become the
donor's: ``h' = h + (donor - h) B B^T``. The candidates stay the recipient's own items throughout, so that nothing
follows from a donor's items. Source: interchange interventions of Geiger et al. (2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange import LEAST
from talking_heads_utils.experiments.inhibition.shifts import MOST
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.ends import answered, ends
from talking_heads_utils.experiments.positional.learned import Learned, learned
from talking_heads_utils.experiments.positional.pairs import Donor, Pairs, make_pairs, same_items
from talking_heads_utils.experiments.positional.subspace import Chosen, K, Subspace, basis, chosen, nearest_lengths
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.stats import resamples

N_PAIRS = 400  # of each list length
LENGTHS = (4, 6)  # that are asked about, or the nearest
LOGIT_DIFFERENCE, LOG_ODDS, MOVED = "logit_difference", "log_odds", "moved"  # what is measured
MEASURES = (LOGIT_DIFFERENCE, LOG_ODDS, MOVED)
LEARNED = (Subspace.LEARNED, Subspace.LEARNED_ARBITRARY, Subspace.LEARNED_UNTRAINED)
TEN = dict.fromkeys(LEARNED, Subspace.LEARNED) | {Subspace.ANYWHERE: Subspace.ANYWHERE}  # whose ten others are held to


@dataclass(frozen=True)
class InterchangeRow(Row):
    """What a donor's coordinates at end, entering the lowest mover's layer, do to the recipient's own item at the
    donor's index j, against its item at its own index i; of donors with the same index j is another one all the same,
    of a subspace learned for arbitrary labels it is the index that was drawn for i and j.
    Of drawn subspaces: mean over draws, and the draws' 2.5% and 97.5% points. Shares are of what donors with other
    items do, empty where that is nothing: where its interval holds zero."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "whose coordinates are interchanged")
    k: int = column("dimensions", "of it; 0 for whole heads and the whole stream")
    donor: str = column("", "other_items, same_index, same_items")
    measure: str = column(
        "",
        "logit_difference: item at j less item at i, logits; log_odds: of the movers' attention, j to i, "
        "nats; moved: share of lists answered with the item at j less the same without interchange",
    )
    effect: float = column("", "change of the measure, mean over pairs")
    low: float = column("", "95% interval over pairs, of drawn subspaces over draws, lower end")
    high: float = column("", "upper end")
    of_stream: float = column("share", "of what the whole stream does, in the trained model")
    of_stream_low: float = column("share", "95% interval, lower end")
    of_stream_high: float = column("share", "upper end")
    of_ten: float = column(
        "share",
        "of what ten chosen dimensions do, or as many as there are; of anywhere: its own ten; of learned ones "
        "and their controls: ten learned ones",
    )
    of_ten_low: float = column("share", "95% interval, lower end")
    of_ten_high: float = column("share", "upper end")
    matched: float | None = column("", "95% point of the matched triples' effects; of chosen at k = 3 alone")
    p: float | None = column("", "share of matched triples, this one included, with as large an effect")
    n_draws: int | None = column("subspaces", "drawn ones behind p, or behind the row")
    n: int = column("pairs", "recipient and donor")


@dataclass(frozen=True)
class Tried:
    """Shifts of the recipients' streams, of m subspaces of one kind: k of each; drawn: m draws of one k."""

    subspace: Subspace
    k: tuple[int, ...]
    donor: Donor
    shift: Float[Tensor, "n m d_model"]
    drawn: bool = False


def run(c: Context) -> list[InterchangeRow]:
    """Raises :class:`NotApplicable` as :func:`~subspace.chosen` and :func:`~subspace.lengths` do."""
    return [row for n_items in nearest_lengths(c, *LENGTHS) for row in rows_of(c, n_items)]


def rows_of(c: Context, n_items: int, *, with_learned: bool = True) -> list[InterchangeRow]:
    """Of lists of one length. with_learned: whether learned subspaces, which take longest, are among them."""
    own, pairs = c.kept(chosen), held_out_pairs(c, n_items)
    found = list(measured(pairs, tried(pairs, own)))
    for one in learned(c, pairs) if with_learned else ():
        found += measured(one.pairs, of_learned(one))
    return [row for measure in MEASURES for row in _rows(found, measure, c.model, n_items)]


def held_out_pairs(c: Context, n_items: int) -> Pairs:
    """Recipients with donors of all three kinds."""
    lists = ends(c, Lists(Part.HELD_OUT, n_items, c.n(N_PAIRS, 10 * n_items)))
    pairs = make_pairs(lists, c.seed)
    own = same_items(lists, pairs.j, c.bridge, c.tokenizer, c.seed)
    return replace(pairs, donors={**pairs.donors, Donor.SAME_ITEMS: own})


# --- what is interchanged ----------------------------------------------------------------------------------------


def tried(pairs: Pairs, own: Chosen) -> Iterator[Tried]:
    """Every subspace that weights and IOI prompts chose, what it is compared with, and all there is."""
    h, some = pairs.ends.stream, (min(K, len(own.directions)), len(own.directions))
    for donor, there in pairs.donors.items():
        if donor == Donor.OTHER_ITEMS:
            for kind, directions in ((Subspace.CHOSEN, own.directions), (Subspace.ANYWHERE, own.anywhere_directions)):
                yield nested(kind, directions, there - h)
            yield Tried(Subspace.MATCHED, (K,), donor, matched(own, there - h), drawn=True)
            whole = pairs.written[donor] - pairs.ends.written
            yield Tried(Subspace.WHOLE_HEADS, (0,), donor, whole[:, None])
        else:
            of_chosen = nested(Subspace.CHOSEN, own.directions, there - h)
            at = [k - 1 for k in dict.fromkeys(some)]
            yield Tried(Subspace.CHOSEN, tuple(k + 1 for k in at), donor, of_chosen.shift[:, at])
        yield Tried(Subspace.WHOLE_STREAM, (0,), donor, (there - h)[:, None])


def nested(kind: Subspace, directions: Float[Tensor, "k d_model"], difference: Float[Tensor, "n d_model"]) -> Tried:
    """The spans of the first 1, 2, ... directions, donors with other items."""
    B = basis(directions)
    shift = ((difference @ B.T)[..., None] * B).cumsum(1)
    return Tried(kind, tuple(range(1, len(B) + 1)), Donor.OTHER_ITEMS, shift)


def of_learned(found: Learned) -> Iterator[Tried]:
    """The spans of each learned basis."""
    difference = found.pairs.donors[Donor.OTHER_ITEMS] - found.pairs.ends.stream
    shift = torch.stack([(difference @ B.T) @ B for B in found.bases], 1)
    yield Tried(found.subspace, tuple(map(len, found.bases)), Donor.OTHER_ITEMS, shift)


def matched(own: Chosen, difference: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_draws d_model"]:
    """Shifts in the matched triples, each as long as the chosen triple's in mean square, at most :data:`MOST` times
    longer than it is."""
    triple, others = basis(own.directions[:K]), basis(own.matched)
    shift = torch.einsum("nd,mkd,mke->nme", difference, others, others)
    wanted = (difference @ triple.T).square().sum(-1).mean()
    return shift * (wanted / shift.square().sum(-1).mean(0)).sqrt().clamp(max=MOST)[:, None]


# --- what it does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One column of values: by measure each pair's change."""

    subspace: Subspace
    k: int
    donor: Donor
    change: Mapping[str, Float[Tensor, "n m"]]
    drawn: bool = False


def measured(pairs: Pairs, tried: Iterator[Tried]) -> Iterator[Measured]:
    """The change that each shift makes."""
    before = outcome(pairs, torch.zeros_like(pairs.ends.stream)[:, None])
    for one in tried:
        after = outcome(pairs, one.shift)
        change = {measure: (after[measure] - before[measure]).double().cpu() for measure in MEASURES}
        for at, k in enumerate(one.k):
            columns = slice(None) if one.drawn else slice(at, at + 1)
            yield Measured(one.subspace, k, one.donor, {m: v[:, columns] for m, v in change.items()}, one.drawn)


def outcome(pairs: Pairs, shift: Float[Tensor, "n m d_model"]) -> dict[str, Float[Tensor, "n m"]]:
    """Each measure with the streams shifted."""
    logits, attention = pairs.ends.both(pairs.ends.stream[:, None] + shift)
    toward = [_at(logits, pairs.j) - _at(logits, pairs.i), _at(attention, pairs.j) - _at(attention, pairs.i)]
    return {LOGIT_DIFFERENCE: toward[0], LOG_ODDS: toward[1].mean(2), MOVED: answered(logits, pairs.j).float()}


def _at(values: Float[Tensor, "n *k n_items"], index: Tensor) -> Float[Tensor, "n *k"]:
    """Each list's value at its own index."""
    return values[torch.arange(len(values), device=values.device), ..., index]


def _rows(found: Sequence[Measured], measure: str, model: str, n_items: int) -> Iterator[InterchangeRow]:
    """One measure of all that was tried, with shares of the whole stream's and of ten dimensions' effects."""
    columns = [one.change[measure] for one in found]
    weights = {n: resamples(n) for n in set(map(len, columns))}
    sums = [Sums(values.mean(0), weights[len(values)] @ values) for values in columns]
    by_kind = {(one.subspace, one.k): s for one, s in zip(found, sums) if one.donor == Donor.OTHER_ITEMS}
    largest = {kind: max(k for of, k in by_kind if of == kind) for kind, _ in by_kind}
    draws = by_kind[Subspace.MATCHED, K].mean
    for one, own, values in zip(found, sums, columns):
        ten = TEN.get(one.subspace, Subspace.CHOSEN)
        cells = own.cells(by_kind[Subspace.WHOLE_STREAM, 0], by_kind[ten, largest[ten]])
        judged = (one.subspace, one.k, one.donor) == (Subspace.CHOSEN, K, Donor.OTHER_ITEMS)
        against = {"matched": draws.quantile(0.95).item(), "n_draws": len(draws),
                   "p": (1 + int((draws >= own.mean).sum())) / (1 + len(draws))}  # fmt: skip
        yield InterchangeRow(
            model=model, n_items=n_items, subspace=one.subspace, k=one.k, donor=one.donor, measure=measure, **cells,
            **(against if judged else {"matched": None, "p": None, "n_draws": len(draws) if one.drawn else None}),
            n=len(values),
        )  # fmt: skip


@dataclass(frozen=True)
class Sums:
    """Means over pairs of one subspace's effect, or of m drawn ones', and the same in bootstrap samples of the
    pairs."""

    mean: Float[Tensor, "m"]
    samples: Float[Tensor, "n_boot m"]

    @property
    def is_there(self) -> bool:
        """Whether it does something, so that a share of it means something."""
        low, high = _ends(self.samples[:, 0])
        return self.mean[0].abs().item() > LEAST and (low > 0 or high < 0)

    def share(self, whole: Sums) -> tuple[float, float, float]:
        """Of what another one does, with its interval: over pairs, of drawn ones over draws."""
        if not whole.is_there:
            return (torch.nan,) * 3
        share = self.mean / whole.mean
        return share.mean().item(), *_ends(share if len(share) > 1 else self.samples[:, 0] / whole.samples[:, 0])

    def cells(self, stream: Sums, ten: Sums) -> dict[str, Any]:
        """Effect and shares, as a row has them."""
        low, high = _ends(self.mean if len(self.mean) > 1 else self.samples[:, 0])
        cells = {"effect": self.mean.mean().item(), "low": low, "high": high}
        for name, whole in (("of_stream", stream), ("of_ten", ten)):
            cells |= dict(zip((name, f"{name}_low", f"{name}_high"), self.share(whole)))
        return cells


def _ends(values: Float[Tensor, "n"]) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
