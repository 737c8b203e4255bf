"""Answers of several tokens, scored whole: the log-probability of all their tokens, against other candidates'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import TaskError, UnsupportedModelError
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Candidates = Sequence[Sequence[Sequence[int]]]  # of each prompt, each candidate's tokens


@dataclass(frozen=True)
class AnswerScores:
    """log_prob: of all tokens of each candidate, in nats, over the whole vocabulary. greedy: whether each of them has
    the highest logit after those before it, so that greedy decoding writes the candidate."""

    log_prob: Float[Tensor, "n n_candidates"]
    greedy: Bool[Tensor, "n n_candidates"]


@torch.no_grad()
def answer_log_probs(
    bridge: TransformerBridge, prompts: PromptSet, candidates: Candidates, *, batch: int = 16
) -> AnswerScores:
    """Score every candidate as what follows its prompt.

    candidates: as many for each prompt. Prompts of one length are run together, once, keeping keys and values; all
    candidates continue from there in one more pass, padded on the right. Candidates of one token need none.
    Raises :class:`TaskError` for candidates that do not fit the prompts, :class:`UnsupportedModelError` for a model
    that keeps no keys and values.
    """
    counts = {len(some) for some in candidates}
    if len(candidates) != len(prompts) or len(counts) != 1 or not all(len(c) for some in candidates for c in some):
        raise TaskError("Give every prompt as many candidates, each of one token or more.")
    lengths = prompts.mask.sum(1)
    log_prob = torch.zeros(len(prompts), counts.pop())
    greedy = torch.zeros_like(log_prob, dtype=torch.bool)
    for length in lengths.unique().tolist():
        same = (lengths == length).nonzero().flatten()
        for block in batches.blocks(len(same), batch):
            rows = same[block]
            some = [list(candidates[i]) for i in rows.tolist()]
            log_prob[rows], greedy[rows] = _scored(bridge, prompts.tokens[rows, :length], some)
    return AnswerScores(log_prob, greedy)


def _scored(bridge: TransformerBridge, tokens: Int[Tensor, "n length"], some: list) -> tuple[Tensor, Tensor]:
    """Of prompts of one length: each candidate's summed log-probability, and whether greedy decoding writes it."""
    from transformers import DynamicCache

    n, n_candidates = len(some), len(some[0])
    longest = max(len(c) for row in some for c in row)
    wanted = torch.tensor([[[*c, *[0] * (longest - len(c))] for c in row] for row in some])
    asked = torch.tensor([[[k < len(c) for k in range(longest)] for c in row] for row in some])
    cache, end = DynamicCache(), torch.full((n, 1), tokens.shape[1] - 1)
    options = dict(use_cache=True, past_key_values=cache) if longest > 1 else {}
    with logits_at(bridge, end):
        first = bridge(tokens.to(bridge.cfg.device), **options)
    logits = first[:, None].expand(-1, n_candidates, -1, -1)
    if longest > 1:
        if cache.get_seq_length() != tokens.shape[1]:
            raise UnsupportedModelError(
                f"{bridge.cfg.model_name} keeps no keys and values, so answers of several tokens cannot be scored."
            )
        cache.batch_repeat_interleave(n_candidates)
        stems = wanted[..., :-1].flatten(0, 1)
        places = torch.arange(longest - 1).expand(len(stems), -1)
        with logits_at(bridge, places):
            rest = bridge(stems.to(bridge.cfg.device), **options).unflatten(0, (n, n_candidates))
        logits = torch.cat([logits, rest], 2)
    logits = logits.float().cpu()
    own = logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    best = logits.argmax(-1) == wanted
    return own.masked_fill(~asked, 0).sum(-1), (best | ~asked).all(-1)
