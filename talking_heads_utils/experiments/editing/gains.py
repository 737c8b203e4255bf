"""The best edits by one objective, on the selection half alone, and what they gain on lists that no choice saw, beside
random edits with the same search.

Every head of every family, and of every random draw, is tried with the same moves. Edited at the last token alone they
are cheap to try (:mod:`~talking_heads_utils.experiments.editing.upper`); the first few by that are run exactly, as
edits of the weights, and the best of these wins. Moves of different heads that do well are then made together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.edits.edits import Edit
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import moves as made
from talking_heads_utils.experiments.editing.moves import Extent, Family, Heads, Moves, edit_of, label, parse
from talking_heads_utils.experiments.editing.upper import Scored, Upper, prepare
from talking_heads_utils.experiments.list_prompts import Lists, Part, check_each_index
from talking_heads_utils.experiments.positional import correction
from talking_heads_utils.experiments.positional.grid import answer
from talking_heads_utils.experiments.positional.subspace import lengths, nearest_lengths, shown_lengths
from talking_heads_utils.experiments.rows import ModelRow, column, rows
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.stats import bootstrap_ratio, points, share, share_change

LENGTHS = (4, 8)  # of the lists that choose, or the nearest that a model can be asked about
N_SCREENED, N_EXACT = 50, 100  # lists of each length: for all moves at the last token, for the best of them
FIRST = 3  # that are run exactly: of each family and extent, of each draw
MOST = 3  # heads of a combination
N_BEST, N_OTHERS, N_NEW = 1000, 300, 400  # held-out lists for the best edit and for others; in new words
LEAST = 50  # lists of each index of the answer
N_BLOCK = 250  # lists that are kept at once
GAINS = "edit-gains"


@dataclass(frozen=True)
class Winner:
    """The best edit of one search.

    family, extent: whose heads, and how much of them. draw: of random heads, None for others. objective: mean
    log-probability of the answer among the candidates on the lists that chose, in nats. gain: of accuracy there, in
    points. n_tried: edits among which it is the best.
    """

    family: Family
    extent: Extent
    draw: int | None
    moves: Moves
    objective: float
    gain: float
    n_tried: int

    @property
    def name(self) -> str:
        """As tables have it."""
        return label(self.moves)

    def edit(self, c: Context) -> Edit:
        """As data: for :func:`~talking_heads_utils.editing.edit`, a file or a baked checkpoint."""
        return edit_of(c, self.moves)


@dataclass(frozen=True)
class Winners:
    """of_families: the best of each family and extent. draws: of each draw of random heads."""

    of_families: tuple[Winner, ...]
    draws: tuple[Winner, ...]

    @property
    def best(self) -> Winner:
        """Of all families."""
        return max(self.of_families, key=lambda winner: winner.objective)

    @property
    def best_of_each_family(self) -> tuple[Winner, ...]:
        """One a family, whatever its extent."""
        families = dict.fromkeys(winner.family for winner in self.of_families)
        return tuple(Winners(tuple(w for w in self.of_families if w.family == f), ()).best for f in families)


@dataclass(frozen=True)
class _Tries:
    """Edits that were tried on the same lists of several lengths. screened, exact: what each is worth, in nats."""

    c: Context
    uppers: tuple[Upper, ...]
    screened: dict[Moves, float] = field(default_factory=dict)
    exact: dict[Moves, float] = field(default_factory=dict)
    gain: dict[Moves, float] = field(default_factory=dict)

    def screen(self, edits: Iterable[Moves]) -> None:
        """Try them at the last token alone."""
        new = [edit for edit in dict.fromkeys(edits) if edit not in self.screened]
        if new:
            found = self._score(new, at_end=True, n=self.c.n(N_SCREENED)).log_prob.mean(0)
            self.screened.update(zip(new, found.tolist()))

    def run(self, edits: Iterable[Moves]) -> None:
        """Try them as edits of the weights."""
        new = [edit for edit in dict.fromkeys(edits) if edit not in self.exact]
        if new:
            found = self._score([(), *new])
            right = 100 * found.right.double().mean(0)
            self.exact.update(zip(new, found.log_prob[:, 1:].mean(0).tolist()))
            self.gain.update(zip(new, (right[1:] - right[0]).tolist()))

    def _score(self, edits: Sequence[Moves], *, at_end: bool = False, n: int | None = None) -> Scored:
        factors = [self.c.kept(made.parts_of).factors(edit) for edit in edits]
        parts = [upper.score(factors, at_end=at_end, n=n) for upper in self.uppers]
        return Scored(*map(torch.cat, zip(*parts)))

    def first(self, edits: Iterable[Moves], n: int) -> list[Moves]:
        """The ``n`` that did best at the last token."""
        return sorted(edits, key=lambda edit: -self.screened[edit])[:n]

    def combined(self, heads: Sequence[Head], of: Mapping[Head, Sequence[Moves]]) -> list[Moves]:
        """The best move of each head, one added to the other as long as it helps at the last token; none where two do
        no better than one."""
        best = [self.first(of[head], 1)[0] for head in heads]
        at = self.first(best, 1)[0] if best else ()
        while len(at) < MOST:
            taken = {move.head for move in at}
            more = [tuple(sorted((*at, *edit), key=str)) for edit in best if edit[0].head not in taken]
            self.screen(more)
            if not more or self.screened[top := self.first(more, 1)[0]] <= self.screened[at]:
                break
            at = top
        return [at] if len(at) > 1 else []


def search(c: Context) -> Winners:
    """The best edit of each family and extent, and of each draw of random heads with the same moves.

    Raises :class:`NotApplicable` for a model that is asked about no lists or has no mover that is inhibited.
    """
    lengths = nearest_lengths(c, *LENGTHS)
    heads = made.heads_of(c, lengths)
    start = min(head.layer for head in heads.every)
    lists = [c.kept(Lists(Part.SELECTION, n, c.n(N_EXACT))) for n in lengths]
    tries = _Tries(c, tuple(prepare(c.bridge, prompts, start, c.kept(made.parts_of)) for prompts in lists))
    of = {head: [(move,) for move in made.moves_of(head, heads.orders[head])] for head in heads.every}
    for head in heads.every:
        tries.screen(of[head])
    return Winners(of_families(tries, heads, of), of_draws(tries, heads, of))


def of_families(tries: _Tries, heads: Heads, of: Mapping[Head, Sequence[Moves]]) -> tuple[Winner, ...]:
    """The best of each family and extent; combinations within each family and over all of them."""
    sets: dict[tuple[Family, Extent], list[Moves]] = {}
    n_tried: dict[tuple[Family, Extent], int] = {}
    for family, some in heads.families.items():
        for extent in (Extent.SINGLE, Extent.LEADING, Extent.HEAD):
            every = [edit for head in some for edit in of[head] if edit[0].extent == extent]
            if every:
                sets[family, extent], n_tried[family, extent] = tries.first(every, FIRST), len(every)
    for family, some in {**heads.families, Family.ANY: heads.named}.items():
        if every := tries.combined(some, of):
            sets[family, Extent.COMBINED] = every
            n_tried[family, Extent.COMBINED] = sum(len(of[head]) for head in some) + len(every)
    tries.run(edit for edits in sets.values() for edit in edits)
    return tuple(_winner(tries, key, None, edits, n_tried[key]) for key, edits in sets.items())


def of_draws(tries: _Tries, heads: Heads, of: Mapping[Head, Sequence[Moves]]) -> tuple[Winner, ...]:
    """The best of each draw, whatever its extent."""
    sets = []
    for some in heads.draws:
        every = [edit for head in some for edit in of[head]]
        together = tries.combined(some, of)
        sets.append((tries.first(every, FIRST) + together, len(every) + len(together)))
    tries.run(edit for edits, _ in sets for edit in edits)
    return tuple(_winner(tries, (Family.RANDOM, None), draw, edits, n) for draw, (edits, n) in enumerate(sets) if edits)


def _winner(
    tries: _Tries, of: tuple[Family, Extent | None], draw: int | None, edits: Sequence[Moves], n_tried: int
) -> Winner:
    best = max(edits, key=lambda edit: tries.exact[edit])
    extent = of[1] or (best[0].extent if len(best) == 1 else Extent.COMBINED)
    return Winner(of[0], extent, draw, best, tries.exact[best], tries.gain[best], n_tried)


# --- what they gain ---


@dataclass(frozen=True)
class EditRow(ModelRow):
    """One edit on one kind of lists: the best found in each family and extent, the best of all, and the best of each
    random draw."""

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
    if table is None:
        return c.kept(search)
    winners = dict.fromkeys(
        Winner(
            Family(row.family), Extent(row.extent), row.draw, parse(row.edit), row.objective, row.where_chosen,
            row.n_tried,
        )
        for row in rows(table, EditRow)
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
    parts = c.kept(made.parts_of)
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
    best, size = winner.draw is not None or winner == winners.best, c.kept(made.parts_of).size(winner.moves)
    return EditRow(
        c.model, winner.name, winner.family, winner.extent, winner.draw, best, lists.part, lists.n_items,
        share(before).mean, share(after).mean, *points(gain), *points(relative), *beyond, size, winner.gain,
        winner.objective, winner.n_tried, gain.n,
    )  # fmt: skip
