"""The best edits by one objective, on the selection half alone: first at the last token, then in the whole model."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.edits.edits import Edit
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing.moves import Extent, Family, Moves, edit_of, label


@dataclass(frozen=True)
class Winner:
    """The best edit of one search.

    family, extent: whose heads, and how much of them. draw: of random heads, None for others. objective: mean
    log-probability of the answer among the candidates on the lists that chose, in nats. gain: of accuracy there, in
    points. n_tried: edits among which it is the best.
    """

    family: Family
    extent: Extent
    draw: int | None
    moves: Moves
    objective: float
    gain: float
    n_tried: int

    @property
    def name(self) -> str:
        """As tables have it."""
        return label(self.moves)

    def edit(self, c: Context) -> Edit:
        """As data: for :func:`~talking_heads_utils.editing.edit`, a file or a baked checkpoint."""
        return edit_of(c, self.moves)


@dataclass(frozen=True)
class Winners:
    """best: of all. of_families: of each family and extent, the best of all among them. draws: of each draw of random
    heads."""

    best: Winner
    of_families: tuple[Winner, ...]
    draws: tuple[Winner, ...]

    @property
    def best_of_each_family(self) -> tuple[Winner, ...]:
        """One a family, whatever its extent."""
        families = dict.fromkeys(w.family for w in self.of_families)
        return tuple(max((w for w in self.of_families if w.family == f), key=lambda w: w.objective) for f in families)


def search(c: Context) -> Winners:
    raise NotImplementedError
