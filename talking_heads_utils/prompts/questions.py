"""Prompts of examples ``(x, y)`` and a question ``(x, ``, for any tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.encoding import prompt_set, spelled, tokenized
from talking_heads_utils.prompts.sets import PromptSet, Recipe
from talking_heads_utils.prompts.words import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "functions"


@dataclass(frozen=True)
class Question:
    """One prompt by its parts. function: (a, b) that the answer is scored by; pairs may follow it or not."""

    pairs: tuple[tuple[int, int], ...]
    x: int
    function: tuple[int, int]

    @property
    def answer(self) -> int:
        """a x + b"""
        return self.function[0] * self.x + self.function[1]

    def parts(self) -> list[tuple[str, str]]:
        """As the post writes it: a line end and a pair, over and over, then the question with its answer. Numbers are
        named."""
        names = [*((f"x_{k}", f"y_{k}") for k in range(len(self.pairs))), ("x", "answer")]
        lines = zip(names, (*self.pairs, (self.x, self.answer)))
        return [part for (a, b), (x, y) in lines
                for part in (("", "\n("), (a, str(x)), ("", ", "), (b, str(y)), ("", ")"))]  # fmt: skip

    def text(self) -> str:
        """:meth:`parts` as one text."""
        return "".join(part for _, part in self.parts())


@dataclass(frozen=True)
class Numbers:
    """The possible answers, each one token where an answer stands: numbers, or words by their place in a task's list.

    values: ascending. ids: their tokens.
    """

    values: Int[Tensor, "n_numbers"]
    ids: Int[Tensor, "n_numbers"]

    def read(self, logits: Float[Tensor, "*batch n_numbers"]) -> Int[Tensor, "*batch"]:
        """The number with the highest of the logits of :attr:`ids`."""
        return self.values[logits.argmax(-1).cpu()]

    def place_of(self, number: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Row of each number in :attr:`values`. Raises :class:`TaskError` for one that is not there."""
        at = torch.searchsorted(self.values, number.contiguous()).clamp(max=len(self.values) - 1)
        if not torch.equal(self.values[at], number):
            missing = number[self.values[at] != number].min()
            raise TaskError(f"{missing} is no single token of this tokenizer, or beyond the numbers asked for.")
        return at


def numbers_of(tokenizer: PreTrainedTokenizerBase, largest: int) -> Numbers:
    """The numbers 0 to ``largest`` that are one token after ``(1, ``. Raises :class:`TaskError` if fewer than two are.

    A tokenizer that splits numbers into digits has only the first ten.
    """
    texts, found = [f"\n(1, {n}" for n in range(largest + 1)], {}
    for n, tokens in enumerate(tokenized(texts, tokenizer)):
        at = tokens.covering((len("\n(1, "), len(texts[n])))
        if len(at) == 1 and tokens.ids[at[0]] != tokenizer.unk_token_id:
            found[n] = tokens.ids[at[0]]
    if len(found) < 2:
        raise TaskError("This tokenizer keeps no numbers whole. Use gpt2's or Llama 3's, or the book's mini-icl.")
    return Numbers(torch.tensor(list(found)), torch.tensor(list(found.values())))


def encode_questions(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    n_ctx: int | None = None,
    whole: bool = False,
) -> PromptSet:
    """Tokenize prompts and find their named positions, whether numbers are one token or several.

    ``x_k``, ``y_k``: the last token of example k's numbers. ``ask_k``: the token before y_k's first, from which y_k is
    answered. ``x``: the last token of the question's x. ``end``: the last token, from which the answer is read; where
    the tokenizer keeps a space apart from a number, that space. whole: answers may be several tokens; the set has the
    first. Raises :class:`TaskError` for an answer of several tokens otherwise, an unknown number, or a prompt longer
    than ``n_ctx``.
    """
    texts, spans = zip(*(spelled(q.parts()) for q in questions))
    rows, places, answers = [], [], []
    for question, named, tokens in zip(questions, spans, tokenized(texts, tokenizer)):
        found = {name: tokens.covering(span) for name, span in named.items()}
        for name, at in found.items():
            if not at or tokenizer.unk_token_id in tokens.ids[at[0] : at[-1] + 1]:
                raise TaskError(f"{dict(question.parts())[name]} is no number that this tokenizer knows.")
        answer = found.pop("answer")
        if len(answer) > 1 and not whole:
            raise TaskError(
                f"The answer {question.answer} is {len(answer)} tokens here. Choose smaller numbers, or a model "
                "whose tokenizer keeps them whole, such as gpt2's or Llama 3's."
            )
        rows.append(tokens.ids[: answer[0]])
        answers.append([tokens.ids[answer[0]]])
        asked = {name.replace("y_", "ask_"): at[0] - 1 for name, at in found.items() if name[0] == "y"}
        places.append({name: at[-1] for name, at in found.items()} | asked)
    function = {"a": [q.function[0] for q in questions], "b": [q.function[1] for q in questions]}
    return prompt_set(
        rows,
        places,
        answers,
        [[]] * len(rows),
        tokenizer,
        Recipe(TASK, len(rows), seed, tokenizer_hash(tokenizer), len(questions[0].pairs)),
        texts=[text[: named["answer"][0]] for text, named in zip(texts, spans)],
        info=function | {"x": [q.x for q in questions], "answer": [q.answer for q in questions]},
        n_ctx=n_ctx,
    )


def asked_at(prompts: PromptSet) -> list[Int[Tensor, "n"]]:
    """Where each answer is asked for, in turn: before y_0, before y_1, ..., and at the end, which every prompt has."""
    n_examples = sum(name.startswith("ask_") for name in prompts.positions)
    return [*(prompts.positions[f"ask_{k}"] for k in range(n_examples)), prompts.positions["end"]]
