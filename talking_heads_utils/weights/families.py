"""How each family of checkpoint names and lays out its attention tensors. Adding a family is adding one entry.

Sources: the Hugging Face implementations ``GPT2Attention`` (Conv1D, [in, out]), ``GPTNeoXAttention``
(heads interleaved as [n_heads, 3, d_head]) and ``LlamaAttention`` (grouped keys and values).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.weights.heads import LAYER_NORM, RMS_NORM, RawLayer, Rotary

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """What the config says about the attention stack."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int

    def problem(self) -> str | None:
        """What cannot be about this shape, or None."""
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                return f"{name} = {value!r} is no positive integer"
        if self.n_heads % self.n_kv_heads:
            return f"{self.n_heads} heads cannot share {self.n_kv_heads} key/value heads evenly"
        return None


@dataclass(frozen=True)
class Family:
    """One family: its tensors by part (``{layer}`` is filled in), how to read its config and how to unpack a layer."""

    name: str
    norm: str
    prefixes: tuple[str, ...]
    tensors: Mapping[str, str]
    optional: frozenset[str]
    shape: Callable[[Config], Shape]
    sizes: Callable[[Shape], dict[str, tuple[int, ...]]]
    unpack: Callable[[Mapping[str, Tensor], Shape], RawLayer]
    rotary: Callable[[Config, Shape], Rotary | None]

    def tensor_names(self, layer: int) -> dict[str, str]:
        """Part -> tensor name, without the prefix."""
        return {part: template.format(layer=layer) for part, template in self.tensors.items()}


def _heads_in(W: Tensor, n_heads: int) -> Tensor:
    """[d_model, n_heads * d_head] -> [n_heads, d_model, d_head]."""
    return W.unflatten(1, (n_heads, -1)).transpose(0, 1)


def _heads_out(W: Tensor, n_heads: int) -> Tensor:
    """[n_heads * d_head, d_model] -> [n_heads, d_head, d_model]."""
    return W.unflatten(0, (n_heads, -1))


def _gpt2_shape(config: Config) -> Shape:
    n_heads, d_model = config["n_head"], config["n_embd"]
    return Shape(config["n_layer"], n_heads, n_heads, d_model, _divide(d_model, n_heads))


def _gpt2_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    d, inner = shape.d_model, shape.n_heads * shape.d_head
    return {"qkv": (d, 3 * inner), "qkv_bias": (3 * inner,), "out": (inner, d), "out_bias": (d,)} | _norm_sizes(d)


def _unpack_gpt2(t: Mapping[str, Tensor], shape: Shape) -> RawLayer:
    W_Q, W_K, W_V = (_heads_in(W, shape.n_heads) for W in t["qkv"].chunk(3, dim=1))
    return RawLayer(
        W_Q, W_K, W_V, _heads_out(t["out"], shape.n_heads),
        b_V=t["qkv_bias"].chunk(3)[2].unflatten(0, (shape.n_heads, -1)), b_O=t["out_bias"],
        ln_scale=t["ln"], ln_bias=t["ln_bias"], b_Q=t["qkv_bias"].chunk(3)[0].unflatten(0, (shape.n_heads, -1)),
    )  # fmt: skip


def _hf_shape(config: Config) -> Shape:
    n_heads, d_model = config["num_attention_heads"], config["hidden_size"]
    return Shape(
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        d_model=d_model,
        d_head=config.get("head_dim") or _divide(d_model, n_heads),
    )


def _divide(d_model: Any, n_heads: Any) -> Any:
    """d_head where it goes evenly; else None, which :meth:`Shape.problem` reports."""
    whole = isinstance(d_model, int) and isinstance(n_heads, int) and n_heads > 0 and d_model % n_heads == 0
    return d_model // n_heads if whole else None


def _norm_sizes(d_model: int) -> dict[str, tuple[int, ...]]:
    return {"ln": (d_model,), "ln_bias": (d_model,)}


def _neox_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    d, inner = shape.d_model, shape.n_heads * shape.d_head
    return {"qkv": (3 * inner, d), "qkv_bias": (3 * inner,), "out": (d, inner), "out_bias": (d,)} | _norm_sizes(d)


def _llama_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    d, inner, shared = shape.d_model, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    sizes = {
        "q": (inner, d),
        "k": (shared, d),
        "v": (shared, d),
        "v_bias": (shared,),
        "out": (d, inner),
        "out_bias": (d,),
    }
    return sizes | _norm_sizes(d)


