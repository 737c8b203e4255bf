"""One forward pass over a prompt set, kept as far as the closed forms need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import OptionError, UnsupportedModelError
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.forward.layers import (
    HALF_TOLERANCES,
    TOLERANCE,
    AttentionLayer,
    Norm,
    attention_layer,
    attention_of,
    norm_without_scale,
    project,
    wide,
)
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.bridge import check_attention, head_weights_from_bridge
from talking_heads_utils.weights.heads import HeadWeights
from talking_heads_utils.weights.rotary import turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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


def record(bridge: TransformerBridge, prompts: PromptSet, layers: Sequence[int], *, batch: int = 64) -> Recording:
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
    names = _hook_names(layers)
    kept: dict[str, list[Tensor]] = {}
    for rows in batches.blocks(len(prompts), batch):
        part = prompts.select(rows)
        for name, tensor in _run(bridge, part, names, n_layers).items():
            kept.setdefault(name, []).append(wide(tensor))
    found = {name: torch.cat(parts) for name, parts in kept.items()}
    readers = {layer: _reader(attention_layer(bridge, layer), found, layer) for layer in layers}
    writes = {layer: found[f"blocks.{layer}.attn.hook_z"] for layer in range(max(layers))}
    for layer in writes:
        bias = attention_layer(bridge, layer)
        writes[layer] = writes[layer] - bias.b_V[bias.kv_index]
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


def _hook_names(layers: Sequence[int]) -> set[str]:
    names = {f"blocks.{layer}.attn.hook_z" for layer in range(max(layers))}
    for layer in layers:
        names |= {f"blocks.{layer}.hook_resid_pre"}
        names |= {f"blocks.{layer}.attn.hook_{name}" for name in ("q", "k", "v", "pattern")}
    return names


@torch.no_grad()
def _run(bridge: TransformerBridge, part: PromptSet, names: set[str], n_layers: int) -> dict[str, Tensor]:
    """One batch: what the hooks saw, where only ``end`` matters reduced to it."""
    last = f"blocks.{n_layers - 1}.hook_resid_post"
    rows, end = torch.arange(len(part)), part.positions["end"]
    with logits_at(bridge, end[:, None]):
        logits, cache = bridge.run_with_cache(
            part.tokens.to(bridge.cfg.device), names_filter=lambda name: name in names or name == last
        )
    kept = {name: cache[name] for name in names}
    for name in names:
        if name.endswith("hook_pattern"):
            kept[name] = kept[name][rows, :, end]
        elif name.endswith("hook_q"):
            kept[name] = kept[name][rows, end]
    return kept | {"final": cache[last][rows, end], "logits": logits[:, 0]}


def _reader(weights: AttentionLayer, found: dict[str, Tensor], layer: int) -> ReaderLayer:
    at = f"blocks.{layer}"
    query, keys, values, pattern = (found[f"{at}.attn.hook_{name}"] for name in ("q", "k", "v", "pattern"))
    return ReaderLayer(weights, found[f"{at}.hook_resid_pre"], query, keys, values, pattern)


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
    return attention_of(torch.einsum("nhd,nphd->nhp", query, keys), query.shape[-1], visible[:, None])


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
