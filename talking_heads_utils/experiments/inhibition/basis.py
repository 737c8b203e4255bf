"""Is the basis of singular vectors privileged? The best component against the best of random bases of the same head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import NotApplicable, UnsupportedModelError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import drawn_test, mean_over_draws, names_within_layers
from talking_heads_utils.experiments.inhibition.links import N_DRAWS
from talking_heads_utils.experiments.rows import Row, column, maybe
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.roles import NAME_MOVER, S_INHIBITION, Roles
from talking_heads_utils.scores.composition import reading_maps
from talking_heads_utils.stats import bootstrap_mean, middle
from talking_heads_utils.weights.heads import HeadWeights

N_BASES = 99
EVERY = "all"  # in place of a head: the row of a group
OTHER = "other"
DIFFERENCE = "S-inhibition less other"  # in place of a group


@dataclass(frozen=True)
class BasisRow(Row):
    """One head of the S-inhibition heads' layers into one mover's query, or into all; rows over groups at the end."""

    head: str = column("", "the writer; 'all' in the rows of a group")
    group: str = column("", "S-inhibition, or other for another head of the same layers; 'S-inhibition less other' in "
                        "the row that compares them")  # fmt: skip
    reader: str = column("", "the mover; 'all' for the mean over movers")
    score: float | None = maybe("score", "of the singular component that the reader's query reads most")
    random_mean: float | None = maybe("score", "of the best direction of a random orthonormal basis of what the head "
                                      "writes, mean over bases")  # fmt: skip
    random_low: float | None = maybe("score", "2.5th percentile over bases")
    random_high: float | None = maybe("score", "97.5th percentile")
    ratio: float = column("", "score to random_mean; of a group the geometric mean over its heads; of two groups the "
                          "ratio of theirs")  # fmt: skip
    low: float | None = maybe("", "lower end of the group's 95% interval of ratio, bootstrap over heads")
    high: float | None = maybe("", "upper end")
    rank: int | None = maybe("", "of the singular vectors' basis among it and the random ones, 1 for the best")
    p: float | None = maybe("", "share of the bases, the singular vectors' included, that do as well; of two groups: "
                            "of choices of as many heads from the same layers")  # fmt: skip
    n: int = column("bases or heads", "random bases; of two groups, choices of heads")


def best_by_basis(
    weights: HeadWeights, writers: Sequence[Head], readers: Sequence[Head], n_bases: int, seed: int
) -> Float[Tensor, "1+n_bases n_writers n_readers"]:
    """Largest score into each reader's query among the directions of an orthonormal basis of what each writer writes:
    first the basis of its singular vectors, then random ones (uniform over the orthogonal group).

    With D the singular directions and A the reader's map, a basis R D has the scores ``||R (D A)||`` row by row, so
    all bases of a head share one product. A component that writes nothing counts for nothing.
    """
    directions = write_directions(weights)[0].nan_to_num()
    maps = {layer: reading_maps(weights, layer, "Q") for layer in {reader.layer for reader in readers}}
    A = torch.stack([maps[reader.layer][reader.head] for reader in readers])
    generator = torch.Generator().manual_seed(seed)
    best = []
    for writer in writers:
        read = directions[writer.layer, writer.head] @ A  # [n_readers, d_head, d_head]
        bases = _random_bases(n_bases, weights.d_head, generator).to(read)
        best.append(torch.linalg.vector_norm(torch.einsum("bij,rjk->brik", bases, read), dim=-1).amax(-1))
    return torch.stack(best, 1).cpu()


def _random_bases(n: int, size: int, generator: torch.Generator) -> Float[Tensor, "1+n size size"]:
    """The identity, then uniformly random orthogonal matrices: QR of normal ones with the signs of R's diagonal."""
    Q, R = torch.linalg.qr(torch.randn(n, size, size, generator=generator, dtype=torch.float64))
    turned = Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return torch.cat([torch.eye(size, dtype=torch.float64)[None], turned])


