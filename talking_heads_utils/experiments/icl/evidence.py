"""Belief by evidence: two kinds of word, two labels, and which belongs to which drawn for every sequence.

Belief is the log-odds of the label that a sequence's rule gives the word that is asked for; both rules are folded into
one by that. *Signed evidence* is the number of labels that speak for the rule less that of those against it. Every
table is a function of such log-odds, whether a model gives them or a reader of
:mod:`~talking_heads_utils.experiments.icl.readers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.errors import NotApplicable, OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import sequences as drawn
from talking_heads_utils.experiments.icl.readers import LogOdds, Reader, candidates, features, without_bias
from talking_heads_utils.experiments.icl.sequences import N_SEQUENCES, Sequences
from talking_heads_utils.experiments.rows import ModelRow, column, maybe
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.stats import Interval, bootstrap_mean, middle, share_in_clusters

COUNTS, GATE_COUNTS = (4, 8, 16, 32), (0, 1, 2, 4, 8, 16, 32)  # examples before a question
N_SELECTION = 24  # sequences of each rate by which labels are chosen
SETTLED = 16  # examples from which on the labels' gate looks
FEWEST = 5  # sequences behind a mean that is worth a row
ALL_RATES = 0.0


@dataclass(frozen=True)
class EvidenceRow(ModelRow):
    """Mean log-odds of the label of one rule by the signed evidence for it."""

    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped")
    n_examples: int = column("examples", "before the question")
    signed: int = column("examples", "labels for the rule less labels against it")
    log_odds: float = column("nats", "of the rule's label against the other, both rules folded together, mean")
    low: float = column("nats", "95% interval over sequences, lower end")
    high: float = column("nats", "upper end")
    n: int = column("sequences", "behind the mean")


@dataclass(frozen=True)
class GateRow(ModelRow):
    """How often the right label is preferred after so many examples."""

    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped")
    n_examples: int = column("examples", "before the question")
    half: str = column("", "selection, by which the labels are chosen, or held-out")
    accuracy: float = column("share", "label of the true rule preferred")
    low: float = column("share", "95% interval over sequences, lower end")
    high: float = column("share", "upper end")
    exact: float = column("share", "of an exact reader's answers that are right, ties half")
    n: int = column("sequences", "n")


@dataclass(frozen=True)
class ReaderRow(ModelRow):
    """How well one reader, fitted on half of the sequences, predicts the log-odds of the others."""

    labels: str = column("", "the two labels")
    reader: str = column("", "exact, saturation, recency, last or count")
    parameter: float | None = column("", "chosen: nats of saturation, half-life in examples, 1 for the last of a kind")
    slope: float = column("", "nats a unit of what the reader sums up")
    explained: float = column("share", "of the held-out variance within rates of flips, the labels' own bias taken off")
    low: float = column("share", "95% interval over sequences, lower end")
    high: float = column("share", "upper end")
    beyond_exact: float = column("share", "explained less the exact reader's")
    beyond_low: float = column("share", "lower end")
    beyond_high: float = column("share", "upper end")
    n: int = column("sequences", "of the held-out half")


@dataclass(frozen=True)
class SlopeRow(ModelRow):
    """Log-odds by signed evidence at the last question, for one rate of flips."""

    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped; 0 for all rates together")
    slope: float = column("nats", "log-odds a label of signed evidence; of all rates their mean")
    slope_low: float = column("nats", "95% interval over sequences, lower end")
    slope_high: float = column("nats", "upper end")
    of_exact: float = column("share", "slope over log((1 - flip) / flip); of all rates the one scale that fits best")
    follows: float | None = maybe("share", "of all rates together: rise of the four slopes with log((1 - flip) / flip)")
    follows_low: float | None = maybe("share", "95% interval over sequences, lower end")
    follows_high: float | None = maybe("share", "upper end")
    curvature: float = column("nats", "coefficient of signed evidence times its size, beside a slope of each rate")
    curvature_low: float = column("nats", "lower end")
    curvature_high: float = column("nats", "upper end")
    order: float = column("share", "variance over orders of one sequence over variance over sequences by evidence")
    order_low: float = column("share", "lower end")
    order_high: float = column("share", "upper end")
    rival: str | None = maybe("", "of all rates together: the reader other than the exact one that explains most")
    rival_beyond: float | None = maybe("share", "of held-out variance that it explains, less the exact reader's")
    rival_low: float | None = maybe("share", "lower end")
    rival_high: float | None = maybe("share", "upper end")
    n: int = column("sequences", "each in several orders")


# --- tables of log-odds ---


def gate_rows(
    model: str, labels: str, half: str, log_odds: LogOdds, sequences: Sequences, counts: Iterable[int] = GATE_COUNTS
) -> list[GateRow]:
    """Of each rate and number of examples. A tie is no right answer."""
    rows = []
    for flip, at in _rates(sequences):
        for k in counts:
            found = _share(log_odds[at, :, k])
            exact = (1 + sequences.signed[at, :, k].sign().double().mean().item()) / 2
            rows.append(GateRow(model, labels, flip, k, half, *found[:3], exact, int(at.sum())))
    return rows


def _share(log_odds: Float[Tensor, "n k"]) -> Interval:
    """Share of log-odds above 0, where those of one sequence may be alike."""
    which = torch.arange(len(log_odds))[:, None].expand_as(log_odds)
    return share_in_clusters((log_odds > 0).flatten(), which.flatten())


def evidence_rows(
    model: str, labels: str, log_odds: LogOdds, sequences: Sequences, counts: Iterable[int] = COUNTS
) -> list[EvidenceRow]:
    """Of each rate, number of examples and signed evidence that :data:`FEWEST` sequences or more have: the mean over
    sequences of each one's mean over its orders with that evidence."""
    values, rows = without_bias(log_odds, sequences), []
    for flip, at in _rates(sequences):
        for k in counts:
            signed, y = sequences.signed[at, :, k], values[at, :, k]
            for s in signed.unique().tolist():
                has = signed == s
                mean = ((y * has).sum(1) / has.sum(1))[has.any(1)]
                if len(mean) >= FEWEST:
                    rows.append(EvidenceRow(model, labels, flip, k, s, *bootstrap_mean(mean, n_boot=2000)))
    return rows


