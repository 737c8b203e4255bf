"""A real model as files of the site: the checkpoint's own quantised blocks, and ONNX graphs that run it by layers.

One graph stands for the attention of every layer and one for its MLP: a layer is a file of weights. So the page reads
and moves what it likes between any two of them, keeps keys and values, and runs on from the layer that a reader
changed. Nothing is quantised a second time: the blocks are copied, and the page turns them into float32 as the package
does. Graphs are made by torch's exporter and read their weights, by name, from one array beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.known import model_source
from talking_heads_utils.weights.checkpoints import load_head_weights, open_checkpoint
from talking_heads_utils.weights.gguf import GgufFile
from talking_heads_utils.weights.gguf_model import tokenizer_of

if TYPE_CHECKING:
    import onnx

LONGEST = 256  # tokens of a prompt that the page runs
WEIGHTS = "weights"  # what a graph calls the array that it takes its weights from
BLOCK = 32  # values that share a scale
ATTENTION, MLP = "attention", "mlp"
TABLE = "Q8_0"  # how the page can read the embedding, out of which it makes logits itself
BLOCKS = {"Q4_1": 20, "Q8_0": 34, "F32": 4 * BLOCK}  # how the page can read a tensor: bytes of a block
LAYER = {
    "attn_norm": "blk.{}.attn_norm", "W_Q": "blk.{}.attn_q", "W_K": "blk.{}.attn_k", "W_V": "blk.{}.attn_v",
    "W_O": "blk.{}.attn_output", "mlp_norm": "blk.{}.ffn_norm", "W_gate": "blk.{}.ffn_gate", "W_in": "blk.{}.ffn_up",
    "W_out": "blk.{}.ffn_down",
}  # fmt: skip
HEAD = {"final_norm": "output_norm", "W_E": "token_embd"}


@dataclass(frozen=True)
class Shape:
    """What the graphs need to know of a Llama-like model."""

    n_layers: int
    n_heads: int
    n_kv: int
    d_head: int
    d_model: int
    d_mlp: int
    n_vocab: int
    eps: float
    theta: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Raises :class:`CheckpointError` for a family that the graphs are not written for."""
        rope = config.get("rope_parameters") or {}
        odd = [
            config["model_type"] != "llama", config.get("attention_bias"), config.get("mlp_bias"),
            not config["tie_word_embeddings"], rope.get("rope_type", "default") != "default",
        ]  # fmt: skip
        if any(odd):
            raise CheckpointError(
                "The page runs Llama models with tied embeddings, no biases and plain rotary positions, and no others."
            )
        if any(config[size] % BLOCK for size in ("hidden_size", "intermediate_size", "head_dim")):
            raise CheckpointError(f"The page runs models whose d_model, d_mlp and d_head are multiples of {BLOCK}.")
        return cls(
            config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"],
            config["head_dim"], config["hidden_size"], config["intermediate_size"], config["vocab_size"],
            config["rms_norm_eps"], rope["rope_theta"],
        )  # fmt: skip


def rms(x: Float[Tensor, "t d_model"], eps: float) -> Float[Tensor, "t d_model"]:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class Part(nn.Module):
    """A part of a layer: its weights by name, an input a row, in the order in which they lie in a file."""

    def __init__(self, s: Shape, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.s = s
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))


