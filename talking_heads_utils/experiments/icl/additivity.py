"""Does what one example contributes add? Activation differences at the last token, one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward.suffix import Suffix, suffix
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


def final_residuals(bridge: TransformerBridge, prompts: PromptSet) -> tuple[Float[Tensor, "n d_model"], Suffix]:
    """Final residual stream at the last token of each prompt, and the run it comes from."""
    ends = suffix(bridge, prompts, bridge.cfg.n_layers - 1)
    return ends.final(ends.resid[:, None])[:, 0], ends


def answer_directions(ends: Suffix, prompts: PromptSet, numbers: Numbers) -> Float[Tensor, "n d_model"]:
    """The unembedding of each right answer less the mean of all answers', to length one."""
    W = ends.unembed[:, numbers.ids.to(ends.unembed.device)]
    right = W[:, numbers.place_of(torch.tensor(list(prompts.info["answer"])))]
    directions = (right - W.mean(1, keepdim=True)).T
    return directions / directions.norm(dim=-1, keepdim=True)


def additivity_table(
    bridge: TransformerBridge,
    encode: Callable[[Sequence[Any]], PromptSet],
    questions: Sequence[Any],
    numbers: Numbers,
    counts: Sequence[int],
) -> pd.DataFrame:
    """For n examples: what they do to the last token together, and the sum of what each does alone.

    Both are differences from the same question without examples, along the answer's direction. Columns ``n_examples,
    together, summed, ratio, low, high, cosine, n``: means of both; their ratio (1: contributions add) with its 95%
    interval over questions; the cosine of the two whole differences. An example alone stands right before the question.
    questions: of numbers or of words, which ``encode`` makes prompts of.
    Raises :class:`OptionError` for more examples than the questions have.
    """
    import pandas as pd

    most = min(len(q.pairs) for q in questions)
    if max(counts) > most or min(counts) < 1:
        raise OptionError(f"These questions have {most} examples; {min(counts)} to {max(counts)} were asked for.")

    def run(some: Sequence[Any]) -> Tensor:
        return final_residuals(bridge, encode(some))[0].double()

    bare = encode([replace(q, pairs=()) for q in questions])
    nothing, ends = final_residuals(bridge, bare)
    directions = answer_directions(ends, bare, numbers).double()
    one = ([replace(q, pairs=(q.pairs[j],)) for q in questions] for j in range(max(counts)))
    alone = torch.stack([run(some) - nothing for some in one])
    rows = []
    for n in counts:
        together = run([replace(q, pairs=q.pairs[:n]) for q in questions]) - nothing
        summed = alone[:n].sum(0)
        along, sums = (together * directions).sum(1), (summed * directions).sum(1)
        ratio = _ratio_interval(sums, along)
        cosine = torch.nn.functional.cosine_similarity(together, summed).mean().item()
        rows.append(dict(n_examples=n, together=along.mean().item(), summed=sums.mean().item(), **ratio, cosine=cosine,
                         n=len(questions)))  # fmt: skip
    return pd.DataFrame(rows)


def _ratio_interval(top: Float[Tensor, "n"], bottom: Float[Tensor, "n"], n_boot: int = 2000) -> dict[str, float]:
    """Ratio of two means, with its 95% bootstrap interval over questions."""
    top, bottom = top.cpu(), bottom.cpu()
    draws = torch.randint(len(top), (n_boot, len(top)), generator=torch.Generator().manual_seed(0))
    ratios = top[draws].mean(1) / bottom[draws].mean(1)
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return dict(ratio=(top.mean() / bottom.mean()).item(), low=low, high=high)
