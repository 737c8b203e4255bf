"""Who listens: every later head, ranked by how strongly its query reads what the S-inhibition heads write."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column

EVERY = "all"  # in place of a head: the row of the test over all of them


@dataclass(frozen=True)
class ListenerRow(Row):
    """One later head as a reader of the S-inhibition heads' components; a last row with the test over all."""

    head: str = column("", "the reader; 'all' in the row of the test")
    layer: int | None = column("", "its layer")
    role: str = column("", "its role; empty for none, and in the row of the test")
    listener: bool | None = column("", "whether it is a name mover or a backup of one: the claim is of them")
    value: float | None = column("percentile", "of the S-inhibition heads' components among all earlier components for "
                                 "its query, mean over those heads; the component of each is the one that "
                                 "all other later heads read most on average")  # fmt: skip
    own_best: float | None = column("percentile", "the same of whole heads, each by the component that this reader "
                                    "reads most, among all earlier heads")  # fmt: skip
    rank: int | None = column("", "of value among all later heads, 1 for the strongest")
    auc: float | None = column("share", "in the row of the test: of pairs of a listener and another later head in "
                               "which the listener's value is larger")  # fmt: skip
    low: float | None = column("share", "lower end of the 95% interval of auc, bootstrap over heads")
    high: float | None = column("share", "upper end")
    null_mean: float | None = column("share", "auc's mean over as many heads drawn from the same layers")
    null_high: float | None = column("share", "and their 95th percentile")
    p: float | None = column("", "share of those draws that reach auc")
    n_listeners: int | None = column("heads", "listeners among the later heads")
    n: int | None = column("heads", "later heads")
    n_draws: int | None = column("", "choices of heads that p is made of")
