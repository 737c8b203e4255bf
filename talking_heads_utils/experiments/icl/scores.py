"""Scores of an answer: exact; of a number also near, of the right parity, about a x. Each by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.prompts.sets import PromptSet

ABOUT = 1  # "about a x" is a x itself or one more or less
NEAR = 3  # of the right answer, as 2x is of the post's 2x + 3


@dataclass(frozen=True)
class Scores:
    """Answers against a x + b, one value per prompt and cell (such as a layer and an ablation).

    exact: a x + b itself. distance: how far from it. near: at most :data:`NEAR` from it. parity: odd or even as it is.
    about: a x without b, give or take :data:`ABOUT`.
    copied: another prompt's answer; None where no other was given. Of words all but exact and copied are None.
    """

    exact: Bool[Tensor, "n *cells"]
    distance: Int[Tensor, "n *cells"] | None
    near: Bool[Tensor, "n *cells"] | None
    parity: Bool[Tensor, "n *cells"] | None
    about: Bool[Tensor, "n *cells"] | None
    copied: Bool[Tensor, "n *cells"] | None


def score_answers(
    answered: Int[Tensor, "n *cells"], prompts: PromptSet, other: Int[Tensor, "n *cells"] | None = None
) -> Scores:
    """Score answers against ``prompts``' own function and x. other: answers whose copying is to be seen, cell by cell
    (1 where a cell's place makes no difference). Answers of ``prompts`` of words are places among the task's."""
    copied = None if other is None else answered == other
    if "a" not in prompts.info:
        return Scores(answered == _column(prompts.info["answer"], answered), None, None, None, None, copied)
    a, b, x = (_column(prompts.info[name], answered) for name in ("a", "b", "x"))
    right = a * x + b
    return Scores(
        exact=answered == right,
        distance=(answered - right).abs(),
        near=(answered - right).abs() <= NEAR,
        parity=answered % 2 == right % 2,
        about=(answered - a * x).abs() <= ABOUT,
        copied=copied,
    )


def _column(values: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor(list(values)).view(-1, *[1] * (like.ndim - 1))


def right_log_prob(
    logits: Float[Tensor, "n *cells n_numbers"], right: Int[Tensor, "n"], numbers: Numbers
) -> Float[Tensor, "n *cells"]:
    """Log-probability, in nats, of the right number among all numbers. It cannot pass 0: see :func:`right_log_odds`."""
    return logits.float().log_softmax(-1).gather(-1, _places(logits, right, numbers))[..., 0]


def right_log_odds(
    logits: Float[Tensor, "n *cells n_numbers"], right: Int[Tensor, "n"], numbers: Numbers
) -> Float[Tensor, "n *cells"]:
    """Log-odds, in nats, of the right number against all others: its logit less the logsumexp of theirs.

    In double precision and without the probability, so that it has no ceiling where that is near one.
    """
    exact, place = logits.double(), _places(logits, right, numbers)
    return exact.gather(-1, place)[..., 0] - exact.scatter(-1, place, -torch.inf).logsumexp(-1)


def _places(logits: Tensor, right: Int[Tensor, "n"], numbers: Numbers) -> Int[Tensor, "n *cells 1"]:
    """Where the right number stands among the logits, for every cell of a prompt."""
    place = numbers.place_of(right).to(logits.device)
    return place.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
