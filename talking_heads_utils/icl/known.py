"""Two heads whose redundancy is known, so that the measure can be held against the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from talking_heads_utils.icl.ablation import ZERO
from talking_heads_utils.icl.engine import replacements, run_end
from talking_heads_utils.icl.prompts import Numbers
from talking_heads_utils.icl.redundancy import Reader
from talking_heads_utils.runs.suffix import suffix
from talking_heads_utils.tasks.prompts import PromptSet, Recipe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

N_WORDS, ANSWER = 6, 3
STRENGTH = 24.0  # of a head's write; attention is even over two tokens, so the answer's logit is half of it


def two_heads(copies: bool) -> TransformerBridge:
    """Two layers of three heads; all but L0H0 and L0H1 do nothing.

    copies: both write the same answer, which either alone makes all but certain. Otherwise L0H0 serves prompts whose
    first word is 1 and L0H1 those whose first word is 2, so that what they are worth adds up.
    """
    from transformer_lens.model_bridge import TransformerBridge

    sizes = dict(n_layers=2, n_heads=3, d_head=4, d_model=2 * N_WORDS, n_ctx=4, d_vocab=N_WORDS)
    bridge = TransformerBridge.boot_native(
        dict(sizes, attn_only=True, normalization_type=None, seed=0), model_name="two heads"
    )
    plain = {n.replace("_original_component.", ""): p for n, p in bridge.original_model.named_parameters()}
    with torch.no_grad():
        for parameter in plain.values():
            parameter.zero_()
        next(p for n, p in plain.items() if n.startswith("tok_embed"))[:, :N_WORDS] = torch.eye(N_WORDS)
        next(p for n, p in plain.items() if n.startswith("head.weight"))[:, N_WORDS:] = torch.eye(N_WORDS)
        for head in range(2):
            for word in (1, 2) if copies else (1 + head,):
                _move(bridge.blocks[0].attn, head, word)
    return bridge


def _move(attn: AttentionBridge, head: int, word: int) -> None:
    """A head moves a word's own dimension to the answer's, through dimension ``word`` of its own."""
    d_head = attn.W_V.shape[2]
    attn.v.original_component.weight[head * d_head + word, word] = 1.0
    attn.o.original_component.weight[N_WORDS + ANSWER, head * d_head + word] = STRENGTH


def pair_reader(copies: bool, n: int = 20) -> Reader:
    """Prompts of both kinds for :func:`two_heads`, ready to be asked with heads out."""
    bridge = two_heads(copies)
    tokens = torch.tensor([[1, 0], [2, 0]]).repeat(n // 2, 1)
    mask, end = torch.ones(n, 2, dtype=torch.bool), {"end": torch.ones(n, dtype=torch.long)}
    answers, none = torch.full((n,), ANSWER), torch.zeros(n, 0, dtype=torch.long)
    prompts = PromptSet(tokens, mask, end, answers, none, [""] * n, {}, Recipe("two heads", n, 0, ""))
    ends, words = suffix(bridge, prompts, 0), torch.arange(N_WORDS)
    return Reader(ends, Numbers(words, words), answers, replacements(run_end(ends), ZERO))
