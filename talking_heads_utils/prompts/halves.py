"""Parts of a prompt set: the half that choices are made on, and the half that scores them."""

from __future__ import annotations

from collections.abc import Sequence

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.sets import PromptSet

FEWEST = 20  # prompts behind an interval


def half_rows(prompts: PromptSet) -> tuple[list[int], list[int]]:
    """Rows of the selection half and of the held-out one: by the prompts' own mark, or, where they have none, pairs of
    neighbours in turn, so that both halves are as balanced as the whole.

    Raises :class:`TaskError` where a half is left with fewer than :data:`FEWEST` prompts.
    """
    marks = prompts.info.get("half") or [(SELECTION, HELD_OUT)[i // 2 % 2] for i in range(len(prompts))]
    selection, held_out = ([i for i, mark in enumerate(marks) if mark == half] for half in (SELECTION, HELD_OUT))
    check_enough(selection)
    check_enough(held_out)
    return selection, held_out


def halves(prompts: PromptSet) -> tuple[PromptSet, PromptSet]:
    """``(selection, held out)``, as :func:`half_rows` has them."""
    selection, held_out = half_rows(prompts)
    return prompts.select(selection), prompts.select(held_out)


def check_enough(prompts: PromptSet | Sequence[int]) -> None:
    """Raises :class:`TaskError` for fewer prompts than an interval needs."""
    if len(prompts) < FEWEST:
        raise TaskError(f"An interval needs {FEWEST} prompts at least, not {len(prompts)}. Ask for more prompts.")
