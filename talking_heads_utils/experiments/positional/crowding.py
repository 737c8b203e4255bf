"""Do crowded points cost accuracy? Distances beside errors, then the cloud made wider or narrower.

A list's *point* is its three coordinates in the triple's span at ``end``, entering the lowest mover's layer. Its
*margin* is how far it lies from the nearest other index's mean, less how far from its own, in spreads within an index;
means and spread are those of the selection lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import drawn_test, numbered
from talking_heads_utils.experiments.inhibition.shifts import MOST
from talking_heads_utils.experiments.list_prompts import EACH_INDEX, Lists, Part, check_each_index
from talking_heads_utils.experiments.positional.conditional import (
    conditional_slope,
    dealt_over_errors,
    dealt_within_index,
)
from talking_heads_utils.experiments.positional.ends import Ends, Listed, listed
from talking_heads_utils.experiments.positional.grid import answer
from talking_heads_utils.experiments.positional.subspace import Chosen, K, Subspace, basis, chosen, shown_lengths
from talking_heads_utils.experiments.positional.subspace import lengths as asked_lengths
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import Interval, Z, middle, points, share, share_change

LENGTHS = (4, 6, 8)  # of lists, where the model was trained on them or is shown with them
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
N_LISTS, N_MATCHED_LISTS = 1000, 200  # to score, to score matched triples on
N_FIT, N_FIT_SHOWN = 800, 400  # that choose, and that do where a length is only shown
BLOCK = 5000  # lists times variants that run together
ACCURACY, SLOPE, NEIGHBOURS, NEAREST = "accuracy", "slope", "neighbours", "nearest"


@dataclass(frozen=True)
class CrowdingRow(ModelRow):
    """Errors beside distances: how far a list's point lies from the nearest other index's mean, fitted on other lists,
    less that from its own."""

    n_items: int = column("items", "length of the lists")
    statistic: str = column("", "accuracy: of a quarter of the lists; slope: of the log-odds of being right on the "
                            "margin, within index, wording and order, per standard deviation; neighbours: share of "
                            "errors that go to an index next to the answer's, less that of wrong answers dealt anew "
                            "over the errors; nearest: share of errors that go to the other index whose mean lies "
                            "nearest, less that of wrong answers dealt anew within the answer's index")  # fmt: skip
    quarter: int | None = column("", "of lists by margin within index, 1 the most crowded; empty for other statistics")
    value: float = column("", "of the statistic")
    low: float = column("", "95% interval over lists, lower end")
    high: float = column("", "upper end")
    p: float | None = column("", "slope: share of matched triples, this one included, with as steep a one; neighbours, "
                             "nearest: by permutation")  # fmt: skip
    n_draws: int | None = column("", "triples or permutations behind p")
    n: int = column("prompts", "lists, or errors")


@dataclass(frozen=True)
class ScaleRow(ModelRow):
    """The deviations of all lists' coordinates from their mean are scaled, blind to the answer."""

    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "chosen; matched: triples with as long a shift, mean over draws and their 2.5% and "
                           "97.5% points")  # fmt: skip
    scale: float = column("", "of the deviations; 1 changes nothing, 0 puts all lists at one point")
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    change: float = column("points", "of accuracy, against no scaling, paired")
    change_low: float = column("points", "95% interval, lower end")
    change_high: float = column("points", "upper end")
    spread: float = column("share", "largest less smallest accuracy over the answer's indices")
    p: float | None = column("", "share of matched triples, this one included, with as large a rise, for a scale below "
                             "1 as large a fall, on the lists that these were run on; of chosen alone")  # fmt: skip
    n_draws: int | None = column("triples", "matched ones")
    n: int = column("prompts", "lists")


class Cloud(NamedTuple):
    """Where lists of each index lie: their means, and what makes the spread within an index one."""

    means: Float[Tensor, "*sets n_items k"]
    whiten: Float[Tensor, "*sets k k"]

    @classmethod
    def of(cls, points: Float[Tensor, "*sets n k"], index: Int[Tensor, "n"]) -> Cloud:
        points = points.double()
        own = torch.nn.functional.one_hot(index).double()
        means = (own.T @ points) / own.sum(0)[:, None]
        within = points - own @ means
        spread = within.mT @ within / (len(index) - own.shape[1])
        least = 1e-9 * spread.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-12
        spread = spread + least[..., None, None] * torch.eye(spread.shape[-1], dtype=spread.dtype)
        return cls(means, torch.linalg.cholesky(torch.linalg.inv(spread)))

    def distances(self, points: Float[Tensor, "*sets n k"]) -> Float[Tensor, "*sets n n_items"]:
        """From every index's mean, in spreads within an index."""
        return torch.cdist(points.double() @ self.whiten, self.means @ self.whiten)


def margins(distances: Float[Tensor, "*sets n n_items"], index: Int[Tensor, "n"]) -> Float[Tensor, "*sets n"]:
    """Distance from the nearest other index's mean, less that from the answer's own."""
    own = torch.nn.functional.one_hot(index, distances.shape[-1]).bool()
    return distances.masked_fill(own, torch.inf).amin(-1) - (distances * own).sum(-1)


