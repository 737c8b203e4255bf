"""Questions in context, and twins: the same questions after examples of another task.

A twin differs from its prompt in what the examples say and in nothing else: it has as many tokens, and the named
positions stand at the same places. So what the examples of the task bring can be exchanged position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.icl.functions import Family
from talking_heads_utils.prompts import relations
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.questions import Numbers, Question, encode_questions
from talking_heads_utils.prompts.relations import Relation, WordQuestion, draw_words, encode_words
from talking_heads_utils.prompts.sets import ABSENT, PromptSet, check_count, check_seed

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

ABOUT = 1  # "about a x" is a x itself or one more or less


class Examples(StrEnum):
    """What stands before a question."""

    OWN = "own"
    NONE = "none"
    SHUFFLED = "shuffled"  # labels permuted among the task's own examples
    ANOTHER = "another"  # another task's


DRAWN = {
    Examples.OWN: relations.ITS_OWN,
    Examples.NONE: relations.ITS_OWN,
    Examples.SHUFFLED: relations.SHUFFLED,
    Examples.ANOTHER: relations.ANOTHER,
}


@dataclass(frozen=True)
class Asked:
    """Prompts of one task and their twins.

    right: the answer's token. clusters: prompts of one cluster are alike: with one right answer, or of one function.
    half, questions: which half they are of, and what each asks. numbers, a_x: of numbers alone: the tokens that are
    numbers, and a x of each question.
    """

    task: Task
    prompts: PromptSet
    twins: PromptSet
    right: Int[Tensor, "n"]
    clusters: Int[Tensor, "n"]
    half: str = ""
    questions: Sequence[Any] = ()
    numbers: Numbers | None = None
    a_x: Int[Tensor, "n"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def about(self, answers: Int[Tensor, "n *cells"] | None) -> Bool[Tensor, "n *cells"] | None:
        """Whether answers, as numbers, are about a x; None of words."""
        if self.a_x is None or answers is None:
            return None
        return (answers - self.a_x.view(-1, *[1] * (answers.ndim - 1))).abs() <= ABOUT


@dataclass(frozen=True, eq=False)
class Task:
    """One task: a :class:`WordTask` or a :class:`NumberTask`. answers: all that its answers may be."""

    name: str
    answers: Numbers
    n_examples: int

    def ask(
        self, c: Context, n: int, half: str, *, examples: Examples = Examples.OWN, n_examples: int | None = None,
        seed: int = 0,
    ) -> Asked:  # fmt: skip
        """``n`` prompts of one half (``lists.SELECTION`` or ``HELD_OUT``), with their twins; with ``examples`` of
        another kind the same questions after those. seed: of the draw, beside the context's.

        Raises :class:`TaskError` for more examples than a half has, and where the tokenizer reads some prompt in
        another number of tokens than the others.
        """
        k = 0 if examples == Examples.NONE else self.n_examples if n_examples is None else n_examples
        check_count("n_examples", k, 0)
        drawn_by = check_seed(1000 * c.seed + seed)
        questions = self.draw(n, k, half, examples, drawn_by)
        twins = self.draw(n, k, half, Examples.ANOTHER, drawn_by) if k else questions
        return self._asked(c, questions, twins, half)

    def ask_b(self, c: Context, asked: Asked, b_sees: Examples) -> Asked:
        """A question of the same half for each that is asked, with another x and another right answer, after no
        examples or after as many with labels shuffled. ``right`` is what ``asked``'s task answers; a twin is the prompt
        itself.

        Raises :class:`TaskError` for other examples.
        """
        if b_sees not in (Examples.NONE, Examples.SHUFFLED):
            raise TaskError(f"B sees no examples or shuffled ones, not {str(b_sees)!r}.")
        k = 0 if b_sees == Examples.NONE else len(asked.questions[0].pairs)
        questions = self._draw_b(asked, k, b_sees, 1000 * c.seed + 1)
        return self._asked(c, questions, questions, asked.half)

    def rights(self, questions: Sequence[Any]) -> Int[Tensor, "n n_examples_1"]:
        """The right answer to each example's x and, last, to the question's, whatever labels are shown: places in
        :attr:`answers`, -1 for an x of another task."""
        raise NotImplementedError

    def n_pairs(self) -> tuple[int, int]:
        """Pairs of the task, and those left out because of the tokenizer."""
        raise NotImplementedError

    @property
    def by_function(self) -> bool:
        """Whether each prompt has a function of its own, so that those of one function are alike."""
        return False

    def _asked(self, c: Context, questions: Sequence[Any], twins: Sequence[Any], half: str) -> Asked:
        n = len(questions)
        both = self.encode(c, [*questions, *twins], half)  # at once: the sum over a large vocabulary takes its time
        prompts = both.select(slice(n))
        if not both.mask.all() or any((at != at[0]).any() for at in both.positions.values()):
            raise TaskError(
                f"{self.name}: this tokenizer reads some prompts or twins in more tokens than others, so that they "
                "cannot be exchanged place by place. Take another task."
            )
        return Asked(self, prompts, both.select(slice(n, 2 * n)), prompts.answers, prompts.answers, half, questions)

    def draw(self, n: int, k: int, half: str, examples: Examples, seed: int) -> list[Any]:
        """Questions of one half; of one seed the same ones whatever stands before them."""
        raise NotImplementedError

    def _draw_b(self, asked: Asked, k: int, examples: Examples, seed: int) -> list[Any]:
        raise NotImplementedError

    def encode(self, c: Context, questions: Sequence[Any], half: str) -> PromptSet:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class WordTask(Task):
    """A relation of words, x and y of one token each. others: those whose examples twins show."""

    relation: Relation
    others: tuple[Relation, ...] = ()

    def rights(self, questions: Sequence[WordQuestion]) -> Int[Tensor, "n n_examples_1"]:
        right = {x: self.relation.answers.index(y) for x, y in self.relation.pairs}
        return torch.tensor([[right.get(x, ABSENT) for x in (*(x for x, _ in q.pairs), q.x)] for q in questions])

    def n_pairs(self) -> tuple[int, int]:
        return len(self.relation.pairs), self.relation.left_out

    def draw(self, n: int, k: int, half: str, examples: Examples, seed: int) -> list[WordQuestion]:
        return draw_words(self.relation, n, k, half, examples=DRAWN[examples], others=self.others, seed=seed)

    def _draw_b(self, asked: Asked, k: int, examples: Examples, seed: int) -> list[WordQuestion]:
        pool = self.draw(2 * len(asked), k, asked.half, examples, seed)
        chosen = []
        for q in asked.questions:
            at = next((i for i, its in enumerate(pool) if its.x != q.x and its.answer != q.answer), None)
            if at is None:
                raise TaskError(f"{self.name}: no question is left with another answer than {q.answer!r}.")
            chosen.append(pool.pop(at))
        return chosen

    def encode(self, c: Context, questions: Sequence[WordQuestion], half: str) -> PromptSet:
        n_ctx = c.bridge.cfg.n_ctx
        return encode_words(questions, self.relation, c.tokenizer, half=half, seed=c.seed, n_ctx=n_ctx)


@dataclass(frozen=True, eq=False)
class NumberTask(Task):
    """y = a x + b in numbers of one token, as the post writes it. function: its (a, b), with x of 1 or more, each half
    with x of its own; None: one that training showed is drawn for each prompt, each half with functions of its own.
    Twins show the same x with another function of the half or, where there is one only, of the family."""

    family: Family
    function: tuple[int, int] | None = None

    def rights(self, questions: Sequence[Question]) -> Int[Tensor, "n n_examples_1"]:
        rows = [[q.function[0] * x + q.function[1] for x in (*(x for x, _ in q.pairs), q.x)] for q in questions]
        return self.answers.place_of(torch.tensor(rows))

    def n_pairs(self) -> tuple[int, int]:
        return self.family.n_x - (self.function is not None), 0

    @property
    def by_function(self) -> bool:
        return self.function is None

    def _asked(self, c: Context, questions: Sequence[Question], twins: Sequence[Question], half: str) -> Asked:
        asked = super()._asked(c, questions, twins, half)
        a, b, x = (torch.tensor([int(v) for v in values]) for values in zip(*((*q.function, q.x) for q in questions)))
        clusters = a * self.family.n_b + b if self.by_function else x
        return replace(asked, numbers=self.answers, a_x=a * x, clusters=clusters)

    def _xs(self, half: str) -> Int[Tensor, "n_x"]:
        """The x of one half: all of them where halves have functions of their own."""
        if self.function is None:
            return torch.arange(self.family.n_x)
        return (
            1 + torch.randperm(self.family.n_x - 1, generator=torch.Generator().manual_seed(0))[half == HELD_OUT :: 2]
        )

    def _among(self, half: str) -> Bool[Tensor, "n_functions"]:
        """The functions that prompts of one half may be of."""
        if self.function is not None:
            return (self.family.functions == torch.tensor(self.function)).all(1)
        trained = ~self.family.held_out
        return trained & (trained.cumsum(0) % 2 == (half == HELD_OUT))

    def draw(self, n: int, k: int, half: str, examples: Examples, seed: int) -> list[Question]:
        generator, among = torch.Generator().manual_seed(seed), self._among(half)
        drawn = self.family.draw(n, k + 1, generator, among, self._xs(half))
        y = drawn.y
        if examples == Examples.ANOTHER:
            other = self._others(drawn.function, drawn.x[:, 0], among, generator)
            y = torch.where(drawn.y == drawn.clean, self.family.values[other[:, None], drawn.x], drawn.y)
        return self._questions(drawn.function, drawn.x[:, 1:], y[:, 1:], drawn.x[:, 0], examples)

    def _others(self, function: Tensor, x: Tensor, among: Tensor, generator: torch.Generator) -> Int[Tensor, "n"]:
        """For each prompt another function that answers its question otherwise."""
        allowed = among if among.sum() > 1 else torch.ones_like(among)
        right = self.family.values[function, x]
        free = allowed & (self.family.values.T[x] != right[:, None])
        if not free.any(1).all():
            raise TaskError("No other function is left to show a twin. Take a family with more functions.")
        return torch.multinomial(free.double(), 1, generator=generator)[:, 0]

    def _draw_b(self, asked: Asked, k: int, examples: Examples, seed: int) -> list[Question]:
        generator, xs = torch.Generator().manual_seed(seed), self._xs(asked.half)
        which = torch.tensor([self.family.functions.tolist().index([*q.function]) for q in asked.questions])
        x = xs[torch.rand(len(asked), len(xs), generator=generator).argsort(1)[:, : k + 2]]
        at_a = torch.tensor([q.x for q in asked.questions])
        at_b = torch.where(x[:, -1] == at_a, x[:, -2], x[:, -1])
        return self._questions(which, x[:, :k], self.family.values[which[:, None], x[:, :k]], at_b, examples)

    def _questions(self, which: Tensor, x: Tensor, y: Tensor, at: Tensor, kind: Examples) -> list[Question]:
        """Questions at ``at`` after pairs."""
        if kind == Examples.SHUFFLED:
            if x.shape[1] < 2:
                raise TaskError("Labels can be shuffled among two examples or more.")
            y = y.roll(1, 1)
        functions = [(int(a), int(b)) for a, b in self.family.functions[which].tolist()]
        shown = [tuple(zip(xs, ys)) for xs, ys in zip(x.tolist(), y.tolist())]
        return [Question(pairs, int(q), f) for pairs, q, f in zip(shown, at.tolist(), functions)]

    def encode(self, c: Context, questions: Sequence[Question], half: str) -> PromptSet:
        return encode_questions(questions, c.tokenizer, seed=c.seed, n_ctx=c.bridge.cfg.n_ctx)
