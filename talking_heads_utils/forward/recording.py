"""One forward pass over a prompt set, and what a mover does after its query was changed, in closed form.

A write enters a query linearly up to the norm's divisor. With x the centred residual stream at ``end`` and v a
(centred) write direction, the score of a key k becomes ((x + c v) W_Q . k) / sigma(c) + b_Q . k, and sigma(c) follows
from |x + c v|^2 = |x|^2 + 2 c x.v + c^2 |v|^2. So one product of v with W_Q and the keys serves all prompts' changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import OptionError, UnsupportedModelError
from talking_heads_utils.forward.ends import runs
from talking_heads_utils.forward.layers import (
    HALF_TOLERANCES,
    TOLERANCE,
    AttentionLayer,
    Norm,
    attention_layer,
    norm_without_scale,
    project,
    wide,
)
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.bridge import check_attention, head_weights_from_bridge
from talking_heads_utils.weights.heads import HeadWeights
from talking_heads_utils.weights.rotary import turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


# what a reader layer keeps of its run, in the order of its fields
_READ = ("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern")


@dataclass(frozen=True)
class ReaderLayer:
    """What one layer reads and does, with ``end`` as the query.

    resid: ``resid_pre``, the residual stream that enters the layer.
    query: of every head at ``end``. keys, values: of every position; grouped heads share them. All with their biases
        and before any rotation.
    pattern: attention from ``end``.
    """

    weights: AttentionLayer
    resid: Float[Tensor, "n n_pos d_model"]
    query: Float[Tensor, "n n_heads d_head"]
    keys: Float[Tensor, "n n_pos n_kv_heads d_head"]
    values: Float[Tensor, "n n_pos n_kv_heads d_head"]
    pattern: Float[Tensor, "n n_heads n_pos"]


@dataclass(frozen=True)
class Recording:
    """A forward pass over n ``prompts``, kept as far as closed forms need it, in single precision.

    readers: the layers that were asked for, by their number.
    writes: layer -> ``z`` of every head at every position, without value biases; :meth:`write` makes writes of it.
    directions, singular_values: of every OV component of the model.
    final: residual stream at ``end`` before the last norm. logits: at ``end``.
    unembed: ``W_U`` with the last norm's scale folded in. norm: that norm without its scale.
    """

    prompts: PromptSet
    weights: HeadWeights
    readers: dict[int, ReaderLayer]
    writes: dict[int, Float[Tensor, "n n_pos n_heads d_head"]]
    directions: Float[Tensor, "n_layers n_heads d_head d_model"]
    singular_values: Float[Tensor, "n_layers n_heads d_head"]
    final: Float[Tensor, "n d_model"]
    logits: Float[Tensor, "n d_vocab"]
    unembed: Float[Tensor, "d_model d_vocab"]
    norm: Norm

    @property
    def rows(self) -> Int[Tensor, "n"]:
        return torch.arange(len(self.prompts), device=self.final.device)

    @property
    def end(self) -> Int[Tensor, "n"]:
        return self.prompts.positions["end"].to(self.final.device)

    @property
    def final_scale(self) -> Float[Tensor, "n"]:
        """The divisor of the last norm at ``end``."""
        return self.norm.scale(self.norm.center(self.final).square().sum(-1), self.final.shape[-1])

    @property
    def visible(self) -> Bool[Tensor, "n n_pos"]:
        """Positions that ``end`` can attend to."""
        return torch.arange(self.prompts.tokens.shape[1], device=self.end.device) <= self.end[:, None]

    def reader(self, layer: int) -> ReaderLayer:
        """Raises :class:`OptionError` for a layer that was not recorded."""
        if layer not in self.readers:
            raise OptionError(f"Layer {layer} was not recorded as a reader; there are {sorted(self.readers)}.")
        return self.readers[layer]

    def z(self, layer: int, *, at_end: bool = True) -> Float[Tensor, "n *n_pos n_heads d_head"]:
        """What every head of a layer gathers, value biases left out: at ``end``, or everywhere."""
        z = self.writes[layer]
        return z[self.rows, self.end] if at_end else z

    def write(self, layer: int, *, at_end: bool = True) -> Float[Tensor, "n *n_pos n_heads d_model"]:
        """What every head of a layer writes, biases left out: at ``end``, or everywhere."""
        z = self.z(layer, at_end=at_end)
        return torch.einsum("...hd,hdm->...hm", z, self.weights.W_O[layer].to(z))

    def activations(self, layers: range) -> Float[Tensor, "n layers n_heads d_head"]:
        """How far each component of those layers goes along its write direction at ``end``."""
        found = []
        for layer in layers:
            z = self.z(layer)
            along = self.weights.W_O[layer].to(z) @ self.directions[layer].nan_to_num().mT
            found.append(torch.einsum("...hd,hdc->...hc", z, along))
        return torch.stack(found, -3)


def record(bridge: TransformerBridge, prompts: PromptSet, layers: Sequence[int]) -> Recording:
    """Run ``prompts`` once and keep what readers in ``layers`` and all heads below them did.

    Of a model in half precision the residual stream and what lower heads write are kept as it has them; queries, keys,
    values and patterns of the readers are computed from the stream in single precision, so that closed forms start from
    the same rounding as they end with.

    Raises :class:`OptionError` for no layer or one that has none below it, and :class:`UnsupportedModelError` where the
    recorded patterns are not those that the weights give, up to :data:`~talking_heads_utils.forward.layers.TOLERANCE`
    or that of half precision: queries and keys that are normalised, a window shorter than the prompts, another kind of
    attention that is not known here.
    """
    n_layers = bridge.cfg.n_layers
    if not layers:
        raise OptionError(f"{bridge.cfg.model_name} has {n_layers} layer, so no head has an earlier one to read.")
    if bad := [layer for layer in layers if not 0 < layer < n_layers]:
        raise OptionError(f"Layer {bad[0]} has no earlier writer: readers are in layers 1..{n_layers - 1}.")
    check_attention(bridge, prompts.tokens.shape[1])
    weights, dtype = head_weights_from_bridge(bridge), bridge.W_U.dtype
    directions, S = write_directions(weights)
    names = {f"blocks.{layer}.attn.hook_z" for layer in range(max(layers))}
    names |= {f"blocks.{layer}.{hook}" for layer in layers for hook in _READ}
    kept: dict[str, list[Tensor]] = {}
    for batch in runs(bridge, prompts, names):
        for name in names:
            value = batch.at[name]
            value = value[batch.rows, :, batch.end] if name.endswith("hook_pattern") else value
            value = value[batch.rows, batch.end] if name.endswith("hook_q") else value
            kept.setdefault(name, []).append(wide(value))
        kept.setdefault("final", []).append(wide(batch.final))
        kept.setdefault("logits", []).append(wide(batch.logits))
    found = {name: torch.cat(parts) for name, parts in kept.items()}
    readers, writes = {}, {}
    for layer in layers:
        readers[layer] = ReaderLayer(
            attention_layer(bridge, layer), *(found[f"blocks.{layer}.{hook}"] for hook in _READ)
        )
    for layer in range(max(layers)):
        bias = attention_layer(bridge, layer)
        writes[layer] = found[f"blocks.{layer}.attn.hook_z"] - bias.b_V[bias.kv_index]
    scale = getattr(bridge.ln_final, "weight", None)
    unembed = wide(bridge.W_U) if scale is None else wide(bridge.W_U) * wide(scale)[:, None]
    recording = Recording(
        prompts, weights, readers, writes, directions, S, found["final"], found["logits"], unembed,
        norm_without_scale(bridge),
    )  # fmt: skip
    if dtype in HALF_TOLERANCES:
        recording = replace(recording, readers={layer: _in_single(recording, layer) for layer in layers})
    _check_patterns(recording, {layer: reader.pattern for layer, reader in readers.items()}, dtype)
    return recording


def _in_single(recording: Recording, layer: int) -> ReaderLayer:
    """A reader with queries, keys, values and pattern of its recorded stream, without the model's rounding."""
    reader = recording.reader(layer)
    at, normed = reader.weights, reader.weights.norm(reader.resid)
    reader = replace(
        reader,
        query=project(normed[recording.rows, recording.end], at.W_Q, at.b_Q),
        keys=project(normed, at.W_K, at.b_K),
        values=project(normed, at.W_V, at.b_V),
    )
    keys = keys_seen(replace(recording, readers={layer: reader}), layer)
    return replace(reader, pattern=pattern_of(reader.query, keys, recording.visible))


