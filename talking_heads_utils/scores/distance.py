"""Composition at a distance, for models with rotary positions.

The QK product ``q T(i - j) k^T`` depends on the distance from query to key. Tables are taken at distance 0;
:func:`scores_at_distances` gives any, of some writers into some readers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.labels import Head
from talking_heads_utils.weights.families import check_bilinear
from talking_heads_utils.weights.heads import HeadWeights
from talking_heads_utils.weights.rotary import rotation


def scores_at_distances(
    weights: HeadWeights, writers: Sequence[Head], readers: Sequence[Head], kind: str, distances: Int[Tensor, "n"]
) -> Float[Tensor, "n n_writers d_head n_readers"]:
    """Score of every component of the writers into each reader's Q or K input, at each distance from query to key.

    Without rotary positions all distances are alike. NaN for a component that writes nothing. Raises
    :class:`OptionError` for kind V, where distance plays no part, :class:`LabelError` for a head that is not there or a
    reader that is not in a later layer, and :class:`UnsupportedModelError` for a model that normalises queries and keys
    or whose rotary positions change with a prompt's length.
    """
    if kind not in ("Q", "K"):
        raise OptionError(f"Distance plays no part in kind {kind}: use Q or K, or iter_composition.")
    check_bilinear(weights.source)
    writers, readers = [weights.head(head) for head in writers], [weights.head(head) for head in readers]
    for reader in readers:
        if late := [writer for writer in writers if writer.layer >= reader.layer]:
            raise LabelError(f"{reader} is not in a later layer than {late[0]}, so it cannot read it.")
    all_directions, _ = write_directions(weights)
    directions = torch.stack([all_directions[writer.layer, writer.head] for writer in writers]).double()
    scores = [_into(weights, directions, reader, kind, distances) for reader in readers]
    return torch.stack(scores, -1).to(weights.W_Q.dtype)


def _into(weights: HeadWeights, directions: Tensor, reader: Head, kind: str, distances: Tensor) -> Tensor:
    """``||v near T far^T|| / ||near T far^T||`` in float64, ``[n, n_writers, d_head]``, through the triangles."""
    W_Q = weights.W_Q[reader.layer, reader.head].double()
    W_K = weights.W_K[reader.layer, weights.kv_index[reader.head]].double()
    near, far = (W_Q, W_K) if kind == "Q" else (W_K, W_Q)
    turned = torch.linalg.qr(far, mode="r")[1].T.expand(len(distances), -1, -1)
    if weights.rotary is not None:
        T = rotation(weights.rotary, distances, weights.d_head).to(W_Q.device)
        turned = (T if kind == "Q" else T.mT) @ turned
    whole = torch.linalg.matrix_norm(torch.linalg.qr(near, mode="r")[1] @ turned)
    read = (directions @ near)[None] @ turned[:, None]
    return torch.linalg.vector_norm(read, dim=-1) / whole[:, None, None]
