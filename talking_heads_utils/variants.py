"""What ablation, patching, steering and asking share: what they check of what they are given, whose components their
labels mean, and many variants of one run, measured by one metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.editing import weights_to_edit
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.forward.engine import (
    ATTN_OUT,
    RESID_PRE,
    Change,
    Forward,
    Rows,
    Z,
    chained,
    reading,
    to_positions,
)
from talking_heads_utils.labels import Component, Head, Mlp
from talking_heads_utils.metrics import METRICS, SHARE, Metric, Outcome, named, position_of
from talking_heads_utils.models import as_bridge
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.words import tokenizer_hash
from talking_heads_utils.stats import summary
from talking_heads_utils.weights.heads import Processing, RawLayer, assemble

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from talking_heads_utils.weights.heads import HeadWeights

ALL, END = "all", "end"
INDEX = ("layer", "head", "component")
LEARNED = "standard"  # TransformerLens' word for learned positions, of which there are n_ctx and no more
_NEAR, _NUMBERS = 3_000_000, 100_000_000  # that a block's largest tensor may hold: near a CPU; on a GPU
Made = Callable[[Rows, slice], Change]  # prompts and variants of a block -> what is done to them
New = Callable[[str, int, Rows], Tensor | None]  # site, layer and prompts -> what is put there; None is nothing


# --- what is given -----------------------------------------------------------------------------------------------


@torch.no_grad()
def labelled_weights(bridge: TransformerBridge) -> HeadWeights:
    """The weights whose components labels mean: folded, and within :func:`~talking_heads_utils.editing.edit` those from
    before any edit, so that a label means the same direction inside the block as outside."""
    weights = weights_to_edit(bridge)
    wanted = Processing.default(weights.norm)
    if weights.processing == wanted:
        return weights

    def layer(n: int) -> RawLayer:
        parts = (getattr(bridge.blocks[n].ln1, name, None) for name in ("weight", "bias"))  # which no edit changes
        scale, bias = (None if part is None else part.to(weights.W_O) for part in parts)
        W_Q, W_K, W_V, W_O, b_O = (w[n] for w in (weights.W_Q, weights.W_K, weights.W_V, weights.W_O, weights.b_O))
        return RawLayer(W_Q, W_K, W_V, W_O, b_O=b_O, ln_scale=scale, ln_bias=bias)

    layers = map(layer, range(weights.n_layers))
    return assemble(
        layers, weights.n_layers, norm=weights.norm, source=weights.source, processing=wanted, rotary=weights.rotary
    )


def taken(model: Any, tokenizer: Any, metric: Any, *sets: PromptSet | None) -> tuple[TransformerBridge, Metric]:
    """The model as a bridge and the metric, of prompts that fit them.

    Raises :class:`OptionError` for what is no metric, :class:`LabelError` for one of a head that is not there,
    :class:`TaskError` for what is no prompt set, one of another tokenizer or one that is too long, and as
    :func:`~talking_heads_utils.models.as_bridge` does.
    """
    bridge = as_bridge(model, tokenizer)
    if not isinstance(metric, str | Metric) and not callable(metric):
        raise OptionError(f"A metric is one name, a Metric or a function, not of the type {type(metric).__name__}.")
    found = named(metric)
    for head in found.heads:
        check_part(bridge, head)
    for prompts in sets:
        if prompts is None:
            continue
        if not isinstance(prompts, PromptSet):
            raise TaskError(
                f"Prompts are a PromptSet, as from_texts makes of texts and answers, not a {type(prompts).__name__}."
            )
        wanted = prompts.recipe.tokenizer_hash
        if wanted and bridge.tokenizer is not None and tokenizer_hash(bridge.tokenizer) != wanted:
            raise TaskError(
                f"These prompts are of another tokenizer than {bridge.cfg.model_name}'s: build them with the model's "
                "own, model.tokenizer."
            )
        check_length(bridge, prompts.tokens.shape[1])
    return bridge, found


def check_part(bridge: TransformerBridge, part: Head | Component | Mlp) -> None:
    """Raises :class:`LabelError` for a layer or head that is not there."""
    cfg = bridge.cfg
    if part.layer >= cfg.n_layers or getattr(part, "head", 0) >= cfg.n_heads:
        raise LabelError(
            f"{part} is not in {cfg.model_name}: layers are 0..{cfg.n_layers - 1} with heads 0..{cfg.n_heads - 1}."
        )


def check_length(bridge: TransformerBridge, n_pos: int) -> None:
    """Raises :class:`TaskError` for more tokens than a model with learned positions has positions for."""
    cfg = bridge.cfg
    if cfg.positional_embedding_type == LEARNED and n_pos > cfg.n_ctx:
        raise TaskError(
            f"These prompts have up to {n_pos} tokens, padding included; {cfg.model_name} has positions for "
            f"{cfg.n_ctx}. Make them shorter."
        )


def check_position(name: Any, what: str) -> None:
    """Raises :class:`OptionError` for a position that is no name, such as a list of them."""
    if not isinstance(name, str):
        raise OptionError(f"{what} is 'all' or one named position, such as 'end', not {name!r}.")


def listed(values: Any, what: str) -> list:
    """A list, tuple or range as a list. Raises :class:`OptionError` for none and for a single value."""
    if not isinstance(values, Iterable) or not (found := list(values)):
        raise OptionError(f"{what} is a list of one at least, not {values!r}.")
    return found


def finite(amount: Any) -> float:
    """An amount to steer by or to set. Raises :class:`OptionError` for what is no finite number."""
    if isinstance(amount, bool) or not isinstance(amount, Real) or not math.isfinite(amount):
        raise OptionError(f"An amount is a finite number, not {amount!r}.")
    return float(amount)


# --- many variants -----------------------------------------------------------------------------------------------


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
    some: Int[Tensor, "rows"] | None = None,
    only_end: bool = False,
) -> Float[Tensor, "rows n_variants"]:
    """A metric of every variant: layers from ``start`` on, at the positions ``at``, with what ``change`` does to some
    prompts and variants. It may widen a value from one variant to all, where variants first differ. some: those of the
    prompts that are run, all by default. only_end: nothing is done in the last layer, so that only ``end`` runs there.

    Raises :class:`OptionError` as a metric does.
    """
    wide, largest = max(made.width, made.n_heads * made.n_pos), _NEAR if made.final.device.type == "cpu" else _NUMBERS
    size = batches.size(largest // max(wide * at.shape[1], made.unembed.shape[1] * _needs_all(metric, prompts)))
    per_prompt = min(n_variants, size)
    found = []
    for block in batches.blocks(len(prompts) if some is None else len(some), max(1, size // per_prompt)):
        rows = block if some is None else some[block]
        parts = [slice(s, min(s + per_prompt, n_variants)) for s in range(0, n_variants, per_prompt)]
        given: dict[str, Any] = dict(start=made.start if start is None else start, rows=rows, only_end=only_end)
        pieces = [_block(made, prompts, metric, at, change(rows, p), p.stop - p.start, **given) for p in parts]
        found.append(torch.cat(pieces, 1))
    return torch.cat(found)


def _block(
    made: Forward, prompts: PromptSet, metric: Metric, at: Tensor, change: Change, k: int, *, start: int, rows: Rows,
    only_end: bool,
) -> Float[Tensor, "n k"]:  # fmt: skip
    x, into = made.plain(RESID_PRE, start, at, rows)[:, None], dict[Head, Tensor]()
    change = chained(change, reading(metric.heads, into))
    x = made.run(x, at, start=start, change=change, rows=rows, only_end=only_end)
    row, last = torch.arange(len(x), device=x.device), made.end[rows] - at[rows, 0]
    seen = _plain_patterns(made, [head for head in metric.heads if head.layer < start], rows)
    seen |= {head: _from_end(made, pattern, at[rows], last) for head, pattern in into.items()}
    patterns = {head: pattern.expand(-1, k, -1) for head, pattern in seen.items()}
    final, prompts = x[row, :, last * (x.shape[2] > 1)].expand(-1, k, -1), prompts.select(rows)
    if _needs_all(metric, prompts):
        return metric(Outcome(made.logits(final), prompts, patterns))
    tokens, weights = (values.to(final.device) for values in prompts.logit_weights)
    return (made.logits(final, tokens) * weights[:, None].to(final)).sum(-1)


def _needs_all(metric: Metric, prompts: PromptSet) -> bool:
    """Whether a metric looks at logits of more tokens than the answers."""
    return metric is not METRICS["logit_diff"] or not prompts.distractors.shape[1]


def _plain_patterns(made: Forward, heads: Sequence[Head], rows: Rows) -> dict[Head, Float[Tensor, "rows 1 n_pos"]]:
    """Attention of some heads from ``end`` in the plain run."""
    found, at = dict[Head, Tensor](), made.at_end()
    if heads:
        x = made.plain(RESID_PRE, made.start, at, rows)[:, None]
        made.run(x, at, stop=1 + max(head.layer for head in heads), change=reading(heads, found), rows=rows)
    return {head: _from_end(made, pattern, at[rows], at[rows, 0]) for head, pattern in found.items()}


def _from_end(
    made: Forward, pattern: Float[Tensor, "n k q keys"], at: Int[Tensor, "n q"], last: Int[Tensor, "n"]
) -> Float[Tensor, "n k n_pos"]:
    """A pattern as it was read, from ``end`` alone and by position. last: where ``end`` stands among the q positions; a
    pattern with a single query has it there."""
    row, last = torch.arange(len(at), device=at.device), last * (pattern.shape[2] > 1)
    return to_positions(pattern[row, :, last][:, :, None, None], at, made.n_pos)[:, :, 0, 0]


# --- what stands at a site, replaced -----------------------------------------------------------------------------


class Target(NamedTuple):
    """What is replaced: all that stands at ``resid_pre`` or ``mlp_out``; or of z, of all heads or of one, what
    ``((z - rest) @ read) @ write`` makes of it, where no ``read`` is the identity and no ``rest`` zero."""

    site: str
    layer: int
    head: int | None = None
    read: Float[Tensor, "d_head r"] | None = None
    write: Float[Tensor, "r d_model"] | None = None
    rest: Float[Tensor, "d_head"] | None = None

    @classmethod
    def of_head(cls, made: Forward, layer: int, head: int, v: Float[Tensor, "d_model"] | None = None) -> Target:
        """All that a head writes; or, value bias left out, the part of it along a unit vector."""
        at = made.layers[layer - made.start].attention
        W_O = at.W_O[head]
        if v is None:
            return cls(Z, layer, head, write=W_O)
        return cls(Z, layer, head, (W_O @ v.to(W_O))[:, None], v.to(W_O)[None], at.b_V[at.kv_index[head]])

    def written(self, value: Tensor) -> Float[Tensor, "n q d_model"]:
        """What of the site's value counts."""
        if self.write is None:
            return value
        z = value.flatten(-2) if self.head is None else value[:, :, self.head]
        z = z if self.rest is None else z - self.rest
        return (z if self.read is None else z @ self.read) @ self.write


