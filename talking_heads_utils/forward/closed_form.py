"""What a mover does after its query or its keys were changed, in closed form.

A write enters a query linearly up to the norm's divisor. With x the centred residual stream at ``end`` and v a
(centred) write direction, the score of a key k becomes ((x + c v) W_Q . k) / sigma(c) + b_Q . k, and sigma(c) follows
from |x + c v|^2 = |x|^2 + 2 c x.v + c^2 |v|^2. So one product of v with W_Q and the keys serves all prompts' changes.
The key side is the same with the roles of query and key exchanged, position by position.
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

    Queries and keys meet without rotation, whatever the model's positions are: rotary ones are turned into them.

    resid: what enters the head's layer, at every position. x: the same at ``end``.
    keys: of every position, as the query at ``end`` meets them.
    queries: the query at ``end``, as the key of each position meets it.
    moved: what the head would write at ``end`` if it attended to one position alone.
    pattern: its attention from ``end``. visible: the positions that ``end`` can attend to.
    """

    resid: Float[Tensor, "n n_pos d_model"]
    x: Float[Tensor, "n d_model"]
    keys: Float[Tensor, "n n_pos d_head"]
    queries: Float[Tensor, "n n_pos d_head"]
    moved: Float[Tensor, "n n_pos d_model"]
    pattern: Float[Tensor, "n n_pos"]
    visible: Bool[Tensor, "n n_pos"]
    W_Q: Float[Tensor, "d_model d_head"]
    b_Q: Float[Tensor, "d_head"]
    W_K: Float[Tensor, "d_model d_head"]
    b_K: Float[Tensor, "d_head"]
    norm: Norm


def mover_of(recording: Recording, head: Head, rows: slice = slice(None)) -> Mover:
    """What the closed forms need of one head on the prompts in ``rows``."""
    reader = recording.reader(head.layer)
    at, h = reader.weights, head.head
    kv = int(at.kv_index[h])
    end = recording.end[rows]
    resid = reader.resid[rows]
    distances = end[:, None] - torch.arange(resid.shape[1], device=end.device)
    queries = turn(reader.query[rows, None, h].expand(-1, resid.shape[1], -1), recording.weights.rotary, distances)
    keys = turn(reader.keys[rows, :, kv], recording.weights.rotary, -distances)
    return Mover(
        resid=resid,
        x=resid[torch.arange(len(resid), device=end.device), end],
        keys=keys,
        queries=queries,
        moved=reader.values[rows, :, kv] @ at.W_O[h],
        pattern=reader.pattern[rows, h],
        visible=recording.visible[rows],
        W_Q=at.W_Q[h],
        b_Q=at.b_Q[h],
        W_K=at.W_K[kv],
        b_K=at.b_K[kv],
        norm=at.norm,
    )


def pattern_after_query(
    mover: Mover,
    directions: Float[Tensor, "g c d_model"],
    amounts: Float[Tensor, "n g c"],
    shift: Float[Tensor, "n g d_model"] | None = None,
) -> Float[Tensor, "n g c n_pos"]:
    """Attention from ``end`` if what the query reads were moved along one direction, for every direction by itself.

    directions: c of them in each of g groups (a head's components). amounts: how far each moves, per prompt. shift: a
    vector that is added first, one per group, such as all that the head writes taken away.
    """
    x = mover.norm.center(mover.x[:, None] if shift is None else mover.x[:, None] + shift)  # [n, g or 1, d_model]
    v = mover.norm.center(directions)
    x_keys = torch.einsum("ngq,npq->ngp", x @ mover.W_Q, mover.keys)[:, :, None]
    v_keys = torch.einsum("gcq,npq->ngcp", v @ mover.W_Q, mover.keys)
    cross = torch.einsum("ngm,gcm->ngc", x.expand(-1, len(v), -1), v)
    square = x.square().sum(-1)[..., None] + 2 * amounts * cross + amounts.square() * v.square().sum(-1)
    scale = mover.norm.scale(square, x.shape[-1])[..., None]
    scores = v_keys.mul_(amounts[..., None]).add_(x_keys).div_(scale).add_((mover.keys @ mover.b_Q)[:, None, None])
    return _softmax(scores, mover)


def pattern_after_keys(
    mover: Mover,
    directions: Float[Tensor, "g c d_model"],
    amounts: Float[Tensor, "n n_pos g c"],
    shift: Float[Tensor, "n n_pos g d_model"] | None = None,
) -> Float[Tensor, "n g c n_pos"]:
    """Attention from ``end`` if what the *keys* read were moved, at every position at once; the query stays as it was.

    Arguments as in :func:`pattern_after_query`, with ``amounts`` and ``shift`` position by position.
    """
    x = mover.norm.center(mover.resid[:, :, None] if shift is None else mover.resid[:, :, None] + shift)
    v = mover.norm.center(directions)
    x_queries = torch.einsum("npgq,npq->ngp", x @ mover.W_K, mover.queries)[:, :, None]
    v_queries = torch.einsum("gcq,npq->ngcp", v @ mover.W_K, mover.queries)
    cross = torch.einsum("npgm,gcm->ngcp", x.expand(-1, -1, len(v), -1), v)
    amounts = amounts.permute(0, 2, 3, 1)
    length = x.square().sum(-1).transpose(1, 2)[:, :, None]
    square = length + 2 * amounts * cross + amounts.square() * v.square().sum(-1)[..., None]
    scale = mover.norm.scale(square, x.shape[-1])
    scores = v_queries.mul_(amounts).add_(x_queries).div_(scale).add_((mover.queries @ mover.b_K)[:, None, None])
    return _softmax(scores, mover)


def _softmax(scores: Float[Tensor, "n g c n_pos"], mover: Mover) -> Float[Tensor, "n g c n_pos"]:
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
