"""Scores of a model's answers, one value per prompt."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.sets import PromptSet, item_positions


def end_logits(
    logits: Float[Tensor, "n_prompts n_pos d_vocab"], prompts: PromptSet
) -> Float[Tensor, "n_prompts d_vocab"]:
    """Logits at each prompt's last token."""
    return logits[torch.arange(len(prompts)), prompts.positions["end"].to(logits.device)]


def correct(
    logits: Float[Tensor, "n_prompts d_vocab"], prompts: PromptSet, *, among_candidates: bool = True
) -> Bool[Tensor, "n_prompts"]:
    """Whether the answer has the highest logit, among the candidates or over the whole vocabulary.

    A tie with another candidate is no correct answer. Raises :class:`TaskError` for candidates that are not there.
    """
    answers = prompts.answers.to(logits.device)
    own = logits.gather(1, answers[:, None])
    if among_candidates:
        others = logits.gather(1, _distractors(prompts).to(logits.device))
    else:
        others = logits.scatter(1, answers[:, None], -torch.inf)
    return (own > others).all(1)


def logit_difference(logits: Float[Tensor, "n_prompts d_vocab"], prompts: PromptSet) -> Float[Tensor, "n_prompts"]:
    """Logit of the answer less the mean logit of the distractors. Raises :class:`TaskError` where there are none."""
    _distractors(prompts)
    values = logits.gather(1, prompts.candidates.to(logits.device))
    return values[:, 0] - values[:, 1:].mean(1)


def _distractors(prompts: PromptSet) -> Int[Tensor, "n_prompts n_distractors"]:
    """Raises :class:`TaskError` for prompts whose answer is one of the whole vocabulary."""
    if prompts.distractors.shape[1] == 0:
        raise TaskError(
            "These prompts have no other candidates: ask over the whole vocabulary, among_candidates=False."
        )
    return prompts.distractors


def attention_to(
    pattern: Float[Tensor, "n_prompts n_heads dest src"], prompts: PromptSet, source: str, dest: str = "end"
) -> Float[Tensor, "n_prompts n_heads"]:
    """Attention from one named position to another; NaN where a prompt has no such position.

    Raises :class:`TaskError` for a name that no prompt has.
    """
    for name in (source, dest):
        if name not in prompts.positions:
            raise TaskError(f"No position {name!r} in these prompts; they have {', '.join(prompts.positions)}.")
    src, dst = (prompts.positions[name].to(pattern.device) for name in (source, dest))
    found = pattern[torch.arange(len(prompts)), :, dst, src]
    return found.masked_fill(((src < 0) | (dst < 0))[:, None], torch.nan)


def contrast(prompts: PromptSet) -> Float[Tensor, "n_prompts n_pos"]:
    """Weights over positions whose product with an attention pattern is I(m): +1 where the answer is first named, -1 in
    all where the other candidates are (IOI: IO less S1; lists: the answer less the mean of the items named twice).

    Raises :class:`TaskError` for prompts of another task.
    """
    if {"IO", "S1"} <= set(prompts.positions):
        answer = torch.zeros(len(prompts), dtype=torch.long)
    elif prompts.recipe.n_items and "place" in prompts.info:
        answer = torch.as_tensor(prompts.info["place"])
    else:
        raise TaskError("The inhibition score is defined for IOI and Laundry List prompts only.")
    positions, _ = item_positions(prompts)
    rows = torch.arange(len(prompts))
    weights = torch.zeros(prompts.tokens.shape)
    weights[rows[:, None], positions] = -1 / (positions.shape[1] - 1)
    weights[rows, positions[rows, answer]] = 1
    return weights
