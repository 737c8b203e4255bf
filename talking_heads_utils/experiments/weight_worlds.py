"""Worlds of weights whose truth is known: scores or weights drawn with a claim true or false, through the very tests
and measures of chapter 1's claims on weights alone. Drawn as in :mod:`talking_heads_utils.experiments.worlds`.

A :class:`CircuitWorld` is attention weights with the IOI circuit's four links planted in them, or none: cheap, and by
the thousand. It has four layers: previous-token and duplicate-token heads write to induction and S-inhibition heads,
those to name movers. Every link is one direction of the residual stream, which its readers' input reads and one
component of each of its writers writes at an angle. All the rest is random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.dealt import names_within_layers
from talking_heads_utils.experiments.inhibition import basis, links, listeners, measures
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.verdicts import Measured
from talking_heads_utils.experiments.worlds import Cell, Random, row
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.roles import (
    BACKUP_MOVER,
    DUPLICATE_TOKEN,
    INDUCTION,
    IOI_LINKS,
    NAME_MOVER,
    PREVIOUS_TOKEN,
    S_INHIBITION,
    Link,
    Roles,
    gpt2_small_roles,
)
from talking_heads_utils.scores.scores import CompositionScores, compute_scores
from talking_heads_utils.settings import KINDS
from talking_heads_utils.stats import holm
from talking_heads_utils.weights.heads import NO_NORM, HeadWeights, Processing, Source, grouped_index

if TYPE_CHECKING:
    import pandas as pd

N_DRAWS = 999
N_LAYERS = N_HEADS = 12
ONE_LINK, ONE_LAYER = "one link", "one layer"


@cache
def _names(n_layers: int, n_heads: int) -> Tensor:
    return names_within_layers(N_DRAWS, n_layers, n_heads)


def stand_out(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """The links of GPT-2 small, or the last of them alone, with at most ``n_heads`` writers and ``n_readers`` readers
    each. A score is normal, plus a writer's own loudness, its standard deviation ``noise``, plus ``effect_size`` where
    a link is."""
    known = _links(cell)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    for _ in range(n):
        loud = cell.noise * torch.randn(N_LAYERS, N_HEADS, 1, 1, generator=generator)
        tables = {}
        for kind in KINDS:
            values = loud + torch.randn(N_LAYERS, N_HEADS, N_LAYERS, N_HEADS, generator=generator)
            for link in known:
                for writer, reader in link.pairs if link.kind == kind else ():
                    values[writer.layer, writer.head, reader.layer, reader.head] += cell.effect_size
            tables[kind] = _percentiles(values, {r.layer for link in known if link.kind == kind for r in link.readers})
        yield measures.stand_out(_link_table(tables, known))


def _percentiles(values: Tensor, layers: set[int]) -> Tensor:
    """As :func:`links.percentiles`, of readers in some layers, where no two scores are alike."""
    out = torch.full(values.shape, torch.nan, dtype=torch.float64)
    for layer in layers:
        rank = values[:layer, :, layer].flatten(0, 1).argsort(0).argsort(0)
        out[:layer, :, layer] = (100 * rank.double() / (len(rank) - 1)).unflatten(0, (layer, -1))
    return out


def _links(cell: Cell) -> tuple[Link, ...]:
    """Of GPT-2 small's published roles."""
    roles = gpt2_small_roles()
    of = IOI_LINKS[-1:] if cell.world.startswith(ONE_LINK) else IOI_LINKS
    pairs = [
        (writers, readers, kind, roles[writers][: cell.n_heads], roles[readers][: cell.n_readers])
        for writers, readers, kind in of
    ]
    return tuple(
        Link(writers, readers, kind, tuple((w, r) for w in from_ for r in to if w.layer < r.layer))
        for writers, readers, kind, from_, to in pairs
    )


def _link_table(tables: dict[str, Tensor], known: tuple[Link, ...]) -> pd.DataFrame:
    tests, joint = links.link_tests(tables, known, _names(N_LAYERS, N_HEADS))
    corrected = holm(torch.tensor([test.p for test in tests], dtype=torch.float64)).tolist()
    rows = [
        links.filled_row(link, link.name, test.observed, test, p_holm=p)
        for link, test, p in zip(known, tests, corrected)
    ]
    whole = Link("", "", "", tuple(pair for link in known for pair in link.pairs))
    return frame([*rows, links.filled_row(whole, links.JOINT, joint.observed, joint)])


