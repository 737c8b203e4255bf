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
    moved: what the head would write at ``end`` if it attended to one position alone.
    pattern: its attention from ``end``. visible: the positions that ``end`` can attend to.
    """

    x: Float[Tensor, "n d_model"]
    keys: Float[Tensor, "n n_pos d_head"]
    moved: Float[Tensor, "n n_pos d_model"]
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
        moved=reader.values[rows, :, kv] @ at.W_O[h],
        pattern=reader.pattern[rows, h],
        visible=recording.visible[rows],
        W_Q=at.W_Q[h],
        b_Q=at.b_Q[h],
        norm=at.norm,
    )


def pattern_after_query(
    mover: Mover, directions: Float[Tensor, "g c d_model"], amounts: Float[Tensor, "n g c"]
) -> Float[Tensor, "n g c n_pos"]:
    """Attention from ``end`` if what the query reads were moved along one direction, for every direction by itself.

    directions: c of them in each of g groups (a head's components). amounts: how far each moves, per prompt.
    """
    x = mover.norm.center(mover.x[:, None])
    v = mover.norm.center(directions)
    x_keys = torch.einsum("ngq,npq->ngp", x @ mover.W_Q, mover.keys)[:, :, None]
    v_keys = torch.einsum("gcq,npq->ngcp", v @ mover.W_Q, mover.keys)
    cross = torch.einsum("ngm,gcm->ngc", x.expand(-1, len(v), -1), v)
    square = x.square().sum(-1)[..., None] + 2 * amounts * cross + amounts.square() * v.square().sum(-1)
    scale = mover.norm.scale(square, x.shape[-1])[..., None]
    scores = v_keys.mul_(amounts[..., None]).add_(x_keys).div_(scale).add_((mover.keys @ mover.b_Q)[:, None, None])
    scores = scores / mover.W_Q.shape[-1] ** 0.5
    return scores.masked_fill_(~mover.visible[:, None, None], -torch.inf).softmax(-1)


def pattern_after_shift(mover: Mover, shift: Float[Tensor, "n k d_model"]) -> Float[Tensor, "n k n_pos"]:
    """Attention from ``end`` if the query's input were moved by whole vectors."""
    return scores_after_shift(mover, shift).softmax(-1)


def scores_after_shift(mover: Mover, shift: Float[Tensor, "n k d_model"]) -> Float[Tensor, "n k n_pos"]:
    """Attention scores from ``end``, before the softmax, if the query's input were moved by whole vectors."""
    query = mover.norm(mover.x[:, None] + shift) @ mover.W_Q + mover.b_Q
    scores = (query @ mover.keys.mT) / mover.W_Q.shape[-1] ** 0.5
    return scores.masked_fill_(~mover.visible[:, None], -torch.inf)


def direct_logit_effect(
    mover: Mover,
    change: Float[Tensor, "n *k n_pos"],
    final: Float[Tensor, "n d_model"],
    wanted: Float[Tensor, "n d_model"],
    norm: Norm,
) -> Float[Tensor, "n *k"]:
    """What a change of the mover's attention does to the logits straight, no later layer taking part.

    final: residual stream before the last norm. wanted: direction of the unembedding, answer less mean distractor. The
    last norm's divisor is recomputed exactly.
    """
    x, moved = norm.center(final), norm.center(mover.moved)
    flat = change.flatten(1, -2)
    gram = moved @ moved.mT
    square = x.square().sum(-1)[:, None] + 2 * (flat @ (moved @ x[..., None]))[..., 0] + ((flat @ gram) * flat).sum(-1)
    before = (x * wanted).sum(-1)[:, None]
    after = before + (flat @ (moved @ wanted[..., None]))[..., 0]
    d_model = x.shape[-1]
    plain = before / norm.scale(x.square().sum(-1), d_model)[:, None]
    return (after / norm.scale(square, d_model) - plain).unflatten(1, change.shape[1:-1])
