"""Whole planted models through the very experiments of chapters 2 and 3, on one prompt in ten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, frame
from talking_heads_utils.experiments.verdicts import Measured
from talking_heads_utils.experiments.worlds import Cell, Random
from talking_heads_utils.known import PLANTED
from talking_heads_utils.planted.model import plant

if TYPE_CHECKING:
    import pandas as pd

MODELS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "transformer, eight dimensions": dict(rank=8),
    "transformer, one carrier": dict(rank=2, idle=12, flat=0.2, strength=5.0),
    "transformer, many carriers": dict(strength=5.0),
    "transformer, no channel": dict(channel=False),
}


def through(
    run: Callable[[Context], Sequence[Row]], measure: Callable[[pd.DataFrame], Measured]
) -> Callable[[Cell, int, Random], Iterator[Measured]]:
    """Draws worlds by an experiment and the measure of its claim. A cell's world is one of :data:`MODELS`; noise, of
    :func:`~talking_heads_utils.planted.model.plant`, is what makes long lists hard."""

    def draw(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
        for seed in rng.integers(2**31, size=n).tolist():
            truth = plant(noise=cell.noise, seed=seed, **MODELS[cell.world])
            c = Context(PLANTED, seed, quick=True, loaded=(truth.bridge, truth.tokenizer))
            yield measure(frame(run(c)))

    return draw
