"""What a model is asked in context, and twins: the same questions after examples of another task.

A twin differs from its prompt in what the examples say and in nothing else: it has as many tokens, and the named
positions stand at the same places. So what the examples of the task bring can be exchanged position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.experiments.icl.words import WordsRow
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

N_EXAMPLES = 10


class Examples(StrEnum):
    """What stands before a question."""

    OWN = "own"
    NONE = "none"
    SHUFFLED = "shuffled"  # labels permuted among the task's own examples
    ANOTHER = "another"  # another task's


@dataclass(frozen=True)
class Asked:
    """Prompts of one task and their twins.

    right: the answer's token. clusters: prompts of one cluster are alike: with one right answer, or of one function.
    values: of numbers alone: the value of each token that is a number (-1 of others), the right one, and a x.
    """

    task: Task
    prompts: PromptSet
    twins: PromptSet
    right: Int[Tensor, "n"]
    clusters: Int[Tensor, "n"]


@dataclass(frozen=True)
class Task:
    """One task: a relation of words, y = x + 1 in words of numbers, or y = a x + b in numbers of one token."""

    name: str

    def ask(self, c: Context, n: int, half: str, *, examples: Examples = Examples.OWN, seed: int = 0) -> Asked:
        """``n`` prompts of one half (``lists.SELECTION`` or ``HELD_OUT``), with their twins."""
        raise NotImplementedError


def tasks(c: Context) -> Sequence[Task]:
    """The tasks that the model can do, by the selection half."""
    raise NotImplementedError


@dataclass(frozen=True)
class ShownRow(Row):
    """One prompt, and what the model says to it after various examples."""

    model: str = column("", "model")
    task: str = column("", "task")
    examples: str = column("", "own, none, shuffled labels or another task's")
    prompt: str = column("", "text of the prompt")
    right: str = column("", "the right answer")
    rank: int = column("", "1 for the most likely next token")
    token: str = column("", "next token")
    probability: float = column("share", "its probability")


def run_tasks(c: Context) -> list[WordsRow]:
    """Accuracy on every task of both halves after so many examples, with the controls; its own half chooses tasks."""
    raise NotImplementedError


def run_shown(c: Context) -> list[ShownRow]:
    raise NotImplementedError
