"""Moving the point by hand: which item the movers attend to, and whether the answer follows."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class LineRow(Row):
    """One component moved alone."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    component: str = column("", "that is moved, in its own layer, at end; random: a random direction, as far")
    amount: float = column("standard deviations", "that is added along its direction")
    list_index: int = column("", "of the item, from 0")
    attention: float = column(
        "share", "of the movers' attention to all items that goes to this one, mean over movers and lists"
    )
    attention_low: float = column("share", "95% interval over lists, lower end")
    attention_high: float = column("share", "upper end")
    answered: float = column("share", "lists answered with this item")
    answered_low: float = column("share", "95% interval, lower end")
    answered_high: float = column("share", "upper end")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class MapRow(Row):
    """One setting of the grid."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    first: float = column("standard deviations", "added along the first component's direction")
    second: float = column("standard deviations", "along the second's")
    third: float = column("standard deviations", "along the third's")
    attended: int = column("list index", "item with the most of the movers' attention, mean over lists")
    attention: float = column("share", "of the movers' attention to all items, that this one has")
    answer: int = column("list index", "item that is answered most often")
    answered: float = column("share", "lists answered with it")
    right: float = column("share", "lists answered rightly")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class ReachRow(Row):
    """For each index the setting that brings most attention there, chosen on one half, scored on the other."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    list_index: int = column("", "where attention is to be brought, from 0")
    plain: float = column("share", "of the movers' attention to all items, there, unsteered")
    steered: float = column("share", "the same under the chosen setting")
    low: float = column("share", "95% interval over lists, lower end")
    high: float = column("share", "upper end")
    plain_answered: float = column("share", "lists answered with the item there, unsteered")
    answered: float = column("share", "the same under the chosen setting")
    answered_low: float = column("share", "95% interval over lists, lower end")
    answered_high: float = column("share", "upper end")
    matched: float = column("share", "attention along matched triples, moved as far, chosen likewise: 95% point")
    p: float = column("", "share of matched triples, this one included, that bring as much attention there")
    mean_p: float = column("", "the same of the mean over all indices; alike in all rows")
    n_draws: int = column("triples", "matched ones")
    n: int = column("prompts", "held-out lists")


def run_line(c: Context) -> list[LineRow]:
    raise NotImplementedError


def run_map(c: Context) -> list[MapRow]:
    raise NotImplementedError


def run_reach(c: Context) -> list[ReachRow]:
    raise NotImplementedError
