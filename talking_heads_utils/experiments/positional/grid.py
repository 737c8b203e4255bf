"""Steering: add sum_k alpha_k d_k at ``end``, each d_k where its component writes, and read what movers and logits do.

Source: Merullo et al. (2024), Section 5. What makes it fast is this project's own: nothing before ``end`` changes, so
one token runs per setting, on keys and values that are kept; a stage that depends on some of the alphas only is run
once for each of their values, not once for each setting; and nothing above the read-out is run at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.components import write_vectors
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.forward import engine
from talking_heads_utils.forward.layers import project
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.weights.rotary import turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ATTENTION, LOGITS = "attention", "logits"
NO_ANSWER = -1  # where several candidates have the largest logit
_BATCH_BYTES, _CPU_BYTES = 600_000_000, 32_000_000  # of a batch's largest tensor, if no batch size is given


@dataclass(frozen=True)
class Steering:
    """A model, n prompts and k write directions, ready to be steered.

    suffix: the last token through the layers from the first writer's on.
    directions: unit vectors, one per writer, signed so that the largest entry is positive.
    middle: residual stream at ``end`` after attention of the first writer's layer, which no setting changes.
    items, candidates: where each candidate is first named, and its token.
    """

    suffix: engine.Forward
    writers: tuple[Component, ...]
    directions: Float[Tensor, "k d_model"]
    middle: Float[Tensor, "n d_model"]
    items: Int[Tensor, "n n_items"]
    candidates: Int[Tensor, "n n_items"]


def prepare(bridge: TransformerBridge, prompts: PromptSet, writers: Sequence[Component]) -> Steering:
    """Run the prompts once. Other directions in the same layers: ``dataclasses.replace(steering, directions=...)``.

    Raises :class:`LabelError` for a component that is not there, :class:`OptionError` for no writer.
    """
    if not writers:
        raise OptionError("Nothing to steer with: name one writer at least, such as L8H10.1.")
    own = write_vectors(bridge, writers)
    upper = engine.prepare(bridge, prompts, min(w.layer for w in writers))
    with torch.no_grad():
        middle = upper.resid + _written(upper, upper.start, upper.resid[:, None], slice(None))[:, 0]
    items, candidates = (part.to(upper.end.device) for part in item_positions(prompts))
    return Steering(upper, tuple(writers), own.to(middle), middle, items, candidates)


@torch.no_grad()
def steer(
    steering: Steering,
    settings: Float[Tensor, "n_settings k"],
    *,
    movers: Sequence[Head] = (),
    logits: bool = False,
    rows: slice = slice(None),
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Every setting on the prompts in ``rows``.

    Returns ``attention`` ``[n, n_settings, n_movers, n_items]`` if there are movers: each item's share of a mover's
    attention to all items; and ``logits`` ``[n, n_settings, n_items]`` of the candidates if asked for. batch_size:
    settings times prompts that run together. Raises :class:`OptionError` where a mover lies below a writer, nothing is
    asked for or settings do not fit the writers.
    """
    _check(steering, settings, movers, logits)
    first, last, _ = rows.indices(len(steering.items))
    n, settings = max(0, last - first), settings.to(steering.middle)
    usual = _CPU_BYTES if steering.middle.device.type == "cpu" else _BATCH_BYTES
    usual = batch_size or usual // (steering.suffix.width * steering.middle.element_size())
    found: dict[str, Tensor] = {}
    for part, some in blocks(n, len(settings), usual):
        at = slice(first + part.start, first + part.stop)
        for name, values in _block(steering, settings[some], movers, logits, at).items():
            if name not in found:
                found[name] = values.new_empty(n, len(settings), *values.shape[2:])
            found[name][part, some] = values
    return found


