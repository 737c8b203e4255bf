"""Worlds of lists whose truth is known: tables as chapter 2's experiments would give them, drawn list by list.

As in :mod:`talking_heads_utils.experiments.worlds`, each function draws ``n`` worlds of one cell and gives what is
measured in each by the very measure of the claim. Lists are of six items, where two lengths are needed of four too.
A model answers half of those of four and a third of those of six, as the gate found of a real one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional import crowding, measures
from talking_heads_utils.experiments.positional.crowding import CrowdingRow, ScaleRow
from talking_heads_utils.experiments.positional.decoding import DecodingRow, Feature, Split
from talking_heads_utils.experiments.positional.interchange import LOGIT_DIFFERENCE, InterchangeRow
from talking_heads_utils.experiments.positional.order import OrderRow
from talking_heads_utils.experiments.positional.pairs import Donor
from talking_heads_utils.experiments.positional.steering import N_DRAWS, N_DRAWS_SCORE, GainRow, Method
from talking_heads_utils.experiments.positional.subspace import N_MATCHED, K, Subspace
from talking_heads_utils.experiments.positional.traversal import ReachRow
from talking_heads_utils.experiments.rows import Row, frame
from talking_heads_utils.experiments.rules import SCALE
from talking_heads_utils.experiments.verdicts import Measured, rank_p
from talking_heads_utils.experiments.worlds import Cell, Random, resampled, row
from talking_heads_utils.prompts.lists import KEPT, SHUFFLED
from talking_heads_utils.stats import Interval, share, share_change

N_ITEMS = 6
ACCURACY = {4: 0.52, 6: 0.33}
N_SCALED = 300  # lists on which matched triples are scaled and removed
N_BOOT = 400
N_DEALS = 199
ENDS = {"value": "mean", "low": "low", "high": "high"}
ANEW = 0.3  # share of the lists whose answer a shift deals anew


def hits(rng: Random, p: float, n: int) -> Interval:
    return share(torch.from_numpy(rng.random(n) < p))


def gain(rng: Random, before: float, by: float, churn: float, n: int) -> Interval:
    """Change of accuracy on n lists, in points: ``by`` in the mean; ``churn`` of the lists flip either way besides."""
    up, down = max(by, 0) + churn / 2, max(-by, 0) + churn / 2
    flip = rng.random(n)
    change = (flip < up).astype(float) - (flip > 1 - down)
    old = np.where(change > 0, 0.0, np.where(change < 0, 1.0, rng.random(n) < before))
    found = share_change(*(torch.from_numpy(part) for part in (old + change, old)))
    return Interval(100 * found.mean, 100 * found.low, 100 * found.high, n)


def triples(rng: Random, own: float, alike: bool, spread: float) -> tuple[float, ndarray]:
    """What the chosen triple does, and what matched ones do, before lists blur it: around nothing, or as if the chosen
    one were drawn among them."""
    drawn = rng.normal(size=N_MATCHED + 1) * spread + alike * own
    return (drawn[0] if alike else own), drawn[1:]


def indexes(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: share of lists whose index is decoded, above chance. noise: standard deviation of it between
    triples. ``index``: the chosen one holds the index, and little of the item. ``both``: as much of either. ``item``:
    the item alone. ``alike``: matched triples hold as much."""
    chance = 1 / N_ITEMS
    for _ in range(n):
        own, drawn = triples(rng, cell.effect_size, cell.world == "alike", cell.noise)
        of = {Feature.LIST_INDEX: own, Feature.IDENTITY: 0.2 * own}
        of[Feature.IDENTITY] *= 5 if cell.world in ("both", "item") else 1
        of[Feature.LIST_INDEX] *= cell.world != "item"
        found = {f: hits(rng, np.clip(chance + value, 0, 1), cell.n_prompts) for f, value in of.items()}
        matched = rng.binomial(cell.n_prompts, np.clip(chance + drawn, 0, 1)) / cell.n_prompts
        rest = dict(n_items=N_ITEMS, k=K, split=Split.WORDINGS, chance=chance, n=cell.n_prompts, n_draws=N_MATCHED)
        rows = [
            row(DecodingRow, subspace=Subspace.CHOSEN, feature=f, right=a.mean, low=a.low, high=a.high,
                p=rank_p(a.mean, matched), **rest)
            for f, a in found.items()
        ]  # fmt: skip
        low, high = np.quantile(matched, [0.025, 0.975])
        rows.append(row(DecodingRow, subspace=Subspace.MATCHED, feature=Feature.LIST_INDEX, right=matched.mean(),
                        low=low, high=high, **rest))  # fmt: skip
        yield measures.indexes(frame(rows))


