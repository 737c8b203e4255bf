"""How few heads suffice: all others at the twin's values at the last token, where the run is then the twin's but for
what these few read.

A set is grown head by head on the selection half, each time by the one that raises the log-odds most, until it keeps
enough of the accuracy, and is scored on the held-out half. So a smaller set may exist; none is overlooked that is found
this way. Then the same without its heads: how many such sets there are is how redundant heads are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.experiments.icl.clusters import drawn_means, ends
from talking_heads_utils.experiments.icl.swaps import Into, Ready, Where, every_ready, exchanged, ready
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.lists import SELECTION

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

ENOUGH = 0.9  # of the accuracy with nothing exchanged
MOST_HEADS, MOST_SETS = 12, 3
N_TRIED = 40  # heads that may be added, the best by denoising
N_RANDOM = 10  # sets of random heads
N_SELECT, N_HELD, N_EVERYWHERE = 32, 100, 40  # prompts of a task


@dataclass(frozen=True)
class SufficientRow(ModelRow):
    """Accuracy with some heads left as they are and all others exchanged."""

    task: str = column("", "task")
    which: int = column("", "1 for the first set, 2 for the next one without its heads, and so on; 0 for random heads")
    draw: int | None = column("", "of random heads")
    n_heads: int = column("heads", "left as they are")
    head: str = column("", "the one that was added last; of random heads all")
    suffices: bool = column("", "whether it is the smallest that keeps 90% of the accuracy on the selection half")
    selected: float = column("share", "right answers on the selection half, over those with nothing exchanged")
    kept: float = column("share", "the same on the held-out half")
    low: float = column("share", "95% interval over prompts, lower end")
    high: float = column("share", "upper end")
    accuracy: float = column("share", "right answers on the held-out half")
    everywhere: float | None = column("share", "kept with all others exchanged at all positions, first 40 prompts; of "
                                      "sets that suffice")  # fmt: skip
    without: float | None = column("share", "kept with only this set exchanged; of sets that suffice")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class Grown:
    """A set as it grew. heads: in the order in which they were added. selected: accuracy on the selection half over
    that with nothing exchanged, with none of them and after each."""

    heads: list[Head]
    selected: list[float]

    @property
    def suffices(self) -> bool:
        return self.selected[-1] >= ENOUGH


def grow(select: Ready, order: Sequence[Head]) -> Grown:
    """The set that grows out of the first :data:`N_TRIED` of these heads until it keeps enough or has
    :data:`MOST_HEADS`; none of a model that has no right answer to keep."""
    right = lambda said: said.right(select.asked).double().mean(0)  # noqa: E731
    before = right(exchanged(select, [[]])).item()
    if not before:
        return Grown([], [0.0])
    left, heads = list(order[:N_TRIED]), list[Head]()
    selected = [right(exchanged(select, [[]], rest=True)).item() / before]
    while left and len(heads) < MOST_HEADS and selected[-1] < ENOUGH:
        said = exchanged(select, [[*heads, head] for head in left], rest=True)
        best = int(said.log_odds.double().mean(0).argmax())
        selected.append(right(said)[best].item() / before)
        heads.append(left.pop(best))
    return Grown(heads, selected)


def disjoint(select: Ready) -> list[Grown]:
    """One set after the other, each of heads that are in none before, up to the first that does not suffice. Heads at
    whose prompt's value the twin gains most log-odds are tried first."""
    every, found = heads_in(range(select.clean.n_layers), select.clean.n_heads), list[Grown]()
    gained = exchanged(select, [[head] for head in every], into=Into.TWIN).log_odds.double().mean(0)
    order = [every[i] for i in gained.argsort(descending=True, stable=True).tolist()]
    while len(found) < MOST_SETS and (not found or found[-1].suffices):
        used = [head for grown in found for head in grown.heads]
        found.append(grow(select, [head for head in order if head not in used]))
    return found


def random_sets(r: Ready, size: int, without: Sequence[Head], seed: int) -> list[list[Head]]:
    """Sets of so many heads, drawn from all but some."""
    others = [head for head in heads_in(range(r.clean.n_layers), r.clean.n_heads) if head not in without]
    generator = torch.Generator().manual_seed(seed)
    return [[others[i] for i in torch.randperm(len(others), generator=generator)[:size].tolist()]
            for _ in range(N_RANDOM)]  # fmt: skip


class Kept(NamedTuple):
    """Right answers of sets over those with nothing exchanged, with 95% intervals over prompts, and accuracies."""

    share: Float[Tensor, "k"]
    low: Float[Tensor, "k"]
    high: Float[Tensor, "k"]
    accuracy: Float[Tensor, "k"]


def kept(
    r: Ready, sets: Sequence[Sequence[Head]], *, rest: bool = True, where: Where = Where.END, n: int | None = None,
    seed: int = 0,
) -> Kept:  # fmt: skip
    """With all heads but those of a set exchanged, of the first ``n`` prompts; with rest=False with those of the
    set."""
    before, right = exchanged(r, [[]], n=n), exchanged(r, sets, rest=rest, where=where, n=n)
    both = torch.cat([said.right(r.asked) for said in (before, right)], 1)
    draws = drawn_means(both, r.asked.clusters[:n], seed=seed)
    return Kept(*ends(draws[:, 1:] / draws[:, :1].clamp(min=1e-9)), draws[0, 1:])


def rows_of(
    select: Ready, held: Ready, *, model: str, n_everywhere: int = N_EVERYWHERE, seed: int = 0
) -> Iterator[SufficientRow]:
    """One task's rows: chosen by ``select``, scored by ``held``. Raises :class:`OptionError` for prompts of fewer than
    two clusters."""
    found = disjoint(select)
    drawn = random_sets(held, len(found[0].heads), found[0].heads, seed)
    about: list[tuple[int, int | None, list[Head], float]]
    about = [(which, None, grown.heads[:k], selected)
             for which, grown in enumerate(found, 1) for k, selected in enumerate(grown.selected)]  # fmt: skip
    on_selection = zip(drawn, kept(select, drawn).share.tolist())
    about += [(0, draw, heads, selected) for draw, (heads, selected) in enumerate(on_selection, 1)]
    scored = kept(held, [heads for _, _, heads, _ in about], seed=seed)
    enough = [grown.heads for grown in found if grown.suffices and grown.heads]
    everywhere = kept(held, enough, where=Where.ALL, n=n_everywhere).share.tolist() if enough else []
    without = kept(held, enough, rest=False).share.tolist() if enough else []
    for (which, draw, heads, selected), *values in zip(about, *(part.tolist() for part in scored)):
        suffices = which > 0 and found[which - 1].suffices and heads == found[which - 1].heads
        added = heads if draw else heads[-1:]
        others = (everywhere[which - 1], without[which - 1]) if suffices and heads else (None, None)
        yield SufficientRow(  # type: ignore[call-arg]
            model, held.asked.task.name, which, draw, len(heads), " ".join(map(str, added)), suffices, selected,
            *values, *others, len(held.asked),
        )  # fmt: skip


def run(c: Context) -> list[SufficientRow]:
    rows = list[SufficientRow]()
    for held in every_ready(c, c.n(N_HELD, 20)):
        select = ready(c, held.asked.task.ask(c, c.n(N_SELECT, 16), SELECTION))
        rows += rows_of(select, held, model=c.model, n_everywhere=c.n(N_EVERYWHERE, 10), seed=c.seed)
    return rows
