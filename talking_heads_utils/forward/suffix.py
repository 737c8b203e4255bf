"""The last token alone through the upper layers.

Nothing before ``end`` can change when something is done at ``end``. So keys and values of the prefix are computed once
per prompt, and every variant costs one token through the layers that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import ModelError, OptionError, UnsupportedModelError
from talking_heads_utils.forward.ends import logits_at
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
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.bridge import check_attention, rotary_of
from talking_heads_utils.weights.heads import Rotary
from talking_heads_utils.weights.rotary import turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True)
class SuffixLayer:
    """One upper layer: attention weights, keys (rotated to their places) and values of the prefix (none where only the
    stream was kept), and the MLP."""

    attention: AttentionLayer
    keys: Float[Tensor, "n n_kv_heads n_pos d_head"] | None
    values: Float[Tensor, "n n_kv_heads n_pos d_head"] | None
    mlp: Callable[[Tensor], Tensor] | None
    mlp_scale: Tensor | None
    mlp_bias: Tensor | None

    def prefix(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of some prompts. Raises :class:`OptionError` where only the stream was kept."""
        if self.keys is None or self.values is None:
            raise OptionError("Only the stream was kept here, no keys and values: prepare the prompts with suffix().")
        return self.keys[rows], self.values[rows]


@dataclass(frozen=True)
class Suffix:
    """The layers from ``start`` on, for the last token of every prompt: the stream, attention and logits in single
    precision, whatever the model's; an MLP in the model's own.

    resid: ``resid_pre`` of layer ``start`` at ``end``, ``[n, d_model]``. stream: the same at every position, kept
    instead of keys and values by :func:`stream`.
    """

    start: int
    layers: list[SuffixLayer]
    resid: Float[Tensor, "n d_model"]
    end: Int[Tensor, "n"]
    before_end: Bool[Tensor, "n n_pos"]
    norm: Norm
    parallel: bool
    rotary: Rotary | None
    unembed: Float[Tensor, "d_model d_vocab"]
    unembed_bias: Float[Tensor, "d_vocab"]
    stream: Float[Tensor, "n n_pos d_model"] | None = None

    @property
    def everywhere(self) -> Float[Tensor, "n n_pos d_model"]:
        """The stream at every position. Raises :class:`OptionError` where keys and values were kept instead."""
        if self.stream is None:
            raise OptionError("Keys and values were kept here, not the stream: prepare the prompts with stream().")
        return self.stream

    @torch.no_grad()
    def final(
        self,
        resid: Float[Tensor, "n k d_model"],
        *,
        attention_added: Mapping[int, Float[Tensor, "n k d_model"]] | None = None,
        rows: slice = slice(None),
    ) -> Float[Tensor, "n k d_model"]:
        """Residual stream after the last layer for k variants of the last token of the prompts in ``rows``.

        resid: entering layer ``start``. attention_added: layer -> what is added to what attention writes there.
        """
        x = resid
        for layer, part in enumerate(self.layers, self.start):
            attention = self.attend(part, x, rows)
            if attention_added and layer in attention_added:
                attention = attention + attention_added[layer]
            x = self.after_attention(part, x, x + attention)
        return x

    def after_attention(self, part: SuffixLayer, x: Tensor, middle: Tensor) -> Float[Tensor, "n k d_model"]:
        """The layer's output from what it read (``x``) and what stands there after attention (``middle``)."""
        if part.mlp is None:
            return middle
        normed = self.norm(x if self.parallel else middle)
        normed = normed if part.mlp_scale is None else normed * part.mlp_scale
        return middle + part.mlp(normed if part.mlp_bias is None else normed + part.mlp_bias)

    def attend(self, part: SuffixLayer, x: Float[Tensor, "n k d_model"], rows: slice) -> Float[Tensor, "n k d_model"]:
        """What the attention of one layer writes at ``end``."""
        return self.write(part, self.z(part, x, rows))

    def z(self, part: SuffixLayer, x: Float[Tensor, "n k d_model"], rows: slice) -> Float[Tensor, "n k n_heads d_head"]:
        """The mean value that each head of one layer gathers at ``end``."""
        pattern, own, values = self._pattern(part, x, rows)
        z = pattern @ part.prefix(rows)[1].flatten(0, 1) + own * values
        (n, k), n_kv, group = x.shape[:2], len(part.attention.W_K), len(part.attention.W_Q) // len(part.attention.W_K)
        return z.unflatten(0, (n, n_kv)).unflatten(2, (k, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)

    def write(self, part: SuffixLayer, z: Float[Tensor, "n k n_heads d_head"]) -> Float[Tensor, "n k d_model"]:
        """What a layer's attention writes, given each head's ``z``."""
        return z.flatten(2) @ part.attention.W_O.flatten(0, 1) + part.attention.b_O

    def _pattern(self, part: SuffixLayer, x: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Attention to the prefix and to ``end`` itself, and the values at ``end``; heads of one group side by side."""
        at = part.attention
        normed = at.norm(x)
        group = len(at.W_Q) // len(at.W_K)
        end = self.end[rows, None, None]
        query = turn(project(normed, at.W_Q, at.b_Q), self.rotary, end)
        key = turn(project(normed, at.W_K, at.b_K), self.rotary, end)
        value = project(normed, at.W_V, at.b_V)
        key, value = (t.permute(0, 2, 1, 3).repeat_interleave(group, 2).flatten(0, 1) for t in (key, value))
        query = query.unflatten(2, (-1, group)).permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
        to_prefix = query @ part.prefix(rows)[0].flatten(0, 1).mT
        hidden = ~self.before_end[rows].repeat_interleave(len(at.W_K), 0)[:, None]
        to_prefix = to_prefix.masked_fill(hidden, -torch.inf)
        scores = torch.cat([to_prefix, (query * key).sum(-1, keepdim=True)], -1) / query.shape[-1] ** 0.5
        pattern = scores.softmax(-1)
        return pattern[..., :-1], pattern[..., -1:], value

    def pattern(
        self, part: SuffixLayer, x: Float[Tensor, "n k d_model"], rows: slice, heads: Sequence[int]
    ) -> Float[Tensor, "n k n_heads n_pos"]:
        """Attention of some heads from ``end`` to every position before it; what is left goes to ``end`` itself."""
        at, end = part.attention, self.end[rows, None, None]
        normed, kv = at.norm(x), at.kv_index[list(heads)]
        query = turn(project(normed, at.W_Q[list(heads)], at.b_Q[list(heads)]), self.rotary, end)
        key = turn(project(normed, at.W_K[kv], at.b_K[kv]), self.rotary, end)
        to_prefix = torch.einsum("nkhd,nhpd->nkhp", query, part.prefix(rows)[0][:, kv])
        to_prefix = to_prefix.masked_fill(~self.before_end[rows, None, None], -torch.inf)
        scores = torch.cat([to_prefix, (query * key).sum(-1, keepdim=True)], -1) / query.shape[-1] ** 0.5
        return scores.softmax(-1)[..., :-1]

    def logits(
        self, final: Float[Tensor, "n k d_model"], tokens: Int[Tensor, "n n_tokens"] | None = None
    ) -> Float[Tensor, "n k n_tokens"]:
        """Logits of the final residual stream: of all words, or of some ``tokens`` of each prompt."""
        normed = self.norm(final)
        if tokens is None:
            return normed @ self.unembed + self.unembed_bias
        return normed @ self.unembed.T[tokens].mT + self.unembed_bias[tokens][:, None]


def suffix(bridge: TransformerBridge, prompts: PromptSet, start: int, *, batch: int = 64, check: bool = True) -> Suffix:
    """Run ``prompts`` once and keep what the layers from ``start`` on need. check: that these end where the model's own
    run does, which hooks would prevent.

    Raises :class:`OptionError` for a layer that is not there, :class:`UnsupportedModelError` for a model whose layers
    do something that is not known here: queries and keys that are normalised, a window shorter than the prompts.
    """
    _check(bridge, prompts, start)
    n_layers, rotary = bridge.cfg.n_layers, rotary_of(bridge)
    first, last = f"blocks.{start}.hook_resid_pre", f"blocks.{n_layers - 1}.hook_resid_post"
    names = {f"blocks.{layer}.attn.hook_{name}" for layer in range(start, n_layers) for name in "kv"}
    found = _run(bridge, prompts, names, {first, last}, batch)
    places = torch.arange(prompts.tokens.shape[1], device=bridge.cfg.device)
    layers = []
    for layer in range(start, n_layers):
        keys, values = (found[f"blocks.{layer}.attn.hook_{name}"] for name in "kv")
        keys = turn(keys, rotary, places[:, None])
        layers.append(_layer(bridge, layer, keys.transpose(1, 2), values.transpose(1, 2)))
    made = _assemble(bridge, prompts, start, layers, found[first])
    if check:
        _check_last(made, found[last], bridge.cfg.model_name, HALF_TOLERANCES.get(bridge.W_U.dtype, TOLERANCE))
    return made


def _check_last(made: Suffix, last: Float[Tensor, "n d_model"], name: str, tolerance: float) -> None:
    """Raises :class:`UnsupportedModelError` where the layers give another final stream than the model's own run did."""
    some = slice(0, 2)
    expected = last[some]
    gap = made.final(made.resid[some, None], rows=some)[:, 0] - expected
    if not gap.norm() < tolerance * expected.norm():
        raise UnsupportedModelError(
            f"{name} works in a way that is not known here: its layers, run one by one on the last token, end "
            f"elsewhere than its own run ({gap.norm() / expected.norm():.1e} of its length). All would be wrong."
        )


@torch.no_grad()
def stream(bridge: TransformerBridge, prompts: PromptSet, start: int, *, batch: int = 64) -> Suffix:
    """Run ``prompts`` up to layer ``start`` and keep what enters it at every position, for whatever runs the layers
    from there on anew. No key or value is kept: :meth:`Suffix.final` needs :func:`suffix`.

    Raises as :func:`suffix` does, but for what only a whole run shows.
    """
    _check(bridge, prompts, start)
    tokens = prompts.tokens.to(bridge.cfg.device)
    rows = batches.blocks(len(tokens), batch)
    resid = torch.cat([wide(bridge(tokens[part], stop_at_layer=start)) for part in rows])
    layers = [_layer(bridge, layer, None, None) for layer in range(start, bridge.cfg.n_layers)]
    return replace(_assemble(bridge, prompts, start, layers, _at_end(resid, prompts)), stream=resid)


def _check(bridge: TransformerBridge, prompts: PromptSet, start: int) -> None:
    if not 0 <= start < bridge.cfg.n_layers:
        raise OptionError(f"No layer {start}: {bridge.cfg.model_name} has layers 0..{bridge.cfg.n_layers - 1}.")
    if len(devices := {str(p.device) for p in bridge.parameters()}) > 1:
        raise ModelError(
            f"{bridge.cfg.model_name} is spread over {', '.join(sorted(devices))}; single layers are run on one. "
            "Load it on one device, with dtype=torch.bfloat16 if it must be smaller."
        )
    check_attention(bridge, prompts.tokens.shape[1])


def _assemble(
    bridge: TransformerBridge,
    prompts: PromptSet,
    start: int,
    layers: list[SuffixLayer],
    resid: Float[Tensor, "n d_model"],
) -> Suffix:
    end = prompts.positions["end"].to(bridge.cfg.device)
    W_U, b_U = wide(bridge.W_U), bridge.unembed.b_U
    scale, bias = (getattr(bridge.ln_final, name, None) for name in ("weight", "bias"))
    unembed_bias = W_U.new_zeros(W_U.shape[1]) if b_U is None else wide(b_U)
    return Suffix(
        start=start,
        layers=layers,
        resid=resid,
        end=end,
        before_end=torch.arange(prompts.tokens.shape[1], device=end.device) < end[:, None],
        norm=norm_without_scale(bridge),
        parallel=bool(getattr(bridge.cfg, "parallel_attn_mlp", False)),
        rotary=rotary_of(bridge),
        unembed=W_U if scale is None else W_U * wide(scale)[:, None],
        unembed_bias=unembed_bias if bias is None else unembed_bias + wide(bias) @ W_U,
    )


@torch.no_grad()
def _run(
    bridge: TransformerBridge, prompts: PromptSet, names: set[str], at_end: set[str], batch: int
) -> dict[str, Tensor]:
    """What stands at these hooks in the model's own run: at every position, or at each prompt's last token alone."""
    kept: dict[str, list[Tensor]] = {name: [] for name in (*names, *at_end)}
    for rows in batches.blocks(len(prompts), batch):
        part = prompts.select(rows)
        with logits_at(bridge, part.positions["end"][:, None]):  # which are not looked at
            _, cache = bridge.run_with_cache(part.tokens.to(bridge.cfg.device), names_filter=lambda name: name in kept)
        for name in kept:
            kept[name].append(wide(_at_end(cache[name], part) if name in at_end else cache[name]))
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _at_end(stream: Float[Tensor, "n n_pos d_model"], prompts: PromptSet) -> Float[Tensor, "n d_model"]:
    return stream[torch.arange(len(stream), device=stream.device), prompts.positions["end"].to(stream.device)]


def _layer(bridge: TransformerBridge, layer: int, keys: Tensor | None, values: Tensor | None) -> SuffixLayer:
    block = bridge.blocks[layer]
    ln = getattr(block, "ln2", None)
    scale, bias = (getattr(ln, name, None) for name in ("weight", "bias"))
    return SuffixLayer(
        attention_layer(bridge, layer),
        keys,
        values,
        _mlp(bridge, block),
        None if scale is None else wide(scale),
        None if bias is None else wide(bias),
    )


def _mlp(bridge: TransformerBridge, block: torch.nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A layer's MLP, in the model's own dtype within. Where it is two products around a GELU, GPT-2's tanh form runs in
    one kernel instead of eight."""
    mlp = getattr(block, "mlp", None)
    if mlp is None:
        return None
    own = bridge.W_U.dtype
    if own in HALF_TOLERANCES:
        return lambda x: mlp(x.to(own)).to(x)
    if bridge.cfg.act_fn not in _GELU or getattr(bridge.cfg, "gated_mlp", False) or not hasattr(mlp, "W_in"):
        return mlp
    W_in, b_in, W_out, b_out = (getattr(mlp, name).detach() for name in ("W_in", "b_in", "W_out", "b_out"))
    form = _GELU[bridge.cfg.act_fn]
    return lambda x: F.gelu(x @ W_in + b_in, approximate=form) @ W_out + b_out
