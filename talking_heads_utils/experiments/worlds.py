"""Worlds whose truth is known: tables as chapter 1's experiments would give them, drawn with a claim true or false.

Each function draws ``n`` worlds of one cell of the power table and gives what is measured in each, by the very measure
of the claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import attends, exchange, measures
from talking_heads_utils.experiments.inhibition.exchange_study import Study, fresh_prompts, make_study
from talking_heads_utils.experiments.rows import Row, frame
from talking_heads_utils.experiments.rules import COMPONENTS
from talking_heads_utils.experiments.verdicts import Measured, rank_p
from talking_heads_utils.known import PLANTED
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.roles import S_INHIBITION

if TYPE_CHECKING:
    import pandas as pd

D_HEAD = 64  # components of a head
DECAY = 12.0  # over so many components singular values fall by a factor of e
SPREAD = 0.8  # standard deviation of the logarithm of what a component holds, beside its singular value
N_SETS, N_MATCHED = 99, 100  # of matched sets of components, of matched components
N_BOOT = 500


@dataclass(frozen=True)
class Cell:
    """One kind of world. world: what is planted, by name. truth: whether the claim holds there. What effect_size and
    noise count is said by the function that draws the worlds."""

    world: str
    truth: bool
    effect_size: float
    noise: float
    n_heads: int
    n_readers: int = 0
    n_prompts: int = 0
    n_tasks: int = 0


Random = np.random.Generator
Draw = Callable[[Cell, int, Random], Iterator[Measured]]
Ranks = Float[ndarray, "n n_heads"]


def row(kind: type[Row], **values: Any) -> Row:
    """A row of a table with these values; what no measure reads is empty."""
    return kind(**{field.name: values.get(field.name) for field in fields(kind)})


def resampled(n: int, n_boot: int, rng: Random) -> Float[ndarray, "n_boot n"]:
    """Weights of n units in bootstrap samples, the same for all worlds of a cell."""
    return rng.multinomial(n, np.full(n, 1 / n), size=n_boot) / n


def predicted(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``carrier``: one component of each head is read more, by ``effect_size`` standard deviations, and carries.
    ``spread``: none is, but a component's effect is how much it is read times what it holds, so that the weights, which
    see the former, still know something. ``random``: the weights know nothing. ``copy``: what a component holds is all
    that matters, and the weights' score is a blurred copy of it. noise: standard deviation of what blurs the score."""
    for ranks in zip(*_ranks(cell, n, rng)):
        names = (measures.WEIGHTS, *measures.BASELINES)
        rows = [
            row(exchange.HitRow, predictor=name, rank=int(rank), hit_at_1=rank == 1, n_components=D_HEAD)
            for name, by_head in zip(names, ranks)
            for rank in by_head
        ]
        yield measures.predicted(frame(rows))


