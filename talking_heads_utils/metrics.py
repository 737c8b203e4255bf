"""What is measured at ``end``, the last token of each prompt: one value per prompt.

A metric is a name (:data:`METRICS`), :func:`attention`, or any callable that takes an :class:`Outcome` and gives
``[n, k]``: n prompts, each run in k variants, such as k ablations. It sees a block of the prompts at a time, so what it
needs of them it takes from ``outcome.prompts``.

>>> from talking_heads_utils.planted.model import plant
>>> from talking_heads_utils.prompts.ioi import build_ioi
>>> planted = plant()
>>> prompts = build_ioi(planted.tokenizer, 20)
>>> outcome = Outcome(answer_logits(planted.bridge, prompts)[:, None], prompts)  # the plain run: one variant
>>> named("accuracy")(outcome).mean().item()
1.0
>>> def margin(outcome):  # of the answer over the best other token
...     best = outcome.logits.topk(2).values  # [n, k, 2]
...     return best[..., 0] - best[..., 1]
>>> named(margin)(outcome).shape
torch.Size([20, 1])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.labels import Head, as_head
from talking_heads_utils.prompts.sets import ABSENT, PromptSet, item_positions
from talking_heads_utils.stats import Interval, share

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARE = "share"  # unit of metrics whose values are 0 or 1


@dataclass(frozen=True)
class Outcome:
    """What k variants of a run gave on n prompts.

    logits: at ``end``. patterns: attention from ``end`` over all positions, of the heads that the metric asked for.
    All on one device; the prompts may be on another.
    """

    logits: Float[Tensor, "n k d_vocab"]
    prompts: PromptSet
    patterns: Mapping[Head, Float[Tensor, "n k n_pos"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A measure of an outcome. unit: ``logits``, ``nats``, ``probability``, ``share`` (of values 0 or 1) and so on.
    heads: those whose patterns it looks at."""

    name: str
    unit: str
    of: Callable[[Outcome], Float[Tensor, "n k"]]
    heads: tuple[Head, ...] = ()

    def __call__(self, outcome: Outcome) -> Float[Tensor, "n k"]:
        """One value per prompt and variant. Raises :class:`OptionError` where the shape is another or one is NaN."""
        values, shape = self.of(outcome), tuple(outcome.logits.shape[:2])
        if not isinstance(values, Tensor) or tuple(values.shape) != shape:
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise OptionError(f"The metric {self.name!r} gave {given}, not {shape}, prompts by variants.")
        values = values if values.is_floating_point() else values.float()
        if values.isnan().any():
            row = int(values.isnan().any(1).nonzero()[0])
            raise OptionError(f"The metric {self.name!r} is NaN on prompt {row} ({outcome.prompts.texts[row]!r}).")
        return values


def named(metric: str | Metric | Callable[[Outcome], Tensor]) -> Metric:
    """The metric of that name, or of a callable of one's own. Raises :class:`OptionError` for an unknown name."""
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return Metric(getattr(metric, "__name__", type(metric).__name__), "", metric)
    if metric not in METRICS:
        raise OptionError(f"There is no metric {metric!r}; there are {', '.join(METRICS)}, or give a callable.")
    return METRICS[metric]


def attention(head: Head | str, to: str, less: str | None = None) -> Metric:
    """Attention of a head from ``end`` to a named position, less that to another one if given. Raises
    :class:`LabelError` for no head and, when measured, :class:`TaskError` for a position that a prompt lacks."""
    of = as_head(head)

    def measured(outcome: Outcome) -> Float[Tensor, "n k"]:
        if of not in outcome.patterns:
            raise LabelError(f"The pattern of {of} was not kept; there is {', '.join(map(str, outcome.patterns))}.")
        pattern = outcome.patterns[of]
        found = _at(pattern, position_of(outcome.prompts, to)[:, None])[..., 0]
        return found if less is None else found - _at(pattern, position_of(outcome.prompts, less)[:, None])[..., 0]

    return Metric(f"attention of {of} to {to}" + (f" less {less}" if less else ""), "attention", measured, (of,))


def position_of(prompts: PromptSet, name: str) -> Int[Tensor, "n_prompts"]:
    """A named position of every prompt. Raises :class:`TaskError` for a name that is not there, or a prompt without
    it."""
    if name not in prompts.positions:
        raise TaskError(f"No position {name!r} in these prompts; they have {', '.join(prompts.positions)}.")
    at = prompts.positions[name]
    if (at == ABSENT).any():
        row = int((at == ABSENT).nonzero()[0])
        raise TaskError(f"Prompt {row} ({prompts.texts[row]!r}) has no position {name!r}.")
    return at


