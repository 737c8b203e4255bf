"""In-context tasks of words: lines ``x -> y`` of one relation (capitals, plurals, ...) and a question, ``x ->``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.files import data_dir
from talking_heads_utils.prompts.encoding import PromptText, encode, spelled
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.sets import PromptSet, Recipe, check_seed
from talking_heads_utils.prompts.words import token_of, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ITS_OWN, SHUFFLED, ANOTHER = "its own", "shuffled labels", "another task"
ARROW = " ->"

Pair = tuple[str, str]


@dataclass(frozen=True)
class Relation:
    """A task: its pairs whose answer is one token of the tokenizer at hand, and how many had to be left out."""

    name: str
    pairs: tuple[Pair, ...]
    left_out: int

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Every answer once, in the order of the alphabet. Prompts know an answer by its place here."""
        return tuple(sorted({y for _, y in self.pairs}))

    def half(self, name: str) -> tuple[Pair, ...]:
        """The pairs of the selection half or of the held-out one, which share none."""
        order = random.Random(0).sample(self.pairs, len(self.pairs))  # the same whatever the prompts' seed
        return tuple(order[name == HELD_OUT :: 2])

    def right(self, questions: Sequence[WordQuestion]) -> Int[Tensor, "n n_examples_1"]:
        """The right answer to each example's x and, last, to the question's, whatever labels are shown."""
        place, right = {y: i for i, y in enumerate(self.answers)}, dict(self.pairs)
        return torch.tensor([[place[right[x]] for x in (*(x for x, _ in q.pairs), q.x)] for q in questions])


@dataclass(frozen=True)
class WordQuestion:
    """One prompt by its parts: pairs as they are shown, and the question's x with its right answer."""

    pairs: tuple[Pair, ...]
    x: str
    answer: str

    def parts(self) -> list[tuple[str, str]]:
        """One pair per line, then the question up to its arrow. Named are the last character of each x, the whole of
        each y and the last character of each arrow but the question's."""
        parts = []
        for k, (x, y) in enumerate(self.pairs):
            parts += [("", x[:-1]), (f"x_{k}", x[-1]), ("", ARROW[:-1]), (f"ask_{k}", ARROW[-1]), ("", " "),
                      (f"y_{k}", y), ("", "\n")]  # fmt: skip
        return [*parts, ("", self.x[:-1]), ("x", self.x[-1]), ("", ARROW)]


def relation_names() -> list[str]:
    """The tasks in ``data/prompts/relations``."""
    return sorted(path.stem for path in (data_dir() / "prompts" / "relations").glob("*.tsv"))


def load_relation(name: str, tokenizer: PreTrainedTokenizerBase) -> Relation:
    """One of :func:`relation_names`, without the pairs whose answer is not one token after a space.

    Raises :class:`TaskError` for another name.
    """
    if name not in relation_names():
        raise TaskError(f"There is no task {name!r} of words; there are {', '.join(relation_names())}.")
    lines = (data_dir() / "prompts" / "relations" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [(x, y) for x, y in (line.split("\t") for line in lines)]
    kept = tuple(pair for pair in pairs if token_of(pair[1], tokenizer) is not None)
    return Relation(name, kept, len(pairs) - len(kept))


def load_relations(tokenizer: PreTrainedTokenizerBase) -> list[Relation]:
    """All of them."""
    return [load_relation(name, tokenizer) for name in relation_names()]


def draw_words(
    relation: Relation,
    n: int,
    n_examples: int,
    half: str,
    *,
    examples: str = ITS_OWN,
    others: Sequence[Relation] = (),
    seed: int = 0,
) -> list[WordQuestion]:
    """``n`` questions after ``n_examples`` pairs, all of one half; every pair of it is asked for equally often.

    examples: the task's own pairs; the same with labels permuted among them, so that every x has another pair's
    label; or pairs of one of ``others``, drawn for each prompt.
    Raises :class:`TaskError` where a half has too few pairs, or labels of fewer than two pairs are to be shuffled.
    """
    pairs, rng = relation.half(half), random.Random(check_seed(seed))
    if examples == SHUFFLED and n_examples < 2:
        raise TaskError("Labels can be shuffled among two examples or more.")
    sources = [r.half(half) for r in others] if examples == ANOTHER else [pairs]
    sources = [source for source in sources if len(source) > n_examples + (examples == ANOTHER)]
    if not sources or not pairs:
        raise TaskError(
            f"{relation.name}: {n_examples} examples and a question need more pairs than this half has "
            f"({len(pairs)}, {relation.left_out} of the whole task left out). Show fewer examples."
        )
    order, found = rng.sample(pairs, len(pairs)), []
    for i in range(n):
        x, answer = order[i % len(order)]
        shown = rng.sample([pair for pair in rng.choice(sources) if pair[0] != x], n_examples)
        if examples == SHUFFLED:
            shown = [(mine, label) for (mine, _), (_, label) in zip(shown, [*shown[1:], shown[0]])]
        found.append(WordQuestion(tuple(shown), x, answer))
    return found


def encode_words(
    questions: Sequence[WordQuestion],
    relation: Relation,
    tokenizer: PreTrainedTokenizerBase,
    *,
    half: str = "",
    seed: int = 0,
    n_ctx: int | None = None,
) -> PromptSet:
    """Tokenize questions of one task. Candidates are all answers of the task.

    ``x_k``: the last token of example k's x, which may have several. ``y_k``: its label. ``ask_k``: the token before
    it, from which it is answered. ``x``: the last token of the question's x. ``end``: the last token, the arrow.
    info: ``task, half, x, y`` (the right answer) and ``answer``, its place in :attr:`Relation.answers`.
    Raises :class:`TaskError` for a label of several tokens or a prompt longer than ``n_ctx``.
    """
    place = {y: i for i, y in enumerate(relation.answers)}
    texts = [
        PromptText(
            *spelled(q.parts()), q.answer, tuple(y for y in relation.answers if y != q.answer),
            dict(task=relation.name, half=half, x=q.x, y=q.answer, answer=place[q.answer]),
        )
        for q in questions
    ]  # fmt: skip
    recipe = Recipe(relation.name, len(questions), seed, tokenizer_hash(tokenizer), len(questions[0].pairs))
    return encode(texts, tokenizer, recipe, n_ctx=n_ctx)
