"""The attention weights of a model, processed in a way that is written down.

Row-vector convention throughout: a residual vector ``x`` is a row, a head reads ``x @ W_V`` and writes
``x @ W_V @ W_O``; its query is ``x @ W_Q``, its key ``x @ W_K``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import LabelError, ProcessingError
from talking_heads_utils.labels import Component, Head, as_head

LAYER_NORM, RMS_NORM, NO_NORM = "LayerNorm", "RMSNorm", "none"


@dataclass(frozen=True)
class Processing:
    """What was done to the raw weights before anything was measured.

    fold_ln: the norm's scale (and bias) is multiplied into W_Q, W_K, W_V.
    center: the mean over d_model is taken out of what W_Q, W_K, W_V read and of what W_O and b_O write.
        LayerNorm subtracts that mean anyway, so the model is unchanged.
    """

    fold_ln: bool
    center: bool

    def __post_init__(self) -> None:
        if not (isinstance(self.fold_ln, bool) and isinstance(self.center, bool)):
            raise ProcessingError(f"A processing is two of True and False, not {self.fold_ln!r} and {self.center!r}.")

    @classmethod
    def default(cls, norm: str) -> Processing:
        """LayerNorm: fold and centre. RMSNorm: fold only, for centring would change the model."""
        return cls(fold_ln=norm != NO_NORM, center=norm == LAYER_NORM)

    def check(self, norm: str) -> Processing:
        """Raises :class:`ProcessingError` where this processing would change what the model computes."""
        if self.center and norm != LAYER_NORM:
            raise ProcessingError(
                f"Centring changes a model whose norm is {norm}: only LayerNorm subtracts the mean. Use center=False."
            )
        if self.center and not self.fold_ln:
            raise ProcessingError("Centring what a head reads needs the norm's scale folded in first: fold_ln=True.")
        return self

    def describe(self) -> str:
        """One phrase to print beside a component index."""
        done = ["norm scale folded in"] * self.fold_ln + ["reading and writing weights centred"] * self.center
        return ", ".join(done) or "raw weights"


@dataclass(frozen=True)
class Source:
    """Where weights came from. ``sha256`` is that of the file, or of the list of the sums of all files that hold
    attention tensors; ``dtype`` is the one the weights were stored in."""

    name: str
    family: str
    sha256: str | None = None
    revision: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the first ``dim`` of d_head turn, half against half, pair i by ``speeds[i]`` radians a token.

    ``kind`` is the checkpoint's ``rope_type``. There are no speeds where they change with a prompt's length.
    """

    speeds: tuple[float, ...]
    kind: str = "default"

    @property
    def dim(self) -> int:
        return 2 * len(self.speeds)


@dataclass(frozen=True)
class RawLayer:
    """One layer as the checkpoint has it. Shapes as in :class:`HeadWeights`, without ``n_layers``."""

    W_Q: Float[Tensor, "n_heads d_model d_head"]
    W_K: Float[Tensor, "n_kv_heads d_model d_head"]
    W_V: Float[Tensor, "n_kv_heads d_model d_head"]
    W_O: Float[Tensor, "n_heads d_head d_model"]
    b_V: Float[Tensor, "n_kv_heads d_head"] | None = None
    b_O: Float[Tensor, "d_model"] | None = None
    ln_scale: Float[Tensor, "d_model"] | None = None
    ln_bias: Float[Tensor, "d_model"] | None = None
    b_Q: Float[Tensor, "n_heads d_head"] | None = None