def listening(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """``n_readers`` listeners among three later layers of 12 heads, evenly, or all in the middle one of three of nine
    heads. How strongly a head listens is normal, plus its layer's own, of standard deviation ``noise``, plus
    ``effect_size`` where it is a listener."""
    one = cell.world.startswith(ONE_LAYER)
    n_heads, chosen = (9, [Head(1, i) for i in range(cell.n_readers)]) if one else (
        N_HEADS, [Head(i % 3, i // 3) for i in range(cell.n_readers)])  # fmt: skip
    heads = [row(listeners.ListenerRow, head=str(head), layer=head.layer, listener=head in chosen)
             for head in heads_in(range(3), n_heads)]  # fmt: skip
    for _ in range(n):
        value = torch.from_numpy(rng.normal(size=(3, n_heads)) + cell.noise * rng.normal(size=(3, 1)))
        for head in chosen:
            value[head.layer, head.head] += cell.effect_size
        yield measures.listeners(frame([*heads, listeners.auc_row("value", value, chosen, N_DRAWS, 0)]))


def privileged(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """Circuits of :class:`CircuitWorld` of eight small heads a layer. ``effect_size``: cosine between what a writer's
    component writes and what its readers read; noise: as there. ``singular``: the component is a singular vector.
    ``mixture``: it is spread over all of them. ``all heads``: every head of the layer has one. ``none``: no head."""
    world = _circuit(cell, aligned=cell.world != "mixture", everyone=cell.world == "all heads", n_heads=8,
                     d_model=64, d_head=8)  # fmt: skip
    for seed in rng.integers(2**31, size=n).tolist():
        weights, roles = world.plant(seed)
        yield measures.privileged(frame(basis.basis_rows(weights, roles, n_draws=N_DRAWS, seed=seed)))


def stand_out_in_weights(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """Circuits as those of :func:`privileged`, with heads of 16 components, from the weights on."""
    for scores, roles, seed in _scored(cell, n, rng):
        rows = links.link_rows(scores, roles.links(), n_draws=N_DRAWS, seed=seed)
        yield measures.stand_out(frame(rows))


def listening_in_weights(cell: Cell, n: int, rng: Random) -> Iterator[Measured]:
    """The same; half of the readers are backups."""
    for scores, roles, seed in _scored(cell, n, rng):
        yield measures.listeners(frame(listeners.listener_rows(scores, roles, n_draws=N_DRAWS, seed=seed)))


def _scored(cell: Cell, n: int, rng: Random) -> Iterator[tuple[CompositionScores, Roles, int]]:
    world = _circuit(cell, everyone="all heads" in cell.world)
    for seed in rng.integers(2**31, size=n).tolist():
        weights, roles = world.plant(seed)
        yield compute_scores(weights, n_random=2), roles, seed


def _circuit(cell: Cell, **options: Any) -> CircuitWorld:
    movers = (cell.n_readers + 1) // 2
    return CircuitWorld(cell.effect_size, noise=cell.noise, n_writers=cell.n_heads, n_readers=movers,
                        n_backups=cell.n_readers - movers, **options)  # fmt: skip


LAYERS = {PREVIOUS_TOKEN: 0, DUPLICATE_TOKEN: 0, INDUCTION: 1, S_INHIBITION: 2, NAME_MOVER: 3, BACKUP_MOVER: 3}
CIRCUIT_LAYERS = 1 + max(LAYERS.values())
LEAST_SINGULAR_VALUE = 0.3  # of the largest


@dataclass(frozen=True)
class CircuitWorld:
    """What is planted.

    cosine: of the angle between what a writer's component writes and what its readers read; 0 is no link at all.
    aligned: whether that component is one singular vector, or spread over all of the head's. everyone: whether all
    heads write and read as those with a role do, so that roles say nothing. noise: how much all heads write into and
    read from one common space of d_head dimensions, as a share of what they do in all others; it lets some pairs meet
    by chance. n_writers: S-inhibition heads, and induction heads; of the first two roles half as many, rounded up.
    n_readers: name movers. n_backups: backup movers, which read as they do.
    """

    cosine: float = 0.7
    aligned: bool = True
    everyone: bool = False
    noise: float = 0.3
    n_heads: int = 12
    n_writers: int = 4
    n_readers: int = 3
    n_backups: int = 0
    d_model: int = 192
    d_head: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.cosine <= 1 or self.noise < 0:
            raise OptionError(f"A cosine is 0 to 1, noise not negative, not {self.cosine} and {self.noise}.")
        most = max(self.n_writers + 1, self.n_readers + self.n_backups)
        if min(self.n_writers, self.n_readers) < 1 or most > self.n_heads or 2 * self.d_head + 4 > self.d_model:
            raise OptionError(f"These heads or dimensions leave no room: {self}.")

    @property
    def roles(self) -> dict[str, list[Head]]:
        """Role -> heads, the first ones of their layer."""
        half = (self.n_writers + 1) // 2
        sizes = {PREVIOUS_TOKEN: half, DUPLICATE_TOKEN: half, INDUCTION: self.n_writers, S_INHIBITION: self.n_writers,
                 NAME_MOVER: self.n_readers, BACKUP_MOVER: self.n_backups}  # fmt: skip
        begin = {DUPLICATE_TOKEN: half, BACKUP_MOVER: self.n_readers}
        return {role: [Head(LAYERS[role], begin.get(role, 0) + i) for i in range(size)] for role, size in sizes.items()}

    def plant(self, seed: int = 0) -> tuple[HeadWeights, Roles]:
        """The weights and the roles; the same seed gives the same world. Scores of it need no random directions for a
        null: ``compute_scores(weights, n_random=2)`` takes 20 ms."""
        generator = torch.Generator().manual_seed(seed)
        frame = torch.linalg.qr(torch.randn(self.d_model, len(IOI_LINKS) + self.d_head, generator=generator))[0].T
        channels, common = frame.split([len(IOI_LINKS), self.d_head])
        W = {name: self._bases(name, channels, common, generator) for name in "QKVO"}
        S = torch.linspace(1.0, LEAST_SINGULAR_VALUE, self.d_head)[:, None]
        if not self.aligned:  # a rotation before the singular values spreads one component over all: the same space
            turns = torch.randn(CIRCUIT_LAYERS, self.n_heads, self.d_head, self.d_head, generator=generator)
            W["O"] = torch.linalg.qr(turns)[0] @ W["O"]
        weights = HeadWeights(
            W["Q"].mT, W["K"].mT, W["V"].mT, S * W["O"], torch.zeros(CIRCUIT_LAYERS, self.d_model),
            grouped_index(self.n_heads, self.n_heads), NO_NORM, Processing.default(NO_NORM),
            Source(f"planted circuit (seed {seed})", "planted"),
        )  # fmt: skip
        return weights, Roles.given(self.roles)

    def _bases(
        self, name: str, channels: Tensor, common: Tensor, generator: torch.Generator
    ) -> Float[Tensor, "n_layers n_heads d_head d_model"]:
        """Orthonormal rows: what a head's matrix reads, or writes for O, the planted ones at a place drawn anew."""
        shape = (CIRCUIT_LAYERS, self.n_heads, self.d_head)
        rows = torch.randn(*shape, self.d_model, generator=generator) / self.d_model**0.5
        rows += self.noise * torch.randn(*shape, self.d_head, generator=generator) @ common / self.d_head**0.5
        n_planted: Counter[Head] = Counter()
        cosine = self.cosine if name == "O" else 1.0
        for head, channel in self._planted(name, channels) if cosine else ():
            row = rows[head.layer, head.head, n_planted[head]]
            row.copy_(cosine * channel + (1 - cosine**2) ** 0.5 * torch.nn.functional.normalize(row, dim=0))
            n_planted[head] += 1
        basis = torch.linalg.qr(rows.mT)[0].mT  # keeps the direction of the first row, and of a second up to the first
        order = torch.rand(shape, generator=generator).argsort(-1)
        return basis.gather(2, order[..., None].expand_as(basis)) if name == "O" else basis

    def _planted(self, name: str, channels: Tensor) -> Iterator[tuple[Head, Tensor]]:
        """Every head that reads or writes a channel through this matrix, and the channel."""
        for (writers, readers, kind), channel in zip(IOI_LINKS, channels):
            role = writers if name == "O" else readers if name == kind else ""
            heads = [*self.roles.get(role, ()), *(self.roles[BACKUP_MOVER] if role == NAME_MOVER else ())]
            if self.everyone and heads:
                heads = [Head(heads[0].layer, head) for head in range(self.n_heads)]
            yield from ((head, channel) for head in heads)
