"""Does what one example contributes add? Activation differences at the last token, one example at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.clusters import drawn_weights, ends
from talking_heads_utils.experiments.icl.task import Drawn, Task
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.engine import Forward, prepare
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from talking_heads_utils.experiments.context import Context

COUNTS = (1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True)
class AdditivityRow(Row):
    """What so many examples do to the last token together, and what each does alone, along the answer's direction."""

    task: str = column("", "what the model is asked")
    n_examples: int = column("", "examples in the prompt")
    together: float = column("resid", "change of the final stream at end along the answer's direction, mean")
    summed: float = column("resid", "sum of the changes by each example alone, right before the question, mean")
    ratio: float = column("", "summed over together: 1 if contributions add")
    low: float = column("", "lower end of ratio, 95% over functions or answers")
    high: float = column("", "upper end of ratio")
    cosine: float = column("", "of the two whole changes, mean")
    n: int = column("", "questions")


def final_residuals(bridge: TransformerBridge, prompts: PromptSet) -> tuple[Float[Tensor, "n d_model"], Forward]:
    """Final residual stream at the last token of each prompt, and the run it comes from."""
    made = prepare(bridge, prompts, bridge.cfg.n_layers - 1)
    return made.final, made


def answer_directions(made: Forward, prompts: PromptSet, answers: Numbers) -> Float[Tensor, "n d_model"]:
    """The unembedding of each right answer less the mean of all answers', to length one."""
    W = made.unembed[:, answers.ids.to(made.unembed.device)]
    right = W[:, answers.place_of(torch.tensor(list(prompts.info["answer"])))]
    directions = (right - W.mean(1, keepdim=True)).T
    return directions / directions.norm(dim=-1, keepdim=True)


def additivity(run: Context, task: Task, drawn: Drawn, counts: Sequence[int] = COUNTS) -> list[AdditivityRow]:
    """For n examples: what they do to the last token together, and the sum of what each does alone.

    Both are differences from the same question without examples.
    Raises :class:`OptionError` for more examples than the questions have.
    """
    some = drawn.questions
    most = min(len(q.pairs) for q in some)
    if max(counts) > most or min(counts) < 1:
        raise OptionError(f"These questions have {most} examples; {min(counts)} to {max(counts)} were asked for.")

    def final(shown: Sequence[Any]) -> Tensor:
        return final_residuals(run.bridge, task.encode(run, shown))[0].double()

    bare = task.encode(run, [replace(q, pairs=()) for q in some])
    nothing, made = final_residuals(run.bridge, bare)
    directions = answer_directions(made, bare, task.answers).double()
    one = ([replace(q, pairs=(q.pairs[j],)) for q in some] for j in range(max(counts)))
    alone = torch.stack([final(shown) - nothing for shown in one])
    weights, rows = drawn_weights(drawn.clusters[:, -1], n_draws=2000), []
    for n in counts:
        together, summed = final([replace(q, pairs=q.pairs[:n]) for q in some]) - nothing, alone[:n].sum(0)
        cosine = torch.nn.functional.cosine_similarity(together, summed).mean().item()
        along, sums = ((whole * directions).sum(1).cpu() for whole in (together, summed))
        ratio = ends((weights @ sums) / (weights @ along))
        rows.append(AdditivityRow(
            task.name, n, along.mean().item(), sums.mean().item(), ratio.value.item(), ratio.low.item(),
            ratio.high.item(), cosine, len(some),
        ))  # fmt: skip
    return rows
