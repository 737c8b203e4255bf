"""Many variants of one run, measured by one metric: what ablation and steering share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import TaskError
from talking_heads_utils.forward.engine import RESID_PRE, Change, Forward, chained, reading, to_positions
from talking_heads_utils.labels import Head
from talking_heads_utils.metrics import SHARE, Metric, Outcome
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import summary

if TYPE_CHECKING:
    import pandas as pd

ALL, END = "all", "end"
_NUMBERS = 100_000_000  # what the largest tensor of one block may hold
Made = Callable[[slice, slice], Change]  # prompts and variants of a block -> what is done to them


def position_of(prompts: PromptSet, name: str) -> Int[Tensor, "n"]:
    """A named position of every prompt. Raises :class:`TaskError` for a name that is not there, or a prompt without
    it."""
    if name not in prompts.positions:
        raise TaskError(f"No position {name!r} in these prompts: name {ALL}, {', '.join(prompts.positions)}.")
    found = prompts.positions[name]
    if (found < 0).any():
        raise TaskError(f"Prompt {int((found < 0).nonzero()[0])} has no position {name!r}. Leave it out.")
    return found


def places(made: Forward, prompts: PromptSet, positions: str) -> tuple[Int[Tensor, "n q"], Bool[Tensor, "n q"]]:
    """What must be run where something is done at ``positions`` (``all`` or a name), and at which of it that is."""
    everywhere = made.everywhere()
    if positions == ALL:
        return everywhere, torch.ones_like(everywhere, dtype=torch.bool)
    point = position_of(prompts, positions).to(everywhere.device)[:, None]
    at = point if positions == END else everywhere[:, int(point.min()) :]
    return at, at == point


@torch.no_grad()
def measure(
    made: Forward,
    prompts: PromptSet,
    metric: Metric,
    at: Int[Tensor, "n q"],
    change: Made,
    n_variants: int,
    *,
    start: int | None = None,
) -> Float[Tensor, "n n_variants"]:
    """A metric of every variant: layers from ``start`` on, at the positions ``at``, with what ``change`` does to some
    prompts and variants. It may widen a value from one variant to all, where variants first differ.

    Raises :class:`OptionError` as a metric does.
    """
    wide = max(4 * made.final.shape[-1], made.n_heads * made.everywhere().shape[1])
    size = batches.size(_NUMBERS // (wide * at.shape[1] + made.unembed.shape[1]))
    per_prompt = min(n_variants, size)
    found = []
    for rows in batches.blocks(len(prompts), max(1, size // per_prompt)):
        parts = [slice(s, min(s + per_prompt, n_variants)) for s in range(0, n_variants, per_prompt)]
        pieces = [_block(made, prompts, metric, at, change(rows, part), rows, part, start) for part in parts]
        found.append(torch.cat(pieces, 1))
    return torch.cat(found)


def _block(
    made: Forward, prompts: PromptSet, metric: Metric, at: Tensor, change: Change, rows: slice, part: slice,
    start: int | None,
) -> Float[Tensor, "n k"]:  # fmt: skip
    start = made.start if start is None else start
    k, seen = part.stop - part.start, _patterns_below(made, metric, rows, start)
    x = made.plain(RESID_PRE, start, at, rows)[:, None]
    into: dict[Head, Tensor] = {}
    x = made.run(x, at, start=start, change=chained(change, reading(metric.heads, into)), rows=rows)
    row, last = torch.arange(len(x), device=x.device), made.end[rows] - at[rows, 0]
    seen |= {head: _at_end(made, pattern[row, :, last], at[rows]) for head, pattern in into.items()}
    patterns = {head: pattern.expand(-1, k, -1) for head, pattern in seen.items()}
    logits = made.logits(x[row, :, last].expand(-1, k, -1))
    return metric(Outcome(logits, prompts.select(rows), patterns))


def _patterns_below(made: Forward, metric: Metric, rows: slice, start: int) -> dict[Head, Float[Tensor, "n 1 n_pos"]]:
    """Untouched patterns of the metric's heads in layers before ``start``."""
    below = [head for head in metric.heads if head.layer < start]
    if not below:
        return {}
    into: dict[Head, Tensor] = {}
    at, stop = made.at_end(), 1 + max(head.layer for head in below)
    x = made.plain(RESID_PRE, made.start, at, rows)[:, None]
    made.run(x, at, stop=stop, change=reading(below, into), rows=rows)
    return {head: _at_end(made, pattern[:, :, 0], at[rows]) for head, pattern in into.items()}


def _at_end(made: Forward, pattern: Float[Tensor, "n k seen"], at: Int[Tensor, "n q"]) -> Float[Tensor, "n k n_pos"]:
    return to_positions(pattern[:, :, None, None], at, made.everywhere().shape[1])[:, :, 0, 0]


def untouched(made: Forward, prompts: PromptSet, metric: Metric) -> Float[Tensor, "n 1"]:
    """The metric of the prompts as they are."""
    return measure(made, prompts, metric, made.at_end(), lambda rows, part: lambda site, layer, value: value, 1)


def tidy(
    rows: list[dict], about: dict, values: Float[Tensor, "n k"], before: Float[Tensor, "n 1"], metric: Metric
) -> pd.DataFrame:
    """One row per variant: what tells it from others, what all share, ``value``, ``change`` from the untouched model
    with its 95% interval over prompts, ``low`` and ``high``, and ``n``."""
    import pandas as pd

    after, change = (summary(values, b, hits=metric.unit == SHARE) for b in (None, before))
    found = dict(value=after.mean, change=change.mean, low=change.low, high=change.high)
    frame = pd.DataFrame(rows)
    frame = frame.astype({name: "Int64" for name in ("layer", "head", "component") if name in frame})
    return frame.assign(**about, **{name: value.numpy() for name, value in found.items()}, n=change.n)
