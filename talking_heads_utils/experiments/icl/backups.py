"""What others recover of heads' direct effect when these are exchanged, and how much of that is rescaling.

Direct effects are on the logit of the right answer less that of the rival, at the last token. With the scale of the
final norm held at the untouched run's they add: the logit difference falls by what is lost, less what others recover,
less what a scale of its own adds. Nothing is left over.

Source: Rushing and Nanda (2024) for self-repair and the part of the norm in it; the yardstick of the post is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.experiments.icl.choice import Picked, matched, picks
from talking_heads_utils.experiments.icl.clusters import drawn_means, drawn_over_tasks, ends
from talking_heads_utils.experiments.icl.redundancy import OVER_TASKS, Set
from talking_heads_utils.experiments.icl.swaps import Direct, Ready, direct, marked, ready, values, written_along
from talking_heads_utils.experiments.icl.tasks import tasks
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.forward.engine import Z
from talking_heads_utils.labels import Head
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

N_HEADS = 5  # the strongest of the chosen: exchanged one by one and together
N_HELD = 100  # prompts of a task
N_AT_ONCE = 512  # runs of one token
MATTERS = 0.01  # of the summed sizes of all heads' direct effects: that of a mover or a negative head at least


class Who(StrEnum):
    """Who changes: heads with a direct effect for the answer, against it, or with little; MLPs; the norm."""

    MOVERS = "movers"
    NEGATIVE = "negative"
    OTHERS = "others"
    MLPS = "mlps"
    ALL = "all"  # the four together, with the scale of the untouched run
    NORM = "norm"  # what a scale of its own adds
    POST = "post"  # the post's yardstick: direction and scale of the changed run
    POST_HELD = "post_held"  # the same with direction and scale of the untouched run
    FINAL = "final"  # as post, along the stream after the last layer: for heads above the layer that the post takes
    FINAL_HELD = "final_held"


@dataclass(frozen=True)
class BackupRow(ModelRow):
    """What others recover when heads are exchanged at the last token."""

    task: str = column("", "task; all for the mean over tasks")
    heads_are: str = column("", "chosen or matched")
    draw: int | None = column("", "of a matched set")
    n_heads: int = column("heads", "exchanged together; with task all the mean, rounded")
    alone: bool = column("", "whether one head of a set is exchanged by itself; with task all the sum over each")
    out: str = column("", "heads that are exchanged; empty with task all")
    who: str = column("", "who changes: movers, negative, others, mlps, all; norm; post, post_held, final, final_held")
    lost: float = column("logits", "direct effect that is lost with them; of post to final_held: its own unit")
    recovered: float = column("logits", "change of the others' direct effects, above 0 where they make up for it")
    share: float | None = column("share", "recovered over lost; none where lost is not clearly above 0")
    low: float | None = column("share", "95% interval over prompts, of all over tasks too, lower end")
    high: float | None = column("share", "upper end")
    n: int = column("prompts", "of the held-out half; of all: tasks")


@dataclass(frozen=True)
class Out:
    """Heads that are exchanged together. draw: of matched ones; None of the chosen. alone: one of a set by itself."""

    heads: tuple[Head, ...]
    draw: int | None = None
    alone: bool = False


@dataclass(frozen=True)
class Measured:
    """One task's outs, and what is lost and recovered (last dimension) with each: means over prompts and their draws,
    by :class:`Who` in its order."""

    task: str
    outs: Sequence[Out]
    means: Float[Tensor, "n_draws_1 k who 2"]
    n: int


def outs_of(picked: Picked, seed: int = 0) -> list[Out]:
    """The strongest of the chosen, and others matched to them on summed direct effect: each set together, and each of
    its heads alone."""
    chosen = picked.chosen[:N_HEADS]
    sets = {None: chosen} | dict(enumerate(matched(picked, chosen, seed=seed), 1))
    return [out for draw, heads in sets.items() if heads
            for out in [*(Out((head,), draw, True) for head in heads), Out(tuple(heads), draw)]]  # fmt: skip


def kinds_of(picked: Picked) -> Float[Tensor, "kinds n_layers n_heads"]:
    """1 where a head is a mover, a negative head, another, by its direct effect on the selection half, prompt less
    twin."""
    least = MATTERS * picked.direct.abs().sum()
    movers, negative = picked.direct > least, picked.direct < -least
    return torch.stack([movers, negative, ~movers & ~negative]).double()


def changes(
    r: Ready, sets: Sequence[Sequence[Head]], kinds: Float[Tensor, "kinds n_layers n_heads"]
) -> Float[Tensor, "n k who 2"]:
    """What is lost with each set at the twin's values at the last token, and what others recover, by prompt.

    On the frozen answer direction lost is the same whoever recovers. Of the post's yardstick, both times, lost is what
    the set's heads lose with direction and scale held, so that shares compare, and recovered what is gained by heads
    of later layers than the set's first one, below the layer whose stream it takes; so too along the final stream.
    """
    d = direct(r, sets)
    heads, mlps = (part.double() for part in (d.heads, d.mlps))
    out = marked(r.clean, sets)[0].double()
    moved = heads[:, 1:] - heads[:, :1]
    lost = -(moved * out).sum((-2, -1))
    by_kind = torch.einsum("nklh,klh,clh->nkc", moved, 1 - out, kinds)
    parts = torch.cat([by_kind, (mlps[:, 1:] - mlps[:, :1]).sum(-1, keepdim=True)], -1)
    found = [(lost, part) for part in (*parts.unbind(-1), parts.sum(-1), _rescaled(r, d))]
    layers = out.any(-1).double()
    later = (1 - out) * (layers.cumsum(1) > layers)[..., None]
    for scores in ((d.post, d.post_frozen), _along_final(r, sets)):
        free, held = (each[:, 1:].double() - each[:, :1].double() for each in scores)
        lost = -(held * out).sum((-2, -1))
        found += [(lost, (gained * later).sum((-2, -1))) for gained in (free, held)]
    return torch.stack([torch.stack(pair, -1) for pair in found], 2)


def _rescaled(r: Ready, d: Direct) -> Float[Tensor, "n k"]:
    """What each variant's own scale adds to the logit difference. Writes that are in every variant alike (embeddings,
    biases) are rescaled too."""
    f, tokens = r.clean, torch.stack([r.asked.right, d.rival.to(r.asked.right)], 1).to(r.clean.final.device)
    both = f.logits(f.final[:, None], tokens)[:, 0] - f.unembed_bias[tokens]
    changing = d.heads.double().sum((-2, -1)) + d.mlps.double().sum(-1)
    frozen = (both[:, 0] - both[:, 1]).double().cpu()[:, None] + changing - changing[:, :1]
    return (frozen * (d.scale[:, :1] / d.scale) - frozen)[:, 1:]


@torch.no_grad()
def _along_final(r: Ready, sets: Sequence[Sequence[Head]]) -> tuple[Tensor, Tensor]:
    """What each head writes along the final stream over that stream's scale, ``[n, k_1, n_layers, n_heads]`` as of
    :attr:`~talking_heads_utils.experiments.icl.swaps.Direct.post`: both of the changed run, and both of the untouched
    one, which is variant 0."""
    f, found = r.clean, []
    out, every = marked(f, [(), *sets])[0].to(f.final.device), {(Z, layer) for layer in range(f.n_layers)}
    for rows in batches.blocks(len(f.end), max(1, N_AT_ONCE // len(out))):
        instead, seen = values(r.twin, every, r.twin.at_end(), rows), list[Tensor]()

        def change(site: str, layer: int, value: Tensor, instead: dict = instead, seen: list = seen) -> Tensor:
            if site != Z:
                return value
            z = torch.where(out[:, layer, None, :, None], instead[Z, layer][:, None], value)
            seen.append(z[:, :, 0])
            return z

        x = f.resid[rows, None, None].expand(-1, len(out), -1, -1)
        final = f.run(x, f.at_end(), change=change, rows=rows)[:, :, 0]
        found.append([scores.cpu() for scores in written_along(f, final, seen)])
    free, held = map(torch.cat, zip(*found))
    return free, held


def measure(r: Ready, picked: Picked, *, seed: int = 0) -> Measured:
    """What is lost and recovered in one task. Raises :class:`OptionError` for prompts of fewer than two clusters."""
    outs = outs_of(picked, seed)
    sets = list(dict.fromkeys(out.heads for out in outs))
    means = drawn_means(changes(r, sets, kinds_of(picked)), r.asked.clusters, seed=seed)
    at = torch.tensor([sets.index(out.heads) for out in outs])
    return Measured(r.asked.task.name, outs, means[:, at], len(r.asked))


# --- rows ---


def rows_of(model: str, found: Sequence[Measured], *, seed: int = 0) -> list[BackupRow]:
    """Each task's rows; of two tasks or more also those over tasks, for sets that all of them have."""
    rows = list[BackupRow]()
    for task in found:
        for out, means in zip(task.outs, task.means.unbind(1)):
            named = " ".join(map(str, out.heads))
            rows += _rows(model, task.task, out, len(out.heads), named, means, task.n)
    alike = {(out.draw, out.alone): out for out in found[0].outs} if len(found) > 1 else {}
    for key, out in alike.items():
        at = [[i for i, each in enumerate(task.outs) if (each.draw, each.alone) == key] for task in found]
        if all(at):
            sizes = [len(task.outs[i].heads) for task, some in zip(found, at) for i in some]
            means = drawn_over_tasks([task.means[:, some].sum(1) for task, some in zip(found, at)], seed=seed)
            rows += _rows(model, OVER_TASKS, out, round(sum(sizes) / len(sizes)), "", means, len(found))
    return rows


def _rows(
    model: str, task: str, out: Out, n_heads: int, named: str, means: Float[Tensor, "n_draws_1 who 2"], n: int
) -> Iterator[BackupRow]:
    are = Set.CHOSEN if out.draw is None else Set.MATCHED
    for who, draws in zip(Who, means.unbind(1)):
        lost, recovered = draws[0].tolist()
        clear = ends(draws[:, 0]).low > 0
        share = ends(draws[:, 1] / draws[:, 0].clamp(min=1e-9)).numbers if clear else (None, None, None)
        yield BackupRow(
            model, task, are.value, out.draw, n_heads, out.alone, named, who.value, lost, recovered, *share, n
        )  # type: ignore[call-arg]


def run(c: Context) -> list[BackupRow]:
    picked, n = c.kept(picks), c.n(N_HELD, 20)
    found = [
        measure(ready(c, task.ask(c, n, HELD_OUT)), picked[task.name], seed=seed)
        for seed, task in enumerate(follow(tasks(c), "tasks"), 1000 * c.seed)
        if picked[task.name].chosen
    ]
    return rows_of(c.model, found, seed=c.seed)
