"""Questions of functions as the experiments ask them: the post's own, and pairs with and without examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.icl.functions import Examples, Family
from talking_heads_utils.prompts.questions import Question
from talking_heads_utils.prompts.sets import check_count

# The post's prompt, verbatim: y = 2x + 3, asked at 42 with the examples (model A) and at 15 without (model B).
POST_PAIRS = (
    (28, 59), (86, 175), (13, 29), (55, 113), (84, 171), (66, 135),
    (85, 173), (27, 57), (15, 33), (94, 191), (37, 77), (14, 31),
)  # fmt: skip
POST_A, POST_B = 42, 15
POST_FUNCTION = (2, 3)
TRIES = 50  # draws after which there is taken to be no other function


def post_questions() -> tuple[Question, Question]:
    """The post's A and B."""
    return Question(POST_PAIRS, POST_A, POST_FUNCTION), Question((), POST_B, POST_FUNCTION)


@dataclass(frozen=True)
class Pairing:
    """The same question twice over: ``a`` with examples of its function or task, ``b`` without knowing it.

    b's question has another x, so that an answer that is carried over whole differs from one that is worked out anew.
    """

    a: list[Any]
    b: list[Any]


NO_EXAMPLES, RANDOM_PAIRS, OTHER_FUNCTION = "no examples", "random pairs", "another function"


def draw_pairing(
    family: Family, n: int, n_examples: int, *, b: str = NO_EXAMPLES, seed: int = 0, among: Tensor | None = None
) -> Pairing:
    """``n`` pairs of prompts. What b sees: nothing, pairs whose y belong to no function, or another function's.

    Answers of a and of b's question under a's function always differ. Raises :class:`TaskError` for another ``b``.
    """
    if b not in (NO_EXAMPLES, RANDOM_PAIRS, OTHER_FUNCTION):
        raise TaskError(f"b sees {NO_EXAMPLES!r}, {RANDOM_PAIRS!r} or {OTHER_FUNCTION!r}, not {b!r}.")
    check_count("n_examples", n_examples, 0)
    generator = torch.Generator().manual_seed(seed)
    shown = family.draw(n, n_examples + 1, generator, among)
    twin = family.draw(n, n_examples + 2, generator, among)  # its last x, or the one before where a asks for the last
    if b == OTHER_FUNCTION:
        twin = _of_another(twin, shown.function, lambda: family.draw(n, n_examples + 2, generator, among))
    values = family.functions[shown.function]
    at_b = torch.where(twin.x[:, -1] == shown.x[:, -1], twin.x[:, -2], twin.x[:, -1])
    y = twin.y if b == OTHER_FUNCTION else torch.randint(family.n_numbers, twin.y.shape, generator=generator)
    first = [_question(shown, i, shown.y, n_examples, int(shown.x[i, -1]), values) for i in range(n)]
    n_shown, others = 0 if b == NO_EXAMPLES else n_examples, family.functions[twin.function]
    second = [_question(twin, i, y, n_shown, int(at_b[i]), others) for i in range(n)]
    return Pairing(first, second)


def _of_another(examples: Examples, function: Int[Tensor, "n"], again: Callable[[], Examples]) -> Examples:
    """Examples with those of a row's own ``function`` drawn anew. Raises :class:`TaskError` where there is no other."""
    for _ in range(TRIES):
        same = examples.function == function
        if not same.any():
            return examples
        fresh = again()
        pairs = ((vars(examples)[f.name], vars(fresh)[f.name]) for f in fields(examples))
        examples = Examples(*(torch.where(same.view(-1, *[1] * (old.ndim - 1)), new, old) for old, new in pairs))
    raise TaskError("No other function is left to show B. Take a family with more functions.")


def questions(examples: Examples, family: Family) -> list[Question]:
    """The last pair of each list is the question, those before it the examples."""
    values = family.functions[examples.function]
    n_examples = examples.x.shape[1] - 1
    return [_question(examples, i, examples.y, n_examples, int(x), values) for i, x in enumerate(examples.x[:, -1])]


def _question(examples: Examples, i: int, y: Tensor, n_pairs: int, x: int, functions: Tensor) -> Question:
    pairs = tuple(zip(examples.x[i, :n_pairs].tolist(), y[i, :n_pairs].tolist()))
    return Question(pairs, x, tuple(functions[i].tolist()))
