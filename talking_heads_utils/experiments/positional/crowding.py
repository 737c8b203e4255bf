"""Do crowded points cost accuracy? Distances beside errors, then the cloud made wider or narrower."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class CrowdingRow(Row):
    """Errors beside distances: how far a list's point lies from the nearest other index's mean, fitted on other lists,
    less that from its own."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    statistic: str = column(
        "",
        "accuracy: of a quarter of the lists; slope: of the log-odds of being right on the margin, within "
        "index, wording and order, per standard deviation; neighbours: share of errors that go to an index"
        " next to the answer's, less that of errors dealt anew within index",
    )
    quarter: int | None = column("", "of lists by margin within index, 1 the most crowded; empty for other statistics")
    value: float = column("", "of the statistic")
    low: float = column("", "95% interval over lists, lower end")
    high: float = column("", "upper end")
    p: float | None = column(
        "",
        "slope: share of matched triples, this one included, with as steep a one; neighbours: by "
        "permutation within index",
    )
    n_draws: int | None = column("", "triples or permutations behind p")
    n: int = column("prompts", "lists, or errors")


@dataclass(frozen=True)
class ScaleRow(Row):
    """The deviations of all lists' coordinates from their mean are scaled, blind to the answer."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    subspace: str = column(
        "", "chosen; matched: triples of equal energy, mean over draws and their 2.5% and 97.5% points"
    )
    scale: float = column("", "of the deviations; 1 changes nothing, 0 puts all lists at one point")
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    change: float = column("points", "of accuracy, against no scaling, paired")
    change_low: float = column("points", "95% interval, lower end")
    change_high: float = column("points", "upper end")
    spread: float = column("share", "largest less smallest accuracy over the answer's indices")
    p: float | None = column("", "share of matched triples, this one included, with as large a change; of chosen alone")
    n_draws: int | None = column("triples", "matched ones")
    n: int = column("prompts", "lists")


def run_margins(c: Context) -> list[CrowdingRow]:
    raise NotImplementedError


def run_scales(c: Context) -> list[ScaleRow]:
    raise NotImplementedError
