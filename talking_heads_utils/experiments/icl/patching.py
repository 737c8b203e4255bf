"""The post's experiment, put right: A's stream at the last token into B, layer by layer, with layers out of A."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column

WORKS = 0.5  # of A's accuracy, which B must reach


class Run(StrEnum):
    """Which run answers: A or B untouched, or B with A's stream."""

    A = "a"
    B = "b"
    PATCHED = "patched"


@dataclass(frozen=True)
class PatchRow(Row):
    """Answers of B with A's resid_pre of one layer at the last token, or of A or B as they are."""

    model: str = column("", "model")
    task: str = column("", "task")
    b_sees: str = column("", "what B sees: none, shuffled labels")
    out: str = column("", "layers whose heads are out of A, such as 9,10; empty for none")
    how: str = column("", "how: zero or exchange")
    run: str = column("", "a, b or patched")
    layer: int | None = column("", "whose resid_pre is patched")
    accuracy: float = column("share", "right answers, of B by A's task at B's question")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    about: float | None = column("share", "of numbers: answers a x, give or take 1")
    about_low: float | None = column("share", "lower end")
    about_high: float | None = column("share", "upper end")
    copied: float = column("share", "A's answer to its own question")
    n: int = column("prompts", "pairs of A and B")


@dataclass(frozen=True)
class OutRow(Row):
    """A's answers with all heads of two layers out at the last token."""

    model: str = column("", "model")
    task: str = column("", "task; all for the mean over tasks")
    a: int = column("", "layer")
    b: int = column("", "layer")
    how: str = column("", "zero or exchange")
    posts: bool = column("", "whether these are the post's two layers, in proportion to depth")
    accuracy: float = column("share", "right answers")
    change: float = column("share", "from nothing out, paired")
    low: float = column("share", "95% interval over prompts, of all over tasks, lower end")
    high: float = column("share", "upper end")
    about_change: float | None = column("share", "of numbers: the same of answers a x, give or take 1")
    n: int = column("prompts", "of the held-out half; of all: tasks")


@dataclass(frozen=True)
class FirstRow(Row):
    """The first layer whose patch works, with two neighbouring layers out of A and without."""

    model: str = column("", "model")
    task: str = column("", "task; all for the mean over tasks")
    b_sees: str = column("", "none or shuffled")
    how: str = column("", "zero or exchange")
    a: int = column("", "layer")
    b: int = column("", "layer")
    posts: bool = column("", "whether these are the post's two layers, in proportion to depth")
    plain: float | None = column("layers", "first layer that works with nothing out; none if no layer does")
    first: float | None = column("layers", "the same with the two layers out")
    moved: float | None = column("layers", "first less plain")
    low: float | None = column("layers", "95% interval over prompts, of all over tasks, lower end")
    high: float | None = column("layers", "upper end")
    n: int = column("prompts", "pairs of A and B; of all: tasks")


def run_patches(c: Context) -> list[PatchRow]:
    raise NotImplementedError


def run_out(c: Context) -> list[OutRow]:
    raise NotImplementedError


def run_first(c: Context) -> list[FirstRow]:
    raise NotImplementedError