def _at(values: Float[Tensor, "n *k d"], index: Int[Tensor, "n c"]) -> Float[Tensor, "n *k c"]:
    """The values at each prompt's own indices, -inf at absent ones."""
    index = index.to(values.device).view(len(index), *[1] * (values.ndim - 2), -1)
    found = values.gather(-1, index.clamp(min=0).expand(*values.shape[:-1], -1))
    return found.masked_fill(index == ABSENT, -torch.inf)


def correct(
    logits: Float[Tensor, "n_prompts *k d_vocab"], prompts: PromptSet, *, among_candidates: bool = True
) -> Bool[Tensor, "n_prompts *k"]:
    """Whether a right answer has the highest logit, among the candidates or over the whole vocabulary.

    A tie with another candidate is no correct answer. Raises :class:`TaskError` for candidates that are not there.
    """
    own = _at(logits, prompts.right).amax(-1)
    if among_candidates:
        return own > _at(logits, _wrong(prompts)).amax(-1)
    right = torch.where(prompts.right == ABSENT, prompts.answers[:, None], prompts.right).to(logits.device)
    right = right.view(len(right), *[1] * (logits.ndim - 2), -1).expand(*logits.shape[:-1], -1)
    return own > logits.scatter(-1, right, -torch.inf).amax(-1)


def logit_difference(
    logits: Float[Tensor, "n_prompts *k d_vocab"], prompts: PromptSet
) -> Float[Tensor, "n_prompts *k"]:
    """Mean logit of the right answers less that of the wrong ones. Raises :class:`TaskError` where there are none."""
    return _mean_at(logits, prompts.right) - _mean_at(logits, _wrong(prompts))


def _mean_at(logits: Float[Tensor, "n *k d_vocab"], ids: Int[Tensor, "n c"]) -> Float[Tensor, "n *k"]:
    """Mean over the ids that are there."""
    there = (ids != ABSENT).sum(1).to(logits.device).view(len(ids), *[1] * (logits.ndim - 2))
    found = _at(logits, ids)
    return found.where(found != -torch.inf, 0).sum(-1) / there


def _probability(logits: Float[Tensor, "n k d_vocab"], ids: Int[Tensor, "n c"]) -> Float[Tensor, "n k"]:
    """Log of the ids' summed probability."""
    return _at(logits.float(), ids).logsumexp(-1) - logits.float().logsumexp(-1)


def _wrong(prompts: PromptSet) -> Int[Tensor, "n_prompts n_distractors"]:
    """Raises :class:`TaskError` for prompts whose answer is one of the whole vocabulary."""
    if prompts.distractors.shape[1] == 0:
        raise TaskError("These prompts have no wrong answers to compare with. Give some, or take 'loss' or 'accuracy'.")
    return prompts.distractors


def _accuracy(outcome: Outcome) -> Float[Tensor, "n k"]:
    among = outcome.prompts.distractors.shape[1] > 0
    return correct(outcome.logits, outcome.prompts, among_candidates=among).float()


def _prob_diff(outcome: Outcome) -> Float[Tensor, "n k"]:
    right, wrong = outcome.prompts.right, _wrong(outcome.prompts)
    return _probability(outcome.logits, right).exp() - _probability(outcome.logits, wrong).exp()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", "logits", lambda outcome: logit_difference(outcome.logits.float(), outcome.prompts)),
        Metric("prob_diff", "probability", _prob_diff),
        Metric("accuracy", SHARE, _accuracy),
        Metric("loss", "nats", lambda outcome: -_probability(outcome.logits, outcome.prompts.right)),
    )
}
"""``logit_diff``: mean logit of the right answers less that of the wrong. ``prob_diff``: their summed probabilities,
likewise. ``accuracy``: 1 where a right answer has a higher logit than all wrong ones; where there are none, than the
whole vocabulary. ``loss``: -log of the right answers' summed probability."""


@torch.no_grad()
def answer_logits(bridge: TransformerBridge, prompts: PromptSet, batch: int = 64) -> Float[Tensor, "n_prompts d_vocab"]:
    """Logits at each prompt's last token, on the model's device, in batches of like length; nothing else is
    unembedded."""
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


def contrast(prompts: PromptSet) -> Float[Tensor, "n_prompts n_pos"]:
    """Weights over positions whose product with an attention pattern is I(m): +1 where the answer is first named, -1 in
    all where the other candidates are (IOI: IO less S1; lists: the answer less the mean of the items named twice).

    Raises :class:`TaskError` for prompts of another task.
    """
    positions, _ = item_positions(prompts)
    rows = torch.arange(len(prompts))
    answer = torch.as_tensor(prompts.info["index"]) if prompts.recipe.n_items else torch.zeros_like(rows)
    weights = torch.zeros(prompts.tokens.shape)
    weights[rows[:, None], positions] = -1 / (positions.shape[1] - 1)
    weights[rows, positions[rows, answer]] = 1
    return weights