def three_dimensions(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: what three dimensions do, of what ten do; these do 0.8 of what the whole stream does, 2 logits.
    noise: standard deviation over pairs, in that of the stream. ``even``: ten dimensions do alike, or nearly so.
    ``little``: ten do but a fifth of the stream's. ``item``: donors of other items move little, those of the same
    items all. ``alike``: matched triples do as much. ``none``: nothing moves anything."""
    weights = resampled(cell.n_prompts, N_BOOT, rng)
    stream = 0.0 if cell.world == "none" else 2.0
    ten = (0.2 if cell.world == "little" else 0.8) * stream
    for _ in range(n):
        own, drawn = triples(rng, cell.effect_size * ten, cell.world == "alike", 0.15 * max(stream, 1))
        effects = (own, ten, stream)
        rows = [each for n in ACCURACY for each in _interchanged(cell, n, weights, effects, drawn, rng)]
        yield measures.three_dimensions(frame(rows))


def _interchanged(
    cell: Cell, n_items: int, weights: Float[ndarray, "n_boot n"], effects: tuple[float, ...], drawn: ndarray,
    rng: Random,
) -> Iterator[Row]:  # fmt: skip
    n, blur = cell.n_prompts, cell.noise * 2
    part = 0.15 if cell.world == "item" else 1.0
    common = rng.normal(size=n)
    three, ten, stream = (
        part * effect + blur * (0.8 * effect / 2 * common + (0.3 + effect / 4) * rng.normal(size=n))
        for effect in effects
    )
    same = three / part if cell.world != "item" else effects[0] + blur * rng.normal(size=n) / 2
    matched = part * drawn + blur * 0.3 * rng.normal(size=len(drawn)) / n**0.5
    for subspace, donor, values in (
        (Subspace.CHOSEN, Donor.OTHER_ITEMS, three), (Subspace.CHOSEN, Donor.SAME_ITEMS, same),
        (Subspace.WHOLE_STREAM, Donor.OTHER_ITEMS, stream),
    ):  # fmt: skip
        means = {of: weights @ each for of, each in (("", values), ("of_ten", ten), ("of_stream", stream))}
        ends = {"": np.quantile(means[""], [0.025, 0.975])}
        ends |= {of: np.quantile(means[""] / means[of], [0.025, 0.975]) for of in ("of_ten", "of_stream")}
        yield row(
            InterchangeRow, n_items=n_items, subspace=subspace, k=K if subspace == Subspace.CHOSEN else 0, donor=donor,
            measure=LOGIT_DIFFERENCE, effect=values.mean(), low=ends[""][0], high=ends[""][1],
            of_stream=values.mean() / stream.mean(), of_stream_low=ends["of_stream"][0],
            of_stream_high=ends["of_stream"][1], of_ten=values.mean() / ten.mean(), of_ten_low=ends["of_ten"][0],
            of_ten_high=ends["of_ten"][1], matched=np.quantile(matched, 0.95), p=rank_p(values.mean(), matched),
            n_draws=N_MATCHED, n=n,
        )  # fmt: skip


def traversed(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: by how much attention to the item aimed at rises, and the share of lists answered with it.
    noise: standard deviation of the rise between triples. ``answers``: both, at every index. ``attention``: answers do
    not follow. ``two``: at the ends of the list alone. ``alike``: matched triples bring as much."""
    chance = 1 / N_ITEMS
    for _ in range(n):
        own, drawn = triples(rng, cell.effect_size, cell.world == "alike", cell.noise)
        reached = {"attention": [], "two": [0, N_ITEMS - 1]}.get(cell.world, range(N_ITEMS))
        plain = rng.dirichlet(np.full(N_ITEMS, 20.0))
        attention = own + rng.normal(size=N_ITEMS) * 0.03
        p = rank_p(attention.mean(), drawn + rng.normal(size=len(drawn)) * 0.03 / N_ITEMS**0.5)
        rows = []
        for i in range(N_ITEMS):
            luck, anew = rng.random((2, cell.n_prompts))
            before = share(torch.from_numpy(luck < plain[i]))
            luck = np.where(rng.random(cell.n_prompts) < ANEW, anew, luck)
            after = share(torch.from_numpy(luck < plain[i] + own * (i in reached)))
            rows.append(row(
                ReachRow, n_items=N_ITEMS, list_index=i, plain=chance, steered=chance + attention[i],
                plain_answered=before.mean, answered=after.mean, answered_low=after.low, answered_high=after.high,
                matched=chance + np.quantile(drawn, 0.95), p=p, mean_p=p, n_draws=N_MATCHED, n=cell.n_prompts,
            ))  # fmt: skip
        yield measures.traversed(frame(rows))


def errors_near(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: slope of the log-odds of being right on the margin, and three tenths of it the share of errors
    that go to the nearest index beyond chance. noise: standard deviation of the slope between triples. ``crowded``:
    both. ``far``: errors go anywhere. ``flat``: errors go to the nearest, whatever the margin. ``alike``: matched
    triples' margins tell as much."""
    by_chance = 1 / 3  # of the errors of one index, where one other index is nearest most often
    for _ in range(n):
        own, drawn = triples(rng, (cell.world != "flat") * cell.effect_size, cell.world == "alike", cell.noise)
        margin = rng.normal(size=cell.n_prompts)
        right = rng.random(cell.n_prompts) < 1 / (1 + np.exp(0.7 - own * margin))
        error = 1 / (right.mean() * (1 - right.mean()) * cell.n_prompts) ** 0.5
        slope = (margin * (right - right.mean())).sum() * error**2
        p = rank_p(slope, drawn + error * rng.normal(size=len(drawn)))
        wrong = int((~right).sum())
        found = hits(rng, by_chance + 0.3 * cell.effect_size * (cell.world != "far"), wrong)
        dealt = rng.binomial(wrong, by_chance, size=999) / wrong
        near = {name: getattr(found, end) - by_chance for name, end in ENDS.items()}
        rest = dict(n_items=N_ITEMS, n=cell.n_prompts)
        rows = [
            *(row(CrowdingRow, statistic=crowding.ACCURACY, quarter=q, value=right.mean(),
                  n_items=N_ITEMS, n=cell.n_prompts // 4) for q in range(1, 5)),
            row(CrowdingRow, statistic=crowding.SLOPE, value=slope, low=slope - 1.96 * error,
                high=slope + 1.96 * error, p=p, n_draws=N_MATCHED, **rest),
            row(CrowdingRow, statistic=crowding.NEAREST, p=rank_p(found.mean, dealt), n_draws=len(dealt),
                n_items=N_ITEMS, n=wrong, **near),
        ]  # fmt: skip
        yield measures.errors_near(frame(rows))


def crowds(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: points of accuracy that lists of six gain where the cloud is twice as wide, those of four a
    quarter of it. noise: share of lists that flip either way besides, and standard deviation of the change between
    triples. ``crowded``; ``sharper``: lists of four gain as much; ``alike``: so do matched triples; ``flat``: nobody
    gains."""
    for _ in range(n):
        rows = []
        own, drawn = triples(rng, cell.effect_size / 100, cell.world == "alike", cell.noise / 4)
        for n_items, accuracy in ACCURACY.items():
            less = 1.0 if n_items == N_ITEMS or cell.world in ("sharper", "alike") else 0.25
            found = gain(rng, accuracy, less * own, cell.noise, cell.n_prompts)
            blur = (cell.noise / N_SCALED) ** 0.5
            matched = 100 * (less * drawn + blur * rng.normal(size=len(drawn)))
            rest = dict(n_items=n_items, n=cell.n_prompts, n_draws=N_MATCHED)
            change = dict(change=found.mean, change_low=found.low, change_high=found.high)
            rows += [
                row(ScaleRow, subspace=Subspace.CHOSEN, scale=1.0, accuracy=accuracy, **rest),
                row(ScaleRow, subspace=Subspace.CHOSEN, scale=SCALE, p=rank_p(found.mean, matched), **change, **rest),
                row(ScaleRow, subspace=Subspace.MATCHED, scale=SCALE, change=matched.mean(), change_low=matched.min(),
                    change_high=matched.max(), **rest),
            ]  # fmt: skip
        yield measures.crowds(frame(rows))


def steering_gains(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: points that one setting and a correction by index gain, chosen among many on other lists, beyond
    the correction alone. noise: as in :func:`crowds`. ``beyond``; ``bias``: a setting gains as much, but nothing that
    the correction does not; ``alike``: matched triples gain as much beyond it; ``winner``: only the lists that chose
    gain."""
    for _ in range(n):
        true = cell.effect_size * (cell.world in ("beyond", "alike")) / 100
        own, drawn = triples(rng, true, cell.world == "alike", cell.noise / 4)
        setting = cell.effect_size / 100 * (cell.world == "bias")
        found = gain(rng, ACCURACY[N_ITEMS], own, cell.noise, cell.n_prompts)
        blur = 100 * (cell.noise / N_DRAWS_SCORE) ** 0.5
        few = 100 * (own + setting) + blur * rng.normal()
        matched = 100 * drawn[:N_DRAWS] + blur * rng.normal(size=N_DRAWS)
        rest = dict(n_items=N_ITEMS, part=Part.HELD_OUT, method=Method.BOTH, n=cell.n_prompts, n_draws=N_DRAWS)
        rows = [
            row(GainRow, subspace=Subspace.CHOSEN, gain=100 * (own + setting), beyond=found.mean, beyond_low=found.low,
                beyond_high=found.high, p=rank_p(few, matched), **rest),
            row(GainRow, subspace=Subspace.MATCHED, beyond=matched.mean(), beyond_low=np.quantile(matched, 0.025),
                beyond_high=np.quantile(matched, 0.975), **rest),
        ]  # fmt: skip
        yield measures.steering_gains(frame(rows))


def order_matters(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: range of accuracy over indices. ``index``: in both orders. ``kept``: in kept order alone, as
    induction would have it. ``none``: in neither."""
    each = cell.n_prompts // 2 // N_ITEMS
    for _ in range(n):
        rows: list[Row] = []
        for order in (KEPT, SHUFFLED):
            there = cell.world == "index" or (cell.world, order) == ("kept", KEPT)
            steps = there * cell.effect_size * np.linspace(-0.5, 0.5, N_ITEMS)
            right = rng.random((each, N_ITEMS)) < ACCURACY[N_ITEMS] + steps
            deals = rng.permuted(np.tile(right.ravel(), (N_DEALS, 1)), axis=1).reshape(-1, each, N_ITEMS)
            p = rank_p(np.ptp(right.mean(0)), np.ptp(deals.mean(1), axis=1))
            rows += [row(OrderRow, n_items=N_ITEMS, order=order, list_index=i, accuracy=accuracy, n=each, removed=0.0,
                         range_p=p) for i, accuracy in enumerate(right.mean(0))]  # fmt: skip
        yield measures.order_matters(frame(rows))
