"""Composition scores: how much of what a component writes is read by a later head.

For the unit write direction v of a component and a reader's matrix M,

    C = ||v M||_F / ||M||_F,    M = W_Q W_K^T (kind Q), W_K W_Q^T (kind K), W_V W_O (kind V).

This is the score of Elhage et al. 2021 ("A mathematical framework for transformer circuits"),
||W_writer M|| / (||W_writer|| ||M||), taken of one rank-1 component at a time (Merullo et al. 2024).
It follows that the head-level score is the mean of its components' scores, in squares, weighted by their
squared singular values: C_head^2 = sum_i s_i^2 C_i^2 / sum_i s_i^2.

Null: for a random unit direction in the d_model' dimensions that remain after centring, the root mean square
of C is exactly 1 / sqrt(d_model'), whatever M is. With rotary positions scores are taken at distance 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.components import is_empty, write_directions
from talking_heads_utils.errors import OptionError
from talking_heads_utils.progress import follow
from talking_heads_utils.settings import KINDS, N_RANDOM, SEED
from talking_heads_utils.weights.families import check_bilinear
from talking_heads_utils.weights.heads import HeadWeights

_BLOCK_ELEMENTS = 1 << 21  # of the largest temporary, 8 MB in float32: what a core's cache still holds


@dataclass(frozen=True)
class ReaderScores:
    """Every earlier component's score into every head of one layer, for one kind.

    score: ``[layer, n_heads, d_head, n_heads]`` = writer layer, writer head, component, reader head. NaN where
        undefined: a component that writes nothing, a reader that reads nothing.
    null_mean, null_std, null_max: of the scores of random unit directions, per reader head ``[n_heads]``.
    """

    kind: str
    layer: int
    score: Float[Tensor, "layer n_heads d_head n_heads"]
    null_mean: Float[Tensor, "n_heads"]
    null_std: Float[Tensor, "n_heads"]
    null_max: Float[Tensor, "n_heads"]

    def cpu(self) -> ReaderScores:
        """The same on the CPU."""
        tensors = (self.score, self.null_mean, self.null_std, self.null_max)
        return ReaderScores(self.kind, self.layer, *(tensor.cpu() for tensor in tensors))

    @property
    def z(self) -> Float[Tensor, "layer n_heads d_head n_heads"]:
        """Score less the mean of random directions, in their standard deviations."""
        return (self.score - self.null_mean) / self.null_std

    @property
    def rank(self) -> Int[Tensor, "layer n_heads d_head n_heads"]:
        """Rank among all earlier components of the model, 1 for the strongest; 0 where the score is undefined."""
        return rank_by_reader(self.score)


def rank_by_reader(score: Float[Tensor, "*writers n_readers"]) -> Int[Tensor, "*writers n_readers"]:
    """Rank of every writer for each reader, 1 for the strongest; 0 where the score is undefined."""
    flat = score.flatten(0, -2).T.contiguous().nan_to_num(nan=-1.0)
    rank = 1 + flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1).int()
    return rank.masked_fill_(flat < 0, 0).T.reshape(score.shape)


def reading_maps(weights: HeadWeights, layer: int, kind: str) -> Float[Tensor, "n_heads d_model d_head"]:
    """Per reader head a matrix A with ``||v A|| = ||v M|| / ||M||`` for every v: M without its orthonormal end.

    M = L R^T, and R = Q T with Q orthonormal, so ||v M|| = ||v L T^T||. Raises :class:`OptionError` for a kind that is
    not there, :class:`UnsupportedModelError` for kinds Q and K of a model that normalises queries and keys.
    """
    check_bilinear(weights.source, kind)
    W_Q, W_K, W_V, W_O = (W[layer] for W in (weights.W_Q, weights.W_K, weights.W_V, weights.W_O))
    kv = weights.kv_index
    if kind == "Q":
        maps = W_Q @ _triangle(W_K)[kv].mT
    elif kind == "K":
        maps = W_K[kv] @ _triangle(W_Q).mT
    elif kind == "V":
        maps = W_V[kv] @ _triangle(W_O.mT).mT
    else:
        raise OptionError(f"No composition of kind {kind!r}: use Q, K or V.")
    return maps / torch.linalg.matrix_norm(maps)[:, None, None]


class ReaderMaps(NamedTuple):
    """Maps as of :func:`reading_maps`, of some kinds one after the other: ``shared``, or ``shared @ core`` where heads
    share keys and values, so that what a group has in common is multiplied once."""

    shared: Float[Tensor, "n_shared d_model d_head"]
    core: Float[Tensor, "n_shared group d_head d_head"] | None = None


def reader_maps(weights: HeadWeights, layer: int, kinds: str) -> list[ReaderMaps]:
    """The maps of a layer's heads for some kinds, in the order of the kinds, to be scored by :func:`score_readers`.

    Raises :class:`UnsupportedModelError` for kinds Q and K of a model that normalises queries and keys.
    """
    check_bilinear(weights.source, kinds)
    if weights.n_kv_heads == weights.n_heads:
        return [ReaderMaps(torch.cat([reading_maps(weights, layer, kind) for kind in kinds]))]
    return [
        ReaderMaps(reading_maps(weights, layer, kind)) if kind == "Q" else _grouped_maps(weights, layer, kind)
        for kind in kinds
    ]


def _grouped_maps(weights: HeadWeights, layer: int, kind: str) -> ReaderMaps:
    """Kinds K and V of heads that share W_K and W_V: A = W T^T with W of the group and T of the head."""
    shared, own = (
        (weights.W_K, weights.W_Q[layer]) if kind == "K" else (weights.W_V, weights.W_O[layer].mT)
    )  # fmt: skip
    core = _triangle(own).mT.unflatten(0, (weights.n_kv_heads, -1))
    size = torch.linalg.matrix_norm(_triangle(shared[layer])[:, None] @ core)
    return ReaderMaps(shared[layer], core / size[..., None, None])


def score_readers(directions: Float[Tensor, "n d_model"], maps: Sequence[ReaderMaps]) -> Float[Tensor, "n n_maps"]:
    """``||v A||`` for every direction and map, the maps of one after those of the other."""
    return torch.cat([score_directions(directions, *part) for part in maps], 1)


def _triangle(W: Float[Tensor, "n d_model d_head"]) -> Float[Tensor, "n d_head d_head"]:
    return torch.linalg.qr(W, mode="r")[1]


def score_directions(
    directions: Float[Tensor, "n d_model"],
    shared: Float[Tensor, "n_shared d_model d_head"],
    core: Float[Tensor, "n_shared group d_head d_head"] | None = None,
) -> Float[Tensor, "n n_maps"]:
    """``||v A||`` for every direction and map, as :class:`ReaderMaps` has them, in blocks of bounded memory."""
    (n_shared, d_model, d_head), group = shared.shape, 1 if core is None else core.shape[1]
    flat = shared.permute(1, 0, 2).reshape(d_model, -1)
    cores = None if core is None else core.transpose(1, 2).reshape(n_shared, d_head, group * d_head)
    scores = directions.new_empty(len(directions), n_shared * group)
    rows = max(64, _BLOCK_ELEMENTS // (n_shared * group * d_head))
    product = directions.new_empty(min(rows, len(directions)), flat.shape[1])
    for start in range(0, len(directions), rows):
        block = directions[start : start + rows]
        read = torch.mm(block, flat, out=product[: len(block)]).unflatten(1, (n_shared, d_head))
        if cores is not None:
            read = torch.bmm(read.transpose(0, 1), cores).unflatten(2, (group, d_head)).transpose(0, 1).flatten(1, 2)
        torch.linalg.vector_norm(read, dim=-1, out=scores[start : start + rows])
    return scores


def random_directions(weights: HeadWeights, n: int, seed: int = SEED) -> Float[Tensor, "n d_model"]:
    """Unit vectors, uniform over the d_model' dimensions in which this model's writers and readers live."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n, weights.d_model, generator=generator, dtype=torch.float64)
    if weights.processing.center:
        directions -= directions.mean(dim=-1, keepdim=True)
    return torch.nn.functional.normalize(directions, dim=-1).to(weights.W_O)


