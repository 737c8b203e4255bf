"""The small models: what each may do, and how long it is trained. Schedules count steps, never minutes."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.errors import OptionError

WORK, PLACE, FREE = "work", "place", "free"


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
    ioi_share: float = 0.2
    position_scale: float = 15.0  # of the position embedding's first values; more makes places easier to learn
    lengthen_below: float = 0.3  # running loss on IOI and lists of two under which lists of every length come in
    level: float = 0.0  # weight in the loss of the spread of the norm's divisor, by which ``place`` could get around it
    n_names: int = 30
    n_places: int = 15
    n_objects: int = 64

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


SPECS = {
    spec.name: spec
    for spec in (
        MiniSpec("mini-token", WORK, work=96, n_steps=8000, position_scale=5.0),
        MiniSpec("mini-place", PLACE, work=64, n_steps=8000, level=10.0),
        MiniSpec("mini-free", FREE, work=96, n_steps=4500, position_scale=5.0),
        MiniSpec("mini-narrow", WORK, work=8, n_steps=5000, position_scale=5.0),
    )
}


def spec_of(name: str) -> MiniSpec:
    """The model of that name. Raises :class:`OptionError` naming those there are."""
    if name not in SPECS:
        raise OptionError(f"No small model {name!r}; there are {', '.join(SPECS)}.")
    return SPECS[name]
