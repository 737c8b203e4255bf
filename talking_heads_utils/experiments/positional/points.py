"""Where prompts sit: the coordinates of lists at end."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class PointRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the list")
    order: str = column("", "kept, shuffled: in which the others are named again")
    wording: str = column("", "of the list")
    list_index: int = column("", "of the answer, from 0")
    word: str = column("", "the answer")
    x: float = column(
        "standard deviations", "coordinate along the first component's direction, about the mean over all lists"
    )
    y: float = column("standard deviations", "along the second's")
    z: float = column("standard deviations", "along the third's")
    right: bool = column("", "whether the list was answered")


def run(c: Context) -> list[PointRow]:
    raise NotImplementedError
