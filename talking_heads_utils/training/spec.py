"""The small models: what each may do, and how long it is trained. Schedules count steps, never minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.functions import Family

WORK, PLACE, FREE = "work", "place", "free"
READ_FIRST = 8.0
N_CHECK = 1000  # prompts of each kind at the end of a round ...
CHECKED = 0.995  # ... and the share of them right, of every kind, that calls for no other round
N_LAST = 10_000  # prompts of each kind that a model is asked at the end, once: 200 cannot tell 99% from 98%


@dataclass(frozen=True)
class Round:
    """Steps over which the learning rate falls once: ``n_steps`` from ``start`` on, from ``learning_rate``."""

    start: int
    n_steps: int
    learning_rate: float

    @property
    def end(self) -> int:
        return self.start + self.n_steps


@dataclass(frozen=True)
class MiniSpec:
    """One small model.

    keys: what the mover's keys may read. ``work``: whatever earlier layers write. ``place``: the position embedding
    alone, but for the norm's divisor, by which a run can still get around it (see the book's page on the models).
    ``free``: no constraint at all. work: dimensions that the blocks below the last may write to; the rest of the
    residual stream holds the token, the output and, with ``place``, the position.
    """

    name: str
    keys: str
    work: int
    n_steps: int
    n_items: int = 12
    n_layers: int = 4
    n_heads: int = 5
    d_model: int = 160
    d_mlp: int = 320
    n_positions: int = 128
    batch: int = 96
    parts: int = 3  # of a batch, by length of the prompts
    learning_rate: float = 2e-3
    warmup: int = 200
    rounds: int = 0  # further rounds at most, while some kind of prompt is not solved and the round before helped ...
    round_steps: int = 4000  # ... each of so many steps, with a fresh optimiser ...
    round_rate: float = 5e-4  # ... and a learning rate that falls from here
    ioi_share: float = 0.2
    length_power: float = 0.0  # lists of n items are drawn as often as n ** this; with more, long ones come sooner
    position_scale: float = 15.0  # of the position embedding's first values; more makes places easier to learn
    lengthen_below: float = 0.3  # running loss on IOI and lists of two under which lists of every length come in
    level: float = 0.0  # weight in the loss of the spread of the norm's divisor, by which ``place`` could get around it
    read: float = 8.0  # scale of what the unembedding reads; less of it asks for sharper attention ...
    read_falls: int = 0  # ... so it may start at 8 and fall from this step on
    read_fallen: int = 0  # until this one
    n_names: int = 30
    n_places: int = 15
    n_objects: int = 64

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def round(self, i: int) -> Round:
        """The schedule itself for 0, then its further rounds."""
        if not i:
            return Round(0, self.n_steps, self.learning_rate)
        return Round(self.n_steps + (i - 1) * self.round_steps, self.round_steps, self.round_rate)

    def read_at(self, step: int | None = None) -> float:
        """Scale of what the unembedding reads at a step of training; None for the end of it."""
        if step is None or step >= self.read_fallen:
            return self.read
        fallen = max(0, step - self.read_falls) / (self.read_fallen - self.read_falls)
        return READ_FIRST - (READ_FIRST - self.read) * fallen


@dataclass(frozen=True)
class FunctionsSpec:
    """One small model of functions of a :class:`~talking_heads_utils.experiments.icl.functions.Family`, in context.

    dropout: of the attention pattern while it trains, meant to keep any head from being alone in what it does.
    noise: of the labels that a prompt shows; it grows from 0 over the first ``ramp`` steps. The answer that is asked
    for is never replaced.
    """

    name: str
    n_steps: int
    dropout: float = 0.1
    noise: float = 0.0
    ramp: int = 0
    n_a: int = 5
    n_b: int = 10
    n_x: int = 24
    n_pairs: int = 12
    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    d_mlp: int = 512
    n_positions: int = 48
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    rounds: ClassVar[int] = 0  # it has none beyond its one schedule

    def round(self, i: int) -> Round:
        """Its one schedule."""
        return Round(0, self.n_steps, self.learning_rate)

    def family(self, noise: float | None = None) -> Family:
        """Its functions, with the labels' noise of the end of training by default."""
        return Family(self.n_a, self.n_b, self.n_x, noise=self.noise if noise is None else noise)


Spec = MiniSpec | FunctionsSpec
SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        MiniSpec("mini-token", WORK, work=96, n_steps=8000, position_scale=5.0),
        MiniSpec("mini-place", PLACE, work=64, n_steps=12000, rounds=4, n_items=6, length_power=2.0,
                 position_scale=40.0, level=10.0, read=2.0, read_falls=1500, read_fallen=4000),
        MiniSpec("mini-free", FREE, work=96, n_steps=8000, rounds=2, position_scale=5.0, n_heads=4, d_model=128,
                 d_mlp=512, ioi_share=0.3),
        MiniSpec("mini-narrow", WORK, work=8, n_steps=10000, rounds=4, position_scale=5.0),
        FunctionsSpec("mini-icl", n_steps=4000, n_a=8, n_b=20),
        FunctionsSpec("mini-icl-plain", n_steps=4000, n_a=8, n_b=20, dropout=0.0),
        FunctionsSpec("mini-icl-noisy", n_steps=6000, noise=0.6, ramp=3000),
    )
}  # fmt: skip


def spec_of(name: str) -> Spec:
    """The model of that name. Raises :class:`OptionError` naming those there are."""
    if name not in SPECS:
        raise OptionError(f"No small model {name!r}; there are {', '.join(SPECS)}.")
    return SPECS[name]
