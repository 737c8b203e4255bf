"""Moving the point by hand: which item the movers attend to, and whether the answer follows.

A multiple of each component's write direction is added at ``end`` where the component writes. Each axis reaches twice
as far as the farthest list's coordinate lies from the mean, on the lists that choose. Attention is that of the movers
to the items, as shares of their attention to all items, mean over the movers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import drawn_test
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.ends import Listed, listed
from talking_heads_utils.experiments.positional.grid import ATTENTION, LOGITS, Steering, answer, grid, steer
from talking_heads_utils.experiments.positional.subspace import K, chosen, nearest_lengths
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.labels import Head
from talking_heads_utils.progress import follow
from talking_heads_utils.stats import summary

LENGTHS = 4, 6
N_CHOOSE, N_SCORE, N_MAP, N_LINE = 60, 100, 60, 200  # lists of a length
ON_LINE, ON_MAP, ON_REACH = 21, 11, 5  # values on an axis
FAR = 2  # reach of an axis, in its farthest list's distance from the mean
RANDOM = "random"


@dataclass(frozen=True)
class LineRow(ModelRow):
    """One component moved alone."""

    n_items: int = column("items", "length of the lists")
    component: str = column("", "that is moved, in its own layer, at end; random: a random direction, as far")
    amount: float = column("standard deviations", "that is added along its direction")
    list_index: int = column("", "of the item, from 0")
    attention: float = column(
        "share", "of the movers' attention to all items that goes to this one, mean over movers and lists"
    )
    attention_low: float = column("share", "95% interval over lists, lower end")
    attention_high: float = column("share", "upper end")
    answered: float = column("share", "lists answered with this item")
    answered_low: float = column("share", "95% interval, lower end")
    answered_high: float = column("share", "upper end")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class MapRow(ModelRow):
    """One setting of the grid."""

    n_items: int = column("items", "length of the lists")
    first: float = column("standard deviations", "added along the first component's direction")
    second: float = column("standard deviations", "along the second's")
    third: float = column("standard deviations", "along the third's")
    attended: int = column("list index", "item with the most of the movers' attention, mean over lists")
    attention: float = column("share", "of the movers' attention to all items, that this one has")
    answer: int = column("list index", "item that is answered most often")
    answered: float = column("share", "lists answered with it")
    right: float = column("share", "lists answered rightly")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class ReachRow(ModelRow):
    """For each index the setting that brings most attention there, chosen on one half, scored on the other."""

    n_items: int = column("items", "length of the lists")
    list_index: int = column("", "where attention is to be brought, from 0")
    plain: float = column("share", "of the movers' attention to all items, there, unsteered")
    steered: float = column("share", "the same under the chosen setting")
    low: float = column("share", "95% interval over lists, lower end")
    high: float = column("share", "upper end")
    plain_answered: float = column("share", "lists answered with the item there, unsteered")
    answered: float = column("share", "the same under the chosen setting")
    answered_low: float = column("share", "95% interval over lists, lower end")
    answered_high: float = column("share", "upper end")
    matched: float = column("share", "attention along matched triples, moved as far, chosen likewise: 95% point")
    p: float = column("", "share of matched triples, this one included, that bring as much attention there")
    mean_p: float = column("", "the same of the mean over all indices; alike in all rows")
    n_draws: int = column("triples", "matched ones")
    n: int = column("prompts", "held-out lists")


class Moved(NamedTuple):
    """What some settings do to n lists."""

    attention: Float[Tensor, "n n_settings n_items"]
    answered: Bool[Tensor, "n n_settings n_items"]  # with which item, if one alone has the largest logit


class Axes(NamedTuple):
    """Of each component's coordinate, on the lists that choose: standard deviation and reach, in stream units."""

    spread: Float[Tensor, "3"]
    reach: Float[Tensor, "3"]

    def settings(self, n_values: int) -> Float[Tensor, "n_settings 3"]:
        """A grid from one end of each axis to the other."""
        return grid(_line(n_values), K) * self.reach


def _line(n_values: int) -> list[float]:
    """An odd number of values from -1 to 1, zero exactly in the middle."""
    half = n_values // 2
    return [(i - half) / half for i in range(n_values)]


def lists(c: Context, part: Part, n_items: int, usual: int) -> Listed:
    """Run once per context."""
    return c.kept(listed, Lists(part, n_items, c.n(usual)))


def axes(c: Context, n_items: int) -> Axes:
    """Coordinates are those of the stream that enters the lowest mover's layer."""
    to_choose = lists(c, Part.SELECTION, n_items, N_CHOOSE)
    points = (to_choose.ends.stream @ to_choose.steering.directions.T).cpu()
    return Axes(points.std(0), FAR * (points - points.mean(0)).abs().amax(0))


def attention(
    steering: Steering, settings: Float[Tensor, "n_settings 3"], movers: tuple[Head, ...]
) -> Float[Tensor, "n n_settings n_items"]:
    """Share of each item among all items, mean over the movers."""
    return steer(steering, settings, movers=movers)[ATTENTION].mean(2).cpu()


