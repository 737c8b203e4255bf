"""Whether the task is done in parts: what looks at earlier answers, and what each layer's MLP is needed for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column

MLPS, HEADS, TWIN = "mlp", "heads", "twin"


class Attribute(StrEnum):
    """What of an answer may be right by itself."""

    EXACT = "exact"
    WORD = "word"  # begins as the right answer does, whatever its case
    FORM = "form"  # has the form of the task's answers: upper case, or their ending
    PARITY = "parity"  # of numbers
    SIZE = "size"  # of numbers: within 3 of the right one


@dataclass(frozen=True)
class LooksBackRow(Row):
    """Where one head looks from the tokens before answers."""

    model: str = column("", "model")
    task: str = column("", "task")
    head: str = column("", "head")
    layer: int = column("", "its layer")
    effect: float = column("nats", "log-odds lost with this head exchanged everywhere, or gained in the twin by it")
    important: bool = column("", "whether it is among the heads that matter, by the selection half")
    to_y: float = column("share", "attention to all earlier answers from the token before each answer, mean")
    to_x: float = column("share", "the same to all earlier x")
    even: float = column("share", "what attention spread evenly would give earlier answers")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class PartRow(Row):
    """What is left of each attribute with one layer's MLP or heads at the twin's values at the last token."""

    model: str = column("", "model")
    task: str = column("", "task")
    part: str = column("", "mlp or heads; empty for nothing exchanged, twin for the twin")
    layer: int | None = column("", "of which layer")
    attribute: str = column("", "exact, word, form, parity or size")
    share: float = column("share", "answers with it")
    change: float = column("share", "from nothing exchanged, paired")
    low: float = column("share", "95% interval over prompts, lower end")
    high: float = column("share", "upper end")
    n: int = column("prompts", "of the held-out half")


def run_looks_back(c: Context) -> list[LooksBackRow]:
    raise NotImplementedError


def run_parts(c: Context) -> list[PartRow]:
    raise NotImplementedError
