"""The post's experiment, put right: A's stream at the last token into B, layer by layer, with layers out of A.

A sees examples of a task. B is asked another question of it, without examples or with labels shuffled among them, as
the post's random pairs are. What A has at the last token on entering a layer is put into B there. All heads of two
layers are taken out of A at its last token: set to zero as in the post, or exchanged for what they have in A's twin,
which sees another task's examples.

A curve (B's accuracy by the layer that is patched) works where its best layer gains at least :data:`GAINS` of A's own
accuracy over B untouched. Its first layer is where it has come :data:`WAY` up to its best, between layers by a line:
a curve that is lower and no later has the same one. Layers taken out at or above the first layer cannot move it, as
what is patched below them is as it was. So the post's two are to be held against pairs below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations, product
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.asked import Asked, Examples
from talking_heads_utils.experiments.icl.clusters import drawn_means, drawn_over_tasks, drawn_weights, ends
from talking_heads_utils.experiments.icl.redundancy import OVER_TASKS
from talking_heads_utils.experiments.icl.swaps import Grid, How, Ready, Said, every_ready, exchanged, grid
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.stats import share_in_clusters, summary

GAINS = 0.25  # of A's accuracy, at least, over B untouched, where a patch works
WAY = 0.5  # from B untouched to the best layer
N_PAIRS, N_OUT = 32, 48  # pairs of A and B, and A's where only layers go, by task
DRAW = 7  # prompts of this chapter's patches, beside the context's seed
POSTS, OF_LAYERS = 10, 32  # the post takes out this layer and the next, of Llama-3-8B's
SEES = (Examples.NONE, Examples.SHUFFLED)
Layers = tuple[int, ...]


class Run(StrEnum):
    """Which run answers: A or B untouched, or B with A's stream."""

    A = "a"
    B = "b"
    PATCHED = "patched"


@dataclass(frozen=True)
class PatchRow(ModelRow):
    """Answers of B with A's resid_pre of one layer at the last token, or of A or B as they are."""

    task: str = column("", "task")
    b_sees: str = column("", "what B sees: none, shuffled labels")
    out: str = column("", "layers whose heads are out of A, such as 9,10; empty for none")
    how: str = column("", "how: zero or exchange; empty with nothing out")
    run: str = column("", "a, b or patched")
    layer: int | None = column("", "whose resid_pre is patched")
    accuracy: float = column("share", "right answers, of B by A's task at B's question")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    about: float | None = column("share", "of numbers: answers a x, give or take 1")
    about_low: float | None = column("share", "lower end")
    about_high: float | None = column("share", "upper end")
    copied: float = column("share", "A's answer to its own question")
    n: int = column("prompts", "pairs of A and B")


@dataclass(frozen=True)
class OutRow(ModelRow):
    """A's answers with all heads of two layers out at the last token."""

    task: str = column("", "task; all for the mean over tasks")
    a: int = column("", "layer")
    b: int = column("", "layer")
    how: str = column("", "zero or exchange")
    posts: bool = column("", "whether these are the post's two layers, in proportion to depth")
    accuracy: float = column("share", "right answers")
    change: float = column("share", "from nothing out, paired")
    low: float = column("share", "95% interval over answers, of all over tasks and answers, lower end")
    high: float = column("share", "upper end")
    about_change: float | None = column("share", "of numbers: the same of answers a x, give or take 1")
    n: int = column("prompts", "of the held-out half; of all: tasks")


