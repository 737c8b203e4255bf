"""Streaming a checkpoint in Llama-3-8B's shape: the time of the whole command beside that of its bare matrix products.

Speed does not depend on the weights' values, so the checkpoint holds attention tensors alone, random, in bfloat16, a
shard per layer. The bare products are those of the scores at the rate of this machine's ``torch.mm``, measured before
and after: the ratio is the share of that rate which the whole command reaches, imports and reading included.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_high

import torch
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, child, command, timed
from talking_heads_utils.weights.checkpoints import CONFIG, INDEX
from talking_heads_utils.weights.families import Shape

ABOUT = "random values in Llama-3-8B's shape, bfloat16, attention tensors only"
LLAMA_3_8B = Shape(n_layers=32, n_heads=32, n_kv_heads=8, d_model=4096, d_head=128)
LLAMA_3_70B = Shape(n_layers=80, n_heads=64, n_kv_heads=8, d_model=8192, d_head=128)


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Random attention tensors of a llama in bfloat16, a shard per layer, and the config that goes with them."""
    from safetensors.torch import save_file

    config = {
        "model_type": "llama", "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads, "hidden_size": shape.d_model, "head_dim": shape.d_head,
        "rope_theta": 500000.0,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    inner, shared = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    sizes = dict(
        q=(inner, shape.d_model), k=(shared, shape.d_model), v=(shared, shape.d_model), o=(shape.d_model, inner)
    )
    where: dict[str, str] = {}
    for layer in range(shape.n_layers):
        name = f"model.layers.{layer}"
        tensors: dict[str, Tensor] = {f"{name}.input_layernorm.weight": torch.ones(shape.d_model).bfloat16()}
        for part, size in sizes.items():
            values = torch.randn(size, generator=generator).mul_(size[1] ** -0.5)
            tensors[f"{name}.self_attn.{part}_proj.weight"] = values.bfloat16()
        file = f"model-{layer + 1:05d}-of-{shape.n_layers:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def n_products(shape: Shape) -> float:
    """Floating-point operations of the scores' matrix products alone: of every pair of layers, all components of the
    writer times what the reader's heads share, Q, K and V, and the small cores of the heads that share keys and
    values. Components, random directions and norms are not counted: they lower the share, as reading does."""
    components, n_pairs = shape.n_heads * shape.d_head, shape.n_layers * (shape.n_layers - 1) // 2
    columns = (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    cores = 2 * shape.n_heads * shape.d_head**2 if shape.n_kv_heads < shape.n_heads else 0
    return 2.0 * n_pairs * components * (shape.d_model * columns + cores)


def estimate(seconds: float, measured: Shape, asked: Shape) -> dict[str, float]:
    """What scoring one shape takes, from the seconds that another one took on some machine: ``hours`` there, in
    proportion to the products; ``shards_gb`` of attention tensors in bfloat16; ``scores_gb``, in half precision, which
    must fit into memory at the end. GB are 10^9 bytes."""
    columns = asked.n_heads * asked.d_head
    per_layer = 2 * asked.d_model * (columns + asked.n_kv_heads * asked.d_head)
    n_pairs = asked.n_layers * (asked.n_layers - 1) // 2
    return {
        "hours": seconds * n_products(asked) / n_products(measured) / 3600,
        "shards_gb": 2e-9 * per_layer * asked.n_layers,
        "scores_gb": 2e-9 * n_pairs * columns * 3 * asked.n_heads,
    }


def product_rate(size: int = 4096) -> float:
    """Operations a second of ``torch.mm`` in float32 on square matrices: what this machine can do."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.mm(left, right)
    return 2.0 * size**3 / median_high(timed(lambda: torch.mm(left, right, out=out))[0] for _ in range(3))


ROUTES = {"streamed": lambda weights, out: command("composition", "--weights", weights, "--out", out, "--stream")}


def rows(repeats: int = 1, shape: Shape = LLAMA_3_8B, n_layers: Sequence[int] = (8,)) -> list[Row]:
    """The share of the machine's rate for the first so many layers."""
    return [share_of_rate(replace(shape, n_layers=n), repeats) for n in n_layers]


def share_of_rate(shape: Shape, repeats: int) -> Row:
    """The whole command beside its bare products, at the rate measured right before and after."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), shape)
        rates, runs = [product_rate()], []
        for _ in range(repeats):
            runs.append(child("streaming", "streamed", folder, f"{folder}/streamed.safetensors"))
            rates.append(product_rate())
    ours_s, plain_s = median_high(seconds for seconds, _ in runs), n_products(shape) / median_high(rates)
    case = (
        f"streamed from shards, {shape.n_layers} layers of {shape.n_heads} heads and {shape.n_kv_heads} K/V heads, "
        f"d_head={shape.d_head}, d_model={shape.d_model} / its bare matrix products at the machine's rate"
    )
    return Row(case, ours_s, plain_s, plain_s / ours_s, None, max(peak for _, peak in runs), None)
