"""How well a model does a task in context, as tables have it, and the answers of a task of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.prompts.relations import Relation
from talking_heads_utils.prompts.words import check_one_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WordsRow(Row):
    """How well a model does one task of words in context."""

    task: str = column("", "relation of words")
    half: str = column("", "half of the relation's pairs, selection or held-out")
    examples: str = column("", "examples: the task's own, the same with labels permuted, or of another task")
    n_examples: int = column("", "examples in the prompt")
    accuracy: float = column("share", "right answers, over the whole vocabulary")
    low: float = column("share", "lower end of accuracy, 95% over answers")
    high: float = column("share", "upper end of accuracy")
    among: float = column("share", "right answers, among the task's answers")
    among_low: float = column("share", "lower end of among")
    among_high: float = column("share", "upper end of among")
    chance: float = column("share", "one over the number of the task's answers")
    n: int = column("", "prompts")
    n_pairs: int = column("", "pairs whose answer is one token")
    left_out: int = column("", "pairs whose answer is several tokens")


def answers_of(relation: Relation, tokenizer: PreTrainedTokenizerBase) -> Numbers:
    """A task's answers, by their places in :attr:`Relation.answers`."""
    ids = [check_one_token(word, tokenizer) for word in relation.answers]
    return Numbers(torch.arange(len(ids)), torch.tensor(ids))
