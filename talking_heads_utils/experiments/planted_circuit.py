"""Attention weights with the IOI circuit's four links planted in them, or none: cheap, and by the thousand.

Four layers: previous-token and duplicate-token heads write to induction and S-inhibition heads, those to name movers.
Every link is one direction of the residual stream, which its readers' input reads and one component of each of its
writers writes at an angle. All the rest is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Head
from talking_heads_utils.roles import (
    BACKUP_MOVER,
    DUPLICATE_TOKEN,
    INDUCTION,
    IOI_LINKS,
    NAME_MOVER,
    PREVIOUS_TOKEN,
    S_INHIBITION,
    Roles,
)
from talking_heads_utils.weights.heads import NO_NORM, HeadWeights, Processing, Source, grouped_index

LAYERS = {PREVIOUS_TOKEN: 0, DUPLICATE_TOKEN: 0, INDUCTION: 1, S_INHIBITION: 2, NAME_MOVER: 3, BACKUP_MOVER: 3}
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
        return _Planting(self, torch.Generator().manual_seed(seed)).weights(seed), Roles.given(self.roles)


class _Planting:
    """Draws one world's weights."""

    def __init__(self, world: CircuitWorld, generator: torch.Generator) -> None:
        self.world, self.generator = world, generator
        w = world
        frame = torch.linalg.qr(self.normal(w.d_model, len(IOI_LINKS) + w.d_head))[0].T
        self.channels, self.common = frame[: len(IOI_LINKS)], frame[len(IOI_LINKS) :]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def weights(self, seed: int) -> HeadWeights:
        w = self.world
        n_layers = 1 + max(LAYERS.values())
        W = {name: self.bases(n_layers, name) for name in "QKVO"}
        S = torch.linspace(1.0, LEAST_SINGULAR_VALUE, w.d_head)[:, None]
        rows = W["O"] if w.aligned else self.turns(n_layers) @ W["O"]
        none = Processing.default(NO_NORM)
        return HeadWeights(
            W["Q"].mT, W["K"].mT, W["V"].mT, S * rows, torch.zeros(n_layers, w.d_model),
            grouped_index(w.n_heads, w.n_heads), NO_NORM, none, Source(f"planted circuit (seed {seed})", "planted"),
        )  # fmt: skip

    def bases(self, n_layers: int, name: str) -> Float[Tensor, "n_layers n_heads d_head d_model"]:
        """Orthonormal rows: what a head's matrix reads, or writes for O, the planted ones at a place drawn anew."""
        w = self.world
        rows = self.normal(n_layers, w.n_heads, w.d_head, w.d_model) / w.d_model**0.5
        rows += w.noise * self.normal(n_layers, w.n_heads, w.d_head, w.d_head) @ self.common / w.d_head**0.5
        planted = torch.zeros(n_layers, w.n_heads, dtype=torch.long)
        for layer, head, channel in self.planted(name):
            cosine = w.cosine if name == "O" else 1.0
            if cosine == 0:
                continue
            first = torch.nn.functional.normalize(rows[layer, head, planted[layer, head]], dim=0)
            rows[layer, head, planted[layer, head]] = cosine * channel + (1 - cosine**2) ** 0.5 * first
            planted[layer, head] += 1
        basis = torch.linalg.qr(rows.mT)[0].mT  # keeps the direction of the first row, and of a second up to the first
        order = torch.rand(n_layers, w.n_heads, w.d_head, generator=self.generator).argsort(-1)
        return basis.gather(2, order[..., None].expand_as(basis)) if name == "O" else basis

    def planted(self, name: str) -> list[tuple[int, int, Tensor]]:
        """Layer, head and channel of every head that reads or writes one through this matrix."""
        found = []
        for (writers, readers, kind), channel in zip(IOI_LINKS, self.channels):
            of = [writers] if name == "O" else ([readers] * (name == kind))
            also = [BACKUP_MOVER] if of == [NAME_MOVER] else []
            heads = [head for role in (*of, *also) for head in self.world.roles[role]]
            if self.world.everyone and heads:
                heads = [Head(heads[0].layer, head) for head in range(self.world.n_heads)]
            found += [(head.layer, head.head, channel) for head in heads]
        return found

    def turns(self, n_layers: int) -> Float[Tensor, "n_layers n_heads d_head d_head"]:
        """A random rotation a head. It comes before the singular values, so what was one component is spread over all,
        and the head writes the same space."""
        w = self.world
        return torch.linalg.qr(self.normal(n_layers, w.n_heads, w.d_head, w.d_head))[0]
