"""Composition scores: all components in blocks, beside TransformerLens' head-level calls and a plain flat product.

Run as a module it is one route in a fresh process, for its peak of memory:
``python -m talking_heads_utils.cli.benchmarks.composition ROUTE WEIGHTS``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, child, in_turn, print_peak
from talking_heads_utils.components import write_directions
from talking_heads_utils.scores.composition import reading_maps
from talking_heads_utils.scores.scores import CompositionScores, compute_scores
from talking_heads_utils.settings import KINDS
from talking_heads_utils.weights.checkpoints import load_head_weights
from talking_heads_utils.weights.heads import HeadWeights

MODULE = "talking_heads_utils.cli.benchmarks.composition"


def transformer_lens_head_level(weights: HeadWeights) -> dict[str, Tensor]:
    """TransformerLens' ``composition_scores`` on the same factored matrices, one kind at a time, as its
    ``all_composition_scores`` calls it: every pair of heads, ``[layers, heads, layers, heads]``."""
    from transformer_lens import FactoredMatrix
    from transformer_lens.utilities import composition_scores

    kv = weights.kv_index
    ov = FactoredMatrix(weights.W_V[:, kv], weights.W_O)
    qk = FactoredMatrix(weights.W_Q, weights.W_K[:, kv].mT)
    return {kind: composition_scores(ov, right) for kind, right in (("Q", qk), ("K", qk.T), ("V", ov))}


def flat_product(weights: HeadWeights, kinds: str = KINDS) -> dict[str, Tensor]:
    """All components the plain way: one unmasked product per kind, ``[components, readers]``, in one piece."""
    directions = write_directions(weights)[0].flatten(0, 2)
    scores = {}
    for kind in kinds:
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
    n_heads = ours.n_heads
    worst = 0.0
    for (kind, layer), block in ours.blocks.items():
        mine = block.score.flatten(0, 2)
        worst = max(
            worst, (mine - plain[kind][: len(mine), layer * n_heads : (layer + 1) * n_heads]).abs().max().item()
        )
    return worst


@torch.inference_mode()
def rows(weights_from: str, revision: str | None = None, repeats: int = 3) -> list[Row]:
    """The comparisons, on one checkpoint: the children first, while this process is still small."""
    place = [weights_from] + ([revision] if revision else [])
    children = {route: child([MODULE, route, *place]) for route in ("command", *IN_MEMORY)}
    weights = load_head_weights(weights_from, revision=revision)
    shape = f"{weights.n_layers}x{weights.n_heads} heads, d_head={weights.d_head}, d_model={weights.d_model}"

    def row(case: str, plain: str, difference: Callable[[CompositionScores, dict[str, Tensor]], float]) -> Row:
        ours_s, plain_s, ours, result = in_turn(
            lambda: compute_scores(weights), lambda: IN_MEMORY[plain](weights), repeats
        )
        peaks = children["ours"][1], children[plain][1]
        return Row(f"{case}; {shape}", ours_s, plain_s, plain_s / ours_s, difference(ours, result), *peaks)

    (ours_s, ours_mb), (plain_s, plain_mb) = children["command"], children["transformer_lens"]
    return [
        row("all components QKV / TransformerLens head level QKV", "transformer_lens", head_level_difference),
        Row(f"whole process: the command with its parquet file / {CALLS}", ours_s, plain_s, plain_s / ours_s, None,
            ours_mb, plain_mb),
        row("all components QKV / plain unmasked flat product of all components", "flat", component_difference),
    ]  # fmt: skip


CALLS = "imports, reading and the three TransformerLens calls"
IN_MEMORY: dict[str, Callable] = {
    "ours": compute_scores,
    "transformer_lens": transformer_lens_head_level,
    "flat": flat_product,
}


def _route(name: str, weights_from: str, revision: str | None = None) -> int:
    """One route in this process; its exit code."""
    code = 0
    if name == "command":
        from talking_heads_utils.cli import main

        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "scores.parquet")
            at = ["--revision", revision] if revision else []
            code = main(["composition", "--weights", weights_from, "--out", out, *at])
    else:
        with torch.inference_mode():
            IN_MEMORY[name](load_head_weights(weights_from, revision=revision))
    print_peak()
    return code


if __name__ == "__main__":
    raise SystemExit(_route(*sys.argv[1:]))