@dataclass(frozen=True)
class FirstRow(ModelRow):
    """The first layer whose patch works, with two neighbouring layers out of A and without."""

    task: str = column("", "task; all for the mean over tasks")
    b_sees: str = column("", "none or shuffled")
    how: str = column("", "zero or exchange")
    a: int = column("", "layer")
    b: int = column("", "layer")
    posts: bool = column("", "whether these are the post's two layers, in proportion to depth")
    below: bool | None = column("", "whether both are below the first layer that works with nothing out")
    plain: float | None = column("layers", "first layer that works with nothing out, between two by a line; or none")
    first: float | None = column("layers", "the same with the two layers out")
    moved: float | None = column("layers", "first less plain")
    low: float | None = column("layers", "95% interval over answers, of all over tasks and answers, lower end")
    high: float | None = column("layers", "upper end")
    n: int = column("prompts", "pairs of A and B; of all: tasks where both work")


class Tried(NamedTuple):
    """What one task's A and B answer, and B with A's stream, with sets of layers out of A one way.

    b: B's questions, scored by A's task. out: the sets, nothing first.
    """

    a: Asked
    b: Asked
    b_sees: str
    how: str
    n_layers: int
    out: Sequence[Layers]
    grid: Grid


class Without(NamedTuple):
    """What one task's A answers with pairs of layers out one way. said: nothing out first."""

    a: Asked
    how: str
    n_layers: int
    pairs: Sequence[Layers]
    said: Said


