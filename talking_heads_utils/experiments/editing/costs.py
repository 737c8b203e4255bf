"""What edits cost: other tasks, running text, other heads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


class What(StrEnum):
    """What is compared: accuracy on IOI and on words in context, loss on running text and divergence of what is
    predicted there, and how far other heads' attention moves."""

    IOI = "ioi"
    WORDS = "words"
    TEXT_LOSS = "text_loss"
    TEXT_KL = "text_kl"
    PATTERNS = "patterns"


@dataclass(frozen=True)
class CostRow(Row):
    model: str = column("", "as the command took it")
    edit: str = column("", "as in the table of gains")
    family: str = column("", "of heads")
    what: str = column("", "ioi, words, text_loss, text_kl, patterns")
    of: str = column("", "the task of words, or the head; empty for others")
    before: float | None = column("", "without an edit")
    after: float = column("", "with it")
    change: float = column(
        "", "of ioi and words in points; of text_loss and text_kl in nats a token; of patterns in total variation"
    )
    low: float = column("", "95% interval over prompts, or blocks of text, lower end")
    high: float = column("", "upper end")
    n: int = column("", "prompts, tokens or positions")


@dataclass(frozen=True)
class TriedRow(Row):
    """Every edit that was measured whole: what it gains, what it costs."""

    model: str = column("", "as the command took it")
    edit: str = column("", "as in the table of gains")
    family: str = column("", "of heads; random too")
    extent: str = column("", "single, leading, whole_head, combined")
    draw: int | None = column("", "of random heads; empty for others")
    gain: float = column("points", "of accuracy on held-out lists of all lengths tried")
    low: float = column("points", "95% interval, lower end")
    high: float = column("points", "upper end")
    text_loss: float = column("nats a token", "change of the loss on running text")
    size: float = column("Frobenius norm", "of the change of the weights")
    n: int = column("prompts", "held-out lists")
    n_tokens: int = column("tokens", "of running text")


def run_costs(c: Context) -> list[CostRow]:
    raise NotImplementedError


def run_tried(c: Context) -> list[TriedRow]:
    raise NotImplementedError
