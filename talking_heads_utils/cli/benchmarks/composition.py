"""Composition scores: all components in blocks, beside TransformerLens' head-level calls and a plain flat product."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, child, command, compare
from talking_heads_utils.components import write_directions
from talking_heads_utils.scores.composition import reading_maps
from talking_heads_utils.scores.scores import CompositionScores, compute_scores
from talking_heads_utils.settings import KINDS
from talking_heads_utils.weights.checkpoints import load_head_weights
from talking_heads_utils.weights.heads import HeadWeights


def transformer_lens_head_level(weights: HeadWeights) -> dict[str, Tensor]:
    """TransformerLens' ``composition_scores`` on the same factored matrices, one kind at a time, as its
    ``all_composition_scores`` calls it: every pair of heads, ``[layers, heads, layers, heads]``."""
    from transformer_lens import FactoredMatrix
    from transformer_lens.utilities import composition_scores

    kv = weights.kv_index
    ov = FactoredMatrix(weights.W_V[:, kv], weights.W_O)
    qk = FactoredMatrix(weights.W_Q, weights.W_K[:, kv].mT)
    return {kind: composition_scores(ov, right) for kind, right in (("Q", qk), ("K", qk.T), ("V", ov))}


def flat_product(weights: HeadWeights) -> dict[str, Tensor]:
    """All components the plain way: one unmasked product per kind, ``[components, readers]``, in one piece."""
    directions = write_directions(weights)[0].flatten(0, 2)
    scores = {}
    for kind in KINDS:
        maps = torch.cat([reading_maps(weights, layer, kind) for layer in range(weights.n_layers)])
        product = directions @ maps.permute(1, 0, 2).reshape(weights.d_model, -1)
        scores[kind] = product.unflatten(1, (len(maps), weights.d_head)).norm(dim=-1)
    return scores


def head_level_difference(ours: CompositionScores, plain: dict[str, Tensor]) -> float:
    """Largest difference over all valid pairs; NaN (so a failure) if ours has a hole where a pair is valid."""
    valid = torch.ones(ours.n_layers, ours.n_layers).triu(1).bool()[:, None, :, None]
    valid = valid.expand(-1, ours.n_heads, -1, ours.n_heads)
    return max((ours.head_level(kind) - plain[kind])[valid].abs().max().item() for kind in plain)


def component_difference(ours: CompositionScores, plain: dict[str, Tensor]) -> float:
    """Largest difference over all components of all valid pairs."""
    worst = 0.0
    for (kind, layer), block in ours.blocks.items():
        mine = block.score.flatten(0, 2)
        readers = slice(layer * ours.n_heads, (layer + 1) * ours.n_heads)
        worst = max(worst, (mine - plain[kind][: len(mine), readers]).abs().max().item())
    return worst


def in_memory(way: Callable[[HeadWeights], Any]) -> Callable[..., None]:
    """The route that reads the weights and goes this way."""
    return lambda weights_from, revision=None: way(load_head_weights(weights_from, revision=revision))


def typed(weights_from: str, *revision: str) -> None:
    """The route of the command with its parquet file."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "scores.parquet")
        command("composition", "--weights", weights_from, "--out", out, *(f"--revision={name}" for name in revision))


WAYS: dict[str, Callable[[HeadWeights], Any]] = {
    "ours": compute_scores,
    "transformer_lens": transformer_lens_head_level,
    "flat": flat_product,
}
ROUTES = {"command": typed, **{name: in_memory(way) for name, way in WAYS.items()}}


@torch.inference_mode()
def rows(weights_from: str, revision: str | None = None, repeats: int = 3) -> list[Row]:
    """The comparisons, on one checkpoint: the children first, while this process is still small."""
    children = {route: child("composition", route, *filter(None, (weights_from, revision))) for route in ROUTES}
    weights = load_head_weights(weights_from, revision=revision)
    shape = f"{weights.n_layers}x{weights.n_heads} heads, d_head={weights.d_head}, d_model={weights.d_model}"

    def row(case: str, plain: str, difference: Callable[[CompositionScores, dict[str, Tensor]], float]) -> Row:
        ways = (lambda: compute_scores(weights), lambda: WAYS[plain](weights))
        peaks = children["ours"][1], children[plain][1]
        return compare(f"{case}; {shape}", *ways, difference, repeats, peaks=peaks)

    (ours_s, ours_mb), (plain_s, plain_mb) = children["command"], children["transformer_lens"]
    process = "whole process: the command with its parquet file / imports, reading and the three TransformerLens calls"
    return [
        row("all components QKV / TransformerLens head level QKV", "transformer_lens", head_level_difference),
        Row(process, ours_s, plain_s, plain_s / ours_s, None, ours_mb, plain_mb),
        row("all components QKV / plain unmasked flat product of all components", "flat", component_difference),
    ]
