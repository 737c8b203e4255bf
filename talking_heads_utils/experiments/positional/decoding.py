"""What the coordinates tell of the answer: its index or the item, and in how many dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


class Split(StrEnum):
    """What was left out of the fit: lists at random, all lists of a wording, or all lists of the new objects."""

    LISTS = "lists"
    WORDINGS = "wordings"
    OBJECTS = "objects"


@dataclass(frozen=True)
class DecodingRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "chosen, anywhere, matched (three dimensions alone)")
    k: int = column("dimensions", "components whose coordinates are read")
    feature: str = column("", "of the answer: list_index, identity")
    split: str = column("", "left out of the fit: lists, wordings, objects")
    right: float = column("share", "held-out lists whose answer is decoded; of matched triples the mean")
    low: float = column("share", "95% interval over lists, of matched triples over triples, lower end")
    high: float = column("share", "upper end")
    shuffled: float = column("share", "the same where answers are shuffled before the fit; empty for matched triples")
    chance: float = column("share", "one in n_items")
    p: float | None = column("", "share of matched triples, this one included, that decode as much; of chosen at k = 3")
    n_draws: int | None = column("triples", "matched ones behind p, or behind the row")
    n: int = column("prompts", "lists")


def run(c: Context) -> list[DecodingRow]:
    raise NotImplementedError