class Attention(Part):
    """The attention of a layer, for the tokens after those whose keys and values are given.

    In: the stream ``x [t, d_model]``, a ``scale`` for each head's z, ``past_k`` and ``past_v`` ``[p, n_kv, d_head]``,
    and a ``probe [d_model]``. Out: the stream behind it, the new keys (turned by position) and values, and of the last
    token each head's ``pattern [n_heads, p + t]``, ``z`` and what it writes along the probe.
    """

    attn_norm: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor

    def __init__(self, s: Shape) -> None:
        queries, keys = s.n_heads * s.d_head, s.n_kv * s.d_head
        super().__init__(
            s, attn_norm=(s.d_model,), W_Q=(s.d_model, queries), W_K=(s.d_model, keys), W_V=(s.d_model, keys),
            W_O=(queries, s.d_model),
        )  # fmt: skip

    def turn(self, x: Float[Tensor, "t n d_head"], first: int) -> Float[Tensor, "t n d_head"]:
        half = self.s.d_head // 2
        speed = self.s.theta ** (-torch.arange(half) / half)
        angle = (torch.arange(x.shape[0]) + first)[:, None, None] * speed
        cos, sin = angle.cos(), angle.sin()
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x: Tensor, scale: Tensor, past_k: Tensor, past_v: Tensor, probe: Tensor) -> tuple[Tensor, ...]:
        s, (t, p) = self.s, (x.shape[0], past_k.shape[0])
        h = rms(x, s.eps) * self.attn_norm
        q = self.turn((h @ self.W_Q).view(t, s.n_heads, s.d_head), p)
        new_k = self.turn((h @ self.W_K).view(t, s.n_kv, s.d_head), p)
        new_v = (h @ self.W_V).view(t, s.n_kv, s.d_head)
        group = s.n_heads // s.n_kv
        k = torch.cat([past_k, new_k]).repeat_interleave(group, 1).transpose(0, 1)
        v = torch.cat([past_v, new_v]).repeat_interleave(group, 1).transpose(0, 1)
        later = torch.arange(p + t)[None] > torch.arange(t)[:, None] + p
        scores = q.transpose(0, 1) @ k.transpose(1, 2) / s.d_head**0.5
        pattern = scores.masked_fill(later, -1e30).softmax(-1)
        z = (pattern @ v).transpose(0, 1) * scale[:, None]
        last = z[-1]
        direct = (last * (self.W_O @ probe).view(s.n_heads, s.d_head)).sum(-1)
        return x + z.reshape(t, -1) @ self.W_O, new_k, new_v, pattern[:, -1], last, direct


class Mlp(Part):
    """The MLP of a layer, the stream in and out."""

    mlp_norm: Tensor
    W_gate: Tensor
    W_in: Tensor
    W_out: Tensor

    def __init__(self, s: Shape) -> None:
        up, down = (s.d_model, s.d_mlp), (s.d_mlp, s.d_model)
        super().__init__(s, mlp_norm=(s.d_model,), W_gate=up, W_in=up, W_out=down)

    def forward(self, x: Tensor) -> Tensor:
        h = rms(x, self.s.eps) * self.mlp_norm
        return x + (nn.functional.silu(h @ self.W_gate) * (h @ self.W_in)) @ self.W_out


# --- graphs ---


def graphs(s: Shape) -> dict[str, onnx.ModelProto]:
    """Every graph by name. Its weights lie in the array :data:`WEIGHTS`, one behind the other in the order in which its
    module names them, a row an input."""
    x, past = torch.zeros(2, s.d_model), torch.zeros(3, s.n_kv, s.d_head)
    t, p = torch.export.Dim("t", min=1, max=LONGEST), torch.export.Dim("p", min=0, max=LONGEST)
    attention = (x, torch.ones(s.n_heads), past, past.clone(), torch.zeros(s.d_model))
    return {
        ATTENTION: _exported(
            Attention(s), attention, ({0: t}, None, {0: p}, {0: p}, None), ["x", "scale", "past_k", "past_v", "probe"],
            ["out", "k", "v", "pattern", "z", "direct"],
        ),
        MLP: _exported(Mlp(s), (x,), ({0: t},), ["x"], ["out"]),
    }  # fmt: skip


