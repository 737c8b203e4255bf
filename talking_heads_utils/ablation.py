"""Ablation: what a metric becomes without a head, a component, an MLP or a set of them, everywhere or for one reader.

A component is the part of its head's write that lies along its write direction v: with w what the head writes, value
bias left out, removing it leaves ``w - (w . v) v``. A head is all that it writes, ``z W_O`` with its value bias. So all
components of a head, set to zero, leave its constant ``b_V W_O`` in place, and the head, set to zero, does not; in
models of ``load_model`` that constant is folded into ``b_O``, and the two are the same.

Within :func:`~talking_heads_utils.editing.edit` labels are those of the model before the edit: the component is what
the edited head writes along v as it was before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import variants
from talking_heads_utils.components import direction_of
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.forward.engine import MLP_OUT, PATTERN, RESID_PRE, Change, Forward, Q, Rows, Z, prepare
from talking_heads_utils.labels import Component, Head, Mlp
from talking_heads_utils.metrics import Metric, Outcome, position_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.variants import ALL, INDEX, New, Target, check_part

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

ZERO, MEAN, RESAMPLE, EXCHANGE = "zero", "mean", "resample", "exchange"
HOWS = (ZERO, MEAN, RESAMPLE, EXCHANGE)
QUERY, KEY, VALUE = "query", "key", "value"
_MLP = re.compile(r"L(\d+)\.mlp")
_AT = re.compile(rf"(L\d+H\d+)\.({QUERY}|{KEY}|{VALUE})")


Part = Head | Component | Mlp
Label = Part | str


def ablate(
    model: Any,
    what: Label | Sequence[Label] | Mapping[str, Sequence[Label]],
    prompts: PromptSet,
    metric: str | Metric | Callable[[Outcome], Tensor] = "logit_diff",
    *,
    at: str | None = None,
    how: str = MEAN,
    other: PromptSet | None = None,
    positions: str = ALL,
    seed: int = 0,
    tokenizer: Any = None,
) -> pd.DataFrame:
    """A metric with heads, components, MLPs or sets of them ablated: one row for each.

    what: ``"L8H10"``, ``"L8H10.1"``, ``"L3.mlp"``, a list of such, a row each, or name -> list, each a set that is
    taken out together. at: None, so that everything later sees the change, or what one reader alone reads of it:
    ``"L9H9.query"``, ``.key`` or ``.value``; the model runs on behind that reader. how: what stands in place of what is
    written: ``zero`` nothing, ``mean`` the mean over the prompts at the same position, ``resample`` what is written on
    another prompt, drawn by ``seed``, ``exchange`` on the same prompt of ``other``. Of a set that spans layers, all are
    held there at once. positions: ``all``, ``end`` or a named position. With ``all``, mean and resample need prompts of
    one length.

    Columns: ``what, layer, head, component`` (None for sets), ``at, how, position, metric, unit``, ``value``, its
    ``change`` from the untouched model with its 95% interval over prompts, ``low`` and ``high``, ``n, seed``. Unit of
    value and change: that of the metric.

    Raises :class:`LabelError` for a head or component that is not there, is empty, or comes no earlier than the reader,
    :class:`OptionError` for an unknown ``how`` or ``at``, others that are lacking or of another length, the mean of one
    prompt, and a metric that gives another shape or NaN, :class:`TaskError` for a position that is not there and
    prompts of another tokenizer or too long, and as :func:`~talking_heads_utils.models.as_bridge` does.

    >>> from talking_heads_utils import metrics
    >>> from talking_heads_utils.planted.model import plant
    >>> from talking_heads_utils.prompts.ioi import build_ioi
    >>> planted = plant()
    >>> prompts, metric = build_ioi(planted.tokenizer, 20), metrics.attention("L2H0", "IO", "S1")
    >>> sets = {"inhibition": ["L1H0", "L1H1"], "control": ["L1H4", "L1H5"]}
    >>> found = ablate(planted.bridge, sets, prompts, metric, at="L2H0.query", how="zero")
    >>> found[["what", "value"]].round(1).values.tolist()
    [['inhibition', -0.0], ['control', 1.0]]
    """
    sets, (bridge, metric) = _sets(what), variants.taken(model, tokenizer, metric, prompts, other)
    reader = None if at is None else _reader_of(bridge, at)
    parts = _checked(bridge, sets, reader)
    sites = [Z, *([MLP_OUT] if any(isinstance(part, Mlp) for part in parts) else [])]
    _check_how(prompts, how, other, positions)
    start = min([part.layer for part in parts] + [head.layer for head in metric.heads])
    made = prepare(bridge, prompts, start, keep=[RESID_PRE, *sites])
    source = made if other is None else prepare(bridge, other, start, keep=sites, check=False)
    new = _instead(source, other or prompts, how, positions, seed, made.n_pos)
    values = _values(bridge, made, prompts, metric, sets, new, positions, reader)
    rows = [
        dict(what=name) | {at: getattr(parts[0], at, None) if len(parts) == 1 else None for at in INDEX}
        for name, parts in sets.items()
    ]
    about = dict(at=at or "everywhere", how=how, position=positions, metric=metric.name, unit=metric.unit)
    return variants.tidy(rows, about, values, variants.untouched(made, prompts, metric), metric).assign(seed=seed)


def as_part(label: Label) -> Part:
    """``L8H10``, ``L8H10.1`` or ``L3.mlp``. Raises :class:`LabelError` for anything else."""
    if not isinstance(label, str):
        return label
    if found := _MLP.fullmatch(label.strip()):
        return Mlp(int(found[1]))
    return Component.parse(label) if "." in label else Head.parse(label)


def _sets(what: Label | Sequence[Label] | Mapping[str, Sequence[Label]]) -> dict[str, list[Part]]:
    """Name -> parts. Raises :class:`OptionError` for none, or a set with one part within another or twice."""
    if not isinstance(what, Mapping):
        what = {str(label): [label] for label in ([what] if isinstance(what, Part | str) else what)}
    sets = {name: [as_part(label) for label in labels] for name, labels in what.items()}
    if not sets or not all(sets.values()):
        raise OptionError("Nothing to ablate: name a head, a component or an MLP, such as L8H10, L8H10.1 or L8.mlp.")
    for name, parts in sets.items():
        inner = [part.of_head for part in parts if isinstance(part, Component)]
        if twice := [part for part in parts if parts.count(part) > 1 or part in inner]:
            raise OptionError(f"The set {name!r} takes out {twice[0]} more than once: name it once, without its parts.")
    return sets


def _reader_of(bridge: TransformerBridge, at: str) -> tuple[Head, str]:
    """``L9H9.query`` -> the head and which of its inputs. Raises :class:`OptionError` for anything else."""
    found = _AT.fullmatch(at.strip()) if isinstance(at, str) else None
    if found is None:
        raise OptionError(f"{str(at)!r} is no reader's input. Write it as in 'L9H9.query', or with .key or .value.")
    head = Head.parse(found[1])
    check_part(bridge, head)
    return head, found[2]


def _checked(bridge: TransformerBridge, sets: Mapping[str, list[Part]], reader: tuple[Head, str] | None) -> list[Part]:
    """All parts of all sets. Raises :class:`LabelError` for one that is not there or that the reader cannot read."""
    parts = [part for found in sets.values() for part in found]
    for part in parts:
        check_part(bridge, part)
        if isinstance(part, Mlp) and getattr(bridge.blocks[part.layer], "mlp", None) is None:
            raise LabelError(f"Layer {part.layer} of {bridge.cfg.model_name} has no MLP.")
        if reader and part.layer >= reader[0].layer:
            raise LabelError(f"{reader[0]} does not read {part}: it reads what earlier layers write. Name another.")
    return parts


def _check_how(prompts: PromptSet, how: str, other: PromptSet | None, positions: str) -> None:
    variants.check_position(positions, "positions")
    if how not in HOWS:
        raise OptionError(f"There is no {how!r} ablation: how is {', '.join(HOWS)}.")
    if (how == EXCHANGE) != (other is not None):
        raise OptionError(f"Other prompts are given with how={EXCHANGE!r}, and only with it.")
    if other is not None and len(other) != len(prompts):
        raise OptionError(f"There are {len(prompts)} prompts and {len(other)} others: give one for each.")
    if how in (MEAN, RESAMPLE) and len(prompts) < 2:
        raise OptionError(f"Of a single prompt there is no {how} but what it has itself: give two, or how='zero'.")
    if how == ZERO or (other is None and positions != ALL):
        return
    lengths = prompts.mask.sum(1)
    wanted, against = (lengths[:1].expand_as(lengths), "the first") if other is None else (
        other.mask.sum(1), "the other one"
    )  # fmt: skip
    if (off := (lengths != wanted).nonzero().flatten()).numel():
        row = int(off[0])
        raise OptionError(
            f"Prompt {row} has {int(lengths[row])} tokens and {against} {int(wanted[row])}: "
            "what is written there cannot be put in position by position. Name a position, or take equal lengths."
        )


def _instead(source: Forward, prompts: PromptSet, how: str, positions: str, seed: int, n_pos: int) -> New:
    """What stands in place of what is written, ``[n, q or 1, ...]``; None is nothing. n_pos: of the prompts it is
    put into; whatever stands at their padding changes nothing. Resampled is from another prompt, never the same."""
    if positions == ALL:
        at = torch.arange(n_pos, device=source.end.device).expand(len(source.end), -1)
    else:
        at = position_of(prompts, positions)[:, None].to(source.end.device)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).to(at.device)
    partner = order.roll(1)[order.argsort()] if how == RESAMPLE else slice(None)

    @cache
    def of_all(site: str, layer: int) -> Tensor:
        values = source.plain(site, layer, at)
        return values.mean(0, keepdim=True).expand_as(values) if how == MEAN else values[partner]

    return lambda site, layer, rows: None if how == ZERO else of_all(site, layer)[rows]


def _values(
    bridge: TransformerBridge, made: Forward, prompts: PromptSet, metric: Metric, sets: Mapping[str, list[Part]],
    new: New, positions: str, reader: tuple[Head, str] | None,
) -> Float[Tensor, "n k"]:  # fmt: skip
    """The metric after each ablation. Raises :class:`LabelError` for a component that is not there or is empty."""
    components = any(isinstance(part, Component) for parts in sets.values() for part in parts)
    weights = variants.labelled_weights(bridge) if components else None

    def target(part: Part) -> Target:
        if isinstance(part, Mlp):
            return Target(MLP_OUT, part.layer)
        v = None if isinstance(part, Head) or weights is None else direction_of(weights, part)[0]
        return Target.of_head(made, part.layer, part.head, v)

    targets = [[target(part) for part in parts] for parts in sets.values()]
    whole = reader is not None and reader[1] == KEY  # a changed key is met by queries everywhere
    at, mask = variants.places(made, prompts, positions, whole=whole)
    if reader is None:
        return variants.replaced(made, prompts, metric, targets, new, at, mask)
    change = partial(_read_by, made, targets, new, at, mask, *reader)
    return variants.measure(made, prompts, metric, at, change, len(targets), start=reader[0].layer)


def _read_by(
    made: Forward, targets: list[list[Target]], new: New, at: Tensor, mask: Tensor, head: Head, side: str, rows: Rows,
    part: slice,
) -> Change:  # fmt: skip
    """One reader's query, key or value alone sees what is replaced."""
    k, h, W = part.stop - part.start, head.head, made.layers[head.layer - made.start].attention
    x, shift = made.plain(RESID_PRE, head.layer, at, rows)[:, None], torch.zeros(())
    for (site, layer), some in variants.by_site(targets[part]).items():
        old = made.plain(site, layer, at, rows)[:, None]
        shift = shift + variants.added(some, k, old, new(site, layer, rows), x.shape[-1])
    shift = shift * mask[rows][:, None, :, None]
    plain, moved, W_V = W.norm(x), W.norm(x + shift), W.W_V[int(W.kv_index[h])]
    query = lambda normed: normed @ W.W_Q[h] + W.b_Q[h]  # noqa: E731
    own = torch.zeros(())

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        nonlocal own
        if layer != head.layer or (site, side) not in ((Q, QUERY), (PATTERN, KEY), (PATTERN, VALUE), (Z, VALUE)):
            return value
        if (site, side) == (PATTERN, VALUE):
            own = value[:, :, h, :, -at.shape[1] :]
            return value
        value = value.expand(-1, k, *value.shape[2:]).clone()
        if side == QUERY:
            value[..., h, :] = query(moved)
        elif side == KEY:
            asking = query(plain)[..., None, :].expand(-1, k, -1, -1, -1)
            pattern = made.patterns(layer, x + shift, at[rows], rows, [h], lambda *_: asking)
            value[:, :, h] = pattern[:, :, 0]
        else:
            value[..., h, :] += own @ ((moved - plain) @ W_V)
        return value

    return change
