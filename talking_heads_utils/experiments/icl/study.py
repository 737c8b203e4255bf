"""Chapter 4's experiments on one model and its task, as rows. Everything random comes from the context's seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.experiments.icl import additivity as sums
from talking_heads_utils.experiments.icl import parts, redundancy
from talking_heads_utils.experiments.icl.ablations import ZERO, random_heads, replacements, run_end
from talking_heads_utils.experiments.icl.curves import Belief, asked_logits, model_log_odds, trusting_predictors
from talking_heads_utils.experiments.icl.functions import bayes_accuracy, trained_prior
from talking_heads_utils.experiments.icl.redundancy import BY_EFFECT, RANDOM, Reader
from talking_heads_utils.experiments.icl.task import CHOOSES, N_EXAMPLES, TRAINED, Drawn, Task
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import share_in_clusters

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

MANY, MOST_OUT = 100, 24  # heads of a large model, and how many of them are taken out
STRONGEST, OTHERS = "strongest", "random"
SCORES = 3  # the part of the prompts on which chosen heads are scored


@dataclass(frozen=True)
class AccuracyRow(Row):
    """Right answers after so many examples."""

    task: str = column("", "what the model is asked")
    group: str = column("", "functions: trained or held-out of training; of words the selection or held-out pairs")
    n_examples: int = column("", "examples before the answer")
    accuracy: float = column("share", "right answers of the model, among the task's answers")
    low: float = column("share", "lower end of accuracy, 95% over functions or answers")
    high: float = column("share", "upper end of accuracy")
    bayes: float | None = column("share", "right answers of the Bayes-optimal predictor; none of words")
    n: int = column("", "prompts")


def accuracy(run: Context, task: Task, n: int = 200) -> list[AccuracyRow]:
    """Accuracy after k examples: the model's, by :attr:`Task.groups`, and the Bayes-optimal predictor's, who knows the
    trained functions (trained) or holds all for equally likely (held-out)."""
    rows = []
    for group in task.groups:
        drawn = task.draw(n, part=1, seed=run.seed, group=group)
        answered = task.answers.read(asked_logits(run.bridge, task.encode(run, drawn.questions), task.answers))
        bayes = _bayes(task, drawn, group)
        for k in range(N_EXAMPLES + 1):
            found = share_in_clusters(answered[:, k] == drawn.right[:, k], drawn.clusters[:, k])
            rows.append(AccuracyRow(task.name, group, k, *found[:3], None if bayes is None else bayes[k], found.n))
    return rows


def _bayes(task: Task, drawn: Drawn, group: str) -> list[float] | None:
    if drawn.examples is None:
        return None
    prior = trained_prior(task.functions)
    prior = prior if group == TRAINED else torch.full_like(prior, 1 / len(prior))
    return bayes_accuracy(task.functions, drawn.examples, prior).mean(0).tolist()


def ask(run: Context, task: Task, n: int, *, part: int = SCORES, how: str = ZERO) -> tuple[Reader, PromptSet]:
    """Prompts of their own, ready to be asked with heads out at the last token."""
    drawn = task.draw(n, part=part, seed=run.seed)
    prompts = task.encode(run, drawn.questions)
    ends = prepare(run.bridge, prompts, 0)
    instead = replacements(run_end(ends), how, seed=run.seed)
    return Reader(ends, task.answers, drawn.right[:, -1], drawn.clusters[:, -1], instead), prompts


def removal(
    run: Context, task: Task, *, n: int = 64, n_random: int = 5, how: str = ZERO, most: int | None = None
) -> list[redundancy.RemovalRow]:
    """What is left as heads go, by effect and at random.

    most: heads to take out, by default all but one, or :data:`MOST_OUT` of a model of more than :data:`MANY`. The
    order by effect is chosen on other prompts than score it, half as many of such a model.
    """
    many = len(all_heads(run)) > MANY
    select, _ = ask(run, task, n // 2 if many else n, part=CHOOSES, how=how)
    n_heads = most or (MOST_OUT if many else len(select.heads) - 1)
    orders = [(BY_EFFECT, 0, redundancy.order_by_effect(select, n_heads))]
    orders += [(RANDOM, i + 1, redundancy.random_order(select, n_heads, run.seed + i)) for i in range(n_random)]
    return redundancy.removal(ask(run, task, n, how=how)[0], orders, task.name)


def all_heads(run: Context) -> list[Head]:
    """Every head, layer by layer."""
    return heads_in(range(run.bridge.cfg.n_layers), run.bridge.cfg.n_heads)


def strongest(run: Context, task: Task, k: int, *, n: int = 64) -> list[Head]:
    """The heads whose loss alone costs most, on the selection prompts."""
    select, _ = ask(run, task, n, part=CHOOSES)
    worth = redundancy.effects(select, [[head] for head in select.heads]).mean(0)
    return [select.heads[i] for i in worth.argsort(descending=True)[:k].tolist()]


def others(run: Context, heads: Sequence[Head]) -> list[Head]:
    """As many heads as these, drawn at random from the rest of the model."""
    rest = [head for head in all_heads(run) if head not in heads]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(run.seed))
    return [rest[i] for i in order[: len(heads)].tolist()]


def pairs(run: Context, task: Task, strong: Sequence[Head], *, n: int = 64) -> list[redundancy.PairRow]:
    """Interactions of the strongest heads' pairs, and of as many random others', on prompts that chose nothing."""
    reader, _ = ask(run, task, n)
    kinds = {STRONGEST: strong, OTHERS: others(run, strong)}
    return [row for kind, heads in kinds.items()
            for row in redundancy.pair_interactions(reader, heads, task=task.name, kind=kind)]  # fmt: skip


def backups(
    run: Context, task: Task, top: Sequence[Head], *, n: int = 64, n_random: int = 2
) -> list[redundancy.BackupRow]:
    """Direct effects of all others without these heads, and without random ones of the same layers, on prompts that
    chose nothing."""
    shape = run.bridge.cfg.n_layers, run.bridge.cfg.n_heads
    sets: Mapping[str, Sequence[Head]] = {STRONGEST: top, **random_heads(shape, top, n_random, run.seed)}
    return redundancy.backups(ask(run, task, n)[0], sets, task=task.name)


def belief(run: Context, task: Task, n: int = 200) -> Belief:
    """What the model and Bayes-optimal predictors believe along the same lists of examples."""
    drawn = task.draw(n, part=4, seed=run.seed)
    right = drawn.right[:, :-1]
    model: Float[Tensor, "n n_examples"] = model_log_odds(
        run.bridge, task.encode(run, drawn.questions), task.answers, right
    )
    if drawn.examples is None:
        return Belief(model, None, drawn.clusters[:, -1])
    predictors = trusting_predictors(task.functions, drawn.examples, trained_prior(task.functions))
    return Belief(model, predictors[..., :-1], drawn.clusters[:, -1])


def additivity(run: Context, task: Task, n: int = 48, counts: Sequence[int] = sums.COUNTS) -> list[sums.AdditivityRow]:
    """:func:`talking_heads_utils.experiments.icl.additivity.additivity` on fresh questions."""
    return sums.additivity(run, task, task.draw(n, part=5, seed=run.seed), counts)


def layers_out(run: Context, task: Task, n: int = 100) -> list[parts.PartRow]:
    """:func:`talking_heads_utils.experiments.icl.parts.layers_out` on fresh prompts."""
    return parts.layers_out(*ask(run, task, n, part=6), task=task.name)


def probes(run: Context, task: Task, n: int = 600) -> list[parts.ProbeRow]:
    """:func:`talking_heads_utils.experiments.icl.parts.probes` on fresh prompts. Raises :class:`NotApplicable` for
    words."""
    prompts = task.encode(run, task.draw(n, part=7, seed=run.seed).questions)
    return parts.probes(run_end(prepare(run.bridge, prompts, 0)).resid[:, 0], prompts, seed=run.seed)


def looks_back(run: Context, task: Task, n: int = 48) -> list[parts.LooksBackRow]:
    """:func:`talking_heads_utils.experiments.icl.parts.attention_to_answers` on fresh prompts."""
    drawn = task.draw(n, part=8, seed=run.seed)
    prompts = task.encode(run, drawn.questions)
    return parts.attention_to_answers(run.bridge, prompts, drawn.clusters[:, -1], task=task.name)