def null_rms(d_model_effective: int) -> float:
    """Root mean square score of a random unit direction: 1 / sqrt(d_model')."""
    return d_model_effective**-0.5


def check_kinds(kinds: str) -> str:
    """``kinds`` without repeats. Raises :class:`OptionError` unless it names some of Q, K, V."""
    wanted = "".join(dict.fromkeys(kinds.upper()))
    if not wanted or set(wanted) - set(KINDS):
        raise OptionError(f"No composition of kind {kinds!r}: use Q, K, V or several of them, such as QKV.")
    return wanted


def iter_composition(
    weights: HeadWeights,
    kinds: str = KINDS,
    *,
    n_random: int = N_RANDOM,
    seed: int = SEED,
    layers: Sequence[int] | None = None,
    directions: Float[Tensor, "n_layers n_heads d_head d_model"] | None = None,
) -> Iterator[ReaderScores]:
    """Scores of all earlier components into each reader layer, one :class:`ReaderScores` per layer and kind.

    Only pairs whose reader comes in a later layer are computed. ``layers`` restricts the readers,
    ``directions`` are those of ``write_directions`` if at hand.
    Raises :class:`OptionError` for a kind or layer that is not there, :class:`UnsupportedModelError` for kinds Q and K
    of a model that normalises queries and keys.
    """
    kinds = check_kinds(kinds)
    layers = range(1, weights.n_layers) if layers is None else layers
    check_readers(layers, weights.n_layers, weights.source.name)
    directions = write_directions(weights)[0] if directions is None else directions
    controls = random_directions(weights, n_random, seed)
    for layer in follow(layers, "reader layers"):
        maps = reader_maps(weights, layer, kinds)
        scores = score_readers(directions[:layer].flatten(0, 2), maps)
        shape = (layer, weights.n_heads, weights.d_head, weights.n_heads)
        yield from by_kind(kinds, scores, score_readers(controls, maps), shape)