def keys_seen(recording: Recording, layer: int) -> Float[Tensor, "n n_pos n_heads d_head"]:
    """Keys as the unrotated query at ``end`` meets them: a score is their plain product over sqrt(d_head)."""
    reader = recording.reader(layer)
    distances = torch.arange(reader.keys.shape[1], device=recording.end.device) - recording.end[:, None]
    turned = turn(reader.keys, recording.weights.rotary, distances[:, :, None])
    return turned[:, :, reader.weights.kv_index]


def pattern_of(
    query: Float[Tensor, "n n_heads d_head"], keys: Float[Tensor, "n n_pos n_heads d_head"], visible: Tensor
) -> Float[Tensor, "n n_heads n_pos"]:
    """Attention of a query over keys that it meets unrotated."""
    scores = torch.einsum("nhd,nphd->nhp", query, keys) / query.shape[-1] ** 0.5
    return scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)


def _check_patterns(recording: Recording, own: Mapping[int, Tensor], dtype: torch.dtype) -> None:
    """Raises :class:`UnsupportedModelError` where the weights give other patterns than the model's ``own``."""
    half = dtype in HALF_TOLERANCES
    for layer, reader in recording.readers.items():
        again = pattern_of(reader.query, keys_seen(recording, layer), recording.visible)
        apart = (again - own[layer]).abs()
        gap = (apart.sum(-1).mean() / 2 if half else apart.max()).item()
        if not gap < HALF_TOLERANCES.get(dtype, TOLERANCE):
            raise UnsupportedModelError(
                f"{recording.weights.source.name} attends in a way that is not known here: in layer {layer} its "
                f"patterns differ from those of its weights by {gap:.1e}. The closed forms would be wrong."
            )


