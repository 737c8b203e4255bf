"""Running a model on prompts: logits at the last token, and accuracy with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.metrics import correct
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import Interval, share

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def answer_logits(bridge: TransformerBridge, prompts: PromptSet, batch: int = 64) -> Float[Tensor, "n_prompts d_vocab"]:
    """Logits at each prompt's last token, in batches of like length; nothing else is unembedded."""
    ends = prompts.positions["end"]
    by_length, parts = ends.argsort(stable=True), []
    for rows in batches.blocks(len(prompts), batch):
        at = by_length[rows]
        tokens = prompts.tokens[at, : int(ends[at].max()) + 1].to(bridge.cfg.device)
        with logits_at(bridge, ends[at, None]):
            parts.append(bridge(tokens)[:, 0])
    return torch.cat(parts)[by_length.argsort()]


def accuracy(bridge: TransformerBridge, prompts: PromptSet) -> Interval:
    """Share of prompts whose answer beats the other candidates, with its 95% interval over prompts."""
    return share(correct(answer_logits(bridge, prompts), prompts))


def accuracy_by_length(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    *,
    n_prompts: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Laundry List accuracy by list length: columns ``n_items, accuracy, low, high, n, starts`` (where lists begin)."""
    import pandas as pd

    rows = []
    for n_items in lengths:
        prompts = laundry.build_laundry(tokenizer, n_items, n_prompts, seed)
        found = accuracy(bridge, prompts)
        starts = prompts.positions["item_0 first"]
        rows.append(
            dict(n_items=n_items, accuracy=found.mean, low=found.low, high=found.high, n=found.n, starts=starts)
        )
    return pd.DataFrame(rows)
