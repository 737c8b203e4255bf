"""Attention weights with the IOI circuit's four links planted in them, or none: cheap, and by the thousand.

Four layers: previous-token and duplicate-token heads write to induction and S-inhibition heads, those to name movers.
Every link is one direction of the residual stream, which its readers' input reads and one component of each of its
writers writes at an angle. All the rest is random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
N_LAYERS = 4
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
            turns = torch.randn(N_LAYERS, self.n_heads, self.d_head, self.d_head, generator=generator)
            W["O"] = torch.linalg.qr(turns)[0] @ W["O"]
        weights = HeadWeights(
            W["Q"].mT, W["K"].mT, W["V"].mT, S * W["O"], torch.zeros(N_LAYERS, self.d_model),
            grouped_index(self.n_heads, self.n_heads), NO_NORM, Processing.default(NO_NORM),
            Source(f"planted circuit (seed {seed})", "planted"),
        )  # fmt: skip
        return weights, Roles.given(self.roles)

    def _bases(
        self, name: str, channels: Tensor, common: Tensor, generator: torch.Generator
    ) -> Float[Tensor, "n_layers n_heads d_head d_model"]:
        """Orthonormal rows: what a head's matrix reads, or writes for O, the planted ones at a place drawn anew."""
        shape = (N_LAYERS, self.n_heads, self.d_head)
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
