"""Steering: add some amount of a direction at some positions, and see what a metric becomes.

Source: Merullo et al. (2024), Section 5, who scale what components write at the last token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import direction_of
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.forward.engine import ATTN_OUT, RESID_PRE, Change, prepare
from talking_heads_utils.inputs import check_position, labelled_weights, taken
from talking_heads_utils.labels import Component, as_component
from talking_heads_utils.metrics import Metric, Outcome
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.variants import END, finite, measure, places, tidy, untouched

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Label = Component | str
Amounts = float | Sequence[float] | Mapping[str, float | Sequence[float]]


class _Direction(NamedTuple):
    """What is added, and to what: the stream that enters a layer, or what its attention writes."""

    name: str
    site: str
    layer: int
    vector: Float[Tensor, "d_model"]


def steer(
    model: Any,
    prompts: PromptSet,
    directions: Label | Sequence[Label] | Mapping[str, tuple[int, Float[Tensor, "d_model"]]],
    amounts: Amounts,
    *,
    metric: str | Metric | Callable[[Outcome], Tensor] = "logit_diff",
    at: str = END,
    tokenizer: Any = None,
) -> pd.DataFrame:
    """A metric with ``amount * direction`` added to the residual stream: one row per setting.

    directions: one or several components such as ``"L8H10.1"``, whose unit write direction, its largest entry positive,
    is added where the component writes (within :func:`~talking_heads_utils.editing.edit`, the direction from before the
    edit); or name -> ``(layer, vector)``, any vector, added to the stream that enters that layer. amounts, in units of
    the direction's length: a number, or several, a row each, given to every direction alike; or name -> one or several,
    whose every combination is a row. at: ``all``, ``end`` or a named position.

    Columns: one per direction, named as it is, with its amount; ``position, metric, unit``, ``value``, its ``change``
    from the unsteered model with its 95% interval over prompts, ``low`` and ``high``, and ``n``.

    Raises :class:`LabelError` for a component that is not there or writes nothing, or amounts for a direction that is
    not among those given, :class:`OptionError` for no direction, an amount that is no finite number, a layer that is
    not there or a vector of another length, and a metric that gives another shape or NaN, :class:`TaskError` for a
    position that is not there and prompts of another tokenizer or too long for the model, and as
    :func:`~talking_heads_utils.models.as_bridge` does.

    >>> from talking_heads_utils.planted.model import plant
    >>> from talking_heads_utils.prompts.ioi import build_ioi
    >>> planted = plant()
    >>> found = steer(planted.bridge, build_ioi(planted.tokenizer, 20), ["L1H0.0"], [0, 5, -5], metric="accuracy")
    >>> (found["value"] < 1).tolist()  # of 0, 5 and -5
    [False, True, True]
    """
    bridge, metric = taken(model, tokenizer, metric, prompts)
    check_position(at, "at")
    found = _directions(bridge, directions)
    names, first = [direction.name for direction in found], min(direction.layer for direction in found)
    settings = _settings(names, amounts)
    made = prepare(bridge, prompts, min([first, *(head.layer for head in metric.heads)]), keep=[RESID_PRE])
    where, mask = places(made, prompts, at)
    values = torch.tensor(settings).to(made.final)

    def change(rows: slice, part: slice) -> Change:
        mine, here = values[part], mask[rows][:, None, :, None]

        def add(site: str, layer: int, value: Tensor) -> Tensor:
            if (site, layer) == (RESID_PRE, first):
                value = value.expand(-1, len(mine), -1, -1)
            for i, direction in enumerate(found):
                if (direction.site, direction.layer) == (site, layer):
                    value = value + here * (mine[:, i, None] * direction.vector.to(mine))[:, None]
            return value

        return add

    after = measure(made, prompts, metric, where, change, len(settings), start=first)
    rows = [dict(zip(names, setting)) for setting in settings]
    about = dict(position=at, metric=metric.name, unit=metric.unit)
    return tidy(rows, about, after, untouched(made, prompts, metric), metric)


def _directions(
    bridge: TransformerBridge, directions: Label | Sequence[Label] | Mapping[str, tuple[int, Tensor]]
) -> list[_Direction]:
    if isinstance(directions, Mapping):
        found = [_given(name, given) for name, given in directions.items()]
    else:
        writers = [as_component(w) for w in ([directions] if isinstance(directions, Label) else directions)]
        weights = labelled_weights(bridge)
        vectors = [direction_of(weights, w)[0].to(weights.W_O) for w in writers]
        found = [_Direction(str(w), ATTN_OUT, w.layer, vector) for w, vector in zip(writers, vectors)]
    if not found or len({direction.name for direction in found}) < len(found):
        raise OptionError("Name one direction at least, such as L8H10.1, and each once.")
    for name, _, layer, vector in found:
        if not 0 <= layer < bridge.cfg.n_layers:
            raise OptionError(f"{name}: there is no layer {layer}; there are 0..{bridge.cfg.n_layers - 1}.")
        if tuple(vector.shape) != (bridge.cfg.d_model,) or not torch.isfinite(vector).all():
            raise OptionError(f"{name} must be {bridge.cfg.d_model} finite numbers, not {tuple(vector.shape)}.")
    return found


def _given(name: str, given: tuple[int, Float[Tensor, "d_model"]]) -> _Direction:
    """A direction of one's own. Raises :class:`OptionError` for anything but a layer and a vector."""
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[0], Integral):
        raise OptionError(f"{name} is given as (layer, vector): the vector is added to what enters that layer.")
    try:
        return _Direction(name, RESID_PRE, int(given[0]), torch.as_tensor(given[1]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"The vector of {name} is no row of numbers.") from error


def _settings(names: list[str], amounts: Amounts) -> list[tuple[float, ...]]:
    """Amounts of every direction, setting by setting."""
    if isinstance(amounts, Mapping):
        by_name = {str(name): given for name, given in amounts.items()}
        if odd := sorted({*by_name} ^ {*names}):
            raise LabelError(f"Amounts and directions are not of the same names: see {odd[0]}.")
        settings = list(product(*(_listed(by_name[name]) for name in names)))
    else:
        settings = [(amount,) * len(names) for amount in _listed(amounts)]
    if not settings:
        raise OptionError("There is no amount to steer by.")
    return settings


def _listed(amounts: float | Sequence[float]) -> list[float]:
    return [finite(amount) for amount in ([amounts] if isinstance(amounts, float | Real) else amounts)]
