"""How often each rule says what, where the truth is known: planted worlds in which a claim is true or false, seeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from talking_heads_utils.experiments import rules, weight_worlds, worlds
from talking_heads_utils.experiments.rows import Row, column, frame
from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict
from talking_heads_utils.experiments.worlds import Cell
from talking_heads_utils.files import data_dir
from talking_heads_utils.settings import SEED

if TYPE_CHECKING:
    import pandas as pd

N_WORLDS = 1000
# the effect size that a claim speaks of, in worlds of scores, effects and shares, not of whole weights
SPOKEN_OF = {"stand-out": 1.5, "listeners": 1.5, "privileged": 0.7, "predicted": 10, "concentrated": 0.7, "in-lists": 4}
STORED = "power.parquet"


@dataclass(frozen=True)
class PowerRow(Row):
    """Verdicts of one rule over many worlds of one kind."""

    claim: str = column("", "its id, as in `talking_heads_utils.experiments.claims`")
    world: str = column("", "of what kind the worlds are; `talking_heads_utils.experiments.worlds` draws them")
    truth: bool = column("", "whether the claim is true there")
    effect_size: float = column("", "of what the claim speaks of; what it counts depends on the claim")
    noise: float = column("", "standard deviation of what blurs it; what it blurs depends on the claim")
    n_heads: int = column("heads", "writers that are judged")
    n_readers: int = column("heads", "readers that are judged; 0 where it is of no account")
    n_prompts: int = column("prompts", "that are run; 0 where it is of no account")
    n_worlds: int = column("worlds", "drawn")
    seed: int = column("", "of the draws")
    judged: bool = column("", "whether there are heads, readers or prompts enough for the rule to judge")
    measured: float = column("", "mean over worlds of the number that the claim is about")
    supported: float = column("share of worlds", "in which the rule says so")
    not_supported: float = column("share of worlds", "the same")
    undecided: float = column("share of worlds", "the same")


class Planted(NamedTuple):
    """A claim's rule, what draws worlds for it, and which. share: of the worlds that are usually drawn."""

    claim: str
    rule: Rule
    draw: Callable[[Cell, int, np.random.Generator], Iterator[Measured]]
    cells: Sequence[Cell]
    share: float = 1.0


