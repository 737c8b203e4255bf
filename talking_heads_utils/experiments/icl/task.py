"""What a model is asked in context: functions of numbers, or a relation of words. One object for both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.experiments.icl import words
from talking_heads_utils.experiments.icl.functions import Examples, Family
from talking_heads_utils.experiments.icl.pairing import (
    NO_EXAMPLES,
    OTHER_FUNCTION,
    RANDOM_PAIRS,
    Pairing,
    draw_pairing,
    questions,
)
from talking_heads_utils.models import model_source
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.questions import Numbers, Question, encode_questions, numbers_of
from talking_heads_utils.prompts.relations import (
    ANOTHER,
    ITS_OWN,
    SHUFFLED,
    Relation,
    draw_words,
    encode_words,
    load_relations,
)
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from talking_heads_utils.experiments.context import Context

N_EXAMPLES = 12
CHOOSES = 2  # the part whose prompts choose heads; those of words are of the selection half
FUNCTIONS = "y = a x + b"
TRAINED = "trained"  # functions; those held out of training are HELD_OUT, as pairs of words are
REAL_FAMILY = Family(
    n_a=3, n_b=10, n_x=100, held_share=0.0
)  # y = 2x + 3 among them; gpt2 and Llama 3 keep 0..306 whole


@dataclass(frozen=True)
class Drawn:
    """Questions, and the right answer at each example and, last, at the question, whatever labels are shown.

    right: values of :attr:`Task.answers`. clusters: prompts of one cluster are alike: of one function, or with one
    right answer. examples: of numbers alone, for the Bayes-optimal predictor.
    """

    questions: Sequence[Any]
    right: Int[Tensor, "n n_examples_1"]
    clusters: Int[Tensor, "n n_examples_1"]
    examples: Examples | None = None


@dataclass(frozen=True)
class Task:
    """Functions of numbers (``family``), or a relation of words with the others that stand beside it.

    answers: those among which the right one is: numbers, or words by their place in :attr:`Relation.answers`.
    """

    name: str
    answers: Numbers
    family: Family | None = None
    relation: Relation | None = None
    others: tuple[Relation, ...] = ()

    @property
    def functions(self) -> Family:
        """The family of functions. Raises :class:`NotApplicable` for a task of words."""
        if self.family is None:
            raise NotApplicable(
                f"The tokenizer splits numbers, so the model is asked for words ({self.name}); this is defined for "
                "functions of numbers alone."
            )
        return self.family

    @property
    def groups(self) -> tuple[str, ...]:
        """What accuracy is told for apart: functions that were trained or held out, or the two halves of pairs."""
        if self.family is None:
            return SELECTION, HELD_OUT
        return (TRAINED, HELD_OUT) if self.family.held_out.any() else (TRAINED,)

    def draw(
        self, n: int, *, part: int, seed: int = 0, group: str | None = None, n_examples: int = N_EXAMPLES
    ) -> Drawn:
        """``n`` questions after examples; each ``part`` has prompts of its own.

        group: one of :attr:`groups`. By default trained functions, or the held-out half of pairs, the selection half
        for the part that chooses.
        """
        drawn_by = 1000 * seed + part
        if self.relation is not None:
            half = group or (SELECTION if part == CHOOSES else HELD_OUT)
            asked = draw_words(self.relation, n, n_examples, half, seed=drawn_by)
            right = self.relation.right(asked)
            return Drawn(asked, right, right)
        among = self.functions.held_out if group == HELD_OUT else ~self.functions.held_out
        examples = self.functions.draw(n, n_examples + 1, torch.Generator().manual_seed(drawn_by), among)
        clusters = examples.function[:, None].expand_as(examples.clean)
        return Drawn(questions(examples, self.functions), examples.clean, clusters, examples)

    def encode(self, run: Context, some: Sequence[Any]) -> PromptSet:
        """Questions as tokens of this model."""
        rest = dict(seed=run.seed, n_ctx=run.bridge.cfg.n_ctx)
        if self.relation is not None:
            return encode_words(some, self.relation, run.tokenizer, **rest)
        return encode_questions(some, run.tokenizer, **rest)

    def pairing(self, n: int, b: str, *, seed: int = 0) -> tuple[Pairing, list[Any]]:
        """Questions twice over, and B's as A's function answers them: A sees the task; B nothing, labels that do not
        follow it, or another function or relation. B's question has another answer than A's.

        Raises :class:`TaskError` for another ``b``.
        """
        if self.relation is None:
            drawn = draw_pairing(self.functions, n, N_EXAMPLES, b=b, seed=seed, among=~self.functions.held_out)
            return drawn, [Question(q.pairs, q.x, mine.function) for mine, q in zip(drawn.a, drawn.b)]
        shown = {NO_EXAMPLES: (0, ITS_OWN), RANDOM_PAIRS: (N_EXAMPLES, SHUFFLED), OTHER_FUNCTION: (N_EXAMPLES, ANOTHER)}
        if b not in shown:
            raise TaskError(f"b sees {', '.join(map(repr, shown))}, not {b!r}.")
        n_examples, examples = shown[b]
        a = draw_words(self.relation, n, N_EXAMPLES, HELD_OUT, seed=1000 * seed + 9)
        pool = draw_words(self.relation, 2 * n, n_examples, HELD_OUT, examples=examples, others=self.others,
                          seed=1000 * seed + 10)  # fmt: skip
        chosen = [pool.pop(next(i for i, q in enumerate(pool) if q.answer != mine.answer)) for mine in a]
        return Pairing(a, chosen), chosen


def task_of(run: Context) -> Task:
    """The functions that a model was trained on, or :data:`REAL_FAMILY` for any other model whose tokenizer keeps the
    numbers whole; else the relation of words that the model does best on the selection half of its pairs.

    Raises :class:`NotApplicable` for a small model of another task, or one that does no relation of words.
    """
    family = _family_of(run.model)
    if (numbers := _whole_numbers(run.tokenizer, family)) is not None:
        return Task(FUNCTIONS, numbers, family)
    gate = words.gate(run, N_EXAMPLES)
    best = words.best_of(gate, run.model)
    relations = [r for r in load_relations(run.tokenizer) if r.name in {row.task for row in gate}]
    (relation,) = (r for r in relations if r.name == best)
    others = tuple(r for r in relations if r is not relation)
    return Task(best, words.answers_of(relation, run.tokenizer), relation=relation, others=others)


def _whole_numbers(tokenizer: PreTrainedTokenizerBase, family: Family) -> Numbers | None:
    """The family's numbers; None where the tokenizer splits one of them."""
    try:
        numbers = numbers_of(tokenizer, family.n_numbers - 1)
    except TaskError:
        return None
    return numbers if len(numbers.values) == family.n_numbers else None


def _family_of(model: str) -> Family:
    card = Path(model_source(model)[0]) / "training.json"
    if not card.is_file():
        return REAL_FAMILY
    spec = json.loads(card.read_text(encoding="utf-8"))["spec"]
    if "n_pairs" not in spec:
        raise NotApplicable(f"{model} never saw a number. Chapter 4's small models are mini-icl, -plain and -noisy.")
    return Family(spec["n_a"], spec["n_b"], spec["n_x"], noise=spec["noise"])
