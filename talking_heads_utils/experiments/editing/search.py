"""The best edits by one objective, on the selection half alone: first at the last token, then in the whole model.

Every head of every family, and of every random draw, is tried with the same moves. Edited at the last token alone they
are cheap to try (:mod:`~talking_heads_utils.experiments.editing.upper`); the first few by that are run exactly, as
edits of the weights, and the best of these wins. Moves of different heads that do well are then made together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from talking_heads_utils.edits.edits import Edit
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import moves as made
from talking_heads_utils.experiments.editing.moves import Extent, Family, Heads, Moves, edit_of, label
from talking_heads_utils.experiments.editing.upper import Scored, Upper, prepare
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.subspace import nearest_lengths
from talking_heads_utils.labels import Head

LENGTHS = (4, 8)  # of the lists that choose, or the nearest that a model can be asked about
N_SCREENED, N_EXACT = 50, 100  # lists of each length: for all moves at the last token, for the best of them
FIRST = 3  # that are run exactly: of each family and extent, of each draw
MOST = 3  # heads of a combination


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
