"""A model and what it is asked in context: numbers where its tokenizer keeps them whole, else a task of words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.icl import words
from talking_heads_utils.experiments.icl.bayes import trained_prior
from talking_heads_utils.experiments.icl.pairing import (
    NO_EXAMPLES,
    OTHER_FUNCTION,
    RANDOM_PAIRS,
    Pairing,
    draw_pairing,
    questions,
)
from talking_heads_utils.models import load_with_tokenizer, model_source, shown_as
from talking_heads_utils.prompts.functions import Examples, Family
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.questions import Numbers, Question, encode_questions, numbers_of
from talking_heads_utils.prompts.relations import (
    ANOTHER,
    ITS_OWN,
    SHUFFLED,
    Relation,
    WordQuestion,
    draw_words,
    encode_words,
    load_relations,
)
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

N_EXAMPLES = 12
CHOOSES = 2  # the part whose prompts choose heads; those of words are of the selection half
FUNCTIONS = "y = a x + b"
REAL_FAMILY = Family(
    n_a=3, n_b=10, n_x=100, held_share=0.0
)  # y = 2x + 3 among them; gpt2 and Llama 3 keep 0..306 whole


@dataclass(frozen=True)
class Subject:
    """A model that is asked for numbers. shows: what every figure must say. seed: of all prompts and random choices.

    family: the functions; None of a :class:`WordSubject`. numbers: the possible answers.
    """

    name: str
    shows: str
    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    family: Family | None
    numbers: Numbers
    seed: int

    @property
    def task(self) -> str:
        """What it is asked."""
        return FUNCTIONS

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)"""
        return self.bridge.cfg.n_layers, self.bridge.cfg.n_heads

    @property
    def functions(self) -> Family:
        """The family of functions. Raises :class:`TaskError` for a model that is asked for words."""
        if self.family is None:
            raise TaskError(
                f"{self.name} is asked for words ({self.task}), as its tokenizer splits numbers; this is defined for "
                "functions of numbers alone."
            )
        return self.family

    def examples(self, n: int, n_pairs: int, *, held_out: bool = False, part: int = 0) -> Examples:
        """Fresh lists of pairs, of trained functions or of those held out; each ``part`` has prompts of its own."""
        family = self.functions
        among = family.held_out if held_out else ~family.held_out
        return family.draw(n, n_pairs, torch.Generator().manual_seed(1000 * self.seed + part), among)

    def questions(self, n: int, *, part: int = 0, n_examples: int = N_EXAMPLES) -> Sequence[Question | WordQuestion]:
        """``n`` questions after examples."""
        return questions(self.examples(n, n_examples + 1, part=part), self.functions)

    def prompts(self, n: int, *, part: int = 0, n_examples: int = N_EXAMPLES) -> PromptSet:
        """:meth:`questions` as tokens of this model."""
        return self.encode(self.questions(n, part=part, n_examples=n_examples))

    def encode(self, some: Sequence) -> PromptSet:
        """Questions as tokens of this model."""
        return encode_questions(some, self.tokenizer, seed=self.seed, n_ctx=self.bridge.cfg.n_ctx)

    def pairing(self, n: int, b: str) -> tuple[Pairing, list]:
        """Questions twice over, as :func:`~talking_heads_utils.experiments.icl.pairing.draw_pairing` has
        them, and B's as A's function answers them."""
        family = self.functions
        drawn = draw_pairing(family, n, N_EXAMPLES, b=b, seed=self.seed, among=~family.held_out)
        return drawn, [Question(q.pairs, q.x, mine.function) for mine, q in zip(drawn.a, drawn.b)]

    def marked(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table with the model's name; of a task of words with the task's, too."""
        return table.assign(model=self.name)

    @cached_property
    def prior(self) -> Float[Tensor, "n_functions"]:
        """What a reader who saw the training data believes before any example."""
        return trained_prior(self.functions)


@dataclass(frozen=True)
class WordSubject(Subject):
    """A model whose tokenizer splits numbers: it is asked a task of words that it can do, on pairs that chose nothing.

    relation: the task. others: tasks to set beside it. gate: how well it does each on the selection half, by which the
    task was chosen (:func:`talking_heads_utils.experiments.icl.words.gate_table`).
    """

    relation: Relation
    others: tuple[Relation, ...]
    gate: pd.DataFrame

    @property
    def task(self) -> str:
        return self.relation.name

    def questions(
        self, n: int, *, part: int = 0, n_examples: int = N_EXAMPLES, half: str | None = None
    ) -> list[WordQuestion]:
        """``n`` questions after examples, of the held-out half but for the part that chooses."""
        half = half or (SELECTION if part == CHOOSES else HELD_OUT)
        return draw_words(self.relation, n, n_examples, half, seed=1000 * self.seed + part)

    def encode(self, some: Sequence) -> PromptSet:
        return encode_words(some, self.relation, self.tokenizer, seed=self.seed, n_ctx=self.bridge.cfg.n_ctx)

    def pairing(self, n: int, b: str) -> tuple[Pairing, list]:
        """A sees the task; B nothing, its labels shuffled, or another task. B's question has another answer than A's.

        Raises :class:`TaskError` for another ``b``.
        """
        shown = {NO_EXAMPLES: (0, ITS_OWN), RANDOM_PAIRS: (N_EXAMPLES, SHUFFLED), OTHER_FUNCTION: (N_EXAMPLES, ANOTHER)}
        if b not in shown:
            raise TaskError(f"b sees {', '.join(map(repr, shown))}, not {b!r}.")
        n_examples, examples = shown[b]
        seed = 1000 * self.seed + 9
        a = draw_words(self.relation, n, N_EXAMPLES, HELD_OUT, seed=seed)
        pool = draw_words(
            self.relation, 2 * n, n_examples, HELD_OUT, examples=examples, others=self.others, seed=seed + 1
        )
        chosen = [pool.pop(next(i for i, q in enumerate(pool) if q.answer != mine.answer)) for mine in a]
        return Pairing(a, chosen), chosen

    def marked(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(model=self.name, task=self.task)


def subject(name: str, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Subject:
    """A model by name, with the functions it was trained on, or :data:`REAL_FAMILY` for any other model whose tokenizer
    keeps the numbers whole. A model whose tokenizer splits them is asked the task of words that it does best.

    Raises what :func:`talking_heads_utils.models.load_model` raises, and :class:`TaskError` for a small model of
    another task, or one that does no task of words.
    """
    family = _family_of(name)
    bridge, tokenizer = load_with_tokenizer(name, device, dtype)
    about = (name, shown_as(name), bridge, tokenizer)
    if (numbers := _whole_numbers(tokenizer, family)) is not None:
        return Subject(*about, family, numbers, seed)
    gate = words.gate_table(bridge, tokenizer, N_EXAMPLES, seed=seed)
    chosen = words.choose_task(gate, name)
    relations = [r for r in load_relations(tokenizer) if r.name in set(gate["task"])]
    (relation,) = (r for r in relations if r.name == chosen)
    others = tuple(r for r in relations if r is not relation)
    return WordSubject(*about, None, words.answers_of(relation, tokenizer), seed, relation, others, gate)


def _whole_numbers(tokenizer: PreTrainedTokenizerBase, family: Family) -> Numbers | None:
    """The family's numbers; None where the tokenizer splits one of them."""
    try:
        numbers = numbers_of(tokenizer, family.n_numbers - 1)
    except TaskError:
        return None
    return numbers if len(numbers.values) == family.n_numbers else None


def _family_of(name: str) -> Family:
    card = Path(model_source(name)[0]) / "training.json"
    if not card.is_file():
        return REAL_FAMILY
    spec = json.loads(card.read_text(encoding="utf-8"))["spec"]
    if "n_pairs" not in spec:
        raise TaskError(f"{name} never saw a number. Chapter 4's small models are mini-icl, -plain and -noisy.")
    return Family(spec["n_a"], spec["n_b"], spec["n_x"], noise=spec["noise"])
