"""Prompt sets: tokens whose positions have names, so that nobody counts tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError

ABSENT = -1


@dataclass(frozen=True)
class Recipe:
    """What a prompt set was made from: enough to make it again, unless its prompts were given by hand.

    prefix: the tokens in front of every prompt, as text; None becomes, once encoded, what the tokenizer adds by itself.
    counterfactual: the named operation that changed every prompt. drawn: False where prompts were given. rows: those
    that :meth:`PromptSet.select` kept, None for all.
    """

    task: str
    n_prompts: int
    seed: int
    tokenizer_hash: str
    n_items: int | None = None
    prefix: str | None = None
    counterfactual: str | None = None
    drawn: bool = True
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts, padded on the right, with named positions.

    tokens: ``[n_prompts, n_pos]``. mask: True where a token is no padding. positions: name -> ``[n_prompts]``, -1
    where a prompt has no such position; ``end`` is the last token. answers: ``[n_prompts]`` token ids. distractors:
    ``[n_prompts, n_distractors]``, the wrong candidates. alternatives: ``[n_prompts, n_alternatives]``, right answers
    besides the first. Both are -1 where a prompt has fewer than others. info: name -> one value per prompt (wording,
    order, ...).
    """

    tokens: Int[Tensor, "n_prompts n_pos"]
    mask: Bool[Tensor, "n_prompts n_pos"]
    positions: Mapping[str, Int[Tensor, "n_prompts"]]
    answers: Int[Tensor, "n_prompts"]
    distractors: Int[Tensor, "n_prompts n_distractors"]
    texts: Sequence[str]
    info: Mapping[str, Sequence]
    recipe: Recipe
    alternatives: Int[Tensor, "n_prompts n_alternatives"] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.alternatives is None:
            object.__setattr__(self, "alternatives", self.answers.new_zeros(len(self.answers), 0))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def candidates(self) -> Int[Tensor, "n_prompts n_candidates"]:
        """The answer first, then the distractors. Raises :class:`TaskError` where prompts have different numbers."""
        if (self.distractors == ABSENT).any():
            row = int((self.distractors == ABSENT).any(1).nonzero()[0])
            raise TaskError(f"Prompt {row} has fewer wrong answers than others; here all must have as many.")
        return torch.cat([self.answers[:, None], self.distractors], 1)

    @property
    def right(self) -> Int[Tensor, "n_prompts n_right"]:
        """The answer first, then its alternatives."""
        return torch.cat([self.answers[:, None], self.alternatives], 1)

    @property
    def logit_weights(self) -> tuple[Int[Tensor, "n_prompts n_tokens"], Float[Tensor, "n_prompts n_tokens"]]:
        """``(tokens, weights)``: the logit difference is the sum of these tokens' logits by weight. Right answers share
        a weight of 1, wrong ones -1; a prompt without one of a kind has NaN there."""
        right, wrong = (ids != ABSENT for ids in (self.right, self.distractors))
        weights = torch.cat([right / right.sum(1, keepdim=True), -(wrong / wrong.sum(1, keepdim=True))], 1)
        return torch.cat([self.right, self.distractors], 1).clamp(min=0), weights

    def select(self, keep: Bool[Tensor, "n_prompts"] | Sequence[int] | slice) -> PromptSet:
        """The prompts at ``keep``, with the same padding. Raises :class:`TaskError` if none is left, for a mask of
        another length, for a row that is not there, and for what is neither a mask nor rows."""
        try:
            chosen = torch.as_tensor(range(len(self))[keep] if isinstance(keep, slice) else keep)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TaskError(f"Prompts are chosen by a mask, rows or a slice, not by {keep!r}.") from error
        if chosen.ndim != 1 or (len(chosen) and (chosen.is_floating_point() or chosen.is_complex())):
            raise TaskError(f"Prompts are chosen by a mask or whole numbers in one row, not by {chosen.tolist()!r}.")
        if chosen.dtype == torch.bool and len(chosen) != len(self):
            raise TaskError(f"A mask of {len(chosen)} does not fit {len(self)} prompts.")
        index = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen
        if len(index) == 0:
            raise TaskError("No prompt is left by this choice.")
        if index.min() < 0 or index.max() >= len(self):
            raise TaskError(f"There are {len(self)} prompts, rows 0 to {len(self) - 1}.")
        rows = index.tolist()
        before = self.recipe.rows
        kept = tuple(rows if before is None else (before[i] for i in rows))
        return PromptSet(
            self.tokens[index],
            self.mask[index],
            {name: position[index] for name, position in self.positions.items()},
            self.answers[index],
            self.distractors[index],
            [self.texts[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.info.items()},
            replace(self.recipe, rows=kept),
            self.alternatives[index],
        )

    def where(self, **wanted: Any) -> PromptSet:
        """The prompts whose info has these values: ``prompts.where(half="held-out", wording="wash")``."""
        keep = torch.ones(len(self), dtype=torch.bool)
        for name, value in wanted.items():
            if name not in self.info:
                raise TaskError(f"These prompts have no {name!r}; they have {', '.join(self.info)}.")
            keep &= torch.tensor([entry == value for entry in self.info[name]])
        return self.select(keep)


def item_positions(prompts: PromptSet) -> tuple[Int[Tensor, "n_prompts n_items"], Int[Tensor, "n_prompts n_items"]]:
    """``(positions, tokens)``: where each candidate is first named, and its token. List items in their order, or IO and
    S.

    Raises :class:`TaskError` for prompts of another task.
    """
    names = [f"item_{k} first" for k in range(prompts.recipe.n_items or 0)]
    if not names and {"IO", "S1"} <= set(prompts.positions):
        names = ["IO", "S1"]
    if not names or any(name not in prompts.positions for name in names):
        raise TaskError("Only the candidates of IOI or Laundry List prompts have named positions.")
    positions = torch.stack([prompts.positions[name] for name in names], 1)
    return positions, prompts.tokens.gather(1, positions)


def pad_rows(pad: int, rows: Sequence[Sequence[int]]) -> Int[Tensor, "n width"]:
    """Rows of whole numbers as one tensor, padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.long)


def check_seed(seed: int) -> int:
    """Raises :class:`TaskError` unless the seed is an integer from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise TaskError(f"A seed is an integer from 0 to 2^63 - 1, not {seed!r}.")
    return seed


def check_count(name: str, value: int, at_least: int) -> int:
    """Raises :class:`TaskError` unless the value is an integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise TaskError(f"{name} is an integer from {at_least} on, not {value!r}.")
    return value