@dataclass(frozen=True)
class Mover:
    """One mover head on n prompts: all that the closed forms below need.

    x: what enters the head's layer at ``end``.
    keys: of every position, as the unrotated query at ``end`` meets them.
    pattern: its attention from ``end``. visible: the positions that ``end`` can attend to.
    """

    x: Float[Tensor, "n d_model"]
    keys: Float[Tensor, "n n_pos d_head"]
    pattern: Float[Tensor, "n n_pos"]
    visible: Bool[Tensor, "n n_pos"]
    W_Q: Float[Tensor, "d_model d_head"]
    b_Q: Float[Tensor, "d_head"]
    norm: Norm


def mover_of(recording: Recording, head: Head, rows: slice = slice(None)) -> Mover:
    """What the closed forms need of one head on the prompts in ``rows``."""
    reader = recording.reader(head.layer)
    at, h = reader.weights, head.head
    kv = int(at.kv_index[h])
    end = recording.end[rows]
    resid = reader.resid[rows]
    distances = end[:, None] - torch.arange(resid.shape[1], device=end.device)
    keys = turn(reader.keys[rows, :, kv], recording.weights.rotary, -distances)
    return Mover(
        x=resid[torch.arange(len(resid), device=end.device), end],
        keys=keys,
        pattern=reader.pattern[rows, h],
        visible=recording.visible[rows],
        W_Q=at.W_Q[h],
        b_Q=at.b_Q[h],
        norm=at.norm,
    )


def scale_along(
    norm: Norm, x: Float[Tensor, "n d_model"], v: Float[Tensor, "c d_model"], amounts: Float[Tensor, "n c"]
) -> Float[Tensor, "n c"]:
    """The norm's divisor if ``x`` were moved by an amount along each direction by itself. x, v: centred."""
    square = x.square().sum(-1)[:, None] + 2 * amounts * (x @ v.T) + amounts.square() * v.square().sum(-1)
    return norm.scale(square, x.shape[-1])


def scores_along(
    mover: Mover,
    read: Float[Tensor, "c d_head"],
    amounts: Float[Tensor, "n c"],
    scale: Float[Tensor, "n c"],
    keys: Float[Tensor, "n k d_head"],
) -> Float[Tensor, "n k c"]:
    """Attention scores from ``end`` to some keys if the query's input were moved along each direction by itself.

    read: what the query makes of the directions, centred. scale: of :func:`scale_along`. keys: as the mover has them,
    or weighted sums of them.
    """
    plain = keys @ (mover.norm.center(mover.x) @ mover.W_Q)[..., None]
    scores = (keys.flatten(0, 1) @ read.T).unflatten(0, keys.shape[:2])
    scores = scores.mul_(amounts[:, None]).add_(plain).div_(scale[:, None]).add_((keys @ mover.b_Q)[..., None])
    return scores.div_(mover.W_Q.shape[-1] ** 0.5)


def scores_after_shift(mover: Mover, shift: Float[Tensor, "n k d_model"]) -> Float[Tensor, "n k n_pos"]:
    """Attention scores from ``end``, before the softmax, if the query's input were moved by whole vectors."""
    query = mover.norm(mover.x[:, None] + shift) @ mover.W_Q + mover.b_Q
    scores = (query @ mover.keys.mT) / mover.W_Q.shape[-1] ** 0.5
    return scores.masked_fill_(~mover.visible[:, None], -torch.inf)