def _exported(
    module: nn.Module, given: tuple[Tensor, ...], dynamic: tuple[Any, ...], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    program = torch.onnx.export(
        module.eval(), given, dynamo=True, dynamic_shapes=dynamic, input_names=inputs, output_names=outputs,
        opset_version=20, verbose=False,
    )  # fmt: skip
    assert program is not None
    return _outside(program.model_proto, [name for name, _ in module.named_parameters()])


def _outside(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The same graph, with the weights of these names taken from the array beside it."""
    import onnx

    held, at = {tensor.name: tensor for tensor in model.graph.initializer}, 0
    for name in names:
        tensor = held[name]
        size = 4 * int(np.prod(tensor.dims))
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in dict(location=WEIGHTS, offset=at, length=size).items():
            tensor.external_data.add(key=key, value=str(value))
        at += size
    for value in (*model.graph.value_info, *model.graph.node):
        value.ClearField("metadata_props")  # paths of the machine that made them
        if hasattr(value, "doc_string"):
            value.ClearField("doc_string")
    return model


# --- weights ---


def blocks_of(file: GgufFile, own: str) -> tuple[str, np.ndarray]:
    """How a tensor is stored, and its bytes row by row, the rows in Hugging Face's order.

    Raises :class:`CheckpointError` for a way of storing it that the page cannot read.
    """
    held = file.tensors[f"{own}.weight"]
    kind = held.tensor_type.name
    if kind not in BLOCKS:
        raise CheckpointError(f"{own} is stored as {kind}; the page reads {', '.join(BLOCKS)}.")
    raw = np.ascontiguousarray(held.data).view(np.uint8)
    if raw.ndim == 1:
        return kind, raw[None]
    order = np.arange(len(raw), dtype=np.float32)[:, None].repeat(2, 1)  # where each row goes
    return kind, raw[file.laid_out(f"{own}.weight", order)[:, 0].astype(int)]


def packed(file: GgufFile, names: Mapping[str, str], extra: Mapping[str, np.ndarray]) -> tuple[bytes, list[dict]]:
    """Tensors one behind the other, then arrays of float32; and of each how it is stored, its rows (a row is an output,
    as in the checkpoint) and columns, and its first byte."""
    whole, parts = bytearray(), []
    for name, own in names.items():
        kind, raw = blocks_of(file, own)
        cols = raw.shape[1] // BLOCKS[kind] * BLOCK
        parts.append(dict(name=name, kind=kind, rows=len(raw), cols=cols, offset=len(whole)))
        whole += raw.tobytes()
    for name, array in extra.items():
        array = np.ascontiguousarray(array, np.float32)
        whole += b"\0" * (-len(whole) % 4)
        parts.append(dict(name=name, kind="F32", rows=len(array), cols=array[0].size, offset=len(whole)))
        whole += array.tobytes()
    return bytes(whole), parts


def component_maps(
    name: str | Path,
) -> tuple[Float[Tensor, "n_layers n_heads d_head d_head"], Float[Tensor, "n_layers n_heads d_head"]]:
    """``A`` with ``A @ W_O`` the write directions of a head's components, each with its largest entry positive, and
    their singular values. A component that writes nothing is zero."""
    source, revision = model_source(name)
    weights = load_head_weights(source, revision=revision, dtype=torch.float64)
    directions, singular = write_directions(weights)
    largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))
    directions = (directions * largest.sign()).nan_to_num(nan=0.0)
    return directions @ torch.linalg.pinv(weights.W_O), singular


# --- all of it ---


def write_model(name: str | Path, folder: Path) -> dict[str, Any]:
    """Every file of a model, a known name or a GGUF file, in ``folder``, and what the page must know of them, which is
    its ``model.json``.

    Raises :class:`CheckpointError` for a checkpoint that is no GGUF file, of another family than the graphs', or stored
    in a way that the page cannot read.
    """
    file = open_checkpoint(*model_source(name)).gguf
    if file is None:
        raise CheckpointError("The page runs a model out of a GGUF file.")
    s = Shape.of(file.config)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}

    def put(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    data, head_parts = packed(file, HEAD, {})
    if (kind := head_parts[-1]["kind"]) != TABLE:
        raise CheckpointError(f"The embedding is stored as {kind}; the page reads {TABLE}.")
    put("embedding.bin", data)
    maps, singular = component_maps(name)
    layer_parts: list[dict] = []
    for layer in range(s.n_layers):
        names = {name: own.format(layer) for name, own in LAYER.items()}
        extra = {"maps": maps[layer].numpy().reshape(-1, s.d_head), "singular": singular[layer].numpy()}
        data, parts = packed(file, names, extra)
        if layer_parts and parts != layer_parts:
            raise CheckpointError(f"Layer {layer} is stored in other ways than the first; the page reads all alike.")
        layer_parts = parts
        put(f"layer-{layer:02}.bin", data)
    for kind, graph in graphs(s).items():
        put(f"{kind}.onnx", graph.SerializeToString())
    put("tokenizer.json", tokenizer_of(file).backend_tokenizer.to_str().encode())
    about = dict(shape=vars(s).copy(), longest=LONGEST, files=files, layer=layer_parts, embedding=head_parts)
    (folder / "model.json").write_text(json.dumps(about))
    return about
