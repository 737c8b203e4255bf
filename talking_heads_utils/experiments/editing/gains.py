"""What edits gain on lists that no choice saw, beside random edits with the same search."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing.search import Winners, search
from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class EditRow(Row):
    """One edit on one kind of lists: the best found in each family and extent, the best of all, and the best of each
    random draw."""

    model: str = column("", "as the command took it")
    edit: str = column("", "its heads or components and factors, such as L20H0.0 x 2, L23H1 x 0")
    family: str = column("", "of heads: into_queries, movers, direct; random: drawn from the same layers")
    extent: str = column("", "single, leading, whole_head; combined: several of these")
    draw: int | None = column("", "of random heads; empty for others")
    best: bool = column("", "whether it is the best of all on the selection half, or of its draw")
    part: str = column("", "of what lists: held_out, new_wording, new_objects")
    n_items: int = column("items", "length of the lists")
    before: float = column("share", "lists answered without an edit")
    after: float = column("share", "lists answered with it")
    gain: float = column("points", "of accuracy, paired")
    low: float = column("points", "95% interval over lists, lower end")
    high: float = column("points", "upper end")
    relative: float = column("percent", "gain over the accuracy before")
    relative_low: float = column("percent", "95% interval, lower end")
    relative_high: float = column("percent", "upper end")
    beyond: float | None = column(
        "points", "accuracy less that of the correction of logits by index, paired; empty for draws"
    )
    beyond_low: float | None = column("points", "95% interval, lower end")
    beyond_high: float | None = column("points", "upper end")
    size: float = column("Frobenius norm", "of the change of the weights")
    where_chosen: float = column("points", "gain on the lists that chose")
    objective: float = column("nats", "log-probability of the answer among the candidates there, mean")
    n_tried: int = column("edits", "among which it is the best")
    n: int = column("prompts", "lists")


def found(c: Context) -> Winners:
    """What the search chose; of a table of gains that is finished, if there is one. For :meth:`Context.kept`."""
    return search(c)


def run(c: Context) -> list[EditRow]:
    raise NotImplementedError