@torch.no_grad()
def replaced(
    made: Forward, prompts: PromptSet, metric: Metric, targets: Sequence[Sequence[Target]], new: New,
    at: Int[Tensor, "n q"], mask: Bool[Tensor, "n q"], some: Int[Tensor, "rows"] | None = None,
) -> Float[Tensor, "rows k"]:  # fmt: skip
    """The metric after each set of targets was replaced where ``mask`` says so, and everything later saw it. at, some:
    as :func:`measure` takes them. Sets that begin in one layer run together, from there on."""
    firsts = [min(target.layer for target in each) for each in targets]
    out = made.final.new_empty(len(prompts) if some is None else len(some), len(targets))
    for layer in sorted(set(firsts)):
        which = [i for i, first in enumerate(firsts) if first == layer]
        mine = [targets[i] for i in which]
        below_last = max(target.layer for each in mine for target in each) < made.n_layers - 1
        change = partial(_replacing, mine, new, mask)
        out[:, which] = measure(
            made, prompts, metric, at, change, len(which), start=layer, some=some, only_end=below_last
        ).to(out)
    return out


def _replacing(targets: Sequence[Sequence[Target]], new: New, mask: Tensor, rows: Rows, part: slice) -> Change:
    of, k, z = by_site(targets[part]), part.stop - part.start, dict[int, Tensor]()
    here = mask[rows][:, None, :, None]

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        at = Z if site == ATTN_OUT else site
        if (at, layer) not in of:
            return value
        if site == Z:  # replaced in what is written of it
            z[layer] = value
            return value
        old = z.pop(layer) if at == Z else value
        return value + added(of[at, layer], k, old, new(at, layer, rows), value.shape[-1]) * here

    return change


def by_site(targets: Sequence[Sequence[Target]]) -> dict[tuple[str, int], list[tuple[int, Target]]]:
    """Site and layer -> variant and target."""
    found: dict[tuple[str, int], list[tuple[int, Target]]] = {}
    for i, each in enumerate(targets):
        for target in each:
            found.setdefault((target.site, target.layer), []).append((i, target))
    return found


def added(
    some: Sequence[tuple[int, Target]], k: int, old: Float[Tensor, "n k q *d"], new: Tensor | None, d_model: int
) -> Float[Tensor, "n k q d_model"]:
    """What is added to the stream of each of k variants, where ``old`` stood in every variant or in all alike."""
    out = old.new_zeros(len(old), k, old.shape[2], d_model)
    for i, target in some:
        out[:, i] -= target.written(old[:, i if old.shape[1] > 1 else 0])
        if new is not None:
            out[:, i] += target.written(new)
    return out


# --- what comes out ----------------------------------------------------------------------------------------------


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
