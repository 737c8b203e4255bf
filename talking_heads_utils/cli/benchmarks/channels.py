"""What every earlier component, and every earlier head, does to the movers' attention: ours beside the plain ways.

Ours is all of them, the recorded run included. The plain ways are run on a sample, their time scaled up to all: one
hooked run per component, with its write taken out of all movers' queries at once, stopped after their layer; and
TransformerLens' own ``get_act_patch_direct_path`` from one head into each head of the movers' layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, compare, hooked
from talking_heads_utils.components import write_directions
from talking_heads_utils.effects import component_effects, inhibition_change
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Component, Head, as_head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.models import load_model
from talking_heads_utils.prompts.ioi import build_ioi
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.bridge import head_weights_from_bridge
from talking_heads_utils.weights.packages import SMOLLM2

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ABOUT = SMOLLM2.name
MOVERS = ("L23H0", "L23H1", "L23H2", "L23H3", "L23H7")
N_PROMPTS, N_SAMPLE = 200, 3


def rows(repeats: int = 1, device: str = "cpu") -> list[Row]:
    """Components, then heads."""
    bridge = load_model(SMOLLM2.name, device)
    prompts = build_ioi(bridge.tokenizer, N_PROMPTS)
    return [component_row(bridge, prompts, MOVERS, repeats), head_row(bridge, prompts, MOVERS, repeats)]


def component_row(
    bridge: TransformerBridge, prompts: PromptSet, movers: Sequence[str], repeats: int = 1, n_sample: int = N_SAMPLE
) -> Row:
    """All components of all heads below movers of one layer, each removed from their queries. Compared: change of I(m),
    mean over prompts."""
    heads = [as_head(mover) for mover in movers]
    layer, weights = heads[0].layer, head_weights_from_bridge(bridge)
    n = layer * weights.n_heads * weights.d_head
    places = [(i + 1) * n // (n_sample + 1) for i in range(n_sample)]
    of_head, index = ([divmod(i, weights.d_head)[k] for i in places] for k in (0, 1))
    sample = [Component(*divmod(h, weights.n_heads), i) for h, i in zip(of_head, index)]

    def ours() -> Float[Tensor, "n_sample movers"]:
        found = component_effects(record(bridge, prompts, [layer]), heads).inhibition
        assert found is not None
        return torch.stack([found[:, :, c.layer, c.head, c.component].mean(0) for c in sample])

    case = f"{n:,} components into {len(heads)} queries, {len(prompts)} prompts"
    return compare(case, ours, lambda: without(bridge, prompts, heads, sample), _apart, repeats, ran=(n_sample, n))


def head_row(bridge: TransformerBridge, prompts: PromptSet, movers: Sequence[str], repeats: int = 1) -> Row:
    """The same of whole heads, beside TransformerLens' own from one head of the layer below."""
    heads = [as_head(mover) for mover in movers]
    layer, n_heads = heads[0].layer, bridge.cfg.n_heads

    def ours() -> Float[Tensor, "movers"]:
        recording = record(bridge, prompts, [layer])
        found = [
            torch.stack([inhibition_change(recording, head, -recording.write(below)).mean(0) for head in heads])
            for below in range(layer)
        ]
        return found[-1][:, 0]

    n = layer * n_heads
    case = f"{n} heads into {len(heads)} queries, {len(prompts)} prompts"
    ran = n_heads, n * len(heads)  # theirs goes from one head into every head of the layer
    return compare(case, ours, lambda: direct_path(bridge, prompts, heads), _apart, repeats, ran=ran)


def _apart(ours: Tensor, plain: Tensor) -> float:
    return (ours - plain).abs().max().item()


def _inhibition(pattern: Float[Tensor, "n n_heads n_pos n_pos"], prompts: PromptSet, heads: Sequence[Head]) -> Tensor:
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    at_end = pattern[rows, :, end][:, [head.head for head in heads]]
    return (at_end * contrast(prompts).to(at_end)[:, None]).sum(-1).mean(0)


def without(
    bridge: TransformerBridge, prompts: PromptSet, heads: Sequence[Head], sample: Sequence[Component]
) -> Float[Tensor, "n_sample movers"]:
    """One run per component, its write at ``end`` taken out of the input of the movers' queries."""
    layer, directions = heads[0].layer, write_directions(head_weights_from_bridge(bridge))[0]
    pattern, all_z = f"blocks.{layer}.attn.hook_pattern", {f"blocks.{c.layer}.attn.hook_z" for c in sample}
    _, plain = hooked(bridge, prompts.tokens, keep=[pattern, *all_z], stop_at_layer=layer + 1)
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    before, found = _inhibition(plain[pattern], prompts, heads), []
    split = bool(getattr(bridge.cfg, "use_split_qkv_input", False))
    bridge.set_use_split_qkv_input(True)
    for c in sample:
        v = directions[c.layer, c.head, c.component]
        z = plain[f"blocks.{c.layer}.attn.hook_z"][rows, end, c.head]
        write = (z @ bridge.blocks[c.layer].attn.W_O[c.head] @ v)[:, None] * v

        def remove(queries: Tensor, write: Tensor = write) -> None:
            for head in heads:
                queries[rows, end, head.head] -= write

        changes = [(f"blocks.{layer}.attn.hook_q_input", remove)]
        _, seen = hooked(bridge, prompts.tokens, changes, [pattern], stop_at_layer=layer + 1)
        found.append(_inhibition(seen[pattern], prompts, heads) - before)
    bridge.set_use_split_qkv_input(split)
    return torch.stack(found)


class _Done(Exception):
    """Every head of the movers' layer has been patched: the later ones are not asked about."""


@torch.no_grad()
def direct_path(bridge: TransformerBridge, prompts: PromptSet, heads: Sequence[Head]) -> Float[Tensor, "movers"]:
    """TransformerLens' exact direct path from head 0 of the layer below into each head of the movers' layer; its write
    at ``end`` is taken out, all other positions keep theirs."""
    from transformer_lens.patching import get_act_patch_direct_path

    layer, tokens = heads[0].layer, prompts.tokens.to(bridge.cfg.device)
    name, z_name = f"blocks.{layer}.attn.hook_pattern", f"blocks.{layer - 1}.attn.hook_z"
    _, cache = hooked(bridge, tokens, keep=(name, z_name), stop_at_layer=layer + 1)
    z = cache[z_name].clone()
    z[torch.arange(len(prompts)), prompts.positions["end"]] = 0
    seen: dict[str, Tensor] = {}
    found: list[Tensor] = []

    def metric(logits: Tensor) -> Tensor:
        found.append(_inhibition(seen["pattern"], prompts, [Head(layer, len(found))]))
        if len(found) == bridge.cfg.n_heads:
            raise _Done
        return found[-1]

    bridge.add_hook(name, lambda tensor, hook: seen.update(pattern=tensor), is_permanent=True)
    try:
        get_act_patch_direct_path(bridge, tokens, {z_name: z}, {z_name: cache[z_name]}, metric, layer - 1, 0,
                                  verbose=False)  # fmt: skip
    except _Done:
        pass
    finally:
        bridge.reset_hooks(including_permanent=True)
    return torch.cat([found[head.head] for head in heads]) - _inhibition(cache[name], prompts, heads)