STAND_OUT = Planted("stand-out", rules.STAND_OUT, weight_worlds.stand_out, [
    *(Cell("four links", True, size, 1, *heads) for heads in ((1, 1), (2, 4), (4, 4)) for size in (0.5, 1, 1.5, 2)),
    *(Cell("one link", True, size, 1, 4, 3) for size in (1, 1.5, 2)),
    *(Cell("four links", False, 0, noise, *heads)
      for heads, noise in (((1, 1), 1), ((2, 4), 1), ((4, 4), 0.5), ((4, 4), 1))),
    Cell("one link", False, 0, 1, 4, 3),
])  # fmt: skip
LISTENERS = Planted("listeners", rules.LISTENERS, weight_worlds.listening, [
    *(Cell("three layers", True, size, 1, 0, n) for n in (3, 6, 11) for size in (1, 1.5, 2)),
    *(Cell("one layer", True, size, 1, 0, n) for n, size in ((4, 1.5), (4, 2), (4, 3), (6, 1.5))),
    *(Cell("three layers", False, 0, noise, 0, n) for n, noise in ((3, 2), (6, 0.5), (6, 2), (11, 2))),
    Cell("one layer", False, 0, 2, 0, 4),
])  # fmt: skip
IN_WEIGHTS = [
    *(Cell("circuit", True, cosine, 0.3, 4, 6) for cosine in (0.2, 0.3, 0.5)),
    Cell("no circuit", False, 0, 0.3, 4, 6), Cell("all heads", False, 0.5, 0.3, 4, 6),
]  # fmt: skip
PRIVILEGED = Planted("privileged", rules.PRIVILEGED, weight_worlds.privileged, [
    *(Cell("singular", True, cosine, noise, *heads) for heads in ((2, 4), (4, 3))
      for cosine, noise in ((0.3, 0.3), (0.5, 0.3), (0.7, 0.3))),
    *(Cell("mixture", False, 0.7, 0.3, *heads) for heads in ((2, 4), (4, 3))),
    Cell("all heads", False, 0.7, 0.3, 2, 4), Cell("none", False, 0, 0.3, 2, 4),
])  # fmt: skip
PREDICTED = Planted("predicted", rules.PREDICTED, worlds.predicted, [
    *(Cell("carrier", True, size, 0.5, heads) for heads in (1, 2, 4) for size in (2, 4, 7, 10)),
    Cell("carrier", True, 10, 2, 2),
    *(Cell(world, False, 0, noise, heads) for heads in (1, 2, 4)
      for world, noise in (("random", 0.5), ("spread", 0), ("copy", 0.2), ("copy", 0.5))),
])  # fmt: skip
CONCENTRATED = Planted("concentrated", rules.CONCENTRATED, worlds.concentrated, [
    *(Cell("few", True, size, noise, 2, 0, 500) for noise in (0.5, 1) for size in (0.6, 0.7, 0.8)),
    Cell("few", True, 0.7, 0.5, 4, 0, 500), Cell("few", True, 0.7, 0.5, 2, 0, 50),
    *(Cell("few", False, size, 0.5, 2, 0, n) for size in (0.3, 0.5) for n in (50, 500)),
    *(Cell(world, False, 0.7, 0.5, heads, 0, 500) for world in ("alike", "random") for heads in (2, 4)),
])  # fmt: skip
IN_LISTS = Planted("in-lists", rules.IN_LISTS, worlds.in_lists, [
    *(Cell("all heads", True, size, 0.5, heads) for heads in (1, 2, 4) for size in (2, 3, 4)),
    Cell("all heads", True, 4, 0.5, 8),
    *(Cell("none", False, 0, 0.5, heads) for heads in (1, 2, 4)),
    *(Cell("one head", False, 5, 0.5, heads) for heads in (2, 4)),
])  # fmt: skip
TRANSFORMERS = [
    Cell("transformer, one carrier", True, 1, 0.15, 2, 2, 50),
    Cell("transformer, no channel", False, 0, 0.15, 2, 2, 50),
]
PLANTED = (
    STAND_OUT, Planted("stand-out", rules.STAND_OUT, weight_worlds.stand_out_in_weights, IN_WEIGHTS, 0.1),
    LISTENERS, Planted("listeners", rules.LISTENERS, weight_worlds.listening_in_weights, IN_WEIGHTS, 0.1),
    PRIVILEGED,
    PREDICTED, Planted("predicted", rules.PREDICTED, worlds.predicted_in_transformers, TRANSFORMERS, 0.01),
    CONCENTRATED, Planted("concentrated", rules.CONCENTRATED, worlds.concentrated_in_transformers, [
        *TRANSFORMERS, Cell("transformer, eight alike", False, 1, 0.15, 2, 2, 50),
    ], 0.01),
    IN_LISTS,
)  # fmt: skip


def power_rows(planted: Planted, n_worlds: int = N_WORLDS, seed: int = SEED) -> list[PowerRow]:
    """A row for every kind of worlds: what the rule says of them, however few heads there are."""
    return [_row(planted, cell, max(1, int(n_worlds * planted.share)), seed) for cell in planted.cells]


def _row(planted: Planted, cell: Cell, n_worlds: int, seed: int) -> PowerRow:
    found = list(planted.draw(cell, n_worlds, np.random.default_rng(seed)))
    said = Counter(planted.rule.decide(each) for each in found)
    judged, mean = not planted.rule.lacking(found[0]), float(np.mean([each.value for each in found]))
    return PowerRow(
        planted.claim, cell.world, cell.truth, cell.effect_size, cell.noise, cell.n_heads, cell.n_readers,
        cell.n_prompts, n_worlds, seed, judged, mean,
        *(said[verdict] / n_worlds for verdict in (Verdict.SUPPORTED, Verdict.NOT_SUPPORTED, Verdict.UNDECIDED)),
    )  # fmt: skip


def stored() -> pd.DataFrame:
    """The table that ships with the book, which froze the rules."""
    import pandas as pd

    return pd.read_parquet(data_dir() / STORED)


def power_table(n_worlds: int = N_WORLDS, seed: int = SEED) -> pd.DataFrame:
    """The whole table. The same number and seed give the same one."""
    return frame([row for planted in PLANTED for row in power_rows(planted, n_worlds, seed)])