def _ranks(cell: Cell, n: int, rng: Random) -> tuple[Ranks, Ranks, Ranks]:
    """Rank of the strongest component by weights, singular value and variance."""
    shape = (n, cell.n_heads, D_HEAD)
    singular = np.broadcast_to(np.exp(-np.arange(D_HEAD) / DECAY), shape)
    reads = np.abs(rng.normal(size=shape))
    holds = singular * np.exp(SPREAD * rng.normal(size=shape))  # of what the exchange changes
    varies = singular * np.exp(SPREAD * rng.normal(size=shape))
    if cell.world == "carrier":
        at = rng.integers(0, D_HEAD // 2, size=(n, cell.n_heads, 1))
        for array, least in ((holds, 0.5), (varies, 0.3)):  # what carries a signal is not small
            np.put_along_axis(array, at, np.maximum(np.take_along_axis(array, at, 2), least), 2)
        np.put_along_axis(reads, at, np.take_along_axis(reads, at, 2) + cell.effect_size, 2)
    effect, score = reads * holds, reads + cell.noise * rng.normal(size=shape)
    if cell.world == "random":
        score = rng.normal(size=shape)
    elif cell.world == "copy":
        effect = varies * np.exp(0.3 * rng.normal(size=shape))
        score = np.log(varies) + cell.noise * rng.normal(size=shape)
    strongest = effect.argmax(2)[..., None]

    def rank(by: ndarray) -> Ranks:
        return 1 + (by > np.take_along_axis(by, strongest, 2)).sum(2)

    return rank(score), rank(singular), rank(varies)


def concentrated(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: share of a head's effect that two of its components have; the rest is spread. ``few``: the
    weights name them by a blurred copy of the effects, and what other components of the same layers and like energy do
    has either sign. ``alike``: these do as much. ``random``: the weights know nothing. noise: standard deviation of an
    effect over prompts, in its mean, and of what blurs the score, in its logarithm, both."""
    weights = resampled(cell.n_prompts, N_BOOT, rng)
    for _ in range(n):
        yield _one_exchange(cell, weights, rng)


def _one_exchange(cell: Cell, weights: ndarray, rng: Random) -> Measured:
    rest = rng.exponential(size=(cell.n_heads, D_HEAD - 2)) * np.exp(-np.arange(D_HEAD - 2) / DECAY)
    rest *= (1 - cell.effect_size) / rest.sum(1, keepdims=True)
    top = np.tile([0.6 * cell.effect_size, 0.4 * cell.effect_size], (cell.n_heads, 1))
    effects = np.concatenate([top, rest], 1)
    score = (cell.world != "random") * np.log(effects) + cell.noise * rng.normal(size=effects.shape)
    chosen = np.zeros_like(effects)
    np.put_along_axis(chosen, (-score).argsort(1)[:, :COMPONENTS], 1.0, 1)
    part, whole = (effects * chosen).sum(), effects.sum()
    common = 1 + cell.noise * rng.normal(size=cell.n_prompts)
    own, other = (cell.noise * rng.normal(size=cell.n_prompts) for _ in range(2))
    left = effects * (1 - chosen)
    at_part = part * common + own * np.sqrt((effects * chosen) ** 2).sum() / 2
    at_whole = at_part + left.sum() * common + other * np.sqrt((left**2).sum())
    centre = part * (1 + rng.normal() / 3) if cell.world == "alike" else 0  # as if the set itself were drawn so
    draws = rng.normal(size=N_SETS) * part / 3 + centre
    low, high = np.quantile((weights @ at_part) / (weights @ at_whole), [0.025, 0.975])
    share, draws = at_part.mean() / at_whole.mean(), draws / whole
    found = row(
        exchange.ExchangeRow, head=exchange.ALL, into=exchange.QUERY, set=exchange.PREDICTED, k=COMPONENTS,
        measure=exchange.LOG_ODDS, share=share, share_low=low, share_high=high,
        matched_share=float(np.quantile(draws, 0.95)), p=rank_p(share, draws), n=cell.n_prompts,
    )  # fmt: skip
    return measures.concentrated(frame([found]))


def in_lists(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: how far a head lies above others, in the standard deviation between heads. noise: standard
    deviation, in the same unit, among components of one head. The matched components are of 43 heads, three of each,
    and the same for all heads that are judged. ``one head``: only the first lies above."""
    own = cell.effect_size * np.ones((n, cell.n_heads))
    if cell.world == "one head":
        own[:, 1:] = 0
    own += np.hypot(1.0, cell.noise) * rng.normal(size=own.shape)
    others = rng.normal(size=(n, 1, 43)).repeat(3, 2)[..., :N_MATCHED]
    others = others + cell.noise * rng.normal(size=others.shape)
    p = (1 + (others >= own[..., None]).sum(2)) / (1 + N_MATCHED)
    for values, chances in zip(own, p):
        rows = [
            row(attends.AttendsRow, role=S_INHIBITION, target=measures.SEEN, excess=value, control=0.0, p=chance,
                n_controls=N_MATCHED)
            for value, chance in zip(values, chances)
        ]  # fmt: skip
        yield measures.in_lists(frame(rows))


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "transformer, one carrier": dict(rank=2, idle=12, flat=0.2),
    "transformer, eight alike": dict(rank=8),
    "transformer, no channel": dict(rank=2, idle=12, flat=0.2, channel=False),
}


def predicted_in_transformers(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """Whole planted models, through the chapter's own experiments. ``one carrier``: each inhibition head has one
    component that carries, behind twelve larger ones that nobody reads. ``no channel``: what it writes is read by
    nobody. effect_size: whether anybody reads. noise: of :func:`~talking_heads_utils.planted.model.plant`."""
    for study in _studies(cell, n, rng):
        yield measures.predicted(frame([row for head in study.heads for row in exchange.hit_rows(study, head)]))


def concentrated_in_transformers(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """As :func:`predicted_in_transformers`. ``eight alike``: a channel of eight components."""
    for study in _studies(cell, n, rng):
        yield measures.concentrated(frame(exchange.exchange_rows(study, exchange.ALL, study.heads)))


def _studies(cell: Cell, n: int, rng: Random) -> Iterator[Study]:
    for seed in rng.integers(2**31, size=n).tolist():
        truth = plant(strength=20.0, noise=cell.noise, seed=seed, **TRANSFORMERS[cell.world])
        prompts = fresh_prompts(truth.tokenizer, (20, cell.n_prompts), seed)
        yield make_study(truth.bridge, truth.tokenizer, truth.roles[MOVER], truth.roles[INHIBITION], *prompts)


MODELS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "transformer, eight dimensions": dict(rank=8),
    "transformer, one carrier": dict(rank=2, idle=12, flat=0.2, strength=5.0),
    "transformer, many carriers": dict(strength=5.0),
    "transformer, no channel": dict(channel=False),
}


def through(run: Callable[[Context], Sequence[Row]], measure: Callable[[pd.DataFrame], Measured]) -> Draw:
    """Draws whole planted models through an experiment of chapter 2 or 3 and the measure of its claim, on one prompt in
    ten. A cell's world is one of :data:`MODELS`; noise, of :func:`~talking_heads_utils.planted.model.plant`, is what
    makes long lists hard."""

    def draw(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
        for seed in rng.integers(2**31, size=n).tolist():
            truth = plant(noise=cell.noise, seed=seed, **MODELS[cell.world])
            c = Context(PLANTED, seed, quick=True, loaded=(truth.bridge, truth.tokenizer))
            yield measure(frame(run(c)))

    return draw
