"""Many variants of one run, measured by one metric: what ablation, patching and steering share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward.engine import RESID_PRE, Change, Forward, Rows, chained, reading, to_positions
from talking_heads_utils.labels import Head
from talking_heads_utils.metrics import METRICS, SHARE, Metric, Outcome, position_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import summary

if TYPE_CHECKING:
    import pandas as pd

ALL, END = "all", "end"
INDEX = ("layer", "head", "component")
_NUMBERS = 100_000_000  # what the largest tensor of one block may hold
Made = Callable[[slice, slice], Change]  # prompts and variants of a block -> what is done to them


def finite(amount: Any) -> float:
    """An amount to steer by or to set. Raises :class:`OptionError` for what is no finite number."""
    if isinstance(amount, bool) or not isinstance(amount, Real) or not math.isfinite(amount):
        raise OptionError(f"An amount is a finite number, not {amount!r}.")
    return float(amount)


def another(n: int, seed: int) -> Int[Tensor, "n"]:
    """For each of n prompts another one, drawn by ``seed``. Raises :class:`OptionError` for a single prompt."""
    if n < 2:
        raise OptionError("To resample from another prompt there must be two at least.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order.roll(1)[order.argsort()]


def places(
    made: Forward, prompts: PromptSet, positions: str, *, whole: bool = False
) -> tuple[Int[Tensor, "n q"], Bool[Tensor, "n q"]]:
    """What must be run where something is done at ``positions`` (``all`` or a name), and at which of it that is.
    whole: run every position."""
    everywhere = made.everywhere()
    if positions == ALL:
        return everywhere, torch.ones_like(everywhere, dtype=torch.bool)
    point = position_of(prompts, positions).to(everywhere.device)[:, None]
    at = everywhere if whole else point if positions == END else everywhere[:, int(point.min()) :]
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
    wide = max(made.width, made.n_heads * made.n_pos)
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
    start, k = made.start if start is None else start, part.stop - part.start
    x, into = made.plain(RESID_PRE, start, at, rows)[:, None], dict[Head, Tensor]()
    x = made.run(x, at, start=start, change=chained(change, reading(metric.heads, into)), rows=rows)
    row, last = torch.arange(len(x), device=x.device), made.end[rows] - at[rows, 0]
    seen = plain_patterns(made, [head for head in metric.heads if head.layer < start], rows)
    seen |= {head: from_end(made, pattern, at[rows], last) for head, pattern in into.items()}
    patterns = {head: pattern.expand(-1, k, -1) for head, pattern in seen.items()}
    return score(made, metric, x[row, :, last].expand(-1, k, -1), prompts.select(rows), patterns)


def needs_all(metric: Metric, prompts: PromptSet) -> bool:
    """Whether a metric looks at logits of more tokens than the answers."""
    return metric is not METRICS["logit_diff"] or not prompts.distractors.shape[1]


def score(
    made: Forward, metric: Metric, final: Float[Tensor, "n k d_model"], prompts: PromptSet,
    patterns: Mapping[Head, Float[Tensor, "n k n_pos"]],
) -> Float[Tensor, "n k"]:  # fmt: skip
    """The metric of final streams, of no more logits than it needs."""
    if needs_all(metric, prompts):
        return metric(Outcome(made.logits(final), prompts, patterns))
    tokens, weights = (values.to(final.device) for values in prompts.logit_weights)
    return (made.logits(final, tokens) * weights[:, None].to(final)).sum(-1)


def plain_patterns(
    made: Forward, heads: Sequence[Head], rows: Rows = slice(None)
) -> dict[Head, Float[Tensor, "rows 1 n_pos"]]:
    """Attention of some heads from ``end`` in the plain run."""
    found, at = dict[Head, Tensor](), made.at_end()
    if heads:
        x = made.plain(RESID_PRE, made.start, at, rows)[:, None]
        made.run(x, at, stop=1 + max(head.layer for head in heads), change=reading(heads, found), rows=rows)
    return {head: from_end(made, pattern, at[rows], at[rows, 0] * 0) for head, pattern in found.items()}


def from_end(
    made: Forward, pattern: Float[Tensor, "n k a keys"], at: Int[Tensor, "n q"], last: Int[Tensor, "n"]
) -> Float[Tensor, "n k n_pos"]:
    """A pattern as it was read, from ``end`` alone and by position. last: where ``end`` stands among the q positions;
    a pattern with a single query has it there."""
    row, last = torch.arange(len(at), device=at.device), last if pattern.shape[2] > 1 else last * 0
    return to_positions(pattern[row, :, last][:, :, None, None], at, made.n_pos)[:, :, 0, 0]


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
    frame = frame.astype({name: "Int64" for name in INDEX if name in frame})
    return frame.assign(**about, **{name: value.numpy() for name, value in found.items()}, n=change.n)