def _rates(sequences: Sequences) -> list[tuple[float, Bool[Tensor, "n"]]]:
    """Each rate of flips, and which sequences have it."""
    return [(round(flip, 3), sequences.flip == flip) for flip in sequences.flip.unique().tolist()]


@lru_cache(maxsize=4)
def _resamples(strata: tuple[int, ...], n_boot: int, seed: int) -> Float[Tensor, "n_boot_1 n"]:
    """How often each sequence is drawn, drawn anew within each stratum; the first row is all of them once."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for n in strata:
        draws = torch.randint(n, (n_boot, n), generator=generator)
        times = torch.zeros(n_boot, n, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws).double())
        parts.append(torch.cat([torch.ones(1, n, dtype=torch.float64), times]))
    return torch.cat(parts, 1)


def _ends(values: Float[Tensor, "n_boot_1"]) -> tuple[float, float, float]:
    """A statistic, and the ends of the 95% percentile interval of its resamples, which follow it."""
    return values[0].item(), *middle(values[1:])


def reader_rows(
    model: str, labels: str, log_odds: LogOdds, sequences: Sequences, *, n_boot: int = 2000, seed: int = 0
) -> list[ReaderRow]:
    """Every reader's slope, and what it may choose, by least squares on half of the sequences' last questions, and what
    it explains of the others' variance within rates. What rates differ in is taken off, with the means of the former
    half: all readers know it alike. Below 0 a reader is worse than those means.

    Of each rate, rule and asked kind half is held out.
    """
    rates = [at for _, at in _rates(sequences)]
    held = torch.cat([torch.arange(int(at.sum())) // 4 % 2 == 1 for at in rates])

    def within(values: Tensor) -> Tensor:
        means = torch.stack([at * values[at & ~held].mean() for at in rates]).sum(0)
        return values - means[:, None]

    y = within(without_bias(log_odds, sequences)[..., -1])
    W = _resamples(tuple(int((held & at).sum()) for at in rates), n_boot, seed)
    best: dict[Reader, tuple[float, float | None, float, Tensor]] = {}
    for reader, parameter in candidates():
        x = within(features(reader, parameter or 0.0, sequences)[..., -1].double())
        slope = (x[~held] * y[~held]).sum() / x[~held].square().sum()
        missed = (y - slope * x).square().sum(1)
        fitted = missed[~held].sum().item()
        if reader not in best or fitted < best[reader][0]:
            best[reader] = (fitted, parameter, slope.item(), W @ missed[held])
    total = W @ y[held].square().sum(1)
    explained = {reader: 1 - missed / total for reader, (*_, missed) in best.items()}
    return [
        ReaderRow(model, labels, reader, parameter, slope, *_ends(explained[reader]),
                  *_ends(explained[reader] - explained[Reader.EXACT]), n=int(held.sum()))
        for reader, (_, parameter, slope, _) in best.items()
    ]  # fmt: skip


class _Sums(NamedTuple):
    """Sums over resampled sequences of one rate, ``[n_boot + 1]`` each: of 1, the evidence E, its square, E times |E|
    (Q) and so on, the mean log-odds y over orders and their variance over orders."""

    one: Tensor
    E: Tensor
    EE: Tensor
    EQ: Tensor
    QQ: Tensor
    Ey: Tensor
    Qy: Tensor
    order: Tensor

    @property
    def slope(self) -> Tensor:
        return self.Ey / self.EE

    @property
    def bend(self) -> tuple[Tensor, Tensor]:
        """Of Q beside E: what it shares with y and with itself, E taken out of both."""
        return self.Qy - self.EQ * self.Ey / self.EE, self.QQ - self.EQ.square() / self.EE


def slope_rows(
    model: str, labels: str, log_odds: LogOdds, sequences: Sequences, *, n_boot: int = 2000, seed: int = 0
) -> list[SlopeRow]:
    """Of each rate and of all together, at the last question, where all orders have the same evidence.

    By symmetry there is no constant. Intervals by sequences drawn anew within rates. Raises :class:`OptionError` for
    sequences in one order only.
    """
    if log_odds.shape[1] < 2:
        raise OptionError("Slopes need two orders of each sequence or more, to tell order from evidence.")
    y = without_bias(log_odds, sequences)[..., -1]
    E = sequences.signed[:, 0, -1].double()
    Q, mean = E * E.abs(), y.mean(1)
    parts = torch.stack([torch.ones_like(E), E, E * E, E * Q, Q * Q, E * mean, Q * mean, y.var(1)], 1)
    rates = _rates(sequences)
    W = _resamples(tuple(int(at.sum()) for _, at in rates), n_boot, seed)
    sums = [_Sums(*(W[:, at] @ parts[at]).T) for _, at in rates]
    weights = [sequences.weight[at][0].item() for _, at in rates]
    rows = [_slope_row(model, labels, flip, [s], s.slope, (s.slope[0] / w).item(), int(at.sum()))
            for (flip, at), s, w in zip(rates, sums, weights)]  # fmt: skip
    slopes, w = torch.stack([s.slope for s in sums]), torch.tensor(weights, dtype=torch.float64)
    fitted = sum(w * s.Ey for s, w in zip(sums, weights)) / sum(w * w * s.EE for s, w in zip(sums, weights))
    rise = (w - w.mean()) @ slopes / (w - w.mean()).square().sum()  # NaN for one rate
    readers = reader_rows(model, labels, log_odds, sequences, n_boot=n_boot, seed=seed)
    best = max((row for row in readers if row.reader != Reader.EXACT), key=lambda row: row.explained)
    of_all: dict[str, Any] = dict(zip(("follows", "follows_low", "follows_high"), _ends(rise)))
    of_all |= dict(rival=best.reader, rival_beyond=best.beyond_exact)
    of_all |= dict(rival_low=best.beyond_low, rival_high=best.beyond_high)
    slope, scale = sum(s.slope for s in sums) / len(sums), fitted[0].item()  # type: ignore[index]
    together = _slope_row(model, labels, ALL_RATES, sums, slope, scale, len(sequences), **of_all)  # type: ignore[arg-type]
    return [*rows, together]


def _slope_row(
    model: str, labels: str, flip: float, sums: list[_Sums], slope: Tensor, of_exact: float, n: int, **of_all: Any
) -> SlopeRow:
    shared, own = (sum(part) for part in zip(*(s.bend for s in sums)))
    n_drawn = sum(s.one for s in sums)
    fitted, squared = sum(s.slope * s.E for s in sums), sum(s.slope.square() * s.EE for s in sums)
    by_evidence = squared / n_drawn - (fitted / n_drawn).square()  # type: ignore[union-attr]
    order = sum(s.order for s in sums) / n_drawn / by_evidence
    return SlopeRow(model, labels, flip, *_ends(slope), of_exact, *_ends(shared / own), *_ends(order), n, **of_all)


# --- one model ---


@dataclass(frozen=True)
class Read:
    """What one model made of the sequences. gate: of both pairs of labels on selection sequences."""

    labels: tuple[str, str]
    sequences: Sequences
    log_odds: LogOdds
    gate: list[GateRow]
    settled_low: float

    @property
    def named(self) -> str:
        """The labels as tables have them."""
        return ", ".join(self.labels)


def read(c: Context) -> Read:
    """The one pass that all tables share. The labels are those that do better on selection sequences, by the lower end
    of accuracy from :data:`SETTLED` examples on, at all rates. Raises :class:`NotApplicable` for a tokenizer that lacks
    words or labels."""
    n_words = tuple(map(len, drawn.words_of(c.tokenizer)))
    some = drawn.draw(c.n(N_SELECTION, 8), n_orders=1, n_words=n_words, seed=c.seed + 1)  # type: ignore[arg-type]
    gate, tried = [], []
    for labels in drawn.labels_of(c.tokenizer):
        found = drawn.log_odds(c.bridge, c.tokenizer, some, labels)
        gate += gate_rows(c.model, ", ".join(labels), SELECTION, found, some)
        tried.append((_share(found[:, 0, SETTLED:]).low, labels))
    low, labels = max(tried)
    sequences = drawn.draw(c.n(N_SEQUENCES, 12), n_words=n_words, seed=c.seed)  # type: ignore[arg-type]
    return Read(labels, sequences, drawn.log_odds(c.bridge, c.tokenizer, sequences, labels), gate, low)


def asked(c: Context) -> Read:
    """:func:`read`, of a model that does better than chance. Raises :class:`NotApplicable` for another."""
    found = c.kept(read)
    if found.settled_low <= 0.5:
        raise NotApplicable(
            f"{c.model} does not learn two labels in context: the lower end of its accuracy from {SETTLED} examples on "
            f"is {found.settled_low:.0%} with {found.named}, and chance is 50%."
        )
    return found


def run_gate(c: Context) -> list[GateRow]:
    """Of both pairs of labels on selection sequences, and of the better one on those that are judged."""
    found = c.kept(read)
    return found.gate + gate_rows(c.model, found.named, HELD_OUT, found.log_odds, found.sequences)


def run_evidence(c: Context) -> list[EvidenceRow]:
    found = asked(c)
    return evidence_rows(c.model, found.named, found.log_odds, found.sequences)


def run_readers(c: Context) -> list[ReaderRow]:
    found = asked(c)
    return reader_rows(c.model, found.named, found.log_odds, found.sequences, seed=c.seed)


def run_slopes(c: Context) -> list[SlopeRow]:
    found = asked(c)
    return slope_rows(c.model, found.named, found.log_odds, found.sequences, seed=c.seed)