# --- lists, run ---


def enough(c: Context, part: Part, n_items: int, usual: int) -> Listed:
    """Lists, run once per context. Raises :class:`TaskError` for too few of an index."""
    lists = Lists(part, n_items, c.n(usual))
    check_each_index(c.kept(lists), c.n(EACH_INDEX, 5))
    return c.kept(listed, lists)


def selection(c: Context, n_items: int) -> Listed:
    """The lists that choose, run once per context."""
    return enough(c, Part.SELECTION, n_items, N_FIT if n_items in asked_lengths(c) else N_FIT_SHOWN)


def lengths(c: Context) -> list[int]:
    """Those of :data:`LENGTHS` that are shown of a model."""
    return [n for n in LENGTHS if n in shown_lengths(c)]


def triples(of: Chosen) -> Float[Tensor, "1+n_draws 3 d_model"]:
    """The chosen three directions, then the matched ones."""
    return torch.cat([of.directions[None, :K], of.matched])


# --- errors beside distances ---


def run_margins(c: Context) -> list[CrowdingRow]:
    """Raises :class:`NotApplicable` as :func:`~talking_heads_utils.experiments.positional.subspace.chosen` does. Where
    fewer than two lists are answered wrongly, nothing is said of errors."""
    bases, rows = basis(triples(c.kept(chosen))), list[CrowdingRow]()
    for n_items in lengths(c):
        fitted, at = selection(c, n_items).ends, enough(c, Part.HELD_OUT, n_items, N_LISTS).ends
        fits, own = ((ends.stream @ bases.mT).cpu() for ends in (fitted, at))
        distances = Cloud.of(fits, fitted.index.cpu()).distances(own)
        rows += margin_rows(c.model, distances, at.logits(at.stream[:, None])[:, 0].cpu(), at.prompts, c.seed)
    return rows


def margin_rows(
    model: str, distances: Float[Tensor, "1+n_draws n n_items"], logits: Float[Tensor, "n n_items"], prompts: PromptSet,
    seed: int,
) -> list[CrowdingRow]:  # fmt: skip
    """distances: from every index's mean, of the chosen triple, then of the matched ones."""
    index = torch.as_tensor(prompts.info["index"])
    right, margin, n_items = answer(logits) == index, margins(distances, index), logits.shape[1]

    def row(
        statistic: str, found: Interval, p: float | None = None, n_draws: int | None = None, quarter: int | None = None
    ) -> CrowdingRow:  # fmt: skip
        return CrowdingRow(model, n_items, statistic, quarter, found.mean, found.low, found.high, p, n_draws, found.n)

    quarters = quarters_within(margin[0], index)
    rows = [row(ACCURACY, share(right[quarters == q]), quarter=q + 1) for q in range(4)]
    strata = numbered(zip(*(prompts.info[name] for name in ("index", "wording", "order"))))
    slope = conditional_slope(margin / margin.std(-1, keepdim=True), right, strata)
    value, reach = slope.value[0].item(), Z * slope.error[0].item()
    test = drawn_test(value, slope.value[1:])
    rows.append(row(SLOPE, Interval(value, value - reach, value + reach, len(right)), test.p, test.n))
    given = logits.argmax(1)
    if (wrong := given != index).sum() < 2:
        return rows
    given, answers = given[wrong], index[wrong]
    own = torch.nn.functional.one_hot(answers, n_items).bool()
    nearest = distances[0, wrong].masked_fill(own, torch.inf).argmin(1)
    for name, dealt, hits in (
        (NEIGHBOURS, dealt_over_errors(answers, given, seed), lambda to: (to - answers).abs() == 1),
        (NEAREST, dealt_within_index(answers, given, seed), lambda to: to == nearest),
    ):
        found, test = share(hits(given)), drawn_test(hits(given).double().mean().item(), hits(dealt).double().mean(1))
        less = test.null_mean
        rows.append(
            row(name, Interval(found.mean - less, found.low - less, found.high - less, found.n), test.p, test.n)
        )
    return rows