def blocks(n: int, k: int, usual: int) -> Iterator[tuple[slice, slice]]:
    """n prompts and k variants of each, ``usual`` pairs of them at once."""
    variants = list(batches.blocks(k, usual))
    for rows in batches.blocks(n, max(1, usual // k)):
        for some in variants:
            yield rows, some


def _check(steering: Steering, settings: Tensor, movers: Sequence[Head], logits: bool) -> None:
    if not movers and not logits:
        raise OptionError("Nothing to read: name movers, or ask for logits.")
    if settings.ndim != 2 or settings.shape[1] != len(steering.writers) or not torch.isfinite(settings).all():
        raise OptionError(f"Settings are finite numbers, one column for each of the {len(steering.writers)} writers.")
    last = max(w.layer for w in steering.writers)
    for mover in movers:
        if mover.layer <= last:
            raise OptionError(f"{mover} cannot read what layer {last} writes: a reader lies above every writer.")
        upper = steering.suffix
        if mover.layer >= upper.n_layers or mover.head >= upper.n_heads:
            raise LabelError(f"No head {mover} in this model.")


def _block(
    steering: Steering, settings: Tensor, movers: Sequence[Head], logits: bool, rows: slice
) -> dict[str, Tensor]:
    upper = steering.suffix
    stop = upper.n_layers if logits else max(m.layer for m in movers)
    attention: dict[Head, Tensor] = {}
    x, middle = upper.resid[rows, None], steering.middle[rows, None]
    done = torch.zeros(len(settings), dtype=torch.long, device=settings.device)  # which variant each setting runs as
    for layer in range(upper.start, upper.n_layers):
        here = [m for m in movers if m.layer == layer]
        if here:
            seen = item_scores(upper, layer, [m.head for m in here], x, steering.items[rows], rows).softmax(-1)
            attention |= zip(here, seen[:, done].unbind(2))
        if layer >= stop:
            break
        if layer > upper.start:
            middle = x + _written(upper, layer, x, rows)
        x, middle, done = _add(steering, settings, layer, x, middle, done)
        x = middle + upper.mlp(layer, x, middle)
    found = {ATTENTION: torch.stack([attention[m] for m in movers], 2)} if movers else {}
    if logits:
        found[LOGITS] = upper.logits(x, steering.candidates[rows])[:, done]
    return found


def _written(upper: engine.Forward, layer: int, x: Float[Tensor, "n k d_model"], rows: slice) -> Tensor:
    """What attention writes at ``end``."""
    return upper.write(layer, upper.attend(layer, x[:, :, None], upper.at_end()[rows], rows))[:, :, 0]


def _add(
    steering: Steering, settings: Tensor, layer: int, x: Tensor, middle: Tensor, done: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add what the writers of this layer write. Settings that agree so far stay one variant."""
    columns = [k for k, w in enumerate(steering.writers) if w.layer == layer]
    if not columns:
        return x, middle, done
    values, which = settings[:, columns].unique(dim=0, return_inverse=True)
    variants, done = (done * len(values) + which).unique(return_inverse=True)  # integers: half precision counts to 256
    parent = variants // len(values)
    added = values[variants % len(values)] @ steering.directions[columns]
    return x[:, parent], middle[:, parent] + added, done


def item_scores(
    upper: engine.Forward,
    layer: int,
    heads: Sequence[int],
    x: Float[Tensor, "n k d_model"],
    items: Int[Tensor, "n n_items"],
    rows: engine.Rows = slice(None),
) -> Float[Tensor, "n k n_some n_items"]:
    """Scores of some heads of a layer from ``end`` to some positions before it: a softmax of them is attention as
    shares of that to all these. x: what enters the layer at ``end``. items: of the prompts in ``rows``."""
    W, some = upper.layers[layer - upper.start].attention, list(heads)
    query = turn(project(W.norm(x), W.W_Q[some], W.b_Q[some]), upper.rotary, upper.end[rows][:, None, None])
    of = torch.arange(len(upper.end), device=x.device)[rows]
    keys = upper.keys[layer - upper.start][of[:, None], :, items][:, :, W.kv_index[some]]  # [n, n_items, heads, d_head]
    return torch.einsum("nkhd,nihd->nkhi", query, keys) / query.shape[-1] ** 0.5


def answer(logits: Float[Tensor, "*sets n_items"]) -> Int[Tensor, "*sets"]:
    """The list index whose candidate alone has the largest logit, else :data:`NO_ANSWER`: a tie is none."""
    largest = logits == logits.amax(-1, keepdim=True)
    return logits.argmax(-1).where(largest.sum(-1) == 1, NO_ANSWER)


def grid(values: Sequence[float], k: int = 3) -> Float[Tensor, "n_settings k"]:
    """Every combination of ``values`` on k axes, the last axis running fastest."""
    axis = torch.tensor(list(values), dtype=torch.float32)
    return torch.cartesian_prod(*[axis] * k).view(-1, k)
