"""Chapter 3's experiments, as the catalogue has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.editing import study as editing
from talking_heads_utils.settings import N_ITEMS

if TYPE_CHECKING:
    import pandas as pd

CROWDED = 10  # items of the lists on which edits are chosen


def _crowded(c: Context) -> int:
    return c.n_items(N_ITEMS if c.quick else CROWDED)


def _bench(c: Context) -> editing.Bench:
    size = dict(n_components=3, n_draws=1) if c.quick else dict(n_components=6, n_draws=2)
    return editing.bench(
        c.model, n_items=_crowded(c), n_prompts=c.n(80), seed=c.seed, device=c.device, dtype=c.dtype,
        mover=None if c.is_own else c.mover, **size,
    )  # fmt: skip


def _tried(c: Context) -> list[editing.Row]:
    """The edits that are searched through."""
    return editing.search(c.kept(_bench), **(dict(sizes=(0.15,), values=(0.0, 2.0)) if c.quick else {}))


def _removal(c: Context) -> pd.DataFrame:
    return editing.removal_table(c.kept(_bench))


def _edit_gains(c: Context) -> pd.DataFrame:
    longer = c.n_items(_crowded(c) + 2)
    sets = [editing.KNOWN, editing.NEW, *([f"lists of {longer}"] if longer > _crowded(c) else [])]
    return editing.gains_table(c.kept(_bench), editing.winners(c.kept(_tried)), sets[:1] if c.quick else sets)


def _harm(c: Context) -> pd.DataFrame:
    return editing.harm_table(c.kept(_bench), editing.with_controls(editing.winners(c.kept(_tried))))


EXPERIMENTS = (
    Experiment("removal", 3, 6, None, _removal, "single components removed"),
    Experiment("edit-gains", 3, 14, None, _edit_gains, "accuracy by edits of the weights"),
    Experiment("edit-harm", 3, 2, None, _harm, "what the edits cost elsewhere"),
)
