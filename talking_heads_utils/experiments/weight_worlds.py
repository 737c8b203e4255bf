"""Worlds of weights whose truth is known: scores or weights drawn with a claim true or false, through the very tests
and measures of chapter 1's claims on weights alone. Drawn as in :mod:`talking_heads_utils.experiments.worlds`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from talking_heads_utils.experiments.dealt import names_within_layers
from talking_heads_utils.experiments.inhibition import basis, links, listeners, measures
from talking_heads_utils.experiments.planted_circuit import CircuitWorld
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.verdicts import Measured
from talking_heads_utils.experiments.worlds import Cell, Random, row
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.roles import IOI_LINKS, Link, Roles, gpt2_small_roles
from talking_heads_utils.scores.scores import CompositionScores, compute_scores
from talking_heads_utils.settings import KINDS
from talking_heads_utils.stats import holm

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
