"""Rotary positions: a query at position i and a key at position j meet as ``q T(i - j) k^T``.

Source: Su et al. 2021 (RoFormer), in the half-against-half layout of GPT-NeoX and Llama.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import UnsupportedModelError
from talking_heads_utils.weights.heads import Rotary


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
