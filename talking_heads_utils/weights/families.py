"""How each family of checkpoint names and lays out its attention tensors. Adding a family is adding one entry.

``book/method.md`` says what can be had of each. Sources: the Hugging Face implementations ``GPT2Attention``
(Conv1D, [in, out]), ``GPTNeoXAttention`` (heads interleaved as [n_heads, 3, d_head]), ``LlamaAttention`` and
``MistralAttention`` (grouped keys and values), ``Qwen2Attention`` (the same with biases of queries, keys and values)
and ``Qwen3Attention`` (queries and keys normalised).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from talking_heads_utils.errors import CheckpointError, UnsupportedModelError
from talking_heads_utils.weights.heads import LAYER_NORM, RMS_NORM, RawLayer, Rotary, Source

Config = Mapping[str, Any]
FIXED_SPEEDS = ("default", "linear", "llama3")  # kinds of rotary positions that no prompt's length changes


@dataclass(frozen=True)
class Shape:
    """What the config says about the attention stack."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int


@dataclass(frozen=True)
class Family:
    """One family: its tensors by part (``{layer}`` is filled in), how to read its config and how to unpack a layer.

    optional: parts that a checkpoint may lack. config: what the config calls layers, heads and width. sizes: part ->
    shape of its tensor. models: some that belong to it. qk_norm: whether queries and keys are normalised, each by its
    own length: a score is then no bilinear form of what the two read.
    """

    name: str
    models: str
    norm: str
    prefixes: tuple[str, ...]
    tensors: Mapping[str, str]
    sizes: Callable[[Shape], dict[str, tuple[int, ...]]]
    unpack: Callable[[Mapping[str, Tensor], Shape], RawLayer]
    optional: frozenset[str] = frozenset()
    config: tuple[str, str, str] = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    rotates: bool = True
    qk_norm: bool = False

    def tensor_names(self, layer: int) -> dict[str, str]:
        """Part -> tensor name, without the prefix."""
        return {part: template.format(layer=layer) for part, template in self.tensors.items()}

    def shape(self, config: Config) -> Shape:
        """Raises :class:`CheckpointError` for a config that makes no model."""
        sizes: dict[str, Any] = {name: config.get(name) for name in self.config}
        n_layers, n_heads, d_model = sizes.values()
        if all(type(size) is int and size > 0 for size in (n_heads, d_model)):
            split: Any = d_model // n_heads if d_model % n_heads == 0 else None  # refused below
            sizes["num_key_value_heads"] = n_kv = config.get("num_key_value_heads") or n_heads
            sizes["head_dim"] = d_head = config.get("head_dim") or split
            if all(type(size) is int and size > 0 for size in sizes.values()) and n_heads % n_kv == 0:
                return Shape(n_layers, n_heads, n_kv, d_model, d_head)
        said = ", ".join(f"{name} = {size!r}" for name, size in sizes.items())
        raise CheckpointError(f"No {self.name} model can be of {said}. Take config and weights from one place.")

    def rotary(self, config: Config, shape: Shape) -> Rotary | None:
        """The rotary positions that a config describes. Raises :class:`CheckpointError` for settings that make none."""
        return _rotary(config, shape) if self.rotates else None


def _heads_in(W: Tensor, n_heads: int) -> Tensor:
    """[d_model, n_heads * d_head] -> [n_heads, d_model, d_head]."""
    return W.unflatten(1, (n_heads, -1)).transpose(0, 1)


def _heads_out(W: Tensor, n_heads: int) -> Tensor:
    """[n_heads * d_head, d_model] -> [n_heads, d_head, d_model]."""
    return W.unflatten(0, (n_heads, -1))


def _fused_sizes(shape: Shape, *, across: bool) -> dict[str, tuple[int, ...]]:
    d, inner = shape.d_model, shape.n_heads * shape.d_head
    matrices = {"qkv": (3 * inner, d), "out": (d, inner)}
    if across:
        matrices = {part: size[::-1] for part, size in matrices.items()}
    return {**matrices, "qkv_bias": (3 * inner,), "out_bias": (d,), "ln": (d,), "ln_bias": (d,)}


