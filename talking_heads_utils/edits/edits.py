"""An edit as data: components of single heads that are scaled, removed, set or turned, and the model it is made for.

Biases are no part of a component (see ``book/method.md``), so no edit moves them: a layer's constant write and a
query's constant stay as they were, and whatever edits a tensor that also carries a bias corrects the bias.

Every operation takes a unit direction d to a target t: ``t = g d`` (scale), ``0`` (remove), ``(value / s) d`` (set) or
d turned (rotate). On the OV side ``W_O' = W_O + (W_O d) (t - d)``, so what the head writes, w, becomes
``w + (w . d) (t - d)``: editing the weight is projecting the activation. On the QK side
``W_Q' = W_Q + (t - d) (d W_Q)``, so the query's input x becomes ``x + (x . (t - d)) d``. The changes of one head are
all computed from the same matrix and added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import OV, QK, direction_of
from talking_heads_utils.errors import EditError, LabelError, ProcessingError
from talking_heads_utils.files import written_whole
from talking_heads_utils.labels import Component, Head, as_component
from talking_heads_utils.weights.heads import HeadWeights, Processing, RawLayer, grouped_index

SCALE, REMOVE, SET, ROTATE = "scale", "remove", "set", "rotate"
OPERATIONS = (SCALE, REMOVE, SET, ROTATE)
TOLERANCE = 1e-4  # relative, between the fingerprints of one model read twice


@dataclass(frozen=True)
class Change:
    """What is done to one component of a head's ``OV`` or ``QK`` matrix.

    operation: ``scale`` its singular value by ``value``, ``remove`` it, ``set`` its singular value to ``value``, or
    ``rotate`` the direction that it writes along (OV) or that its query reads (QK) by ``value`` degrees within the
    plane of two components' directions, from the first of ``span`` towards the second. Directions are signed so that
    their largest entry is positive.

    Raises :class:`EditError` for a value that is no finite number or does not fit the operation.
    """

    component: Component
    matrix: str = OV
    operation: str = SCALE
    value: float | None = None
    span: tuple[Component, Component] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "component", as_component(self.component))
        if self.span is not None:
            object.__setattr__(self, "span", tuple(map(as_component, self.span)))
        if self.matrix not in (OV, QK) or self.operation not in OPERATIONS:
            raise EditError(
                f"{self.component}: no {self.operation!r} of {self.matrix!r}. "
                f"Use {', '.join(OPERATIONS)} of {OV} or {QK}."
            )
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool) and math.isfinite(self.value)
        if (self.operation == REMOVE) != (self.value is None) or (self.value is not None and not number):
            wanted = "no value" if self.operation == REMOVE else "a finite number"
            raise EditError(f"{self.component}: {self.operation!r} takes {wanted}, not {self.value!r}.")
        if (self.operation == ROTATE) != (self.span is not None):
            raise EditError(f"{self.component}: {ROTATE!r}, and nothing else, takes a span of two components.")
        if self.operation == SET and self.value is not None and self.value < 0:
            raise EditError(f"{self.component}: a singular value is not negative. To flip a component, scale it by -1.")

    @property
    def named(self) -> tuple[Component, ...]:
        """Every component that this change names, its own first."""
        return (self.component, *(self.span or ()))

    def __str__(self) -> str:
        what = "" if self.value is None else f" {self.value:g}"
        within = "" if self.span is None else f" from {self.span[0]} to {self.span[1]}"
        return f"{self.matrix} of {self.component}: {self.operation}{what}{within}"


@dataclass(frozen=True)
class Edit:
    """Changes that are made together, each stated against the untouched weights.

    model: its name, for the reader. processing: what was done to the weights whose components are meant. fingerprint:
    Frobenius norms of ``W_Q, W_K, W_V, W_O`` of every layer after that processing; they, not the name, tell models
    apart. sha256, stored: the checkpoint's sum and how it stores the weights, quantisation included, where that is
    known; an edit that has them fits no other file. Raises :class:`EditError` if a component is changed twice.
    """

    model: str
    processing: Processing
    fingerprint: tuple[float, ...]
    changes: tuple[Change, ...]
    sha256: str | None = None
    stored: str | None = None

    def __post_init__(self) -> None:
        keys = [(change.component, change.matrix) for change in self.changes]
        if twice := {key for key in keys if keys.count(key) > 1}:
            component, matrix = min(twice)
            raise EditError(f"{matrix} of {component} is changed twice. Name each component once.")

    def check(self, weights: HeadWeights) -> Edit:
        """The edit itself, if it is one of these weights.

        Raises :class:`EditError` for another model or processing, and :class:`LabelError` for a head or component that
        the model lacks.
        """
        if weights.processing != self.processing:
            raise EditError(
                f"The edit is stated in components of {self.model} ({self.processing.describe()}), but these weights "
                f"are {weights.processing.describe()}. Load the model with the edit's processing."
            )
        source = weights.source
        if self.sha256 and source.sha256 and (self.sha256, self.stored) != (source.sha256, source.dtype):
            raise EditError(
                f"The edit was made for {self.model}, {self.stored}, sha256 {self.sha256[:12]}, but {source.name} is "
                f"{source.dtype}, sha256 {source.sha256[:12]}: make it anew for this file."
            )
        found = fingerprint(weights)
        if len(found) != len(self.fingerprint) or not all(
            math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(found, self.fingerprint, strict=True)
        ):
            raise EditError(
                f"The edit was made for {self.model}, whose weights differ from those of {weights.source.name}. "
                "Make it anew for this model: components of other weights are other components."
            )
        for change in self.changes:
            for component in change.named:
                weights.component(component)
        return self


Changes = Mapping[str | Component, float] | Iterable[Change] | Change | Edit


def new_edit(weights: HeadWeights, changes: Changes, matrix: str = OV, *, model: str | None = None) -> Edit:
    """An edit of these weights: of component -> what its singular value in ``matrix`` is multiplied by, or of one or
    several :class:`Change`; an edit is returned as it is. Raises as :meth:`Edit.check` does, and :class:`EditError`
    for anything else."""
    if isinstance(changes, Edit):
        return changes
    if isinstance(changes, Mapping):
        found = tuple(Change(as_component(component), matrix, SCALE, factor) for component, factor in changes.items())
    else:
        found = (changes,) if isinstance(changes, Change) else tuple(changes)
    if odd := [change for change in found if not isinstance(change, Change)]:
        raise EditError(f"{odd[0]!r} is no change. Write {{'L8H10.1': 0.5}}, or Change('L8H10.1', 'OV', 'set', 2.0).")
    source = weights.source
    made = Edit(
        model or source.name, weights.processing, fingerprint(weights), found, source.sha256,
        source.dtype if source.sha256 else None,
    )  # fmt: skip
    return made.check(weights)


def fingerprint(weights: HeadWeights) -> tuple[float, ...]:
    """Frobenius norm of every layer's ``W_Q``, then of its ``W_K``, ``W_V`` and ``W_O``, to six digits."""
    norms = [getattr(weights, f"W_{name}").double().flatten(1).norm(dim=1) for name in "QKVO"]
    return tuple(float(f"{value:.6g}") for value in torch.cat(norms).tolist())


