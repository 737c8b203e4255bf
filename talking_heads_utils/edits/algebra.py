"""What a change of a component does to a head's ``W_O`` or ``W_Q``.

Every operation takes a unit direction d to a target t: ``t = g d`` (scale), ``0`` (remove), ``(value / s) d`` (set) or
d turned (rotate). On the OV side ``W_O' = W_O + (W_O d) (t - d)``, so what the head writes, w, becomes
``w + (w . d) (t - d)``: editing the weight is projecting the activation. On the QK side
``W_Q' = W_Q + (t - d) (d W_Q)``, so the query's input x becomes ``x + (x . (t - d)) d``. The changes of one head are
all computed from the same matrix and added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import direction_of
from talking_heads_utils.edits.edits import OV, SET, Change, Edit
from talking_heads_utils.errors import EditError
from talking_heads_utils.labels import Head
from talking_heads_utils.weights.heads import HeadWeights, RawLayer, grouped_index


@dataclass(frozen=True)
class Move:
    """Unit directions of one head's components and how each is moved: to ``directions + shifts``."""

    head: Head
    matrix: str
    directions: Float[Tensor, "k d_model"]
    shifts: Float[Tensor, "k d_model"]


def target(weights: HeadWeights, change: Change) -> tuple[Float[Tensor, "d_model"], Float[Tensor, "d_model"]]:
    """``(d, t)``: a component's direction and what becomes of it, in float64."""
    d, s = direction_of(weights, change.component, change.matrix)
    value = 0.0 if change.value is None else change.value  # to remove is to scale by 0
    if change.span is not None:
        a, b = (direction_of(weights, component, change.matrix)[0] for component in change.span)
        return d, rotated(d, a, b, value)
    return d, (value / s if change.operation == SET else value) * d


def rotated(d: Tensor, a: Tensor, b: Tensor, degrees: float) -> Float[Tensor, "d_model"]:
    """``d`` turned within the plane of unit vectors ``a`` and ``b``, from a towards b; what lies outside stays.

    Raises :class:`EditError` where the two span no plane.
    """
    rest = b - (a @ b) * a
    if rest.norm() < 1e-6:
        raise EditError("The two components of the span point the same way: they span no plane to turn in.")
    basis = torch.stack([a, rest / rest.norm()])
    x, y = basis @ d
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y])
    return d + (turned - torch.stack([x, y])) @ basis


def moves_of(weights: HeadWeights, edit: Edit) -> list[Move]:
    """What an edit does, head by head and matrix by matrix. Raises as :meth:`Edit.check` does, and :class:`EditError`
    for a component that is zero."""
    edit.check(weights)
    parts: dict[tuple[Head, str], list[tuple[Tensor, Tensor]]] = {}
    for change in edit.changes:
        parts.setdefault((change.component.of_head, change.matrix), []).append(target(weights, change))
    return [
        Move(head, matrix, torch.stack([d for d, _ in pairs]), torch.stack([t - d for d, t in pairs]))
        for (head, matrix), pairs in parts.items()
    ]


def change_of_W_O(W_O: Float[Tensor, "d_head d_model"], move: Move) -> Float[Tensor, "d_head d_model"]:
    """What is added to a head's ``W_O``."""
    d, shift = move.directions.to(W_O), move.shifts.to(W_O)
    return (W_O @ d.T) @ shift


def change_of_W_Q(
    W_Q: Float[Tensor, "d_model d_head"], move: Move, scale: Float[Tensor, "d_model"] | None = None
) -> Float[Tensor, "d_model d_head"]:
    """What is added to a head's ``W_Q``. scale: that of the norm, where it is folded into the weights that the move is
    stated in but not into this matrix.

    Raises :class:`EditError` where the scale is zero in a dimension that the move needs.
    """
    d, shift = move.directions.to(W_Q), move.shifts.to(W_Q)
    if scale is None:
        return shift.T @ (d @ W_Q)
    back = shift / scale
    if not torch.isfinite(torch.where(shift == 0, 0.0, back)).all():
        raise EditError(
            f"The norm before {move.head} has a scale of zero: an edit of its queries cannot be undone there."
        )
    return torch.where(shift == 0, 0.0, back).T @ ((d * scale) @ W_Q)


@torch.no_grad()
def make(raw: RawLayer, move: Move, *, unfold: bool) -> None:
    """Make a move in one layer's weights, in place. unfold: the move is stated in weights that the norm is folded into,
    and it is not folded into these.

    What is constant stays what it was: what would move along is taken off ``b_O`` or ``b_Q``. Raises :class:`EditError`
    where there is no such bias.
    """
    head = move.head.head
    normed = raw.ln_bias if unfold and raw.ln_bias is not None else raw.W_Q.new_zeros(raw.W_Q.shape[1])
    if move.matrix == OV:
        kv = int(grouped_index(len(raw.W_O), len(raw.W_V))[head])
        change, bias = change_of_W_O(raw.W_O[head], move), raw.b_O
        value = normed @ raw.W_V[kv] if raw.b_V is None else raw.b_V[kv] + normed @ raw.W_V[kv]
        raw.W_O[head] += change
        constant = value @ change
    else:
        change = change_of_W_Q(raw.W_Q[head], move, raw.ln_scale if unfold else None)
        bias, constant = None if raw.b_Q is None else raw.b_Q[head], normed @ change
        raw.W_Q[head] += change
    if bias is not None:
        bias -= constant
    elif constant.any():
        raise EditError(f"The edit of {move.head} would move a constant, and the model has no bias there to hold it.")
