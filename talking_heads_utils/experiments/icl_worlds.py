"""Worlds of tasks in context whose truth is known: tables as chapter 4's experiments would give them.

As in :mod:`talking_heads_utils.experiments.worlds`, each function draws ``n`` worlds of one cell and gives what is
measured in each by the very measure of the claim. Tasks differ in how much they lose and how much of it is shared;
``n_prompts`` are a task's, or sequences of each rate of flips.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy import ndarray

from talking_heads_utils.experiments.icl import backups as own_backups
from talking_heads_utils.experiments.icl import known, measures, sequences
from talking_heads_utils.experiments.icl.additivity import GROUPS, SumRow
from talking_heads_utils.experiments.icl.backups import BackupRow, Who
from talking_heads_utils.experiments.icl.evidence import slope_rows
from talking_heads_utils.experiments.icl.parts import HEADS, MLPS, Attribute, LooksBackRow, PartRow
from talking_heads_utils.experiments.icl.patching import SEES, FirstRow, OutRow
from talking_heads_utils.experiments.icl.readers import Reader, simulated
from talking_heads_utils.experiments.icl.redundancy import Set, SetRow
from talking_heads_utils.experiments.icl.swaps import How, Where
from talking_heads_utils.experiments.rows import Row, frame
from talking_heads_utils.experiments.verdicts import Measured
from talking_heads_utils.experiments.worlds import Cell, Random, resampled, row
from talking_heads_utils.labels import Head
from talking_heads_utils.stats import Z

N_DRAWS = 20  # matched sets
N_LAYERS, N_HEADS = 16, 6
N_MATTER = 15  # heads
PAIRS = (4, 5, 6)  # other pairs of layers: the first of each
ACCURACY = 0.8
N_BOOT = 400
EVEN = "even"  # a reader beside those of the chapter
PARTS = (Attribute.WORD, Attribute.FORM)


def redundant(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: joint over summed loss. noise: standard deviation of its logarithm between tasks; a prompt's
    loss varies by 2 nats. ``stand-ins``; ``parts``: what is lost adds, or nearly. ``alike``: matched sets have the
    ratio too. ``little``: nothing is lost that is not lost by chance."""
    error = 2 / cell.n_prompts**0.5
    for _ in range(n):
        rows = []
        for draw in (None, *range(N_DRAWS)):
            joint = 2 * np.exp(0.4 * rng.normal(size=cell.n_tasks)) * (cell.world != "little")
            ratio = cell.effect_size if draw is None or cell.world == "alike" else 1.0
            summed = joint / ratio / np.exp(cell.noise * rng.normal(size=cell.n_tasks))
            joint, summed = (values + error * rng.normal(size=cell.n_tasks) for values in (joint, summed))
            kind = Set.CHOSEN if draw is None else Set.MATCHED
            rows += [row(SetRow, task=str(t), heads_are=kind, where=Where.END, n_heads=measures.N_JUDGED, draw=draw,
                         joint=joint[t], summed=summed[t], n=cell.n_prompts) for t in range(cell.n_tasks)]  # fmt: skip
        yield measures.redundant(frame(rows))


