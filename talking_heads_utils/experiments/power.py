"""How often each rule says what, where the truth is known: planted worlds in which a claim is true or false, seeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from talking_heads_utils.experiments import edit_worlds, icl_worlds, list_worlds, rules, weight_worlds, worlds
from talking_heads_utils.experiments.editing import gains, removal
from talking_heads_utils.experiments.editing import measures as editing
from talking_heads_utils.experiments.icl.known import Kind
from talking_heads_utils.experiments.positional import crowding, decoding, interchange, order, steering, traversal
from talking_heads_utils.experiments.positional import measures as positional
from talking_heads_utils.experiments.rows import Row, column, frame
from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict
from talking_heads_utils.experiments.whole_worlds import through
from talking_heads_utils.experiments.worlds import Cell
from talking_heads_utils.files import data_dir
from talking_heads_utils.settings import SEED

if TYPE_CHECKING:
    import pandas as pd

N_WORLDS = 1000
# the effect size that a claim speaks of, in worlds of scores, effects and shares, not of whole weights
SPOKEN_OF = {
    "stand-out": 1.5, "listeners": 1.5, "privileged": 0.7, "predicted": 10, "concentrated": 0.7, "in-lists": 4,
    "indexes": 0.15, "three-dimensions": 0.9, "traversed": 0.2, "errors-near": 0.4, "crowds": 10, "order": 0.3,
    "steering-gains": 10, "lowers": 0.4, "edit-gains": 25,
    "redundant": 2, "survives": 0.01, "moves-up": 2, "backups": 0.5, "evidence": 1, "adds": 1, "looks-back": 2,
    "in-parts": 0.6,
}  # fmt: skip
STORED = "power.parquet"


@dataclass(frozen=True)
class PowerRow(Row):
    """Verdicts of one rule over many worlds of one kind."""

    claim: str = column("", "its id, as in `talking_heads_utils.experiments.claims`")
    world: str = column("", "of what kind the worlds are; `talking_heads_utils.experiments.worlds` draws them")
    truth: bool = column("", "whether the claim is true there")
    effect_size: float = column("", "of what the claim speaks of; what it counts depends on the claim")
    noise: float = column("", "standard deviation of what blurs it; what it blurs depends on the claim")
    n_heads: int = column("heads", "writers that are judged; 0 where it is of no account")
    n_readers: int = column("heads", "readers that are judged; 0 where it is of no account")
    n_prompts: int = column("prompts", "that are run; 0 where it is of no account")
    n_tasks: int = column("tasks", "that are run; 0 where it is of no account")
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
OF_WEIGHTS_AND_HEADS = (
    STAND_OUT, Planted("stand-out", rules.STAND_OUT, weight_worlds.stand_out_in_weights, IN_WEIGHTS, 0.1),
    LISTENERS, Planted("listeners", rules.LISTENERS, weight_worlds.listening_in_weights, IN_WEIGHTS, 0.1),
    PRIVILEGED,
    PREDICTED, Planted("predicted", rules.PREDICTED, worlds.predicted_in_transformers, TRANSFORMERS, 0.01),
    CONCENTRATED, Planted("concentrated", rules.CONCENTRATED, worlds.concentrated_in_transformers, [
        *TRANSFORMERS, Cell("transformer, eight alike", False, 1, 0.15, 2, 2, 50),
    ], 0.01),
    IN_LISTS,
)  # fmt: skip


def _lists(world: str, truth: bool, *sizes: float, noise: float = 0.1, heads: int = 0, n: int) -> list[Cell]:
    """Cells of one kind, on n prompts."""
    return [Cell(world, truth, size, noise, heads, 0, n) for size in sizes]


def _whole(*models: tuple[str, bool], noise: float = 0.15) -> list[Cell]:
    return [Cell(", ".join(("transformer", name)) if name else "transformer", truth, 0, noise, 2, 2)
            for name, truth in models]  # fmt: skip


ON_LISTS = (
    Planted("indexes", rules.INDEXES, list_worlds.indexes, [
        *_lists("index", True, 0.1, 0.15, 0.2, noise=0.05, n=500), *_lists("index", True, 0.15, noise=0.05, n=200),
        *_lists("both", False, 0.15, 0.3, noise=0.05, n=500), *_lists("item", False, 0.15, noise=0.05, n=500),
        *_lists("alike", False, 0, 0.15, noise=0.05, n=500),
    ]),
    Planted("three-dimensions", rules.THREE_DIMENSIONS, list_worlds.three_dimensions, [
        *_lists("three", True, 0.85, 0.9, 1, noise=0.5, n=400), *_lists("three", True, 0.9, noise=1, n=400),
        *_lists("even", False, 0.3, 0.6, 0.8, noise=0.5, n=400), *_lists("little", False, 0.9, noise=0.5, n=400),
        *_lists("item", False, 0.9, noise=0.5, n=400), *_lists("alike", False, 0.9, noise=0.5, n=400),
        *_lists("none", False, 0, noise=0.5, n=400),
    ]),
    Planted("traversed", rules.TRAVERSED, list_worlds.traversed, [
        *_lists("answers", True, 0.1, 0.2, 0.3, noise=0.05, n=100), *_lists("attention", False, 0.3, noise=0.05, n=100),
        *_lists("two", False, 0.3, noise=0.05, n=100), *_lists("alike", False, 0, 0.3, noise=0.05, n=100),
    ]),
    Planted("errors-near", rules.ERRORS_NEAR, list_worlds.errors_near, [
        *_lists("crowded", True, 0.2, 0.3, 0.4, 0.5, n=1000), *_lists("crowded", True, 0.4, n=500),
        *_lists("far", False, 0.4, n=1000), *_lists("flat", False, 0.4, n=1000),
        *_lists("alike", False, 0, 0.4, n=1000),
    ]),
    Planted("crowds", rules.CROWDS, list_worlds.crowds, [
        *_lists("crowded", True, 5, 10, 15, n=1000), *_lists("crowded", True, 10, n=500),
        *_lists("crowded", True, 10, noise=0.3, n=1000), *_lists("sharper", False, 10, n=1000),
        *_lists("alike", False, 10, n=1000), *_lists("flat", False, 0, n=1000),
    ]),
    Planted("order", rules.ORDER, list_worlds.order_matters, [
        *_lists("index", True, 0.1, 0.2, 0.3, noise=0, n=1000), *_lists("kept", False, 0.3, noise=0, n=1000),
        *_lists("none", False, 0, noise=0, n=1000),
    ]),
    Planted("steering-gains", rules.STEERING_GAINS, list_worlds.steering_gains, [
        *_lists("beyond", True, 5, 10, 20, n=800), *_lists("beyond", True, 20, noise=0.3, n=800),
        *_lists("bias", False, 10, 20, n=800), *_lists("alike", False, 10, n=800), *_lists("winner", False, 10, n=800),
    ]),
    Planted("lowers", rules.LOWERS, edit_worlds.lowers, [
        *(cell for heads in (1, 2, 4) for cell in _lists("one each", True, 0.3, 0.4, noise=0.05, heads=heads, n=500)),
        *_lists("one each", False, 0.2, noise=0.05, heads=2, n=500),
        *(cell for heads in (2, 4) for cell in _lists("alike", False, 0.4, noise=0.05, heads=heads, n=500)),
        *_lists("one head", False, 0.4, noise=0.05, heads=4, n=500),
        *_lists("winner", False, 0.4, noise=0.05, heads=2, n=500),
    ]),
    Planted("edit-gains", rules.EDIT_GAINS, edit_worlds.edit_gains, [
        *_lists("gains", True, 22, 25, 30, n=1000), *_lists("gains", False, 10, 15, 20, n=1000),
        *_lists("bias", False, 25, n=1000), *_lists("random", False, 25, n=1000),
        *_lists("winner", False, 25, n=1000),
    ]),
)  # fmt: skip
CONTROL = ("no channel", False)
THROUGH_MODELS = (
    ("indexes", rules.INDEXES, decoding.run, positional.indexes, _whole(("", True))),
    ("three-dimensions", rules.THREE_DIMENSIONS, interchange.run, positional.three_dimensions,
     _whole(("", True), ("eight dimensions", False), CONTROL)),
    ("traversed", rules.TRAVERSED, traversal.run_reach, positional.traversed, _whole(("", True), CONTROL)),
    ("errors-near", rules.ERRORS_NEAR, crowding.run_margins, positional.errors_near,
     _whole(("", True), CONTROL, noise=0.4)),
    ("crowds", rules.CROWDS, crowding.run_scales, positional.crowds, _whole(CONTROL)),
    ("order", rules.ORDER, order.run, positional.order_matters, _whole(("", True), CONTROL)),
    ("steering-gains", rules.STEERING_GAINS, steering.run, positional.steering_gains, _whole(("", False), CONTROL)),
    ("lowers", rules.LOWERS, removal.run, editing.lowers,
     _whole(("one carrier", True), ("many carriers", False), CONTROL)),
    ("edit-gains", rules.EDIT_GAINS, gains.run, editing.edit_gains, _whole(("", True), noise=0.4)),
)  # fmt: skip


def _tasks(world: str, truth: bool, *sizes: float, noise: float, tasks: int = 8, n: int = 200) -> list[Cell]:
    """Cells of one kind, of so many tasks with n prompts each."""
    return [Cell(world, truth, size, noise, 0, 0, n, tasks) for size in sizes]


def _few(world: str, size: float, noise: float, n: int = 200, several: Sequence[int] = (5, 4)) -> list[Cell]:
    """True ones, of few tasks."""
    return [cell for tasks in several for cell in _tasks(world, True, size, noise=noise, tasks=tasks, n=n)]


def _kinds(*true: str) -> list[Cell]:
    """Planted transformers whose heads are of every kind, on six tasks."""
    return [Cell(f"transformer, {kind}", kind in true, 0, 0.05, 0, 0, 100, 6) for kind in Kind]


IN_CONTEXT = (
    Planted("redundant", rules.REDUNDANT, icl_worlds.redundant, [
        *_tasks("stand-ins", True, 1.5, 2, 10, noise=0.2), *_few("stand-ins", 2, 0.2),
        *_tasks("stand-ins", True, 2, noise=0.4), *_tasks("parts", False, 0.7, 1, 1.2, noise=0.2),
        *_tasks("parts", False, 1, noise=0.4), *_tasks("parts", False, 1, noise=0.2, tasks=5),
        *_tasks("alike", False, 2, noise=0.2), *_tasks("little", False, 2, noise=0.2),
    ], 0.4),
    Planted("redundant", rules.REDUNDANT, icl_worlds.redundant_in_transformers, _kinds("copies", "backup"), 0.005),
    Planted("survives", rules.SURVIVES, icl_worlds.survives, [
        *_tasks("out", True, 0, 0.01, 0.03, noise=0.03, n=48), *_few("out", 0.01, 0.03, 48, (6, 5)),
        *_tasks("out", True, 0.01, noise=0.1, n=48), *_tasks("out", False, 0.1, 0.2, 0.3, noise=0.03, n=48),
        *_tasks("out", False, 0.1, noise=0.1, n=48), *_tasks("out", False, 0.1, noise=0.03, tasks=6, n=48),
        *_tasks("exchanged", False, 0.3, noise=0.03, n=48),
    ], 0.4),
    Planted("moves-up", rules.MOVES_UP, icl_worlds.moves_up, [
        *_tasks("posts", True, 1, 2, 4, noise=0.7, n=32), *_few("posts", 2, 0.7, 32),
        *_tasks("posts", True, 2, noise=1.5, n=32), *_tasks("alike", False, 2, 4, noise=0.7, n=32),
        *_tasks("gone", False, 2, noise=0.7, n=32), *_tasks("none", False, 0, noise=0.7, n=32),
        *_tasks("none", False, 0, noise=0.7, n=32, tasks=5),
    ], 0.4),
    Planted("backups", rules.BACKUPS, icl_worlds.backups, [
        *_tasks("step in", True, 0.3, 0.5, 1, noise=0.15, n=100), *_few("step in", 0.5, 0.15, 100),
        *_tasks("step in", True, 0.5, noise=0.3, n=100), *_tasks("step in", False, 0, 0.1, noise=0.15, n=100),
        *_tasks("step in", False, 0, noise=0.15, tasks=5, n=100), *_tasks("alike", False, 0.5, noise=0.15, n=100),
        *_tasks("little", False, 0.5, noise=0.15, n=100),
    ], 0.2),
    Planted("backups", rules.BACKUPS, icl_worlds.backups_in_transformers, _kinds("copies", "backup"), 0.005),
    Planted("evidence", rules.EVIDENCE, icl_worlds.evidence, [
        *_tasks("exact", True, 0.1, 1, noise=0.15, tasks=0, n=125),
        *(cell for noise in (0.25, 0.4) for cell in _tasks("exact", True, 1, noise=noise, tasks=0, n=125)),
        *_tasks("exact", True, 1, noise=0.15, tasks=0, n=50),
        *(cell for world in ("even", "saturation", "recency", "last", "count")
          for cell in _tasks(world, False, 1, noise=0.15, tasks=0, n=125)),
    ], 0.03),
    Planted("adds", rules.ADDS, icl_worlds.adds, [
        *_tasks("ratio", True, 0.9, 1, 1.1, noise=0.5, tasks=0, n=80),
        *_tasks("ratio", True, 1, noise=1, tasks=0, n=80),
        *_tasks("ratio", True, 1, noise=0.5, tasks=0, n=50),
        *_tasks("ratio", False, 0.5, 0.8, 1.25, noise=0.5, tasks=0, n=80),
        *_tasks("little", False, 1, noise=0.5, tasks=0, n=80),
    ], 0.4),
    Planted("looks-back", rules.LOOKS_BACK, icl_worlds.looks_back, [
        *_tasks("answers", True, 1, 2, noise=0.2, n=48), *_tasks("answers", True, 2, noise=0.2, tasks=5, n=48),
        *_tasks("answers", True, 2, noise=0.5, n=48), *_tasks("layers", False, 2, noise=0.2, n=48),
        *_tasks("everywhere", False, 2, noise=0.2, n=48), *_tasks("none", False, 0, noise=0.2, n=48),
    ], 0.1),
    Planted("in-parts", rules.IN_PARTS, icl_worlds.in_parts, [
        *_tasks("mlps", True, 0.4, 0.6, noise=0.03, tasks=5, n=150),
        *(cell for tasks in (4, 3) for cell in _tasks("mlps", True, 0.6, noise=0.03, tasks=tasks, n=150)),
        *_tasks("mlps", True, 0.6, noise=0.1, tasks=5, n=150),
        *(cell for tasks in (5, 4) for cell in _tasks("alike", False, 0.6, noise=0.03, tasks=tasks, n=150)),
        *_tasks("whole", False, 0.6, noise=0.03, tasks=5, n=150), *_tasks("none", False, 0, noise=0.1, tasks=5, n=150),
    ], 0.1),
)  # fmt: skip
PLANTED = (
    *OF_WEIGHTS_AND_HEADS, *(each._replace(share=0.4) for each in ON_LISTS),
    *(Planted(claim, rule, through(run, measure), cells, 0.005) for claim, rule, run, measure, cells in THROUGH_MODELS),
    *IN_CONTEXT,
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
        cell.n_prompts, cell.n_tasks, n_worlds, seed, judged, mean,
        *(said[verdict] / n_worlds for verdict in (Verdict.SUPPORTED, Verdict.NOT_SUPPORTED, Verdict.UNDECIDED)),
    )  # fmt: skip


def stored() -> pd.DataFrame:
    """The table that ships with the book, which froze the rules."""
    import pandas as pd

    return pd.read_parquet(data_dir() / STORED)


def power_table(n_worlds: int = N_WORLDS, seed: int = SEED) -> pd.DataFrame:
    """The whole table. The same number and seed give the same one."""
    return frame([row for planted in PLANTED for row in power_rows(planted, n_worlds, seed)])
