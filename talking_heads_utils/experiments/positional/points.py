"""Where prompts sit: the coordinates of lists at end."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.coordinates import units
from talking_heads_utils.experiments.positional.ends import ends
from talking_heads_utils.experiments.positional.subspace import K, chosen, shown_lengths
from talking_heads_utils.experiments.rows import Row, column

N_LISTS = 120


@dataclass(frozen=True)
class PointRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the list")
    order: str = column("", "kept, shuffled: in which the others are named again")
    wording: str = column("", "of the list")
    list_index: int = column("", "of the answer, from 0")
    word: str = column("", "the answer")
    x: float = column(
        "standard deviations", "coordinate along the first component's direction, about the mean over other lists"
    )
    y: float = column("standard deviations", "along the second's")
    z: float = column("standard deviations", "along the third's")
    right: bool = column("", "whether the list was answered")


def run(c: Context) -> list[PointRow]:
    """Held-out lists of every length that is shown. Raises :class:`NotApplicable` as
    :func:`~talking_heads_utils.experiments.positional.subspace.chosen` and
    :func:`~talking_heads_utils.experiments.positional.subspace.lengths` do."""
    directions = c.kept(chosen).directions[:K]
    return [row for n_items in shown_lengths(c) for row in _of_length(c, n_items, directions)]


def _of_length(c: Context, n_items: int, directions: Float[Tensor, "3 d_model"]) -> list[PointRow]:
    at, unit = ends(c, Lists(Part.HELD_OUT, n_items, c.n(N_LISTS))), units(c, n_items)
    points = ((at.stream @ directions.T - unit.mean[:K]) / unit.std[:K]).tolist()
    right = at.right(at.logits(at.stream[:, None]))[:, 0].tolist()
    words = [c.tokenizer.decode([token]).strip() for token in at.prompts.answers.tolist()]
    info = (at.prompts.info[name] for name in ("order", "wording", "index"))
    return [
        PointRow(c.model, n_items, order, wording, index, word, x, y, z, answered)
        for order, wording, index, word, (x, y, z), answered in zip(*info, words, points, right)
    ]
