"""The post's patching: A's last token, under ablations of A, into B that has not seen the task, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.experiments.icl.ablations import ZERO, PatchGrid, ablations, patch_grid, replacements, run_end
from talking_heads_utils.experiments.icl.pairing import POST_PAIRS, RANDOM_PAIRS, post_questions
from talking_heads_utils.experiments.icl.scores import score_answers
from talking_heads_utils.experiments.icl.task import Task
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.questions import Numbers, numbers_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import share_in_clusters

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

A, B, PATCHED = "a", "b", "patched"
LLAMA = (32, 32)  # layers and heads of Llama-3-8B, and what the post took out there
POST_HEADS = ("L10H5", "L10H7", "L13H6", "L13H27", "L14H18")
POST_LAYERS = ((10, 11), (10, 11, 13), (10, 11, 13, 15))


@dataclass(frozen=True)
class PatchRow(Row):
    """Answers of B with A's resid_pre of one layer at the last token, or of A or B as they are."""

    task: str = column("", "what the model is asked")
    b_sees: str = column("", "what B sees: no examples, random pairs, or another function")
    out: str = column("", "heads that are out of A at the last token")
    run: str = column("", "patched: B with A's stream; a: A on its own question; b: B with nothing patched")
    layer: int | None = column("", "whose resid_pre is patched; none of a and b")
    exact: float = column("share", "right answers, of B by A's function at B's x")
    low: float = column("share", "lower end of exact, 95% over functions or answers")
    high: float = column("share", "upper end of exact")
    about: float | None = column("share", "answers a x, give or take 1; none of words")
    parity: float | None = column("share", "answers of the right parity; none of words")
    copied: float = column("share", "the answer that A gives to its own question with the same heads out")
    distance: float | None = column("", "distance of the answer from the right one, mean; none of words")
    n: int = column("", "prompts")


def layer_sets(shape: tuple[int, int]) -> dict[str, list[Head]]:
    """Each layer's heads, and those of two layers together: what the post takes out, in proportion."""
    n_layers, n_heads = shape
    pair = [n_layers // 3, n_layers // 3 + 1]
    sets = {f"heads of layer {layer}": heads_in([layer], n_heads) for layer in range(n_layers)}
    return sets | {f"heads of layers {pair[0]} and {pair[1]}": heads_in(pair, n_heads)}


def post_sets(shape: tuple[int, int]) -> dict[str, list[Head]]:
    """The sets that the post took out, where the model has Llama-3-8B's shape; :func:`layer_sets` for any other."""
    if shape != LLAMA:
        return layer_sets(shape)
    five = {"five heads": [Head.parse(name) for name in POST_HEADS]}
    return five | {f"layers {', '.join(map(str, some))}": heads_in(some, shape[1]) for some in POST_LAYERS}


def patches(
    run: Context, task: Task, sets: Mapping[str, Sequence[Head]], *, n: int = 64, b: str = RANDOM_PAIRS, how: str = ZERO
) -> list[PatchRow]:
    """A's last token patched into B's at every layer, for every ablation of A, and the run with nothing out.

    Patched answers are scored on A's function at B's x, copied ones beside it.
    """
    pairing, as_a = task.pairing(n, b, seed=run.seed)
    prompts, asked = task.encode(run, pairing.a), task.encode(run, as_a)
    names, grid = _grid(run, prompts, task.encode(run, pairing.b), sets, task.answers, how)
    said, plain, patched = (task.answers.read(logits) for logits in (grid.own, grid.plain, grid.patched))
    rows = []
    for i, name in enumerate(names):
        cells: dict[tuple[str, int | None], tuple[Tensor, PromptSet]]
        cells = {(A, None): (said[:, i], prompts), (B, None): (plain, asked)}
        cells |= {(PATCHED, layer): (patched[:, layer, i], asked) for layer in range(patched.shape[1])}
        for (kind, layer), (answered, scored) in cells.items():
            found = score_answers(answered, scored, said[:, i])
            assert found.copied is not None  # since A's answers are given
            exact = share_in_clusters(found.exact, _clusters(scored))
            rows.append(PatchRow(
                task.name, b, name, kind, layer, *exact[:3], _mean(found.about), _mean(found.parity),
                found.copied.double().mean().item(), _mean(found.distance), n,
            ))  # fmt: skip
    return rows


def _grid(
    run: Context, a: PromptSet, b: PromptSet, sets: Mapping[str, Sequence[Head]], answers: Numbers, how: str
) -> tuple[tuple[str, ...], PatchGrid]:
    """The sets' names, and logits of the answers with every set out of A and every layer patched."""
    bridge = run.bridge
    ends_a, ends_b = (prepare(bridge, prompts, 0) for prompts in (a, b))
    chosen = ablations((bridge.cfg.n_layers, bridge.cfg.n_heads), dict(sets))
    ran = run_end(ends_a, chosen, replacements(run_end(ends_a), how, seed=run.seed))
    return chosen.names, patch_grid(ran, ends_a, ends_b, answers.ids.to(bridge.cfg.device))


def _clusters(prompts: PromptSet) -> Int[Tensor, "n"]:
    """Prompts of one function, or with one right answer, are alike."""
    if "a" not in prompts.info:
        return torch.tensor(list(prompts.info["answer"]))
    return torch.tensor([1000 * a + b for a, b in zip(prompts.info["a"], prompts.info["b"])])


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else values.double().mean().item()


@dataclass(frozen=True)
class PostRow(Row):
    """What the model answers to the post's own two prompts."""

    out: str = column("", "heads that are out of A at the last token")
    a_top_five: str = column("", "A's five most likely numbers, the first one first")
    b_plain: int = column("", "B's answer with nothing patched")
    layer: int = column("", "whose resid_pre is patched from A into B")
    b_patched: int = column("", "B's answer then")


def post_patches(run: Context, task: Task) -> list[PostRow]:
    """The post's own two prompts, with the plain run that it lacks. Raises :class:`NotApplicable` for a model whose
    tokenizer does not keep the post's numbers whole."""
    if task.family is None:
        raise NotApplicable(
            "The post's two prompts ask for a number of one token, and this tokenizer splits numbers: see how well the "
            "model does y = a x + b by whole answers instead."
        )
    numbers = numbers_of(run.tokenizer, max(y for _, y in POST_PAIRS) + 9)
    try:
        a, b = (task.encode(run, [question]) for question in post_questions())
    except TaskError as error:
        raise NotApplicable(f"{run.model} cannot be asked the post's two prompts: {error}") from error
    bridge = run.bridge
    sets = post_sets((bridge.cfg.n_layers, bridge.cfg.n_heads))
    names, grid = _grid(run, a, b, sets, numbers, ZERO)
    best = numbers.values[grid.own[0].topk(5).indices.cpu()].tolist()
    answers, plain = numbers.read(grid.patched)[0], int(numbers.read(grid.plain)[0])
    return [
        PostRow(name, " ".join(map(str, best[i])), plain, layer, int(answers[layer, i]))
        for i, name in enumerate(names)
        for layer in range(len(answers))
    ]