def redundant_in_transformers(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """Whole planted transformers through the chapter's own experiment: see
    :mod:`~talking_heads_utils.experiments.icl.known`, which names the kinds. noise: of what heads write."""
    for seed in rng.integers(2**20, size=n).tolist():
        rows = known.world_rows(cell.world.split()[-1], seed, cell.noise, cell.n_tasks, cell.n_prompts)
        yield measures.redundant(frame(rows))


def backups_in_transformers(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """As :func:`redundant_in_transformers`."""
    for seed in rng.integers(2**20, size=n).tolist():
        drawn = known.worlds(cell.world.split()[-1], seed, cell.noise, cell.n_tasks, cell.n_prompts)
        found = [own_backups.measure(held, picked, seed=own) for own, picked, held in drawn]
        yield measures.backups(frame(own_backups.rows_of("", found, seed=seed)))


def survives(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: share of the accuracy that is lost without the two layers. noise: standard deviation of it
    between tasks; 5% of the answers flip either way besides. ``out``: either way of taking them out.
    ``exchanged``: with the twin's values alone."""
    for _ in range(n):
        own = cell.effect_size + cell.noise * rng.normal(size=cell.n_tasks)
        rows = []
        for t, how, (at, a) in product(range(cell.n_tasks), How, enumerate((0, *PAIRS))):
            size = own[t] * (cell.world == "out" or how == How.EXCHANGE) if at == 0 else 0.2 * rng.random()
            change = -ACCURACY * size + (0.05 / cell.n_prompts) ** 0.5 * rng.normal()
            rows.append(row(OutRow, task=str(t), a=a, b=a + 1, how=how, posts=at == 0, accuracy=ACCURACY + change,
                            change=change, n=cell.n_prompts))  # fmt: skip
        yield measures.survives(frame(rows))


def moves_up(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: layers by which the first working patch moves up. noise: standard deviation of it, in layers,
    between tasks, and of what other pairs do. ``posts``: without the post's two layers. ``alike``: without any two
    below. ``gone``: no patch works without them, but in one of four. ``none``."""
    for _ in range(n):
        rows = []
        for t in range(cell.n_tasks):
            own = cell.effect_size * (cell.world != "none") + cell.noise * rng.normal()
            for sees, how, (at, a) in product(SEES, How, enumerate((0, *PAIRS))):
                there = at == 0 or cell.world == "alike"
                moved = own * there + cell.noise * rng.normal() * (0.5 if at == 0 else 1)
                gone = at == 0 and cell.world == "gone" and rng.random() > 0.25
                rows.append(row(FirstRow, task=str(t), b_sees=sees, how=how, a=a, b=a + 1, posts=at == 0, below=True,
                                plain=9.0, moved=None if gone else moved, n=cell.n_prompts))  # fmt: skip
        yield measures.moves_up(frame(rows))


def backups(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: share of the lost direct effect that others recover. noise: standard deviation of it between
    tasks and, halved, between matched draws. ``step in``; ``alike``: as much of what matched heads lose. ``little``:
    nothing is lost. A prompt's direct effects vary by a logit."""
    error = 1 / cell.n_prompts**0.5
    for _ in range(n):
        rows = []
        for draw in (None, *range(N_DRAWS)):
            lost = np.exp(0.4 * rng.normal(size=cell.n_tasks)) * (cell.world != "little")
            share = cell.effect_size if draw is None or cell.world == "alike" else 0.0
            share = share + (0 if draw is None else cell.noise / 2 * rng.normal())
            recovered = (share + cell.noise * rng.normal(size=cell.n_tasks)) * lost
            lost, recovered = (values + error * rng.normal(size=cell.n_tasks) for values in (lost, recovered))
            kind = Set.CHOSEN if draw is None else Set.MATCHED
            rows += [row(BackupRow, task=str(t), heads_are=kind, draw=draw, alone=True, who=Who.ALL, lost=lost[t],
                         recovered=recovered[t], n=cell.n_prompts) for t in range(cell.n_tasks)]  # fmt: skip
        yield measures.backups(frame(rows))


def evidence(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """Readers of drawn sequences, through the chapter's own tables: those of
    :class:`~talking_heads_utils.experiments.icl.readers.Reader`, and ``even``: the same weight for every label,
    whatever the rate of flips. effect_size: log-odds of a label, of those that the rate gives it. noise: of every
    question of every order, in the standard deviation of the log-odds."""
    for seed in rng.integers(2**31, size=n).tolist():
        drawn = sequences.draw(cell.n_prompts, seed=seed)
        reader = Reader.EXACT if cell.world == EVEN else Reader(cell.world)
        said = simulated(reader, drawn, cell.noise, seed, scale=cell.effect_size)
        if cell.world == EVEN:
            said = said / drawn.weight * drawn.weight.mean()
        yield measures.evidence(frame(slope_rows("", "", said, drawn, n_boot=N_BOOT, seed=seed)))


def adds(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: what eight examples do together over the sum of what each does alone, 1 nat in the mean. noise:
    standard deviation over sequences, in nats. ``ratio``; ``little``: examples do nothing."""
    weights = resampled(cell.n_prompts, N_BOOT, rng)
    for _ in range(n):
        common = (cell.world != "little") * 1.0 + cell.noise * rng.normal(size=cell.n_prompts)
        joint = cell.effect_size * common + cell.noise / 2 * rng.normal(size=cell.n_prompts)
        above, below = weights @ joint, weights @ common
        (low, high), ends = (np.quantile(values, [0.025, 0.975]) for values in (above / below, below))
        found = row(SumRow, flip=0.0, n_changed=max(GROUPS), n_examples=sequences.N_SHOWN, joint=joint.mean(),
                    summed=common.mean(), summed_low=ends[0], summed_high=ends[1], ratio=joint.mean() / common.mean(),
                    low=low, high=high, n=cell.n_prompts)  # fmt: skip
        yield measures.adds(frame([found]))


# --- parts ---


def looks_back(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: how much more attention heads that matter give earlier answers, in standard deviations between
    heads of one layer. noise: share of the heads that matter in one task that do not in the next. ``answers``;
    ``layers``: layers in which they are look back, all heads alike. ``everywhere``: they give earlier x as much more.
    ``none``."""
    for _ in range(n):
        lean = rng.random(N_LAYERS)  # where heads that matter are
        chosen = rng.choice(N_LAYERS * N_HEADS, N_MATTER, replace=False, p=lean.repeat(N_HEADS) / lean.sum() / N_HEADS)
        pool = np.stack(np.divmod(chosen, N_HEADS), 1)
        to = 0.3 + 0.1 * rng.normal(size=(2, N_LAYERS, N_HEADS))
        if cell.world == "layers":
            to += 0.1 * cell.effect_size * lean[:, None]
        elif cell.world != "none":
            to[(slice(None if cell.world == "everywhere" else 1), *pool.T)] += 0.1 * cell.effect_size
        yield measures.looks_back(frame(_attention(cell, pool, to, rng)))


def _attention(cell: Cell, pool: ndarray, to: ndarray, rng: Random) -> list[Row]:
    """Rows of every task and head. to: attention to earlier y and x."""
    rows = []
    for t in range(cell.n_tasks):
        matter = {(layer, head if rng.random() > cell.noise else int(rng.integers(N_HEADS))) for layer, head in pool}
        seen = to + 0.03 * rng.normal(size=to.shape)
        rows += [
            row(LooksBackRow, task=str(t), head=str(Head(layer, head)), layer=layer, important=(layer, head) in matter,
                to_y=seen[0, layer, head], to_x=seen[1, layer, head], even=0.2, n=cell.n_prompts)
            for layer, head in product(range(N_LAYERS), range(N_HEADS))
        ]  # fmt: skip
    return rows


def in_parts(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``effect_size``: share of one attribute that is lost without each of two MLPs of a task, the other kept. noise:
    standard deviation of losses between layers. ``mlps``; ``alike``: without two attention layers as well. ``whole``:
    both attributes are lost. ``none``. So many answers as noise says flip either way besides."""
    for _ in range(n):
        rows = []
        for t, kind in product(range(cell.n_tasks), (MLPS, HEADS)):
            lost = np.abs(cell.noise * rng.normal(size=(N_LAYERS, 1))).repeat(2, 1)  # of word and form
            if cell.world in ("alike", "whole") or (cell.world, kind) == ("mlps", MLPS):
                for at in rng.choice(N_LAYERS, 2, replace=False):
                    lost[at, slice(None) if cell.world == "whole" else rng.integers(2)] = cell.effect_size
            change = -ACCURACY * lost + (cell.noise / cell.n_prompts) ** 0.5 * rng.normal(size=lost.shape)
            reach = Z * ((ACCURACY * lost + cell.noise) / cell.n_prompts) ** 0.5
            change += reach / Z * rng.normal(size=lost.shape)
            rows += [row(PartRow, task=str(t), part=kind, layer=layer, attribute=of, change=change[layer, i],
                         low=(change - reach)[layer, i], high=(change + reach)[layer, i], n=cell.n_prompts)
                     for layer, (i, of) in product(range(N_LAYERS), enumerate(PARTS))]  # fmt: skip
            rows += [row(PartRow, task=str(t), part="", attribute=of, share=ACCURACY, n=cell.n_prompts)
                     for of in PARTS if kind == MLPS]  # fmt: skip
        yield measures.in_parts(frame(rows))