def basis_rows(weights: HeadWeights, roles: Roles, *, n_draws: int = N_DRAWS, seed: int = 0) -> list[BasisRow]:
    """Every head of the S-inhibition heads' layers into every mover's query and into all, then the groups.

    Raises :class:`NotApplicable` where no mover comes after all S-inhibition heads.
    """
    chosen = roles.heads(S_INHIBITION)
    layers = sorted({head.layer for head in chosen})
    movers = [head for head in roles.heads(NAME_MOVER) if layers and head.layer > layers[-1]]
    if not movers:
        raise NotApplicable("No name mover comes after all S-inhibition heads.")
    writers = heads_in(layers, weights.n_heads)
    best = best_by_basis(weights, writers, movers, N_BASES, seed).double()
    best = torch.cat([best, best.mean(2, keepdim=True)], 2)
    rows = [
        _row(best[:, w, r], str(writer), S_INHIBITION if writer in chosen else OTHER, reader)
        for w, writer in enumerate(writers)
        for r, reader in enumerate([*map(str, movers), EVERY])
    ]
    gain = (best[..., -1] / best[1:, :, -1].mean(0)).log()  # [1 + n_bases, n_writers]
    marked = torch.tensor([writer in chosen for writer in writers])
    groups = [_group_row(gain[:, marked], S_INHIBITION)]
    if not marked.all():
        groups.append(_group_row(gain[:, ~marked], OTHER))
        groups.append(_difference_row(gain[0].view(len(layers), -1), chosen, layers, n_draws, seed))
    return [*rows, *groups]


def _row(best: Float[Tensor, "1+n_bases"], head: str, group: str, reader: str) -> BasisRow:
    random, test = best[1:], drawn_test(best[0].item(), best[1:])
    low, high = middle(random)
    return BasisRow(
        head, group, reader, score=test.observed, random_mean=test.null_mean, random_low=low, random_high=high,
        ratio=test.observed / test.null_mean, rank=1 + int((random > best[0]).sum()), p=test.p, n=test.n,
    )  # fmt: skip


def _group_row(gain: Float[Tensor, "1+n_bases n_writers"], group: str) -> BasisRow:
    """The mean over heads of the singular vectors' gain, against that of each random basis, one of every head."""
    means = gain.mean(1)
    test, rank = drawn_test(means[0].item(), means[1:]), 1 + int((means[1:] > means[0]).sum())
    low, high = map(math.exp, bootstrap_mean(gain[0])[1:3]) if gain.shape[1] > 1 else (None, None)
    ratio = math.exp(test.observed)
    return BasisRow(EVERY, group, EVERY, ratio=ratio, low=low, high=high, rank=rank, p=test.p, n=test.n)


def _difference_row(
    gain: Float[Tensor, "n_layers n_heads"], chosen: Sequence[Head], layers: Sequence[int], n_draws: int, seed: int
) -> BasisRow:
    heads = [Head(layers.index(head.layer), head.head) for head in chosen]
    names = names_within_layers(n_draws, gain.shape[0], gain.shape[1], seed)
    mean = torch.stack([gain[head.layer, head.head] for head in heads]).mean()

    def difference(of_chosen: Tensor) -> Tensor:
        return of_chosen - (gain.sum() - len(heads) * of_chosen) / (gain.numel() - len(heads))

    test = drawn_test(difference(mean).item(), difference(mean_over_draws(gain, heads, names)))
    return BasisRow(EVERY, DIFFERENCE, EVERY, ratio=math.exp(test.observed), p=test.p, n=test.n)


def run(c: Context) -> list[BasisRow]:
    """Raises :class:`NotApplicable` as :func:`basis_rows` does, and for a model without roles."""
    try:
        return basis_rows(c.weights, c.roles, seed=c.seed)
    except UnsupportedModelError as error:
        raise NotApplicable(str(error)) from error
