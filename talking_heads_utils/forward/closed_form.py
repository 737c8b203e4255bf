"""What a mover does after its query was changed, in closed form.

A write enters a query linearly up to the norm's divisor. With x the centred residual stream at ``end`` and v a
(centred) write direction, the score of a key k becomes ((x + c v) W_Q . k) / sigma(c) + b_Q . k, and sigma(c) follows
from |x + c v|^2 = |x|^2 + 2 c x.v + c^2 |v|^2. So one product of v with W_Q and the keys serves all prompts' changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.forward.layers import Norm
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Head
from talking_heads_utils.weights.rotary import turn


@dataclass(frozen=True)
class Mover:
    """One mover head on n prompts: all that the closed forms below need.

    x: what enters the head's layer at ``end``.
    keys: of every position, as the unrotated query at ``end`` meets them.
    pattern: its attention from ``end``. visible: the positions that ``end`` can attend to.
    """

    x: Float[Tensor, "n d_model"]
    keys: Float[Tensor, "n n_pos d_head"]
    pattern: Float[Tensor, "n n_pos"]
    visible: Bool[Tensor, "n n_pos"]
    W_Q: Float[Tensor, "d_model d_head"]
    b_Q: Float[Tensor, "d_head"]
    norm: Norm


def mover_of(recording: Recording, head: Head, rows: slice = slice(None)) -> Mover:
    """What the closed forms need of one head on the prompts in ``rows``."""
    reader = recording.reader(head.layer)
    at, h = reader.weights, head.head
    kv = int(at.kv_index[h])
    end = recording.end[rows]
    resid = reader.resid[rows]
    distances = end[:, None] - torch.arange(resid.shape[1], device=end.device)
    keys = turn(reader.keys[rows, :, kv], recording.weights.rotary, -distances)
    return Mover(
        x=resid[torch.arange(len(resid), device=end.device), end],
        keys=keys,
        pattern=reader.pattern[rows, h],
        visible=recording.visible[rows],
        W_Q=at.W_Q[h],
        b_Q=at.b_Q[h],
        norm=at.norm,
    )


def scale_along(
    norm: Norm, x: Float[Tensor, "n d_model"], v: Float[Tensor, "c d_model"], amounts: Float[Tensor, "n c"]
) -> Float[Tensor, "n c"]:
    """The norm's divisor if ``x`` were moved by an amount along each direction by itself. x, v: centred."""
    square = x.square().sum(-1)[:, None] + 2 * amounts * (x @ v.T) + amounts.square() * v.square().sum(-1)
    return norm.scale(square, x.shape[-1])


def scores_along(
    mover: Mover,
    read: Float[Tensor, "c d_head"],
    amounts: Float[Tensor, "n c"],
    scale: Float[Tensor, "n c"],
    keys: Float[Tensor, "n k d_head"],
) -> Float[Tensor, "n k c"]:
    """Attention scores from ``end`` to some keys if the query's input were moved along each direction by itself.

    read: what the query makes of the directions, centred. scale: of :func:`scale_along`. keys: as the mover has them,
    or weighted sums of them.
    """
    plain = keys @ (mover.norm.center(mover.x) @ mover.W_Q)[..., None]
    scores = (keys.flatten(0, 1) @ read.T).unflatten(0, keys.shape[:2])
    scores = scores.mul_(amounts[:, None]).add_(plain).div_(scale[:, None]).add_((keys @ mover.b_Q)[..., None])
    return scores.div_(mover.W_Q.shape[-1] ** 0.5)


def pattern_after_shift(mover: Mover, shift: Float[Tensor, "n k d_model"]) -> Float[Tensor, "n k n_pos"]:
    """Attention from ``end`` if the query's input were moved by whole vectors."""
    return scores_after_shift(mover, shift).softmax(-1)


def scores_after_shift(mover: Mover, shift: Float[Tensor, "n k d_model"]) -> Float[Tensor, "n k n_pos"]:
    """Attention scores from ``end``, before the softmax, if the query's input were moved by whole vectors."""
    query = mover.norm(mover.x[:, None] + shift) @ mover.W_Q + mover.b_Q
    scores = (query @ mover.keys.mT) / mover.W_Q.shape[-1] ** 0.5
    return scores.masked_fill_(~mover.visible[:, None], -torch.inf)