@dataclass(frozen=True)
class HeadWeights:
    """Every attention head of a model.

    Grouped heads share ``W_K`` and ``W_V``: head h uses row ``kv_index[h]``; nothing is copied.
    Biases are no part of a component. The value biases, the norm's bias included, are folded into ``b_O``:
    each attention layer writes that constant whatever it reads, and it is kept apart here.
    """

    W_Q: Float[Tensor, "n_layers n_heads d_model d_head"]
    W_K: Float[Tensor, "n_layers n_kv_heads d_model d_head"]
    W_V: Float[Tensor, "n_layers n_kv_heads d_model d_head"]
    W_O: Float[Tensor, "n_layers n_heads d_head d_model"]
    b_O: Float[Tensor, "n_layers d_model"]
    kv_index: Int[Tensor, "n_heads"]
    norm: str
    processing: Processing
    source: Source
    rotary: Rotary | None = None

    @property
    def n_layers(self) -> int:
        return self.W_Q.shape[0]

    @property
    def n_heads(self) -> int:
        return self.W_Q.shape[1]

    @property
    def n_kv_heads(self) -> int:
        return self.W_K.shape[1]

    @property
    def d_model(self) -> int:
        return self.W_Q.shape[2]

    @property
    def d_head(self) -> int:
        return self.W_Q.shape[3]

    @property
    def d_model_effective(self) -> int:
        """d_model': the dimensions in which writers and readers can differ; centring takes one away."""
        return self.d_model - 1 if self.processing.center else self.d_model

    def head(self, head: Head | str) -> Head:
        """The head of that name. Raises :class:`LabelError` if the model has no such head."""
        found = as_head(head)
        if found.layer >= self.n_layers or found.head >= self.n_heads:
            raise LabelError(
                f"{found} is not in {self.source.name}, which has layers 0..{self.n_layers - 1} "
                f"with heads 0..{self.n_heads - 1}."
            )
        return found

    def component(self, component: Component) -> Component:
        """The component itself. Raises :class:`LabelError` if the model has no such head or component."""
        self.head(component.of_head)
        if component.component >= self.d_head:
            raise LabelError(f"{component} is not in {self.source.name}: components are 0..{self.d_head - 1}.")
        return component


def process_layer(
    raw: RawLayer, kv_index: Int[Tensor, "n_heads"], processing: Processing
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(W_Q, W_K, W_V, W_O, b_O)`` of one layer after ``processing``; the raw tensors are left as they are."""
    W_Q, W_K, W_V, W_O = raw.W_Q, raw.W_K, raw.W_V, raw.W_O
    b_V = W_V.new_zeros(W_V.shape[0], W_V.shape[2]) if raw.b_V is None else raw.b_V
    b_O = W_O.new_zeros(W_O.shape[-1]) if raw.b_O is None else raw.b_O
    if processing.fold_ln and raw.ln_scale is not None:
        if raw.ln_bias is not None:
            b_V = b_V + raw.ln_bias @ W_V
        W_Q, W_K, W_V = (W * raw.ln_scale[:, None] for W in (W_Q, W_K, W_V))
    if processing.center:
        W_Q, W_K, W_V = (W - W.mean(dim=-2, keepdim=True) for W in (W_Q, W_K, W_V))
        W_O = W_O - W_O.mean(dim=-1, keepdim=True)
        b_O = b_O - b_O.mean()
    b_O = b_O + torch.einsum("hd,hdm->m", b_V[kv_index], W_O)
    return W_Q, W_K, W_V, W_O, b_O


def assemble(
    layers: Iterable[RawLayer],
    n_layers: int,
    *,
    norm: str,
    source: Source,
    processing: Processing | None = None,
    rotary: Rotary | None = None,
) -> HeadWeights:
    """Process ``n_layers`` layers one at a time and stack them.

    Only one raw layer is held at a time. Without ``processing`` the default for ``norm`` is used.
    Raises :class:`ProcessingError` if the norm does not allow it.
    """
    processing = (processing or Processing.default(norm)).check(norm)
    stacks: list[Tensor] = []
    for layer, raw in enumerate(layers):
        kv_index = grouped_index(raw.W_Q.shape[0], raw.W_K.shape[0]).to(raw.W_Q.device)
        done = process_layer(raw, kv_index, processing)
        stacks = stacks or [tensor.new_empty(n_layers, *tensor.shape) for tensor in done]
        for stack, tensor in zip(stacks, done, strict=True):
            stack[layer] = tensor
    W_Q, W_K, W_V, W_O, b_O = stacks
    return HeadWeights(W_Q, W_K, W_V, W_O, b_O, kv_index, norm, processing, source, rotary)


def grouped_index(n_heads: int, n_kv_heads: int) -> Int[Tensor, "n_heads"]:
    """Which key/value head each head uses: neighbours share one, ``h // (n_heads / n_kv_heads)``."""
    return torch.arange(n_heads) // (n_heads // n_kv_heads)
