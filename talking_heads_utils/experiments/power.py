"""How often each rule says what, where the truth is known: planted worlds in which a claim is true or false, seeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from talking_heads_utils.experiments import edit_worlds, icl_worlds, list_worlds, weight_worlds, worlds
from talking_heads_utils.experiments.catalogue import BY_NAME
from talking_heads_utils.experiments.claims import BY_ID, ClaimId
from talking_heads_utils.experiments.icl import known
from talking_heads_utils.experiments.rows import Row, column, frame
from talking_heads_utils.experiments.verdicts import Rule, Verdict
from talking_heads_utils.experiments.worlds import Cell, Draw, through
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
    """A claim, what draws worlds for it, and which. share: of the worlds that are usually drawn."""

    claim: str
    draw: Draw
    cells: Sequence[Cell]
    share: float = 1.0

    @property
    def rule(self) -> Rule:
        rule = BY_ID[ClaimId(self.claim)].rule
        assert rule is not None, f"{self.claim} has no rule whose power could be told"
        return rule


Axis = float | tuple[float, ...]
Kind = tuple[str, bool, tuple[float, ...], dict[str, Axis]]  # world, truth, effect sizes, what else is unusual


def _true(world: str, *sizes: float, **unusual: Axis) -> Kind:
    return world, True, sizes, unusual


def _false(world: str, *sizes: float, **unusual: Axis) -> Kind:
    return world, False, sizes, unusual


def _planted(claim: str, draw: Draw, *kinds: Kind, share: float = 1.0, **usual: Axis) -> Planted:
    """usual: ``noise`` and how many ``heads``, ``readers``, prompts (``n``) and ``tasks`` kinds have that do not say
    otherwise; of several, there is a cell for each."""
    cells = []
    for world, truth, sizes, unusual in kinds:
        given: dict[str, Axis] = dict(noise=0.0, heads=0, readers=0, n=0, tasks=0) | usual | unusual
        axes = (value if isinstance(value, tuple) else (value,) for value in given.values())
        cells += [Cell(world, truth, size, *others) for *others, size in product(*axes, sizes)]  # type: ignore[arg-type]
    return Planted(claim, draw, cells, share)


NO_CHANNEL = _false("transformer, no channel", 0)
IN_WEIGHTS = (_true("circuit", 0.2, 0.3, 0.5), _false("no circuit", 0), _false("all heads", 0.5))
_in_weights = partial(_planted, share=0.1, noise=0.3, heads=4, readers=6)
_in_transformers = partial(_planted, share=0.01, noise=0.15, heads=2, readers=2, n=50)
ONE_CARRIER = _true("transformer, one carrier", 1)
IN_LISTS = _planted(
    "in-lists", worlds.in_lists,
    _true("all heads", 2, 3, 4, heads=(1, 2, 4)), _true("all heads", 4, heads=8),
    _false("none", 0, heads=(1, 2, 4)), _false("one head", 5, heads=(2, 4)), noise=0.5,
)  # fmt: skip
OF_WEIGHTS_AND_HEADS = (
    _planted(
        "stand-out", weight_worlds.stand_out,
        *(_true("four links", 0.5, 1, 1.5, 2, heads=heads, readers=n) for heads, n in ((1, 1), (2, 4), (4, 4))),
        _true("one link", 1, 1.5, 2, heads=4, readers=3),
        _false("four links", 0, heads=1, readers=1), _false("four links", 0, heads=2, readers=4),
        _false("four links", 0, heads=4, readers=4, noise=(0.5, 1)), _false("one link", 0, heads=4, readers=3), noise=1,
    ),
    _in_weights("stand-out", weight_worlds.stand_out_in_weights, *IN_WEIGHTS),
    _planted(
        "listeners", weight_worlds.listening,
        _true("three layers", 1, 1.5, 2, readers=(3, 6, 11)),
        _true("one layer", 1.5, 2, 3, readers=4), _true("one layer", 1.5, readers=6),
        _false("three layers", 0, readers=3, noise=2), _false("three layers", 0, readers=6, noise=(0.5, 2)),
        _false("three layers", 0, readers=11, noise=2), _false("one layer", 0, readers=4, noise=2), noise=1,
    ),
    _in_weights("listeners", weight_worlds.listening_in_weights, *IN_WEIGHTS),
    _planted(
        "privileged", weight_worlds.privileged,
        _true("singular", 0.3, 0.5, 0.7), _true("singular", 0.3, 0.5, 0.7, heads=4, readers=3),
        _false("mixture", 0.7), _false("mixture", 0.7, heads=4, readers=3),
        _false("all heads", 0.7), _false("none", 0), noise=0.3, heads=2, readers=4,
    ),
    _planted(
        "predicted", worlds.predicted,
        _true("carrier", 2, 4, 7, 10, heads=(1, 2, 4)), _true("carrier", 10, heads=2, noise=2),
        *(_false(world, 0, heads=heads, noise=noise) for heads in (1, 2, 4)
          for world, noise in (("random", 0.5), ("spread", 0), ("copy", (0.2, 0.5)))), noise=0.5,
    ),
    _in_transformers("predicted", worlds.predicted_in_transformers, ONE_CARRIER, NO_CHANNEL),
    _planted(
        "concentrated", worlds.concentrated,
        _true("few", 0.6, 0.7, 0.8, noise=(0.5, 1)), _true("few", 0.7, heads=4), _true("few", 0.7, n=50),
        _false("few", 0.3, n=(50, 500)), _false("few", 0.5, n=(50, 500)),
        _false("alike", 0.7, heads=(2, 4)), _false("random", 0.7, heads=(2, 4)), noise=0.5, heads=2, n=500,
    ),
    _in_transformers("concentrated", worlds.concentrated_in_transformers, ONE_CARRIER, NO_CHANNEL,
                     _false("transformer, eight alike", 1)),
    IN_LISTS,
)  # fmt: skip
_lists = partial(_planted, share=0.4)
ON_LISTS = (
    _lists(
        "indexes", list_worlds.indexes,
        _true("index", 0.1, 0.15, 0.2), _true("index", 0.15, n=200), _false("both", 0.15, 0.3), _false("item", 0.15),
        _false("alike", 0, 0.15), noise=0.05, n=500,
    ),
    _lists(
        "three-dimensions", list_worlds.three_dimensions,
        _true("three", 0.85, 0.9, 1), _true("three", 0.9, noise=1), _false("even", 0.3, 0.6, 0.8),
        _false("little", 0.9), _false("item", 0.9), _false("alike", 0.9), _false("none", 0), noise=0.5, n=400,
    ),
    _lists(
        "traversed", list_worlds.traversed,
        _true("answers", 0.1, 0.2, 0.3), _false("attention", 0.3), _false("two", 0.3), _false("alike", 0, 0.3),
        noise=0.05, n=100,
    ),
    _lists(
        "errors-near", list_worlds.errors_near,
        _true("crowded", 0.2, 0.3, 0.4, 0.5), _true("crowded", 0.4, n=500), _false("far", 0.4), _false("flat", 0.4),
        _false("alike", 0, 0.4), noise=0.1, n=1000,
    ),
    _lists(
        "crowds", list_worlds.crowds,
        _true("crowded", 5, 10, 15), _true("crowded", 10, n=500), _true("crowded", 10, noise=0.3),
        _false("sharper", 10), _false("alike", 10), _false("flat", 0), noise=0.1, n=1000,
    ),
    _lists("order", list_worlds.order_matters, _true("index", 0.1, 0.2, 0.3), _false("kept", 0.3), _false("none", 0),
           n=1000),
    _lists(
        "steering-gains", list_worlds.steering_gains,
        _true("beyond", 5, 10, 20), _true("beyond", 20, noise=0.3), _false("bias", 10, 20), _false("alike", 10),
        _false("winner", 10), noise=0.1, n=800,
    ),
    _lists(
        "lowers", edit_worlds.lowers,
        _true("one each", 0.3, 0.4, heads=(1, 2, 4)), _false("one each", 0.2, heads=2),
        _false("alike", 0.4, heads=(2, 4)), _false("one head", 0.4, heads=4), _false("winner", 0.4, heads=2),
        noise=0.05, n=500,
    ),
    _lists(
        "edit-gains", edit_worlds.edit_gains,
        _true("gains", 22, 25, 30), _false("gains", 10, 15, 20), _false("bias", 25), _false("random", 25),
        _false("winner", 25), noise=0.1, n=1000,
    ),
)  # fmt: skip
WHOLE = _true("transformer", 0)
THROUGH_MODELS: dict[str, tuple[Kind, ...]] = {
    "indexes": (WHOLE,),
    "three-dimensions": (WHOLE, _false("transformer, eight dimensions", 0), NO_CHANNEL),
    "traversed": (WHOLE, NO_CHANNEL),
    "errors-near": (_true("transformer", 0, noise=0.4), _false("transformer, no channel", 0, noise=0.4)),
    "crowds": (NO_CHANNEL,),
    "order": (WHOLE, NO_CHANNEL),
    "steering-gains": (_false("transformer", 0), NO_CHANNEL),
    "lowers": (_true("transformer, one carrier", 0), _false("transformer, many carriers", 0), NO_CHANNEL),
    "edit-gains": (_true("transformer", 0, noise=0.4),),
}
_in_context = partial(_planted, tasks=8, share=0.4)
# whole models whose heads are of every kind; they are redundant, and back each other up, in two
_of_kinds = partial(_planted, share=0.005, noise=0.05, n=100, tasks=6)
KINDS = [(_true if kind in ("copies", "backup") else _false)(f"transformer, {kind}", 0) for kind in known.Kind]
IN_CONTEXT = (
    _in_context(
        "redundant", icl_worlds.redundant,
        _true("stand-ins", 1.5, 2, 10), _true("stand-ins", 2, tasks=(5, 4)), _true("stand-ins", 2, noise=0.4),
        _false("parts", 0.7, 1, 1.2), _false("parts", 1, noise=0.4), _false("parts", 1, tasks=5),
        _false("alike", 2), _false("little", 2), noise=0.2, n=200,
    ),
    _of_kinds("redundant", icl_worlds.redundant_in_transformers, *KINDS),
    _in_context(
        "survives", icl_worlds.survives,
        _true("out", 0, 0.01, 0.03), _true("out", 0.01, tasks=(6, 5)), _true("out", 0.01, noise=0.1),
        _false("out", 0.1, 0.2, 0.3), _false("out", 0.1, noise=0.1), _false("out", 0.1, tasks=6),
        _false("exchanged", 0.3), noise=0.03, n=48,
    ),
    _in_context(
        "moves-up", icl_worlds.moves_up,
        _true("posts", 1, 2, 4), _true("posts", 2, tasks=(5, 4)), _true("posts", 2, noise=1.5),
        _false("alike", 2, 4), _false("gone", 2), _false("none", 0), _false("none", 0, tasks=5), noise=0.7, n=32,
    ),
    _in_context(
        "backups", icl_worlds.backups,
        _true("step in", 0.3, 0.5, 1), _true("step in", 0.5, tasks=(5, 4)), _true("step in", 0.5, noise=0.3),
        _false("step in", 0, 0.1), _false("step in", 0, tasks=5), _false("alike", 0.5), _false("little", 0.5),
        share=0.2, noise=0.15, n=100,
    ),
    _of_kinds("backups", icl_worlds.backups_in_transformers, *KINDS),
    _in_context(
        "evidence", icl_worlds.evidence,
        _true("exact", 0.1, 1), _true("exact", 1, noise=(0.25, 0.4)), _true("exact", 1, n=50),
        *(_false(world, 1) for world in ("even", "saturation", "recency", "last", "count")),
        share=0.03, noise=0.15, n=125, tasks=0,
    ),
    _in_context(
        "adds", icl_worlds.adds,
        _true("ratio", 0.9, 1, 1.1), _true("ratio", 1, noise=1), _true("ratio", 1, n=50),
        _false("ratio", 0.5, 0.8, 1.25), _false("little", 1), noise=0.5, n=80, tasks=0,
    ),
    _in_context(
        "looks-back", icl_worlds.looks_back,
        _true("answers", 1, 2), _true("answers", 2, tasks=5), _true("answers", 2, noise=0.5), _false("layers", 2),
        _false("everywhere", 2), _false("none", 0), share=0.1, noise=0.2, n=48,
    ),
    _in_context(
        "in-parts", icl_worlds.in_parts,
        _true("mlps", 0.4, 0.6), _true("mlps", 0.6, tasks=(4, 3)), _true("mlps", 0.6, noise=0.1),
        _false("alike", 0.6, tasks=(5, 4)), _false("whole", 0.6), _false("none", 0, noise=0.1),
        share=0.1, noise=0.03, n=150, tasks=5,
    ),
)  # fmt: skip
PLANTED = (
    *OF_WEIGHTS_AND_HEADS, *ON_LISTS,
    *(_planted(claim, through(BY_NAME[BY_ID[ClaimId(claim)].experiment].run, BY_ID[ClaimId(claim)].measure), *kinds,
               share=0.005, noise=0.15, heads=2, readers=2) for claim, kinds in THROUGH_MODELS.items()),
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