# --- what it does to weights -------------------------------------------------------------------------------------


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


def _change_of_W_Q(
    W_Q: Float[Tensor, "d_model d_head"], move: Move, scale: Float[Tensor, "d_model"] | None
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
        change, bias = (raw.W_O[head] @ move.directions.to(raw.W_O).T) @ move.shifts.to(raw.W_O), raw.b_O
        value = normed @ raw.W_V[kv] if raw.b_V is None else raw.b_V[kv] + normed @ raw.W_V[kv]
        raw.W_O[head] += change
        constant = value @ change
    else:
        change = _change_of_W_Q(raw.W_Q[head], move, raw.ln_scale if unfold else None)
        bias, constant = None if raw.b_Q is None else raw.b_Q[head], normed @ change
        raw.W_Q[head] += change
    if bias is not None:
        bias -= constant
    elif constant.any():
        raise EditError(f"The edit of {move.head} would move a constant, and the model has no bias there to hold it.")


# --- as a file ---------------------------------------------------------------------------------------------------


def to_json(edit: Edit) -> str:
    """The edit as text that a person can read and change."""
    rows = []
    for change in edit.changes:
        row: dict[str, Any] = dict(component=str(change.component), matrix=change.matrix, operation=change.operation)
        row |= {} if change.value is None else dict(value=change.value)
        rows.append(row | ({} if change.span is None else dict(span=list(map(str, change.span)))))
    about: dict[str, Any] = dict(model=edit.model)
    about |= dict(sha256=edit.sha256, stored=edit.stored) if edit.sha256 else {}
    about |= dict(processing=asdict(edit.processing), fingerprint=list(edit.fingerprint))
    return json.dumps(about | dict(changes=rows), indent=1) + "\n"


def from_json(text: str) -> Edit:
    """The edit that :func:`to_json` wrote. Raises :class:`EditError`, :class:`LabelError` or
    :class:`ProcessingError` saying what is wrong."""
    try:
        about = json.loads(text)
        if not isinstance(about["changes"], list):
            raise TypeError("its changes are no list")
        changes = tuple(map(_change, about["changes"]))
        fingerprint = tuple(map(float, about["fingerprint"]))
        sums = [None if about.get(name) is None else str(about[name]) for name in ("sha256", "stored")]
        return Edit(str(about["model"]), Processing(**about["processing"]), fingerprint, changes, *sums)
    except (EditError, LabelError, ProcessingError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise EditError(
            f"This is no edit: {type(error).__name__}: {error}. An edit has model, processing, fingerprint and changes."
        ) from error


def _change(row: dict[str, Any]) -> Change:
    if more := set(row) - {"component", "matrix", "operation", "value", "span"}:
        raise EditError(f"A change has no {', '.join(sorted(map(repr, more)))}.")
    span, parse = row.get("span"), Component.parse
    if span is not None and (not isinstance(span, list) or len(span) != 2):
        raise EditError(f"A span is two components, not {span!r}.")
    given = None if span is None else (parse(span[0]), parse(span[1]))
    return Change(parse(row["component"]), row["matrix"], row["operation"], row.get("value"), given)


def save_edit(edit: Edit, path: Path) -> None:
    """Write an edit, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(to_json(edit), encoding="utf-8")


def read_edit(path: Path) -> Edit:
    """Read what :func:`save_edit` wrote. Raises :class:`EditError` for a file that is missing or no edit."""
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EditError(f"{path} cannot be read as an edit ({error}).") from error
