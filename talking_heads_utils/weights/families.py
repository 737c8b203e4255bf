"""How each family of checkpoint names and lays out its attention tensors. Adding a family is adding one entry.

``book/method.md`` says what can be had of each. Sources: the Hugging Face implementations ``GPT2Attention``
(Conv1D, [in, out]), ``GPTNeoXAttention`` (heads interleaved as [n_heads, 3, d_head]), ``LlamaAttention`` and
``MistralAttention`` (grouped keys and values), ``Qwen2Attention`` (the same with biases of queries, keys and values)
and ``Qwen3Attention`` (queries and keys normalised).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from einops import rearrange
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

    @property
    def axes(self) -> dict[str, int]:
        """Length of every axis of a layout; p: queries, keys and values."""
        return {"m": self.d_model, "e": self.d_head, "h": self.n_heads, "k": self.n_kv_heads, "p": 3}


@dataclass(frozen=True)
class Family:
    """One family: its tensors, and how to read its config.

    tensors: part -> name (``{layer}`` is filled in) and layout, as stored -> as in :class:`RawLayer`, in the axes of
    :attr:`Shape.axes`; parts called ``*_QKV`` hold three. optional: parts that a checkpoint may lack. config: what the
    config calls layers, heads and width. models: some that belong to it. qk_norm: whether queries and keys are
    normalised, each by its own length: a score is then no bilinear form of what the two read.
    """

    name: str
    models: str
    norm: str
    prefixes: tuple[str, ...]
    tensors: Mapping[str, tuple[str, str]]
    optional: frozenset[str] = frozenset()
    config: tuple[str, str, str] = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    rotates: bool = True
    qk_norm: bool = False

    def tensor_names(self, layer: int) -> dict[str, str]:
        """Part -> tensor name, without the prefix."""
        return {part: template.format(layer=layer) for part, (template, _) in self.tensors.items()}

    def sizes(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Part -> shape of its tensor as it is stored."""

        def size(layout: str) -> tuple[int, ...]:
            sides = re.findall(r"\w|\(.*?\)", layout.split("->")[0])
            return tuple(math.prod(shape.axes[axis] for axis in side.strip("()").split()) for side in sides)

        return {part: size(layout) for part, (_, layout) in self.tensors.items()}

    def unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> RawLayer:
        """One layer, as views of its tensors by part."""
        found: dict[str, Tensor] = {}
        for part, tensor in tensors.items():
            _, layout = self.tensors[part]
            laid_out = rearrange(tensor, layout, **{axis: n for axis, n in shape.axes.items() if axis in layout})
            found |= {part[:2] + x: W for x, W in zip("QKV", laid_out)} if part.endswith("QKV") else {part: laid_out}
        found.pop("b_K", None)  # moves every score of a query alike
        return RawLayer(**found)

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
        """The rotary positions that a config describes, under their new name (``rope_parameters``) or their older ones.

        Raises :class:`CheckpointError` for settings that make none.
        """
        if not self.rotates:
            return None
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
            raise CheckpointError(
                f"The config's rotary settings make no sense: base {base!r}, share of d_head {share!r}."
            )
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


_GPT2 = {
    "W_QKV": ("h.{layer}.attn.c_attn.weight", "m (p h e) -> p h m e"),
    "b_QKV": ("h.{layer}.attn.c_attn.bias", "(p h e) -> p h e"),
    "W_O": ("h.{layer}.attn.c_proj.weight", "(h e) m -> h e m"),
    "b_O": ("h.{layer}.attn.c_proj.bias", "m -> m"),
    "ln_scale": ("h.{layer}.ln_1.weight", "m -> m"),
    "ln_bias": ("h.{layer}.ln_1.bias", "m -> m"),
}
_NEOX = {
    "W_QKV": ("layers.{layer}.attention.query_key_value.weight", "(h p e) m -> p h m e"),
    "b_QKV": ("layers.{layer}.attention.query_key_value.bias", "(h p e) -> p h e"),
    "W_O": ("layers.{layer}.attention.dense.weight", "m (h e) -> h e m"),
    "b_O": ("layers.{layer}.attention.dense.bias", "m -> m"),
    "ln_scale": ("layers.{layer}.input_layernorm.weight", "m -> m"),
    "ln_bias": ("layers.{layer}.input_layernorm.bias", "m -> m"),
}
_LLAMA = {
    "ln_scale": ("layers.{layer}.input_layernorm.weight", "m -> m"),
    "W_Q": ("layers.{layer}.self_attn.q_proj.weight", "(h e) m -> h m e"),
    "b_Q": ("layers.{layer}.self_attn.q_proj.bias", "(h e) -> h e"),
    "W_K": ("layers.{layer}.self_attn.k_proj.weight", "(k e) m -> k m e"),
    "b_K": ("layers.{layer}.self_attn.k_proj.bias", "(k e) -> k e"),
    "W_V": ("layers.{layer}.self_attn.v_proj.weight", "(k e) m -> k m e"),
    "b_V": ("layers.{layer}.self_attn.v_proj.bias", "(k e) -> k e"),
    "W_O": ("layers.{layer}.self_attn.o_proj.weight", "m (h e) -> h e m"),
    "b_O": ("layers.{layer}.self_attn.o_proj.bias", "m -> m"),
}
_ROOTS = ("model.", "")  # of families that name their attention tensors as ``llama`` does
_BIASES = frozenset({"b_Q", "b_K", "b_V", "b_O"})

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gpt2", "GPT-2", LAYER_NORM, ("", "transformer."), _GPT2,
            config=("n_layer", "n_head", "n_embd"), rotates=False,
        ),
        Family(
            "gpt_neox", "Pythia, GPT-NeoX", LAYER_NORM, ("gpt_neox.", ""), _NEOX, frozenset({"b_QKV", "b_O"})
        ),
        Family("llama", "Llama 2 and 3.x, SmolLM2", RMS_NORM, _ROOTS, _LLAMA, _BIASES),
        Family("mistral", "Mistral 7B", RMS_NORM, _ROOTS, _LLAMA, _BIASES),
        Family("qwen2", "Qwen 2 and 2.5", RMS_NORM, _ROOTS, _LLAMA, frozenset({"b_O"})),
        Family("qwen3", "Qwen 3", RMS_NORM, _ROOTS, _LLAMA, _BIASES, qk_norm=True),
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