def by_kind(
    kinds: str, scores: Float[Tensor, "n n_maps"], null: Float[Tensor, "n_random n_maps"], shape: tuple[int, ...]
) -> Iterator[ReaderScores]:
    """The scores of one reader layer, whose maps stand kind after kind, as one block per kind of ``shape``."""
    mean, std, largest = null.mean(0), null.std(0), null.amax(0)
    for k, kind in enumerate(kinds):
        part = slice(k * shape[-1], (k + 1) * shape[-1])
        yield ReaderScores(kind, shape[0], scores[:, part].reshape(shape), mean[part], std[part], largest[part])


def check_readers(layers: Sequence[int], n_layers: int, name: str) -> None:
    """Raises :class:`OptionError` where a layer has no earlier one to read, or is not there."""
    if n_layers < 2:
        raise OptionError(f"{name} has one layer, so no head has an earlier one to read.")
    if bad := [layer for layer in layers if not 0 < layer < n_layers]:
        raise OptionError(f"No reader in layer {bad[0]}: readers are in layers 1..{n_layers - 1}.")


def head_level(
    score: Float[Tensor, "layer n_heads d_head n_heads"], S: Float[Tensor, "n_layers n_heads d_head"]
) -> Float[Tensor, "layer n_heads n_heads"]:
    """Head-level scores (Elhage et al. 2021) from those of the components: mean square, weighted by S squared."""
    S = S[: score.shape[0]]
    share = S.square() / S.square().sum(-1, keepdim=True)  # NaN for a head that writes nothing, as is its score
    square = score.square().masked_fill(is_empty(S)[..., None], 0.0)
    return torch.einsum("whc,whcr->whr", share, square).sqrt()