def _unpack_gpt2(t: Mapping[str, Tensor], shape: Shape) -> RawLayer:
    W_Q, W_K, W_V = (_heads_in(W, shape.n_heads) for W in t["qkv"].chunk(3, dim=1))
    b_Q, _, b_V = t["qkv_bias"].unflatten(0, (3, shape.n_heads, -1))
    return RawLayer(
        W_Q, W_K, W_V, _heads_out(t["out"], shape.n_heads),
        b_V=b_V, b_O=t["out_bias"], ln_scale=t["ln"], ln_bias=t["ln_bias"], b_Q=b_Q,
    )  # fmt: skip


def _unpack_neox(t: Mapping[str, Tensor], shape: Shape) -> RawLayer:
    heads = (shape.n_heads, 3, shape.d_head)
    W_Q, W_K, W_V = t["qkv"].unflatten(0, heads).permute(1, 0, 3, 2)  # [3, n_heads, d_model, d_head]
    b_Q, _, b_V = t["qkv_bias"].unflatten(0, heads).unbind(1) if "qkv_bias" in t else (None, None, None)
    return RawLayer(
        W_Q, W_K, W_V, _heads_out(t["out"].T, shape.n_heads),
        b_V=b_V, b_O=t.get("out_bias"), ln_scale=t["ln"], ln_bias=t["ln_bias"], b_Q=b_Q,
    )  # fmt: skip


def _llama_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    d, inner, shared = shape.d_model, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    biases = {"q_bias": (inner,), "k_bias": (shared,), "v_bias": (shared,), "out_bias": (d,)}
    return {"q": (inner, d), "k": (shared, d), "v": (shared, d), "out": (d, inner), "ln": (d,)} | biases


def _unpack_llama(t: Mapping[str, Tensor], shape: Shape) -> RawLayer:
    n_heads, n_kv = shape.n_heads, shape.n_kv_heads
    return RawLayer(
        _heads_in(t["q"].T, n_heads),
        _heads_in(t["k"].T, n_kv),
        _heads_in(t["v"].T, n_kv),
        _heads_out(t["out"].T, n_heads),
        b_V=t["v_bias"].unflatten(0, (n_kv, -1)) if "v_bias" in t else None,
        b_O=t.get("out_bias"),
        ln_scale=t["ln"],
        b_Q=t["q_bias"].unflatten(0, (n_heads, -1)) if "q_bias" in t else None,
    )


def _rotary(config: Config, shape: Shape) -> Rotary:
    """Rotary settings under their new name (``rope_parameters``) or their older ones; speeds by transformers."""
    scaling, new = (config.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    if not isinstance(new, Mapping) or not isinstance(scaling, Mapping):
        raise CheckpointError("The config's rotary settings are no table of names and values.")
    found = dict(scaling or new)  # as transformers takes them: of the two, the older
    kind = str(found.get("rope_type") or found.get("type") or "default")
    base = found.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 10000.0
    share = found.get("partial_rotary_factor") or config.get("rotary_pct") or 1.0
    if not all(isinstance(value, int | float) for value in (base, share)) or not (
        0 < base < math.inf and 0 < share <= 1
    ):
        raise CheckpointError(f"The config's rotary settings make no sense: base {base!r}, share of d_head {share!r}.")
    if kind not in FIXED_SPEEDS:
        return Rotary((), kind)
    found |= {"rope_type": kind, "rope_theta": float(base), "partial_rotary_factor": share}
    return Rotary(_speeds(found, shape.d_head, config.get("max_position_embeddings")), kind)


def _speeds(settings: dict[str, Any], d_head: int, longest: Any) -> tuple[float, ...]:
    """Inverse frequencies by transformers' own functions. Its table has none for unscaled ones: they are the linear
    ones scaled by one. Raises :class:`CheckpointError` for settings that it does not take."""
    from transformers import PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = settings["rope_type"]
    settings |= {"rope_type": "linear", "factor": 1.0} if kind == "default" else {}
    try:
        config = PreTrainedConfig(head_dim=d_head, max_position_embeddings=longest, rope_parameters=settings)
        speeds = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config)[0].tolist()
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The config's rotary settings make no sense: {kind!r} with {settings} ({type(error).__name__}: {error})."
        ) from error
    if not speeds or not all(math.isfinite(speed) for speed in speeds):
        raise CheckpointError(f"The config's rotary settings make no sense: {kind!r} with {settings}.")
    return tuple(speeds)