def moved(
    steering: Steering, settings: Float[Tensor, "n_settings 3"], movers: tuple[Head, ...], n_lists: int | None = None
) -> Moved:
    """The first ``n_lists`` under each setting."""
    found = steer(steering, settings, movers=movers, logits=True, rows=slice(n_lists))
    logits = found[LOGITS].cpu()
    return Moved(found[ATTENTION].mean(2).cpu(), answer(logits)[..., None] == torch.arange(logits.shape[-1]))


def brought(
    choose: Steering, score: Steering, settings: Float[Tensor, "n_settings 3"], movers: tuple[Head, ...]
) -> tuple[Float[Tensor, "n_items 3"], Float[Tensor, "n n_items"]]:
    """For each item the setting that brings most attention there on the lists that choose, to two digits, of equal ones
    the one that moves least; and what it brings on the lists that are scored."""
    settings = settings[settings.norm(dim=1).argsort(stable=True)]
    best = settings[attention(choose, settings, movers).mean(0).round(decimals=2).argmax(0)]
    return best, attention(score, best, movers).diagonal(dim1=1, dim2=2)


def run_line(c: Context) -> list[LineRow]:
    """Raises :class:`NotApplicable` as :func:`~subspace.chosen` does."""
    at, rows = c.kept(chosen), list[LineRow]()
    random = torch.randn(1, at.directions.shape[1], generator=torch.Generator().manual_seed(c.seed))
    random = torch.nn.functional.normalize(random, dim=1).to(at.directions)
    for n_items in nearest_lengths(c, *LENGTHS):
        steering, on = lists(c, Part.HELD_OUT, n_items, N_LINE).steering, axes(c, n_items)
        elsewhere = replace(steering, directions=torch.cat([random, steering.directions[1:]]))
        for name, of, k in [*((str(w), steering, k) for k, w in enumerate(at.writers[:K])), (RANDOM, elsewhere, 0)]:
            settings = torch.tensor(_line(ON_LINE))[:, None] * on.reach * torch.eye(K)[k]
            found = moved(of, settings, at.movers)
            seen, said = (summary(v.flatten(1), hits=v.dtype == torch.bool) for v in found)
            ends = torch.stack([*seen[:3], *said[:3]], 1).view(ON_LINE, n_items, -1).tolist()
            rows += [
                LineRow(c.model, n_items, name, amount, i, *[*ends[a][i], seen.n])
                for a, amount in enumerate((settings[:, k] / on.spread[k]).tolist())
                for i in range(n_items)
            ]
    return rows


def run_map(c: Context) -> list[MapRow]:
    """Raises :class:`NotApplicable` as :func:`~subspace.chosen` does."""
    at, rows, n = c.kept(chosen), list[MapRow](), c.n(N_MAP)
    for n_items in nearest_lengths(c, *LENGTHS):
        of, on = lists(c, Part.HELD_OUT, n_items, N_LINE), axes(c, n_items)
        settings, index = on.settings(ON_MAP), of.ends.index[:n].cpu()
        found = moved(of.steering, settings, at.movers, n)
        (share, item), (answers, answer) = (values.double().mean(0).max(-1) for values in found)
        right = found.answered[torch.arange(n), :, index].double().mean(0)
        columns = (*(settings / on.spread).T, item, share, answer, answers, right)
        rows += [MapRow(c.model, n_items, *[*row, n]) for row in zip(*(values.tolist() for values in columns))]
    return rows


def run_reach(c: Context) -> list[ReachRow]:
    """Raises :class:`NotApplicable` as :func:`~subspace.chosen` does."""
    at, rows = c.kept(chosen), list[ReachRow]()
    for n_items in nearest_lengths(c, *LENGTHS):
        choose, score = (
            lists(c, part, n_items, n).steering for part, n in ((Part.SELECTION, N_CHOOSE), (Part.HELD_OUT, N_SCORE))
        )
        settings = axes(c, n_items).settings(ON_REACH)
        best, there = brought(choose, score, settings, at.movers)
        drawn = torch.stack([
            _mean(brought(replace(choose, directions=along), replace(score, directions=along), settings, at.movers)[1])
            for along in follow(list(at.matched), "matched triples")
        ])  # fmt: skip
        before, after = (moved(score, s, at.movers) for s in (torch.zeros(1, K), best))
        steered, said = summary(there), summary(after.answered.diagonal(dim1=1, dim2=2), hits=True)
        whole = drawn_test(_mean(there).mean().item(), drawn.mean(1))
        for i, share in enumerate(_mean(there).tolist()):
            test = drawn_test(share, drawn[:, i])
            plain, plain_said = (values[:, 0, i].double().mean().item() for values in before)
            rows.append(
                ReachRow(
                    c.model, n_items, i, plain, steered.mean[i].item(), steered.low[i].item(), steered.high[i].item(),
                    plain_said, said.mean[i].item(), said.low[i].item(), said.high[i].item(), test.null_high, test.p,
                    whole.p, whole.n, steered.n,
                )
            )  # fmt: skip
    return rows


def _mean(shares: Float[Tensor, "n n_items"]) -> Float[Tensor, "n_items"]:
    """To four digits: where nothing moves, all that differs is rounding, and no test may make anything of that."""
    return shares.double().mean(0).round(decimals=4)
