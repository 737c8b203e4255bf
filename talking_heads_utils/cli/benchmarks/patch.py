"""Activation patching by layer and position: ours beside TransformerLens' own patching, in one process.

Ours is the whole grid, the runs that are kept included; theirs is a fixed sample of its cells, spread over layers,
heads and positions, by ``generic_activation_patch``, its time scaled up to all cells: the whole would take hours. The
one clean run that its cells are cut from is not counted. Values are compared on that sample.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, compare
from talking_heads_utils.metrics import logit_difference
from talking_heads_utils.models import load_model
from talking_heads_utils.patching import patch
from talking_heads_utils.prompts.ioi import build_ioi
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.packages import SMOLLM2

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

ABOUT = SMOLLM2.name
N_PROMPTS, N_POS, N_SAMPLE = 32, 15, 24
SWAPPED, THIRD = "swap names", "third name"
CASES = [("z", SWAPPED), ("z", THIRD), ("resid_pre", SWAPPED), ("attn_out", SWAPPED), ("mlp_out", SWAPPED)]


def rows(repeats: int = 1, device: str = "cpu") -> list[Row]:
    """Heads by position with two kinds of corrupted prompts, and the sites of a whole layer by position."""
    bridge = load_model(SMOLLM2.name, device)
    return [row(bridge, site, counterfactual, repeats) for site, counterfactual in CASES]


def row(
    bridge: TransformerBridge, site: str, counterfactual: str, repeats: int = 1, n_prompts: int = N_PROMPTS,
    n_pos: int = N_POS, n_sample: int = N_SAMPLE,
) -> Row:  # fmt: skip
    """The grid of one site: times of all cells, theirs from a sample."""
    clean, corrupted = pairs(bridge, counterfactual, n_prompts, n_pos)
    cells = _cells(bridge, site, n_pos)
    sample = cells.sample(min(n_sample, len(cells)), random_state=0).reset_index(drop=True)
    tokens = clean.tokens.to(bridge.cfg.device)
    with torch.no_grad():
        cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith(site))[1]
    return compare(
        f"{site} at {len(cells) // n_pos} x {n_pos} positions, {len(clean)} prompts, {counterfactual}",
        lambda: patch(bridge, clean, corrupted, sites=site),
        lambda: plain(bridge, clean, corrupted, cache, site, sample),
        lambda ours, theirs: (values_at(ours, sample) - theirs.cpu()).abs().max().item(),
        repeats,
        warm=lambda: patch(bridge, clean, corrupted, sites=site, layers=[bridge.cfg.n_layers - 1]),
        ran=(len(sample), len(cells)),
    )


def pairs(bridge: TransformerBridge, counterfactual: str, n_prompts: int, n_pos: int) -> tuple[PromptSet, PromptSet]:
    """Clean and corrupted prompts of so many tokens, without padding."""
    clean, corrupted = (build_ioi(bridge.tokenizer, 20 * n_prompts, counterfactual=c) for c in (None, counterfactual))
    alike = (clean.mask.sum(1) == n_pos) & (corrupted.mask.sum(1) == n_pos)
    rows = alike.nonzero().flatten()[:n_prompts].tolist()
    clean, corrupted = (
        replace(p, tokens=p.tokens[:, :n_pos], mask=p.mask[:, :n_pos])
        for p in (clean.select(rows), corrupted.select(rows))
    )
    return clean, corrupted


def _cells(bridge: TransformerBridge, site: str, n_pos: int) -> pd.DataFrame:
    from transformer_lens.patching import make_df_from_ranges

    heads = [(bridge.cfg.n_heads, "head")] if site == "z" else []
    return make_df_from_ranges(*zip((bridge.cfg.n_layers, "layer"), (n_pos, "pos"), *heads))


@torch.no_grad()
def plain(
    bridge: TransformerBridge, clean: PromptSet, corrupted: PromptSet, cache: dict[str, Tensor], site: str,
    cells: pd.DataFrame,
) -> Float[Tensor, "n_cells"]:  # fmt: skip
    """TransformerLens' own way: one hooked run of all prompts per cell."""
    from transformer_lens import patching

    setter = patching.layer_pos_head_vector_patch_setter if site == "z" else patching.layer_pos_patch_setter
    return patching.generic_activation_patch(
        bridge, corrupted.tokens.to(bridge.cfg.device), cache,
        lambda logits: logit_difference(logits[:, -1], clean).mean(), setter, site, index_df=cells,
    )  # fmt: skip


def values_at(frame: pd.DataFrame, cells: pd.DataFrame) -> Float[Tensor, "n_cells"]:
    """Ours at these cells."""
    on = ["layer", "pos", *(["head"] if "head" in cells else [])]
    found = cells.merge(frame.assign(pos=frame.position.astype(int)), on=on, how="left", suffixes=("", "_ours"))
    return torch.tensor(found["value"].to_numpy(), dtype=torch.float32)
