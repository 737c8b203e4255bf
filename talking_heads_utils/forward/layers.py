"""One layer's weights, ready for algebra: the norm's own scale and bias are folded in, whatever was folded before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.weights.bridge import norm_of
from talking_heads_utils.weights.heads import LAYER_NORM, NO_NORM, grouped_index

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


# How far our own layers may end from the model's own run: of attention patterns and of a last stream's length. Half
# precision rounds every step of that run to 11 bits or to 8; in it patterns are compared by the mean of their total
# variation distance, for a single one may be off by ten times as much where a score is large.
TOLERANCE = 1e-3
HALF_TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
_ACTS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
_ACTS |= dict.fromkeys(("gelu_new", "gelu_pytorch_tanh"), partial(F.gelu, approximate="tanh"))  # one kernel, not eight


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In single precision at least, without its gradient: what closed forms are computed in, whatever the model's."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Norm:
    """A norm without its scale: ``LayerNorm`` centres and divides, ``RMSNorm`` divides, ``none`` does nothing."""

    kind: str
    eps: float

    def center(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What is left to be divided."""
        return x - x.mean(-1, keepdim=True) if self.kind == LAYER_NORM else x

    def scale(self, square: Float[Tensor, "*batch"], d_model: int) -> Float[Tensor, "*batch"]:
        """The divisor, from the squared length of :meth:`center`'s answer. Always one where there is no norm."""
        return torch.ones_like(square) if self.kind == NO_NORM else (square / d_model + self.eps).sqrt()

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        x = self.center(x)
        return x / self.scale(x.square().sum(-1), x.shape[-1])[..., None]


@dataclass(frozen=True)
class AttentionLayer:
    """Projections that act on the *normalised* residual stream; grouped heads share rows of K and V by ``kv_index``."""

    norm: Norm
    W_Q: Float[Tensor, "n_heads d_model d_head"]
    b_Q: Float[Tensor, "n_heads d_head"]
    W_K: Float[Tensor, "n_kv_heads d_model d_head"]
    b_K: Float[Tensor, "n_kv_heads d_head"]
    W_V: Float[Tensor, "n_kv_heads d_model d_head"]
    b_V: Float[Tensor, "n_kv_heads d_head"]
    W_O: Float[Tensor, "n_heads d_head d_model"]
    b_O: Float[Tensor, "d_model"]
    kv_index: Int[Tensor, "n_heads"]


@dataclass(frozen=True)
class Layer:
    """One layer's weights: attention with its norm folded in, the MLP and the scale and bias of the norm before it."""

    attention: AttentionLayer
    mlp: Callable[[Tensor], Tensor] | None
    mlp_scale: Tensor | None
    mlp_bias: Tensor | None


def project(
    x: Float[Tensor, "n m p d_model"], W: Float[Tensor, "h d_model d_head"], b: Float[Tensor, "h d_head"]
) -> Float[Tensor, "n m p h d_head"]:
    """Queries, keys or values of several heads, in one product. ``x`` may have fewer dimensions before ``d_model``."""
    return F.linear(x, W.transpose(0, 1).flatten(1).T, b.flatten()).unflatten(-1, W.shape[::2])


def norm_without_scale(bridge: TransformerBridge) -> Norm:
    """The kind of norm that every layer of a model has."""
    return Norm(norm_of(bridge), float(bridge.cfg.eps))


def attention_layer(bridge: TransformerBridge, layer: int) -> AttentionLayer:
    """The attention weights of one layer of a loaded model, in single precision at least."""
    block = bridge.blocks[layer]
    attn, ln = block.attn, getattr(block, "ln1", None)
    scale, bias = getattr(ln, "weight", None), getattr(ln, "bias", None)
    folded = {}
    for name in "QKV":
        W = wide(getattr(attn, f"W_{name}"))
        b = getattr(attn, f"b_{name}", None)
        b = W.new_zeros(W.shape[0], W.shape[2]) if b is None else wide(b)
        folded[f"b_{name}"] = b if bias is None else b + wide(bias) @ W
        W = W if scale is None else W * wide(scale)[:, None]
        folded[f"W_{name}"] = W.transpose(0, 1).contiguous().transpose(0, 1)  # so that heads are one product
    W_O, b_O = wide(attn.W_O), attn.b_O
    n_heads, n_kv_heads = len(folded["W_Q"]), len(folded["W_K"])
    return AttentionLayer(
        norm=norm_without_scale(bridge),
        W_O=W_O,
        b_O=W_O.new_zeros(W_O.shape[-1]) if b_O is None else wide(b_O),
        kv_index=grouped_index(n_heads, n_kv_heads).to(W_O.device),
        **folded,
    )


def layer_of(bridge: TransformerBridge, layer: int) -> Layer:
    """One layer of a loaded model."""
    block = bridge.blocks[layer]
    ln = getattr(block, "ln2", None)
    scale, bias = (None if (p := getattr(ln, name, None)) is None else wide(p) for name in ("weight", "bias"))
    scale = None if scale is None or (scale == 1).all() else scale  # folded into the MLP
    bias = None if bias is None or (bias == 0).all() else bias
    return Layer(attention_layer(bridge, layer), _mlp(bridge, block), scale, bias)


def _mlp(bridge: TransformerBridge, block: torch.nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A layer's MLP, in the model's own dtype within: its products by themselves where they are known, else the module,
    which is much slower."""
    mlp, own, act = getattr(block, "mlp", None), bridge.W_U.dtype, _ACTS.get(bridge.cfg.act_fn)
    if mlp is None:
        return None
    if own in HALF_TOLERANCES:
        return lambda x: mlp(x.flatten(0, -2)[None].to(own))[0].to(x).view_as(x)
    gated = bool(getattr(bridge.cfg, "gated_mlp", False))
    names = [*(["gate"] if gated else []), "in", "out"]
    if act is None or not all(hasattr(mlp, f"W_{name}") for name in names):
        return lambda x: mlp(x.flatten(0, -2)[None])[0].view_as(x)
    read, *more, write = ((getattr(mlp, f"W_{name}").T.detach(), getattr(mlp, f"b_{name}", None)) for name in names)

    def run(x: Tensor) -> Tensor:
        hidden = act(F.linear(x, *read))
        for other in more:
            also = F.linear(x, *other)
            hidden = hidden * also if hidden.requires_grad else hidden.mul_(also)
        return F.linear(hidden, *write)

    return run