def posts_layers(n_layers: int) -> Layers:
    """The post's two layers in proportion to depth. Raises :class:`NotApplicable` for a model of one layer."""
    if n_layers < 2:
        raise NotApplicable("A model of one layer has no two layers whose heads could be taken out.")
    first = min(POSTS * n_layers // OF_LAYERS, n_layers - 2)
    return first, first + 1


# --- what the model answers ---


def tried(a: Ready, b: Ready, b_sees: str, how: How, out: Sequence[Layers]) -> Tried:
    """A's stream into B at every layer, with nothing and with each of ``out`` out of A."""
    out = [(), *out]
    found = grid(a, _sets(a, out), b.clean, b.asked.right, how=how)
    return Tried(a.asked, b.asked, b_sees, how, a.clean.n_layers, out, found)


def without(a: Ready, how: How, pairs: Sequence[Layers]) -> Without:
    """A's answers with each pair of layers out."""
    said = exchanged(a, _sets(a, [(), *pairs]), how=how)
    return Without(a.asked, how, a.clean.n_layers, pairs, said)


def _sets(a: Ready, out: Sequence[Layers]) -> list[list[Head]]:
    return [heads_in(layers, a.clean.n_heads) for layers in out]


def _all_tried(c: Context) -> list[Tried]:
    """Every task, with every two neighbouring layers out: the grids that two tables are made of."""
    found = []
    for a in _every_a(c, N_PAIRS):
        out = [(layer, layer + 1) for layer in range(a.clean.n_layers - 1)]
        for sees in SEES:
            asked = after_line_end(a.asked, a.asked.task.ask_b(c, a.asked, sees))
            run = prepare(c.bridge, asked.prompts, check=False)
            b = Ready(asked, run, run)
            found += [tried(a, b, sees, how, out) for how in How]
    return found


def after_line_end(a: Asked, b: Asked) -> Asked:
    """B's questions with, in front of x, the token that A's have there, if it is another one or none. A model's first
    token is where heads look that have nothing to look for; without the line end, that would be x."""
    places, prompts = b.prompts.positions, b.prompts
    at = int(places["x"][0])
    front = a.prompts.tokens[:, int(a.prompts.positions["x"][0]) - 1, None]
    if at and torch.equal(prompts.tokens[:, at - 1, None], front):
        return b
    tokens = torch.cat([prompts.tokens[:, :at], front, prompts.tokens[:, at:]], 1)
    moved = {name: where + (where >= at).long() for name, where in places.items()}
    prompts = replace(prompts, tokens=tokens, mask=torch.ones_like(tokens).bool(), positions=moved)
    return replace(b, prompts=prompts, twins=prompts)


def _every_a(c: Context, n: int) -> Iterator[Ready]:
    """A's prompts of every task. Raises :class:`NotApplicable` for a model of one layer."""
    posts_layers(c.bridge.cfg.n_layers)
    return every_ready(c, c.n(n, 8), seed=DRAW)


def run_patches(c: Context) -> list[PatchRow]:
    return patch_rows(c.model, c.kept(_all_tried))


def run_first(c: Context) -> list[FirstRow]:
    return first_rows(c.model, c.kept(_all_tried), seed=c.seed)


def run_out(c: Context) -> list[OutRow]:
    pairs = list(combinations(range(c.bridge.cfg.n_layers), 2))
    return out_rows(c.model, [without(a, how, pairs) for a in _every_a(c, N_OUT) for how in How], seed=c.seed)


# --- rows: what of it each table has ---


def patch_rows(model: str, found: Sequence[Tried]) -> list[PatchRow]:
    """Curves with nothing out, once, and with the post's two layers, each way."""
    rows = []
    for t in found:
        nothing = [0] if t.how == How.ZERO else []
        for i in [*nothing, t.out.index(posts_layers(t.n_layers))]:
            told = (model, t.a.task.name, t.b_sees, ",".join(map(str, t.out[i])), t.how if i else "")
            own, layers = t.grid.own.at(i), range(t.n_layers)
            answers = [(Run.A, None, t.a, own), (Run.B, None, t.b, t.grid.plain)]
            answers += [(Run.PATCHED, layer, t.b, t.grid.patched.at(layer, i)) for layer in layers]  # type: ignore[misc]
            rows += [_patch_row(told, run, layer, asked, said, own) for run, layer, asked, said in answers]
    return rows


def _patch_row(told: tuple, run: Run, layer: int | None, asked: Asked, said: Said, own: Said) -> PatchRow:
    exact, near = share_in_clusters(said.right(asked), asked.clusters), asked.about(said.number)
    nearly = (None, None, None) if near is None else share_in_clusters(near, asked.clusters)[:3]
    copied = (said.top == own.top).double().mean().item()
    return PatchRow(*told, run, layer, *exact[:3], *nearly, copied, exact.n)  # type: ignore[call-arg]


def out_rows(model: str, found: Sequence[Without], *, seed: int = 0) -> list[OutRow]:
    """What each pair of layers costs A, by task and over tasks. found: of every task, one way or both."""
    rows: list[OutRow] = []
    for how in dict.fromkeys(w.how for w in found):
        told, posts = _out([w for w in found if w.how == how], seed), posts_layers(found[0].n_layers)
        for (task, n, *columns), (i, (a, b)) in product(told, enumerate(found[0].pairs)):
            rows.append(OutRow(model, task, a, b, how, (a, b) == posts, *(_item(of, i) for of in columns), n))  # type: ignore[arg-type, call-arg]
    return rows


def _out(found: Sequence[Without], seed: int) -> list[tuple]:
    """Of one way, task by task, then of all where there are several: name, number, and columns of all pairs, which are
    accuracy, its change with its ends, and that of answers about a x."""
    told, changes, shares, near = [], [], [], []
    for w in found:
        hits = w.said.right(w.a).double()
        means, numbers = _in_clusters(hits, w.a.clusters), w.a.about(w.said.number)
        change = summary(means[:, 1:], means[:, :1], hits=True)
        changes.append(drawn_means(hits[:, 1:] - hits[:, :1], w.a.clusters, seed=seed))
        shares.append(hits.mean(0)[1:])
        of_near = None if numbers is None else (numbers.double() - numbers[:, :1].double()).mean(0)[1:]
        near += [] if of_near is None else [of_near]
        told.append((w.a.task.name, len(hits), shares[-1], changes[-1][0], change.low, change.high, of_near))
    if len(found) > 1:
        every = ends(drawn_over_tasks(changes, seed=seed))
        of_near = torch.stack(near).mean(0) if near else None
        told.append((OVER_TASKS, len(found), torch.stack(shares).mean(0), *every, of_near))
    return told


def _in_clusters(values: Float[Tensor, "n k"], clusters: Int[Tensor, "n"]) -> Float[Tensor, "n_clusters k"]:
    """Means of clusters."""
    kinds, which = clusters.unique(return_inverse=True)
    sums = values.new_zeros(len(kinds), values.shape[1]).index_add_(0, which, values)
    return sums / which.bincount()[:, None]


def _item(values: Tensor | None, i: int) -> float | None:
    """A value that may be missing, as nothing at all or as NaN."""
    return None if values is None or values[i].isnan() else values[i].item()


def first_rows(model: str, found: Sequence[Tried], *, seed: int = 0) -> list[FirstRow]:
    """How far each two neighbouring layers move the first layer that works, by task and over tasks."""
    rows: list[FirstRow] = []
    for told in dict.fromkeys((t.b_sees, t.how) for t in found):
        of, posts = _first([t for t in found if (t.b_sees, t.how) == told], seed), posts_layers(found[0].n_layers)
        for (task, n, before, *columns), (i, (a, b)) in product(of, enumerate(found[0].out[1:])):
            below = None if before[i].isnan() else bool(b < before[i])
            values = (_item(part, i) for part in (before, *columns))
            rows.append(FirstRow(model, task, *told, a, b, (a, b) == posts, below, *values, int(n[i])))  # type: ignore[arg-type, call-arg]
    return rows


def _first(found: Sequence[Tried], seed: int) -> list[tuple]:
    """Of one way, and one thing that B sees, task by task, then of all where there are several: name, number, and
    columns of all pairs, which are the first layer without and with them out, and how far it moves, with its ends."""
    plain, first = torch.stack([_firsts(t, seed) for t in found]).tensor_split([1], -1)
    plain = plain.expand_as(first)
    told = [(t.a.task.name, torch.full(first.shape[2:], len(t.b)), before[0], after[0], *ends(after - before))
            for t, before, after in zip(found, plain, first)]  # fmt: skip
    if len(found) > 1:
        known = (first - plain)[:, 0].isfinite()  # tasks and pairs of layers
        before, after = (part.where(known[:, None], torch.nan) for part in (plain, first))
        moved = ends(drawn_over_tasks(list(after - before), seed=seed))
        told.append((OVER_TASKS, known.sum(0), before[:, 0].nanmean(0), after[:, 0].nanmean(0), *moved))
    return told


def _firsts(t: Tried, seed: int) -> Float[Tensor, "n_draws_1 n_sets"]:
    """The first layer that works with each set out, of the prompts themselves and of draws of clusters."""
    weights = drawn_weights(t.b.clusters, seed=seed)
    a, b, patched = (
        hits.double() for hits in (t.grid.own.right(t.a), t.grid.plain.right(t.b), t.grid.patched.right(t.b))
    )
    curves = (weights @ patched.flatten(1)).unflatten(1, patched.shape[1:]).mT
    return first_layer(curves, (weights @ b)[:, None], (weights @ a[:, 0])[:, None])


def first_layer(
    curve: Float[Tensor, "*k n_layers"], b: Float[Tensor, "*k"], a: Float[Tensor, "*k"]
) -> Float[Tensor, "*k"]:
    """Where B's accuracy has come :data:`WAY` from that of B untouched (``b``) to its best, between layers by a line;
    NaN where the best gains less than :data:`GAINS` of that of A untouched (``a``), or nothing."""
    gain = curve - b[..., None]
    best = gain.amax(-1)
    level = WAY * best
    at = (gain >= level[..., None] - 1e-9).int().argmax(-1)
    here, before = (gain.gather(-1, i[..., None])[..., 0] for i in (at, (at - 1).clamp(min=0)))
    back = torch.where(at > 0, (here - level) / (here - before).clamp(min=1e-9), 0.0)
    return (at - back).masked_fill((best < GAINS * a) | (best <= 0), torch.nan)
