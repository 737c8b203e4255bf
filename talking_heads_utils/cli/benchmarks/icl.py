"""The patch grid of chapter 4: one token per cell on kept keys and values, beside a hooked run of B for every cell.

A model of Llama's shape, 32 layers deep and narrow, has random weights: speed does not depend on their values. The
plain way runs A once per ablation set and B once per layer and set, whole prompts, all prompts in one batch. Two
choices of sets: the post's own, whose lowest layer is 10, so that below it one cell serves all sets; and heads
scattered from layer 0 on, where every set differs from the first layer on.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, compare, random_model
from talking_heads_utils.errors import TalkingHeadsError
from talking_heads_utils.experiments.icl.ablations import (
    ZERO,
    Ablations,
    ablations,
    patch_grid,
    random_heads,
    replacements,
    run_end,
)
from talking_heads_utils.experiments.icl.functions import Family
from talking_heads_utils.experiments.icl.pairing import NO_EXAMPLES, RANDOM_PAIRS, draw_pairing
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.questions import Numbers, encode_questions, numbers_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.toy import level_tokenizer

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    from talking_heads_utils.weights.bridge import Hook

ABOUT = "Llama's shape, 32 layers of width 128, random values"
N_LAYERS, N_PROMPTS, N_EXAMPLES = 32, 64, 12
POST, SCATTERED = "the post's", "scattered"
POST_HEADS = [Head(10, 5), Head(10, 7), Head(13, 6), Head(13, 27), Head(14, 18)]  # here modulo the number of heads
POST_LAYERS = ([10, 11], [10, 11, 13], [10, 11, 13, 15])
CHANGED = 1e-3  # standard deviation over cells that the logits must reach


def rows(repeats: int = 3, device: str = "cpu") -> list[Row]:
    """B without examples, as in the post, with both choices of sets; and B with as many random pairs as A has."""
    bridge = narrow_llama(device)
    cases = ((NO_EXAMPLES, POST), (NO_EXAMPLES, SCATTERED), (RANDOM_PAIRS, POST))
    return [row(bridge, b, sets, repeats) for b, sets in cases]


def chosen_sets(shape: tuple[int, int], name: str) -> Ablations:
    """Six sets, the empty one among them: the post's four and a random one like its heads, or five scattered ones."""
    if name == SCATTERED:
        like = [Head(layer, 0) for layer in range(0, shape[0], 8)]
        return ablations(shape, random_heads(shape, like, 5, seed=0))
    heads = [Head(head.layer, head.head % shape[1]) for head in POST_HEADS]
    layers = {f"layers {chosen}": heads_in(chosen, shape[1]) for chosen in POST_LAYERS}
    return ablations(shape, {"heads": heads, **layers, **random_heads(shape, heads, 1, seed=0)})


def narrow_llama(device: str, n_layers: int = N_LAYERS) -> TransformerBridge:
    """Random weights, grouped heads."""
    from transformers import LlamaConfig

    tokenizer = bracket_tokenizer(Family().n_numbers)
    config = LlamaConfig(
        hidden_size=128, num_hidden_layers=n_layers, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=352, vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    return random_model(config, tokenizer, device)


def bracket_tokenizer(n_numbers: int) -> PreTrainedTokenizerFast:
    """Brackets, comma, space and line end are tokens, as in Llama's prompts of the post, which end on a space."""
    from tokenizers import Regex, pre_tokenizers

    words = ["(", ")\n", ",", " ", "\n", ")", *map(str, range(n_numbers))]
    return level_tokenizer(words, pre_tokenizers.Split(Regex(r"\)\n|[0-9]+|[(), \n]"), "isolated"), 128)


def row(bridge: TransformerBridge, b: str, sets: str, repeats: int, n_prompts: int = N_PROMPTS) -> Row:
    """One kind of B: times of the whole grid, both ways from the prompts to the logits."""
    family = Family()
    pairing = draw_pairing(family, n_prompts, N_EXAMPLES, b=b)
    seen_a, seen_b = (encode_questions(part, bridge.tokenizer) for part in (pairing.a, pairing.b))
    numbers = numbers_of(bridge.tokenizer, family.n_numbers - 1)
    shape = (bridge.cfg.n_layers, bridge.cfg.n_heads)
    chosen = chosen_sets(shape, sets)
    ours, plain = (partial(way, bridge, seen_a, seen_b, chosen, numbers) for way in (ours_grid, plain_grid))
    tokens = f"{seen_a.tokens.shape[1]} and {seen_b.tokens.shape[1]} tokens"
    case = f"{shape[0]} layers x {n_prompts} prompts x {len(chosen)} sets ({sets}), B sees {b} ({tokens})"
    return compare(case, ours, plain, _difference, repeats)


def _difference(ours: Tensor, plain: Tensor) -> float:
    if not ours.flatten(1, 2).std(1).max() > CHANGED:
        raise TalkingHeadsError("Patches hardly change the logits: agreement would mean nothing.")
    return (ours - plain).abs().max().item()


def ours_grid(
    bridge: TransformerBridge, a: PromptSet, b: PromptSet, chosen: Ablations, numbers: Numbers
) -> Float[Tensor, "n n_layers n_sets n_numbers"]:
    """By :func:`talking_heads_utils.experiments.icl.ablations.patch_grid`, its preparation included."""
    ends_a, ends_b = prepare(bridge, a, 0), prepare(bridge, b, 0)
    instead = replacements(run_end(ends_a), ZERO)
    tokens = numbers.ids.to(bridge.cfg.device)
    return patch_grid(run_end(ends_a, chosen, instead), ends_a, ends_b, tokens).patched


@torch.no_grad()
def plain_grid(
    bridge: TransformerBridge, a: PromptSet, b: PromptSet, chosen: Ablations, numbers: Numbers
) -> Float[Tensor, "n n_layers n_sets n_numbers"]:
    """By hooks on whole prompts, cell by cell."""
    device, n_layers = bridge.cfg.device, bridge.cfg.n_layers
    rows = torch.arange(len(a), device=device)
    end_a, end_b = (p.positions["end"].to(device) for p in (a, b))
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
    found = []
    for heads in chosen.heads:
        hooks = [(f"blocks.{i}.attn.hook_z", _zeroed(out, rows, end_a)) for i, out in enumerate(heads) if out.any()]
        with bridge.hooks(fwd_hooks=hooks):
            _, cache = bridge.run_with_cache(a.tokens.to(device), names_filter=lambda name: name in names)
        cells = []
        for name in names:
            patch = _patched(cache[name][rows, end_a], rows, end_b)
            logits = bridge.run_with_hooks(b.tokens.to(device), fwd_hooks=[(name, patch)])
            cells.append(logits[rows, end_b][:, numbers.ids.to(device)])
        found.append(torch.stack(cells, 1))
    return torch.stack(found, 2)


def _zeroed(out: Tensor, rows: Tensor, end: Tensor) -> Hook:
    def hook(z: Tensor, hook: HookPoint) -> Tensor:
        z = z.clone()
        z[rows, end] = z[rows, end].masked_fill(out.to(z.device)[:, None], 0)
        return z

    return hook


def _patched(given: Tensor, rows: Tensor, end: Tensor) -> Hook:
    def hook(resid: Tensor, hook: HookPoint) -> Tensor:
        resid = resid.clone()
        resid[rows, end] = given
        return resid

    return hook
