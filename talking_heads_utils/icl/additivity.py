"""Does what one example contributes add? Activation differences at the last token, one example at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.icl.prompts import Numbers, Question, encode_questions
from talking_heads_utils.runs.suffix import Suffix, suffix

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase


def final_residuals(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> tuple[Float[Tensor, "n d_model"], Suffix]:
    """Final residual stream at the last token of each question, and the run it comes from."""
    prompts = encode_questions(questions, tokenizer)
    ends = suffix(bridge, prompts, bridge.cfg.n_layers - 1)
    return ends.final(ends.resid[:, None])[:, 0], ends


def answer_directions(ends: Suffix, questions: Sequence[Question], numbers: Numbers) -> Float[Tensor, "n d_model"]:
    """The unembedding of each right answer less the mean of all numbers', to length one."""
    W = ends.unembed[:, numbers.ids.to(ends.unembed.device)]
    right = W[:, numbers.place_of(torch.tensor([q.answer for q in questions]))]
    directions = (right - W.mean(1, keepdim=True)).T
    return directions / directions.norm(dim=-1, keepdim=True)


def additivity_table(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    numbers: Numbers,
    counts: Sequence[int],
) -> pd.DataFrame:
    """For n examples: what they do to the last token together, and the sum of what each does alone.

    Both are differences from the same question without examples, along the answer's direction. Columns ``n_examples,
    together, summed, ratio, low, high, cosine, n``: means of both; their ratio (1: contributions add) with its 95%
    interval over questions; the cosine of the two whole differences. An example alone stands right before the question.
    Raises :class:`OptionError` for more examples than the questions have.
    """
    import pandas as pd

    most = min(len(q.pairs) for q in questions)
    if max(counts) > most or min(counts) < 1:
        raise OptionError(f"These questions have {most} examples; {min(counts)} to {max(counts)} were asked for.")

    def run(some: Sequence[Question]) -> Tensor:
        return final_residuals(bridge, tokenizer, some)[0].double()

    nothing, ends = final_residuals(bridge, tokenizer, [_with(q, ()) for q in questions])
    directions = answer_directions(ends, questions, numbers).double()
    alone = torch.stack([run([_with(q, (q.pairs[j],)) for q in questions]) - nothing for j in range(max(counts))])
    rows = []
    for n in counts:
        together = run([_with(q, q.pairs[:n]) for q in questions]) - nothing
        summed = alone[:n].sum(0)
        along, sums = (together * directions).sum(1), (summed * directions).sum(1)
        ratio = _ratio_interval(sums, along)
        cosine = torch.nn.functional.cosine_similarity(together, summed).mean().item()
        rows.append(dict(n_examples=n, together=along.mean().item(), summed=sums.mean().item(), **ratio, cosine=cosine,
                         n=len(questions)))  # fmt: skip
    return pd.DataFrame(rows)


def _with(question: Question, pairs: tuple) -> Question:
    return Question(pairs, question.x, question.function)


def _ratio_interval(top: Float[Tensor, "n"], bottom: Float[Tensor, "n"], n_boot: int = 2000) -> dict[str, float]:
    """Ratio of two means, with its 95% bootstrap interval over questions."""
    top, bottom = top.cpu(), bottom.cpu()
    draws = torch.randint(len(top), (n_boot, len(top)), generator=torch.Generator().manual_seed(0))
    ratios = top[draws].mean(1) / bottom[draws].mean(1)
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return dict(ratio=(top.mean() / bottom.mean()).item(), low=low, high=high)
