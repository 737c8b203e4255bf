"""Parts of a prompt set: the half that choices are made on, the half that scores them, and folds to cross-validate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.settings import SEED

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


def random_folds(n: int, n_folds: int = 5, seed: int = SEED) -> Int[Tensor, "n"]:
    """Folds of equal size, up to one, at random."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % n_folds


def wording_folds(prompts: PromptSet) -> Int[Tensor, "n_prompts"]:
    """One fold per wording: what is scored was fitted on other wordings."""
    names = sorted(set(prompts.info["wording"]))
    return torch.tensor([names.index(name) for name in prompts.info["wording"]])


def check_enough(prompts: PromptSet | Sequence[int]) -> None:
    """Raises :class:`TaskError` for fewer prompts than an interval needs."""
    if len(prompts) < FEWEST:
        raise TaskError(f"An interval needs {FEWEST} prompts at least, not {len(prompts)}. Ask for more prompts.")
