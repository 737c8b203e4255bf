"""Folds to cross-validate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.settings import SEED


def random_folds(n: int, n_folds: int = 5, seed: int = SEED) -> Int[Tensor, "n"]:
    """Folds of equal size, up to one, at random."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % n_folds


def wording_folds(prompts: PromptSet) -> Int[Tensor, "n_prompts"]:
    """One fold per wording: what is scored was fitted on other wordings."""
    return numbered(prompts.info["wording"])


def numbered(values: Iterable[Any]) -> Int[Tensor, "n"]:
    """Which of the different values, in their order, each one is."""
    found = list(values)
    places = {value: i for i, value in enumerate(sorted(set(found)))}
    return torch.tensor([places[value] for value in found])
