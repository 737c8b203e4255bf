"""Accuracy by the answer's index, in kept and in shuffled order, beside what recency and induction alone would give."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class OrderRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    order: str = column("", "kept, shuffled: in which the others are named again")
    list_index: int = column("", "of the answer, from 0")
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    last_named: float = column("share", "the same by always taking the last item")
    next_in_order: float = column(
        "share", "the same by taking the item after the one named last, which induction would"
    )
    least_recent: float = column(
        "share", "the same by taking the item whose last mention lies furthest back, which recency would"
    )
    says_last_named: float = column("share", "lists in which the model takes the last item")
    says_next_in_order: float = column("share", "in which it takes the item after the one named last")
    removed: float = column("share", "accuracy with all lists' coordinates at one point")
    matched_removed: float = column("share", "the same along matched triples, mean over draws")
    range_p: float = column(
        "",
        "of so large a range of accuracy over indices in this order; right answers dealt anew over "
        "indices; alike in all rows of an order and length",
    )
    n: int = column("prompts", "lists")


def run(c: Context) -> list[OrderRow]:
    raise NotImplementedError