_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
_LLAMA_TENSORS = {"ln": "layers.{layer}.input_layernorm.weight"}
for _part, _name in _PROJECTIONS.items():
    _LLAMA_TENSORS[_part] = f"layers.{{layer}}.self_attn.{_name}.weight"
    _LLAMA_TENSORS[f"{_part}_bias"] = f"layers.{{layer}}.self_attn.{_name}.bias"


def _fused_tensors(attention: str, qkv: str, out: str, norm: str) -> dict[str, str]:
    """Families that keep queries, keys and values in one tensor."""
    of = {"qkv": f"{attention}.{qkv}", "out": f"{attention}.{out}", "ln": norm}
    ends = {"": "weight", "_bias": "bias"}
    return {f"{part}{end}": f"{name}.{kind}" for part, name in of.items() for end, kind in ends.items()}


def _like_llama(name: str, models: str, *, biased: bool = False, qk_norm: bool = False) -> Family:
    """Families that name their attention tensors as ``llama`` does. biased: queries, keys and values always are."""
    optional = {"out_bias"} if biased else {f"{part}_bias" for part in _PROJECTIONS}
    return Family(
        name, models, RMS_NORM, ("model.", ""), _LLAMA_TENSORS, _llama_sizes, _unpack_llama,
        optional=frozenset(optional), qk_norm=qk_norm,
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gpt2", "GPT-2", LAYER_NORM, ("", "transformer."),
            _fused_tensors("h.{layer}.attn", "c_attn", "c_proj", "h.{layer}.ln_1"),
            partial(_fused_sizes, across=True), _unpack_gpt2, config=("n_layer", "n_head", "n_embd"), rotates=False,
        ),
        Family(
            "gpt_neox", "Pythia, GPT-NeoX", LAYER_NORM, ("gpt_neox.", ""),
            _fused_tensors("layers.{layer}.attention", "query_key_value", "dense", "layers.{layer}.input_layernorm"),
            partial(_fused_sizes, across=False), _unpack_neox, optional=frozenset({"qkv_bias", "out_bias"}),
        ),
        _like_llama("llama", "Llama 2 and 3.x, SmolLM2"),
        _like_llama("mistral", "Mistral 7B"),
        _like_llama("qwen2", "Qwen 2 and 2.5", biased=True),
        _like_llama("qwen3", "Qwen 3", qk_norm=True),
    )
}  # fmt: skip


def family_of(config: Config, where: str) -> Family:
    """The family a config belongs to. Raises :class:`CheckpointError` naming those that are known."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(
            f"{where} is of the family {model_type!r}, which is not known here. Known: {', '.join(FAMILIES)}. "
            "A new family is one entry in talking_heads_utils/weights/families.py."
        )
    return FAMILIES[model_type]


def check_bilinear(source: Source, kinds: str = "QK") -> None:
    """Raises :class:`UnsupportedModelError` where some of ``kinds`` of composition cannot be had of these weights."""
    family = FAMILIES.get(source.family)
    if family is not None and family.qk_norm and set(kinds) & set("QK"):
        raise UnsupportedModelError(
            f"{source.name} ({family.name}) normalises queries and keys, so no matrix W_Q W_K^T gives its attention: "
            'only composition of kind "V" (--kinds V) and plain runs of the model can be had.'
        )
