"""Singular components of a head's matrices, found through their d_head-wide factors.

A head's OV matrix ``W_V W_O`` is [d_model, d_model] but has rank d_head at most, so its SVD is that of a
d_head x d_head core between two orthonormal bases. No d_model x d_model matrix is ever built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.errors import LabelError
from talking_heads_utils.labels import Component
from talking_heads_utils.weights.bridge import head_weights_from_bridge
from talking_heads_utils.weights.families import check_bilinear
from talking_heads_utils.weights.heads import HeadWeights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OV, QK = "OV", "QK"  # a head's two matrices


class SVD(NamedTuple):
    """``left @ right == U @ diag(S) @ V.mT``; columns of U read, columns of V write, S falls.

    Singular vectors have no sign, and near-equal singular values have no order: see :func:`relative_gap`.
    """

    U: Float[Tensor, "*batch rows rank"]
    S: Float[Tensor, "*batch rank"]
    V: Float[Tensor, "*batch cols rank"]


def factored_svd(left: Float[Tensor, "*batch rows rank"], right: Float[Tensor, "*batch rank cols"]) -> SVD:
    """SVD of ``left @ right`` without forming it: QR of both factors, SVD of the small core."""
    basis_left, core_left = torch.linalg.qr(left)
    basis_right, core_right = torch.linalg.qr(right.mT)
    U, S, Vh = torch.linalg.svd(core_left @ core_right.mT)
    return SVD(basis_left @ U, S, basis_right @ Vh.mT)


def write_directions(
    weights: HeadWeights,
) -> tuple[Float[Tensor, "n_layers n_heads d_head d_model"], Float[Tensor, "n_layers n_heads d_head"]]:
    """Unit write direction and singular value of every OV component of the model.

    A component whose singular value is zero up to rounding writes nothing, so its direction is NaN.
    """
    basis, core_O = torch.linalg.qr(weights.W_O.mT)
    core_V = torch.linalg.qr(weights.W_V, mode="r")[1][:, weights.kv_index]
    _, S, Vh = torch.linalg.svd(core_V @ core_O.mT)
    directions = Vh @ basis.mT
    directions[is_empty(S)] = torch.nan
    return directions, S


def is_empty(S: Float[Tensor, "*batch rank"]) -> Bool[Tensor, "*batch rank"]:
    """Singular values, the largest first, that are zero up to the rounding of the d_head x d_head core."""
    return S <= S[..., :1] * S.shape[-1] * torch.finfo(S.dtype).eps


def relative_gap(S: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch rank"]:
    """Distance to the nearest other singular value, as a fraction of the value itself.

    Near 0, a component's index and direction are not well defined: only the span with its neighbour is.
    With a single component there is no neighbour and the gap is infinite; for a zero singular value it is NaN.
    """
    steps = S[..., :-1] - S[..., 1:]
    far = S.new_full((*S.shape[:-1], 1), torch.inf)
    return torch.minimum(torch.cat([far, steps], -1), torch.cat([steps, far], -1)) / S


def direction_of(
    weights: HeadWeights, component: Component, matrix: str = OV
) -> tuple[Float[Tensor, "d_model"], Float[Tensor, ""]]:
    """Where one OV component writes, or what a QK component's query reads: a unit vector in float64, its largest entry
    positive, and the singular value.

    Raises :class:`LabelError` for a component that is not there or is zero, which has no direction, and
    :class:`UnsupportedModelError` for a QK component of a model that normalises queries and keys.
    """
    layer, head, index = (at := weights.component(component)).layer, at.head, at.component
    kv = int(weights.kv_index[head])
    if matrix == OV:
        left, right = weights.W_V[layer, kv], weights.W_O[layer, head]
    else:
        check_bilinear(weights.source)
        left, right = weights.W_Q[layer, head], weights.W_K[layer, kv].mT
    svd = factored_svd(left.double(), right.double())
    if is_empty(svd.S.to(weights.W_O.dtype))[index]:
        raise LabelError(f"{matrix} of {component} is zero: it writes nothing. Choose an earlier component.")
    found = (svd.V if matrix == OV else svd.U)[:, index]
    return found * found[found.abs().argmax()].sign(), svd.S[index]


def write_vectors(bridge: TransformerBridge, writers: Sequence[Component]) -> Float[Tensor, "k d_model"]:
    """Unit write directions, signed so that the largest entry is positive.

    Raises :class:`LabelError` for a component that is not there or writes nothing.
    """
    weights = head_weights_from_bridge(bridge)
    return torch.stack([direction_of(weights, writer)[0].to(weights.W_O.dtype) for writer in writers])
