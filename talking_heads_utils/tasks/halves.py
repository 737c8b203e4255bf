"""Two halves of a prompt set: one to make choices on, one to score them on."""

from __future__ import annotations

from talking_heads_utils.errors import TaskError
from talking_heads_utils.tasks.laundry import HELD_OUT, SELECTION
from talking_heads_utils.tasks.prompts import PromptSet

FEWEST = 20  # prompts behind an interval


def half_rows(prompts: PromptSet) -> tuple[list[int], list[int]]:
    """Rows of the selection half and of the held-out one: by the prompts' own mark, or, where they have none, pairs of
    neighbours in turn, so that both halves are as balanced as the whole.

    Raises :class:`TaskError` where a half is left with fewer than :data:`FEWEST` prompts.
    """
    marks = prompts.info.get("half") or [(SELECTION, HELD_OUT)[i // 2 % 2] for i in range(len(prompts))]
    selection, held_out = ([i for i, mark in enumerate(marks) if mark == half] for half in (SELECTION, HELD_OUT))
    for rows in (selection, held_out):
        _check(len(rows))
    return selection, held_out


def halves(prompts: PromptSet) -> tuple[PromptSet, PromptSet]:
    """``(selection, held out)``, as :func:`half_rows` has them."""
    selection, held_out = half_rows(prompts)
    return prompts.select(selection), prompts.select(held_out)


def check_enough(prompts: PromptSet) -> PromptSet:
    """Raises :class:`TaskError` for fewer prompts than an interval needs."""
    _check(len(prompts))
    return prompts


def _check(n: int) -> None:
    if n < FEWEST:
        raise TaskError(f"An interval needs {FEWEST} prompts at least, not {n}. Ask for more prompts.")


def check_both_orders(prompts: PromptSet) -> PromptSet:
    """Raises :class:`TaskError` for IOI prompts that all name the same role first."""
    orders = set(prompts.info.get("order", ()))
    if len(orders) < 2:
        raise TaskError(f"Prompts of both orders are needed; these have only {', '.join(map(repr, orders)) or 'none'}.")
    return prompts
