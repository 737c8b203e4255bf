"""Which tasks a model can do in context, beside controls; what it says to one prompt after various examples."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.experiments.gate import AT_LEAST
from talking_heads_utils.experiments.icl.asked import DRAWN, Examples, NumberTask, Task, WordTask
from talking_heads_utils.experiments.icl.functions import Family
from talking_heads_utils.experiments.icl.words import WordsRow, answers_of
from talking_heads_utils.experiments.rows import ModelRow, column, rows
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.known import model_source
from talking_heads_utils.metrics import answer_logits
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts import relations
from talking_heads_utils.prompts.encoding import tokenized, unknown_id
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.questions import Numbers, asked_at, numbers_of
from talking_heads_utils.prompts.relations import ARROW, Relation
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.words import token_of
from talking_heads_utils.stats import share_in_clusters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from talking_heads_utils.experiments.context import Context

N_EXAMPLES, LEAST_EXAMPLES = 10, 8  # a task of which a half has too few pairs even for these is left out
REAL = Family(n_a=3, n_b=10, n_x=100, held_share=0.0)  # gpt2 and Llama 3 keep its numbers, 0 to 306, whole
COUNTS = (0, 1, 2, 4)  # examples, beside the most
N_GATE = 64  # prompts of each half
WORD_COUNTS, N_WORDS = (0, 1, 2, 4, 8, 16), 32  # examples and prompts where tasks of words are asked as chapter 3 does
MOST = 8  # tasks that a model is asked
N_SHOWN, N_TOP = 3, 5  # tasks whose prompt is shown, and tokens after it
FUNCTIONS = ((2, 3), (1, 3))  # y = a x + b that a real model is asked for: the post's, and a simpler one
COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()


# --- what a model may be asked ---


def one_token(relation: Relation, tokenizer: PreTrainedTokenizerBase) -> Relation:
    """The relation without the pairs of which x, at the beginning of a line, or y is not one token."""
    texts = [f"{x}{ARROW} {y}\n{x}{ARROW}" for x, y in relation.pairs]
    unknown, kept = unknown_id(tokenizer), []
    for (x, y), tokens in zip(relation.pairs, tokenized(texts, tokenizer) if texts else ()):
        second = len(f"{x}{ARROW} {y}\n")
        at = [tokens.covering((0, len(x))), tokens.covering((second, second + len(x)))]
        if all(len(some) == 1 and tokens.ids[some[0]] != unknown for some in at) and token_of(y, tokenizer) is not None:
            kept.append((x, y))
    return Relation(relation.name, tuple(kept), relation.left_out + len(relation.pairs) - len(kept))


def next_number() -> Relation:
    """y = x + 1 in words, from zero to twenty; x after a space, without which most are split."""
    return Relation("next_number", tuple((f" {x}", y) for x, y in zip(COUNTED, COUNTED[1:])), 0)


def word_tasks(tokenizer: PreTrainedTokenizerBase) -> list[WordTask]:
    """Every task of words of which both halves have pairs for :data:`LEAST_EXAMPLES` examples and a question, and of
    which there is another to show twins."""
    every = [one_token(r, tokenizer) for r in (*relations.load_relations(tokenizer), next_number())]
    sizes = {r.name: min(len(r.half(half)) for half in (SELECTION, HELD_OUT)) for r in every}
    enough = [r for r in every if sizes[r.name] > LEAST_EXAMPLES]
    return [
        WordTask(r.name, answers_of(r, tokenizer), min(N_EXAMPLES, sizes[r.name] - 1), r, others)
        for r in enough
        if (others := tuple(other for other in enough if other is not r))
    ]


def number_tasks(model: str, tokenizer: PreTrainedTokenizerBase) -> list[NumberTask]:
    """The functions that a small model of the book was trained on, as one task, or :data:`FUNCTIONS` for any other
    model; none where the tokenizer splits one of the family's numbers.

    Raises :class:`NotApplicable` for a small model of another kind.
    """
    family = _trained_on(model)
    if (numbers := whole_numbers(tokenizer, (family or REAL).n_numbers - 1)) is None:
        return []
    if family is not None:
        return [NumberTask("y = a x + b", numbers, N_EXAMPLES, family)]
    return [NumberTask(f"y = {'' if a == 1 else a}x + {b}", numbers, N_EXAMPLES, REAL, (a, b)) for a, b in FUNCTIONS]


def whole_numbers(tokenizer: PreTrainedTokenizerBase, largest: int) -> Numbers | None:
    """0 to ``largest``; None where the tokenizer splits one of them."""
    try:
        numbers = numbers_of(tokenizer, largest)
    except TaskError:
        return None
    return numbers if len(numbers.values) > largest else None


def _trained_on(model: str) -> Family | None:
    card = Path(model_source(model)[0]) / "training.json"
    if not card.is_file():
        return None
    spec = json.loads(card.read_text(encoding="utf-8"))["spec"]
    if "n_pairs" not in spec:
        raise NotApplicable(f"{model} never saw a number. Chapter 4's small models are mini-icl, -plain and -noisy.")
    return Family(spec["n_a"], spec["n_b"], spec["n_x"], noise=spec["noise"])


def candidates(c: Context) -> list[Task]:
    """What a model may be asked, whether it can do it or not. Raises :class:`NotApplicable` where there is nothing."""
    found = [*number_tasks(c.model, c.tokenizer), *word_tasks(c.tokenizer)]
    if not found:
        raise NotApplicable(
            f"{c.model} can be asked nothing in context: its tokenizer splits the numbers, and keeps whole the words "
            f"of too few pairs of every task, {LEAST_EXAMPLES + 1} in each half being needed."
        )
    return found


def task_named(c: Context, name: str) -> Task:
    """One of :func:`candidates`. Raises :class:`TaskError` for another name, and for a task of words of which the
    tokenizer splits too many pairs."""
    every = {task.name: task for task in candidates(c)}
    if name in every:
        return every[name]
    if name in relations.relation_names():
        kept = one_token(relations.load_relation(name, c.tokenizer), c.tokenizer)
        raise TaskError(
            f"{name}: this tokenizer keeps the words of {len(kept.pairs)} pairs whole and splits those of "
            f"{kept.left_out}; {2 * LEAST_EXAMPLES + 2} are needed. Take one of {', '.join(every)}."
        )
    raise TaskError(f"There is no task {name!r}; there are {', '.join(every)}.")


def tasks(c: Context) -> Sequence[Task]:
    """The tasks that the model can do, by the selection half: functions first, then the best, :data:`MOST` in all.

    A task is done where the lower end of its accuracy is above the upper ends of both controls and
    :data:`~experiments.gate.AT_LEAST` times chance. Raises :class:`NotApplicable` where none is.
    """
    return c.kept(_passed)


def _passed(c: Context) -> list[Task]:
    every, found = candidates(c), c.finished("tasks")
    measured = _accuracies(c, every, (SELECTION,)) if found is None else rows(found, WordsRow)
    low = {task.name: low for task in every if (low := low_end(task.name, measured)) is not None}
    if not low:
        raise NotApplicable(
            f"{c.model} can be asked nothing in context: of {len(every)} tasks whose numbers or words its tokenizer "
            f"keeps whole it does none clearly better than after shuffled labels, than after another task's examples, "
            f"and than {AT_LEAST} times chance."
        )
    passed = [task for task in every if task.name in low]
    return sorted(passed, key=lambda task: (not isinstance(task, NumberTask), -low[task.name]))[:MOST]


def low_end(name: str, measured: Sequence[WordsRow]) -> float | None:
    """The lower end of accuracy on the selection half after most examples; None for a task that does not pass."""
    mine = [row for row in measured if (row.task, row.half) == (name, SELECTION)]
    most = max((row.n_examples for row in mine), default=0)
    last = {row.examples: row for row in mine if row.n_examples == most}
    own = last.get(relations.ITS_OWN)
    controls = [last[kind].high for kind in (relations.SHUFFLED, relations.ANOTHER) if kind in last]
    if own is None or len(controls) < 2 or own.low <= max(*controls, AT_LEAST * own.chance):
        return None
    return own.low


# --- how well it does ---


def _accuracies(c: Context, some: Sequence[Task], halves: Sequence[str]) -> list[WordsRow]:
    return [row for task in follow(some, "tasks") for half in halves for row in accuracy(c, task, half, c.n(N_GATE))]


def accuracy(c: Context, task: Task, half: str, n: int) -> list[WordsRow]:
    """After :data:`COUNTS` and the most of the task's own examples, and after as many with shuffled labels or of
    another task."""
    found = []
    for examples in (Examples.OWN, Examples.SHUFFLED, Examples.ANOTHER):
        asked = task.ask(c, n, half, examples=examples)
        counts = [k for k in COUNTS if k < task.n_examples and examples == Examples.OWN] + [task.n_examples]
        found += _scored(c, task, asked.prompts, asked.questions, half, examples, counts,
                         asked.clusters if task.by_function else None)  # fmt: skip
    return found


def words(c: Context) -> list[WordsRow]:
    """Every task of words after :data:`WORD_COUNTS` examples, beside two controls: labels permuted among a prompt's
    examples, and examples of another task, drawn for each prompt.

    Against that last one ``among`` is to be read: a word that looks like the question wins among answers whatever the
    task. A half of too few pairs has no row for many examples.
    """
    every, found = relations.load_relations(c.tokenizer), list[WordsRow]()
    sizes = {relation.name: len(relation.half(HELD_OUT)) for relation in every}
    for relation in follow(every, "tasks of words"):
        others = tuple(other for other in every if other is not relation)
        fit = [k for k in WORD_COUNTS if k < sizes[relation.name]]
        many = max((sizes[other.name] for other in others), default=0)
        task = WordTask(relation.name, answers_of(relation, c.tokenizer), max(fit, default=0), relation, others)
        asked = [(Examples.OWN, max(fit), fit)] if fit else []
        asked += [(Examples.SHUFFLED, k, [k]) for k in fit if 2 <= k < sizes[relation.name] - 1]
        asked += [(Examples.ANOTHER, k, [k]) for k in fit if 1 <= k < many - 1]
        for examples, most, counts in asked:
            questions = task.draw(N_WORDS, most, HELD_OUT, examples, c.seed)
            prompts = task.encode(c, questions, HELD_OUT)
            found += _scored(c, task, prompts, questions, HELD_OUT, examples, counts)
    return found


def _scored(
    c: Context, task: Task, prompts: PromptSet, questions: Sequence[Any], half: str, examples: Examples,
    counts: Sequence[int], clusters: Int[Tensor, "n"] | None = None,
) -> list[WordsRow]:  # fmt: skip
    """After so many of each prompt's examples, all read off one pass: what follows a question cannot change its answer.
    Of permuted labels only the last will do, since the answers of the others stand above them. clusters: those of one
    right answer by default."""
    places, right = torch.stack(asked_at(prompts), 1)[:, counts], task.rights(questions)[:, counts]
    greedy, among = torch.zeros_like(right, dtype=torch.bool), torch.zeros_like(right, dtype=torch.bool)
    for at in batches.blocks(len(prompts), 32):
        with torch.no_grad(), logits_at(c.bridge, places[at]):
            logits = c.bridge(prompts.tokens[at].to(c.bridge.cfg.device)).float().cpu()
        greedy[at] = logits.argmax(-1) == task.answers.ids[right[at]]
        among[at] = task.answers.read(logits[..., task.answers.ids]) == right[at]
    found = []
    for i, k in enumerate(counts):
        alike = right[:, i] if clusters is None else clusters
        exact, best = (share_in_clusters(hits[:, i], alike) for hits in (greedy, among))
        found.append(WordsRow(task.name, half, DRAWN[examples], k, *exact[:3], *best[:3], 1 / len(task.answers.ids),
                              exact.n, *task.n_pairs()))  # fmt: skip
    return found


@dataclass(frozen=True)
class ShownRow(ModelRow):
    """One prompt, and what the model says to it after various examples."""

    task: str = column("", "task")
    examples: str = column("", "own, none, shuffled labels or another task's")
    prompt: str = column("", "text of the prompt")
    right: str = column("", "the right answer")
    rank: int = column("", "1 for the most likely next token")
    token: str = column("", "next token")
    probability: float = column("share", "its probability")


def run_tasks(c: Context) -> list[WordsRow]:
    """Accuracy on every task, on both halves: the selection half decides what is asked."""
    return _accuracies(c, candidates(c), (SELECTION, HELD_OUT))


def run_shown(c: Context) -> list[ShownRow]:
    """One prompt of the held-out half of three tasks, drawn, and the five most likely tokens after it."""
    some = random.Random(c.seed).sample(tasks(c), min(N_SHOWN, len(tasks(c))))
    return [row for task in some for examples in Examples for row in _shown(c, task, examples)]


def _shown(c: Context, task: Task, examples: Examples) -> list[ShownRow]:
    asked = task.ask(c, 1, HELD_OUT, examples=examples)
    most, ids = answer_logits(c.bridge, asked.prompts)[0].float().cpu().softmax(-1).topk(N_TOP)
    right = c.tokenizer.decode(asked.right)
    return [
        ShownRow(c.model, task.name, str(examples), asked.prompts.texts[0], right, i, c.tokenizer.decode([token]), p)
        for i, (token, p) in enumerate(zip(ids.tolist(), most.tolist()), 1)
    ]