def quarters_within(margin: Float[Tensor, "n"], index: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Which quarter of the lists of its answer's index each is in, 0 with the smallest margins."""
    quarter = torch.empty_like(index)
    for i in index.unique():
        rows = (index == i).nonzero().flatten()
        quarter[rows[margin[rows].argsort()]] = 4 * torch.arange(len(rows)) // len(rows)
    return quarter


# --- the cloud made wider or narrower ---


class Spans(NamedTuple):
    """Subspaces, the point about which deviations are scaled in each, and how many times a deviation is made longer:
    all have the first one's mean squared length then, but for :data:`MOST`."""

    bases: Float[Tensor, "t k d_model"]
    centres: Float[Tensor, "t k"]
    longer: Float[Tensor, "t"]

    @classmethod
    def of(cls, directions: Float[Tensor, "t k d_model"], stream: Float[Tensor, "n d_model"]) -> Spans:
        """stream: of the lists that choose, whatever their answers."""
        bases = basis(directions)
        points = stream @ bases.mT
        centres = points.mean(1)
        energy = (points - centres[:, None]).square().sum(-1).mean(1)
        longer = (energy[0] / energy.clamp(min=1e-30)).sqrt().clamp(max=MOST)
        return cls(bases, centres, longer)

    def deviations(self, stream: Float[Tensor, "n d_model"]) -> Float[Tensor, "n t d_model"]:
        """What each list's point is off the centre, in the stream."""
        points = torch.einsum("nd,tkd->ntk", stream, self.bases) - self.centres
        return torch.einsum("ntk,tkd->ntd", points * self.longer[:, None], self.bases)

    def logits(self, at: Ends, scales: Sequence[float], rows: slice = slice(None)) -> Float[Tensor, "n t s n_items"]:
        """The candidates' logits with the deviations scaled."""
        added, found = torch.tensor(scales).to(at.stream) - 1, list[Tensor]()
        which = torch.arange(len(at), device=at.stream.device)[rows]
        for some in which.split(max(1, BLOCK // (len(self.bases) * len(scales)))):
            shifts = added[:, None] * self.deviations(at.stream[some])[:, :, None]
            found.append(at.logits((at.stream[some, None, None] + shifts).flatten(1, 2), some))
        return torch.cat(found).unflatten(1, (len(self.bases), len(scales)))


@dataclass(frozen=True)
class Scaled:
    """Which lists are answered under :data:`SCALES`: the chosen triple's on all, the matched ones' on some of these.
    logits: of the chosen triple's."""

    prompts: PromptSet
    index: Int[Tensor, "n"]
    logits: Float[Tensor, "n scales n_items"]
    matched: Bool[Tensor, "some n_draws scales"]

    @property
    def right(self) -> Bool[Tensor, "n scales"]:
        return answer(self.logits) == self.index[:, None]


def scaled(c: Context, n_items: int) -> Scaled:
    """Held-out lists of one length: use ``c.kept(scaled, n_items)``."""
    stream, at = selection(c, n_items).ends.stream, enough(c, Part.HELD_OUT, n_items, N_LISTS).ends
    spans, some = Spans.of(triples(c.kept(chosen)), stream), slice(0, c.n(N_MATCHED_LISTS))
    own, others = (Spans(*(part[which] for part in spans)) for which in (slice(0, 1), slice(1, None)))
    logits, plain = own.logits(at, SCALES)[:, 0], SCALES.index(1)
    matched = torch.empty(len(range(len(at))[some]), len(others.bases), len(SCALES), dtype=torch.bool)
    changed = [s for s in range(len(SCALES)) if s != plain]
    found = others.logits(at, [SCALES[s] for s in changed], some)
    matched[..., changed] = at.right(found.flatten(1, 2), some).view(found.shape[:3]).cpu()
    matched[..., plain] = at.right(logits[some, plain, None], some).cpu()
    return Scaled(at.prompts, at.index.cpu(), logits.cpu(), matched)


def run_scales(c: Context) -> list[ScaleRow]:
    """Raises :class:`NotApplicable` as :func:`~talking_heads_utils.experiments.positional.subspace.chosen` does."""
    return [row for n_items in lengths(c) for row in scale_rows(c.model, c.kept(scaled, n_items))]


def scale_rows(model: str, of: Scaled) -> list[ScaleRow]:
    """The chosen triple's, then the matched ones' mean."""
    right, n_items, some = of.right, of.logits.shape[2], len(of.matched)
    plain, rows = right[:, SCALES.index(1)], list[ScaleRow]()
    for s, scale in enumerate(SCALES):
        own, matched = right[:, s], of.matched[..., s].double()
        change = (matched - plain[:some, None].double()).mean(0)
        sign = 1 if scale > 1 else -1
        test = drawn_test(sign * (own[:some].double() - plain[:some].double()).mean().item(), sign * change)
        gain = share_change(own, plain) if scale != 1 else Interval(0.0, 0.0, 0.0, len(own))
        rows += [
            ScaleRow(model, n_items, Subspace.CHOSEN, scale, *share(own)[:3], *points(gain),
                     spread_over(own, of.index).item(), None if scale == 1 else test.p, test.n, len(own)),
            ScaleRow(model, n_items, Subspace.MATCHED, scale, *over_draws(matched.mean(0)), *over_draws(100 * change),
                     spread_over(of.matched[..., s], of.index[:some]).mean().item(), None, test.n, some),
        ]  # fmt: skip
    return rows


def over_draws(values: Float[Tensor, "n_draws"]) -> tuple[float, float, float]:
    """Mean, 2.5% and 97.5% points."""
    return values.mean().item(), *middle(values)


def by_index(right: Bool[Tensor, "n *sets"], index: Int[Tensor, "n"]) -> Float[Tensor, "n_items *sets"]:
    """Accuracy over the lists of each answer's index."""
    return torch.stack([right[index == i].double().mean(0) for i in index.unique()])


def spread_over(right: Bool[Tensor, "n *sets"], index: Int[Tensor, "n"]) -> Float[Tensor, "*sets"]:
    """Largest less smallest accuracy over the answer's indices."""
    found = by_index(right, index)
    return found.amax(0) - found.amin(0)
