"""Composition at a distance, for models with rotary positions.

The QK product ``q T(i - j) k^T`` depends on the distance from query to key. Tables are taken at distance 0; for one
pair :func:`composition_at_distances` gives the range.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.components import direction_of
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.weights.families import check_bilinear
from talking_heads_utils.weights.heads import HeadWeights
from talking_heads_utils.weights.rotary import rotation


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
    v = direction_of(weights, writer)[0]
    W_Q = weights.W_Q[reader.layer, reader.head].double()
    W_K = weights.W_K[reader.layer, weights.kv_index[reader.head]].double()
    T = rotation(weights.rotary, distances, weights.d_head).to(v)
    near, far = (W_Q, W_K) if kind == "Q" else (W_K, W_Q)
    turned = (T if kind == "Q" else T.mT) @ torch.linalg.qr(far, mode="r")[1].T
    whole = torch.linalg.qr(near, mode="r")[1] @ turned
    scores = torch.linalg.vector_norm((v @ near) @ turned, dim=-1) / torch.linalg.matrix_norm(whole)
    return scores.to(weights.W_Q.dtype)
