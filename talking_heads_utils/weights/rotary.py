"""Composition at a distance, for models with rotary positions.

A query at position i and a key at position j meet as ``q T(i - j) k^T``: the QK product depends on the distance.
Tables are taken at distance 0; for a pair that a chapter names, :func:`composition_at_distances` gives the range.
Source: Su et al. 2021 (RoFormer), in the half-against-half layout of GPT-NeoX and Llama.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.components import ov_svd
from talking_heads_utils.errors import LabelError, OptionError, UnsupportedModelError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.weights.families import check_bilinear
from talking_heads_utils.weights.heads import HeadWeights, Rotary


def rotation(rotary: Rotary, distances: Int[Tensor, "n"], d_head: int) -> Float[Tensor, "n d_head d_head"]:
    """T(distance) for row vectors, so that ``q T(i - j) k^T`` is the score of a query at i and a key at j."""
    half = rotary.dim // 2
    angle = distances.to(torch.float64)[:, None] * speeds_of(rotary)
    T = torch.eye(d_head, dtype=torch.float64).repeat(len(distances), 1, 1)
    first, second = torch.arange(half), torch.arange(half, 2 * half)
    T[:, first, first] = T[:, second, second] = angle.cos()
    T[:, first, second], T[:, second, first] = angle.sin(), -angle.sin()
    return T


def turn(
    x: Float[Tensor, "*batch d_head"], rotary: Rotary | None, distances: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch d_head"]:
    """``x T(distance)``, each vector by its own distance; without rotary positions ``x`` itself."""
    if rotary is None:
        return x
    half = rotary.dim // 2
    angle = distances[..., None].to(torch.float64) * speeds_of(rotary).to(x.device)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    first, second, rest = x[..., :half], x[..., half : rotary.dim], x[..., rotary.dim :]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)


def speeds_of(rotary: Rotary) -> Float[Tensor, "half"]:
    """Radians a token, pair by pair. Raises :class:`UnsupportedModelError` where they change with a prompt's length."""
    if not rotary.speeds:
        raise UnsupportedModelError(
            f"Rotary positions of the kind {rotary.kind!r} change with a prompt's length or scale attention: nothing "
            "at a distance can be had here. Scores from weights alone, at distance 0, can."
        )
    return torch.tensor(rotary.speeds, dtype=torch.float64)


def composition_at_distances(
    weights: HeadWeights, writer: Component, reader: Head, kind: str, distances: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Score of one component into one reader's Q or K input, at each distance from query to key.

    Raises :class:`OptionError` for kind V or a model without rotary positions (there the distance plays no part),
    :class:`LabelError` for a component that is not there or a reader that is not in a later layer, and
    :class:`UnsupportedModelError` for a model that normalises queries and keys.
    """
    if kind not in ("Q", "K") or weights.rotary is None:
        raise OptionError(f"Distance plays no part in kind {kind} of {weights.source.name}: use iter_composition.")
    check_bilinear(weights.source)
    if not weights.component(writer).layer < weights.head(reader).layer:
        raise LabelError(f"{reader} is not in a later layer than {writer}, so it cannot read it.")
    v = ov_svd(weights, writer.layer).V[writer.head, :, writer.component].double()
    W_Q = weights.W_Q[reader.layer, reader.head].double()
    W_K = weights.W_K[reader.layer, weights.kv_index[reader.head]].double()
    T = rotation(weights.rotary, distances, weights.d_head).to(v)
    near, far = (W_Q, W_K) if kind == "Q" else (W_K, W_Q)
    turned = (T if kind == "Q" else T.mT) @ torch.linalg.qr(far, mode="r")[1].T
    whole = torch.linalg.qr(near, mode="r")[1] @ turned
    scores = torch.linalg.vector_norm((v @ near) @ turned, dim=-1) / torch.linalg.matrix_norm(whole)
    return scores.to(weights.W_Q.dtype)
