"""What the book has measured of a model's heads, head by head, as the explorer shows it: out of tables of results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from talking_heads_utils.experiments.inhibition.circuit import EXCHANGE
from talking_heads_utils.figures.style import words
from talking_heads_utils.roles import DIRECT, QUERY, VALUE

ALONE, TOGETHER, REMOVED = "alone", "together", "removed"
_ONE, _FOUR = "notebooks/01_inhibition_heads.html", "notebooks/04_icl_redundancy.html"
MEASURES = {  # what is measured, in which unit, and where the book says more; {} is a reader, a task or other heads
    DIRECT: ("adds directly to the logit difference, IO less S", "logits", "chapter 1", f"{_ONE}#who-does-what"),
    QUERY: ("exchanged in {}'s query: change of {}'s attention, log-odds of IO to S1", "nats", "chapter 1",
            f"{_ONE}#who-does-what"),
    VALUE: ("exchanged in {}'s values: change of the name movers' attention, log-odds of IO to S1", "nats", "chapter 1",
            f"{_ONE}#who-does-what"),
    TOGETHER: ("exchanged{}: change of the logit difference, IO less S", "logits", "chapter 1", f"{_ONE}#fig-exchange"),
    REMOVED: ("removed from {}'s query: change of {}'s attention to IO less that to S1", "share of attention",
              "chapter 1", f"{_ONE}#fig-effects"),
    ALONE: ("exchanged on the task {}: log-odds of the right word lost", "nats", "chapter 4",
            f"{_FOUR}#which-heads-matter"),
}  # fmt: skip


def measured(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """``measures`` as of :data:`MEASURES`, and by head rows of: place in them, component or None, what ``{}`` stands
    for, effect, low, high, n, the range of matched controls or None. tables: ``roles``, ``circuit``, ``effects`` and
    ``heads``, as far as they are there."""
    found: dict[str, list[list[Any]]] = {}
    for name, rows in (("circuit", _circuit), ("roles", _roles), ("effects", _effects), ("heads", _heads)):
        for head, (measure, *rest) in rows(tables[name]) if name in tables else ():
            found.setdefault(head, []).append([list(MEASURES).index(measure), *rest])
    return {"measures": list(MEASURES.values()), "rows": found}


def _numbers(row: Mapping[str, Any], effect: str) -> list[Any]:
    return [*(float(f"{row[name]:.4g}") for name in (effect, "low", "high")), int(row["n"])]


def _roles(table: pd.DataFrame) -> Iterator[tuple[str, list[Any]]]:
    for row in table[table["confirmed"]].to_dict("records"):
        yield row["head"], [row["path"], None, row["reader"], *_numbers(row, "effect"), None]


def _circuit(table: pd.DataFrame) -> Iterator[tuple[str, list[Any]]]:
    """Every head with the others of its role; a head alone where it is the only one."""
    for row in table[table["measure"] == EXCHANGE].to_dict("records"):
        heads = row["heads"].split(", ")
        ends = [row["control_low"], row["control_high"]]
        control = None if any(map(math.isnan, ends)) else [round(end, 4) for end in ends]
        for head in heads:
            others = ", ".join(other for other in heads if other != head)
            yield head, [TOGETHER, None, f" with {others}" if others else "", *_numbers(row, "effect"), control]


def _effects(table: pd.DataFrame) -> Iterator[tuple[str, list[Any]]]:
    for row in table.to_dict("records"):
        yield row["head"], [REMOVED, row["component"], row["mover"], *_numbers(row, "effect"), None]


def _heads(table: pd.DataFrame) -> Iterator[tuple[str, list[Any]]]:
    for row in table[table["alone"].notna()].to_dict("records"):
        yield row["head"], [ALONE, None, words(row["task"]), *_numbers(row, "alone"), None]
