"""Two kinds of word, two labels, and which belongs to which drawn for every sequence: belief by signed evidence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column

FLIPS = (0.1, 0.2, 0.3, 0.4)
N_SHOWN, N_ORDERS, N_SEQUENCES = 32, 5, 125  # sequences of each rate of flips


class Reader(StrEnum):
    """What log-odds may follow."""

    EXACT = "exact"  # signed evidence times the log-odds of one label
    SATURATION = "saturation"  # the same, bending
    RECENCY = "recency"  # evidence that fades with distance
    LAST = "last"  # the last label, or the last of the asked kind
    COUNT = "count"  # the number of examples, in the direction of the majority


@dataclass(frozen=True)
class EvidenceRow(Row):
    """Mean log-odds of the label of one rule by the signed evidence for it."""

    model: str = column("", "model")
    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped")
    n_examples: int = column("examples", "before the question")
    signed: int = column("examples", "labels for the rule less labels against it")
    log_odds: float = column("nats", "of the rule's label against the other, both rules folded together, mean")
    low: float = column("nats", "95% interval over sequences, lower end")
    high: float = column("nats", "upper end")
    n: int = column("sequences", "behind the mean")


@dataclass(frozen=True)
class GateRow(Row):
    """How often the right label is preferred after so many examples."""

    model: str = column("", "model")
    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped")
    n_examples: int = column("examples", "before the question")
    accuracy: float = column("share", "label of the true rule preferred")
    low: float = column("share", "95% interval over sequences, lower end")
    high: float = column("share", "upper end")
    n: int = column("sequences", "n")


@dataclass(frozen=True)
class ReaderRow(Row):
    """How well one reader, fitted on half of the sequences, predicts the log-odds of the others."""

    model: str = column("", "model")
    labels: str = column("", "the two labels")
    reader: str = column("", "exact, saturation, recency, last or count")
    parameters: str = column("", "what was fitted, such as slope 0.03, half-life 9")
    explained: float = column("share", "of the held-out variance")
    low: float = column("share", "95% interval over sequences, lower end")
    high: float = column("share", "upper end")
    beyond_exact: float = column("share", "explained less the exact reader's")
    beyond_low: float = column("share", "lower end")
    beyond_high: float = column("share", "upper end")
    n: int = column("sequences", "of the held-out half")


@dataclass(frozen=True)
class SlopeRow(Row):
    """Log-odds by signed evidence at the last question, for one rate of flips."""

    model: str = column("", "model")
    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped; 0 for all rates together")
    slope: float = column("nats", "log-odds a label of signed evidence")
    slope_low: float = column("nats", "95% interval over sequences, lower end")
    slope_high: float = column("nats", "upper end")
    of_exact: float = column("share", "slope over log((1 - flip) / flip), or over it scaled to the mean")
    curvature: float = column("nats", "coefficient of signed evidence times its size")
    curvature_low: float = column("nats", "lower end")
    curvature_high: float = column("nats", "upper end")
    order: float = column("share", "variance over orders of one sequence over variance explained by evidence")
    order_low: float = column("share", "lower end")
    order_high: float = column("share", "upper end")
    rival: str | None = column("", "of all rates together: the reader other than the exact one that explains most")
    rival_beyond: float | None = column("share", "of held-out variance that it explains, less the exact reader's")
    rival_low: float | None = column("share", "lower end")
    rival_high: float | None = column("share", "upper end")
    n: int = column("sequences", "each in several orders")


def run_gate(c: Context) -> list[GateRow]:
    raise NotImplementedError


def run_evidence(c: Context) -> list[EvidenceRow]:
    raise NotImplementedError


def run_readers(c: Context) -> list[ReaderRow]:
    raise NotImplementedError


def run_slopes(c: Context) -> list[SlopeRow]:
    raise NotImplementedError
