"""What edits gain on lists that no choice saw, beside random edits with the same search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing.moves import Extent, Family, parse, parts_of
from talking_heads_utils.experiments.editing.search import LENGTHS, Winner, Winners, search
from talking_heads_utils.experiments.editing.upper import prepare
from talking_heads_utils.experiments.list_prompts import Lists, Part, check_each_index
from talking_heads_utils.experiments.positional import correction
from talking_heads_utils.experiments.positional.grid import answer
from talking_heads_utils.experiments.positional.subspace import lengths, nearest_lengths, shown_lengths
from talking_heads_utils.experiments.rows import Row, column, rows
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.stats import bootstrap_ratio, points, share, share_change

N_BEST, N_OTHERS, N_NEW = 1000, 300, 400  # held-out lists for the best edit and for others; in new words
LEAST = 50  # lists of each index of the answer
N_BLOCK = 250  # lists that are kept at once
GAINS = "edit-gains"


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
    table = c.finished(GAINS)
    return c.kept(search) if table is None else winners_of(rows(table, EditRow))


def winners_of(table: Sequence[EditRow]) -> Winners:
    """The winners that a table of gains is about."""
    winners = dict.fromkeys(
        Winner(
            Family(row.family), Extent(row.extent), row.draw, parse(row.edit), row.objective, row.where_chosen,
            row.n_tried,
        )
        for row in table
    )  # fmt: skip
    of_families, draws = (tuple(w for w in winners if (w.draw is None) == own) for own in (True, False))
    return Winners(of_families, draws)


def run(c: Context) -> list[EditRow]:
    """Raises :class:`NotApplicable` as the search does, and :class:`TaskError` for too few lists of an index."""
    winners = c.kept(search)
    others = [winner for winner in (*winners.of_families, *winners.draws) if winner is not winners.best]
    some = nearest_lengths(c, *LENGTHS)
    table = []
    for n in lengths(c) if c.quick else shown_lengths(c):
        n_lists = N_BEST if n in lengths(c) else max(N_OTHERS, LEAST * n)  # fewer where it is only shown
        table += edit_rows(c, winners, Lists(Part.HELD_OUT, n, c.n(n_lists)), [winners.best])
    for n in some:
        table += edit_rows(c, winners, Lists(Part.HELD_OUT, n, c.n(max(N_OTHERS, LEAST * n))), others)
    for part in (Part.NEW_WORDING, Part.NEW_OBJECTS):
        table += edit_rows(c, winners, Lists(part, some[-1], c.n(N_NEW)), winners.best_of_each_family)
    return table


def edit_rows(c: Context, winners: Winners, lists: Lists, some: Sequence[Winner]) -> list[EditRow]:
    """Some of the winners on some lists. Raises :class:`TaskError` for too few lists of an index."""
    prompts = c.kept(lists)
    check_each_index(prompts, c.n(LEAST, 5))
    index, logits = torch.as_tensor(prompts.info["index"]), logits_under(c, prompts, some).movedim(1, 0)
    before, *after = answer(logits) == index
    constants = c.kept(_Constants(lists.n_items))
    corrected = answer(correction.corrected(logits[0].double(), constants)) == index
    return [_row(c, lists, winners, *each, before, corrected) for each in zip(some, after)]


def logits_under(
    c: Context, prompts: PromptSet, some: Sequence[Winner] = ()
) -> Float[Tensor, "n one_and_edits n_items"]:
    """Logits of the items, in list order: untouched, then under each edit."""
    start = min((move.head.layer for winner in some for move in winner.moves), default=c.bridge.cfg.n_layers - 1)
    parts = c.kept(parts_of)
    edits = [parts.factors(moves) for moves in ((), *(winner.moves for winner in some))]
    blocks = (prompts.select(rows) for rows in batches.blocks(len(prompts), N_BLOCK))
    logits = torch.cat([prepare(c.bridge, block, start, parts).logits(edits) for block in blocks])
    items = item_positions(prompts)[1]
    where = (items[:, :, None] == prompts.candidates[:, None]).int().argmax(-1)
    return logits.gather(2, where[:, None].expand(-1, len(edits), -1))


@dataclass(frozen=True)
class _Constants:
    """The correction of logits by index, by lists that choose; made once per context and length."""

    n_items: int

    def __call__(self, c: Context) -> Float[Tensor, "n_items"]:
        prompts = c.kept(Lists(Part.SELECTION, self.n_items, c.n(LEAST * self.n_items)))
        return correction.fit(logits_under(c, prompts)[:, 0], torch.as_tensor(prompts.info["index"]))


def _row(
    c: Context, lists: Lists, winners: Winners, winner: Winner, after: Bool[Tensor, "n"], before: Bool[Tensor, "n"],
    corrected: Bool[Tensor, "n"],
) -> EditRow:  # fmt: skip
    gain = share_change(after, before)
    relative = bootstrap_ratio(after.double() - before.double(), before)
    beyond: tuple[float | None, float | None, float | None] = (None, None, None)
    if winner.draw is None:
        beyond = points(share_change(after, corrected))
    best, size = winner.draw is not None or winner == winners.best, c.kept(parts_of).size(winner.moves)
    return EditRow(
        c.model, winner.name, winner.family, winner.extent, winner.draw, best, lists.part, lists.n_items,
        share(before).mean, share(after).mean, *points(gain), *points(relative), *beyond, size, winner.gain,
        winner.objective, winner.n_tried, gain.n,
    )  # fmt: skip
