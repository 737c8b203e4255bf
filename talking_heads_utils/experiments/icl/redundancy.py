"""What heads do alone and together. Heads are chosen by what they do to a twin, never by what their loss costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column

N_CHOSEN = 20  # heads whose pairs are exchanged
JOINT = (2, 5, 10, 20)  # chosen heads that are exchanged together
N_MATCHED = 20  # sets matched on direct effect
OVER_TASKS = "all"


class Set(StrEnum):
    """Which heads are exchanged."""

    CHOSEN = "chosen"
    MATCHED = "matched"  # others with as much direct effect together
    LAYER = "layer"
    LAYERS = "two layers"


@dataclass(frozen=True)
class HeadRow(Row):
    """What one head does to one task."""

    model: str = column("", "model")
    task: str = column("", "task")
    head: str = column("", "head")
    layer: int = column("", "its layer")
    direct: float = column("logits", "direct effect on right less rival, prompt less twin, selection half, mean")
    denoised: float = column("nats", "log-odds gained in the twin with this head at the prompt's value, selection half")
    chosen: bool = column("", "whether it is among the chosen, by both")
    alone: float = column("nats", "log-odds lost with this head at the twin's value, held-out half")
    low: float = column("nats", "95% interval over prompts, lower end")
    high: float = column("nats", "upper end")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class PairRow(Row):
    """What two chosen heads do together."""

    model: str = column("", "model")
    task: str = column("", "task")
    a: str = column("", "head")
    b: str = column("", "head")
    joint: float = column("nats", "log-odds lost with both exchanged")
    summed: float = column("nats", "sum of what is lost with each exchanged")
    interaction: float = column("nats", "joint less summed: above 0 each stands in for the other")
    low: float = column("nats", "95% interval over prompts, lower end")
    high: float = column("nats", "upper end")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class SetRow(Row):
    """What a set of heads does together, over what its heads do alone."""

    model: str = column("", "model")
    task: str = column("", "task; all for the mean over tasks")
    heads_are: str = column("", "chosen, matched on direct effect, of one layer, or of two layers")
    where: str = column("", "where values are exchanged: end or all")
    n_heads: int = column("heads", "of the set")
    draw: int | None = column("", "of a matched set")
    heads: str = column("", "heads of the set, of the whole layers the layers")
    direct: float = column("logits", "sum of direct effects, selection half")
    joint: float = column("nats", "log-odds lost with all exchanged")
    summed: float = column("nats", "sum of what is lost with each exchanged")
    ratio: float | None = column("", "joint over summed; none where too little is lost")
    low: float | None = column("", "95% interval over prompts, of all over tasks too, lower end")
    high: float | None = column("", "upper end")
    accuracy: float = column("share", "right answers with all exchanged")
    before: float = column("share", "right answers with nothing exchanged")
    twin: float = column("share", "right answers of the twin")
    n: int = column("prompts", "of the held-out half; of all: tasks")


def run_heads(c: Context) -> list[HeadRow]:
    raise NotImplementedError


def run_pairs(c: Context) -> list[PairRow]:
    raise NotImplementedError


def run_sets(c: Context) -> list[SetRow]:
    raise NotImplementedError
