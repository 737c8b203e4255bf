"""Which components of the S-inhibition heads carry the signal, predicted from weights alone."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class PredictionRow(Row):
    """One component of one S-inhibition head, as the queries of all movers read it."""

    head: str = column("", "the S-inhibition head")
    component: int = column("", "counted from the largest singular value")
    score: float = column("score", "mean over movers' queries and, with rotary positions, over the task's distances "
                          "from the last token to IO and S1")  # fmt: skip
    score_at_0: float = column("score", "the same at distance 0, which is the same without rotary positions")
    singular_value: float = column("", "of the component")
    rank: int = column("", "of score among the head's components, 1 for the strongest: the prediction")
    rank_at_0: int = column("", "of score_at_0")
    n_movers: int = column("heads", "movers")
    n_distances: int = column("tokens", "different distances; 0 without rotary positions")