def _unpack_neox(t: Mapping[str, Tensor], shape: Shape) -> RawLayer:
    heads = (shape.n_heads, 3, shape.d_head)
    W_Q, W_K, W_V = t["qkv"].unflatten(0, heads).permute(1, 0, 3, 2)  # [3, n_heads, d_model, d_head]
    b_Q, _, b_V = t["qkv_bias"].unflatten(0, heads).unbind(1) if "qkv_bias" in t else (None, None, None)
    return RawLayer(
        W_Q, W_K, W_V, _heads_out(t["out"].T, shape.n_heads),
        b_V=b_V, b_O=t.get("out_bias"), ln_scale=t["ln"], ln_bias=t["ln_bias"], b_Q=b_Q,
    )  # fmt: skip


def _unpack_llama(t: Mapping[str, Tensor], shape: Shape) -> RawLayer:
    b_V = t["v_bias"].unflatten(0, (shape.n_kv_heads, -1)) if "v_bias" in t else None
    return RawLayer(
        _heads_in(t["q"].T, shape.n_heads),
        _heads_in(t["k"].T, shape.n_kv_heads),
        _heads_in(t["v"].T, shape.n_kv_heads),
        _heads_out(t["out"].T, shape.n_heads),
        b_V=b_V, b_O=t.get("out_bias"), ln_scale=t["ln"],
    )  # fmt: skip


def _rotary(config: Config, shape: Shape) -> Rotary:
    """Rotary settings under their new name (``rope_parameters``) or their older ones."""
    new, scaling = (config.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
    if not isinstance(new, Mapping) or not isinstance(scaling, Mapping):
        raise CheckpointError("The config's rotary settings are no table of names and values.")
    kind = new.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    base = new.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 10000.0
    share = new.get("partial_rotary_factor") or config.get("rotary_pct") or 1.0
    if not all(isinstance(value, int | float) and 0 < value < math.inf for value in (base, share)):
        raise CheckpointError(f"The config's rotary settings make no sense: base {base!r}, share of d_head {share!r}.")
    return Rotary(dim=int(shape.d_head * share), base=float(base), kind=str(kind))


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        name="gpt2",
        norm=LAYER_NORM,
        prefixes=("", "transformer."),
        tensors={
            "qkv": "h.{layer}.attn.c_attn.weight",
            "qkv_bias": "h.{layer}.attn.c_attn.bias",
            "out": "h.{layer}.attn.c_proj.weight",
            "out_bias": "h.{layer}.attn.c_proj.bias",
            "ln": "h.{layer}.ln_1.weight",
            "ln_bias": "h.{layer}.ln_1.bias",
        },
        optional=frozenset(),
        shape=_gpt2_shape,
        sizes=_gpt2_sizes,
        unpack=_unpack_gpt2,
        rotary=lambda config, shape: None,
    ),
    "gpt_neox": Family(
        name="gpt_neox",
        norm=LAYER_NORM,
        prefixes=("gpt_neox.", ""),
        tensors={
            "qkv": "layers.{layer}.attention.query_key_value.weight",
            "qkv_bias": "layers.{layer}.attention.query_key_value.bias",
            "out": "layers.{layer}.attention.dense.weight",
            "out_bias": "layers.{layer}.attention.dense.bias",
            "ln": "layers.{layer}.input_layernorm.weight",
            "ln_bias": "layers.{layer}.input_layernorm.bias",
        },
        optional=frozenset({"qkv_bias", "out_bias"}),
        shape=_hf_shape,
        sizes=_neox_sizes,
        unpack=_unpack_neox,
        rotary=_rotary,
    ),
    "llama": Family(
        name="llama",
        norm=RMS_NORM,
        prefixes=("model.", ""),
        tensors={
            "q": "layers.{layer}.self_attn.q_proj.weight",
            "k": "layers.{layer}.self_attn.k_proj.weight",
            "v": "layers.{layer}.self_attn.v_proj.weight",
            "v_bias": "layers.{layer}.self_attn.v_proj.bias",
            "out": "layers.{layer}.self_attn.o_proj.weight",
            "out_bias": "layers.{layer}.self_attn.o_proj.bias",
            "ln": "layers.{layer}.input_layernorm.weight",
        },
        optional=frozenset({"v_bias", "out_bias"}),
        shape=_hf_shape,
        sizes=_llama_sizes,
        unpack=_unpack_llama,
        rotary=_rotary,
    ),
}


def family_of(config: Config, where: str) -> Family:
    """The family a config belongs to. Raises :class:`CheckpointError` naming those that are known."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(
            f"{where} is of the family {model_type!r}, which is not known here. Known: {', '.join(FAMILIES)}. "
            "A new family is one entry in talking_heads_utils/weights/families.py."
        )
    return FAMILIES[model_type]
