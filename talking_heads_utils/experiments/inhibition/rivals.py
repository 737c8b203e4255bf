"""Measures of how strongly one head reads another, held against the links of the circuit that are known."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column

BEST_COMPONENT, TOP_COMPONENTS = "best_component", "top_components"
HEAD_COMPOSITION, PROJECTION_KERNEL = "head_composition", "projection_kernel"
MEASURES = (BEST_COMPONENT, TOP_COMPONENTS, HEAD_COMPOSITION, PROJECTION_KERNEL)
TOP = 3  # components that top_components adds up
EVERY = "all"  # in place of a link or a reader


@dataclass(frozen=True)
class RivalRow(Row):
    """How well one measure ranks the known writers of one reader among all earlier heads; means over readers."""

    measure: str = column("", "best_component; top_components, the sum of the three largest scores; "
                          "head_composition, the score of Elhage et al. 2021; "
                          "projection_kernel, that of Yamagiwa et al. 2026")  # fmt: skip
    link: str = column("", "the link; 'all' for all known writers of a reader together")
    reader: str = column("", "the reader; 'all' for the mean over readers")
    kind: str = column("", "its input, Q, K or V; empty for several")
    auc: float = column("share", "of pairs of a known writer and another earlier head in which the writer comes first")
    auc_low: float | None = column("share", "lower end of its 95% interval, bootstrap over readers")
    auc_high: float | None = column("share", "upper end")
    r_precision: float = column("share", "of the first R heads that are known writers, where R is how many there are")
    r_precision_low: float | None = column("share", "lower end of its 95% interval, bootstrap over readers")
    r_precision_high: float | None = column("share", "upper end")
    ahead: float | None = column("share", "auc of best_component less that of this measure, mean over readers")
    ahead_low: float | None = column("share", "lower end of its 95% interval, bootstrap over readers")
    ahead_high: float | None = column("share", "upper end")
    n_writers: int = column("heads", "known writers, summed over readers")
    n_earlier: int = column("heads", "earlier heads that are ranked, summed over readers")
    n_readers: int = column("heads", "readers")
