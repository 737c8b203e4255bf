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
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.components import direction_of
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.forward.engine import ATTN_OUT, MLP_OUT, PATTERN, RESID_PRE, Change, Forward, Q, Z, prepare
from talking_heads_utils.inputs import check_part, check_position, labelled_weights, taken
from talking_heads_utils.labels import Component, Head, Mlp
from talking_heads_utils.metrics import Metric, Outcome, position_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.variants import ALL, INDEX, another, measure, places, tidy, untouched

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
New = Callable[[str, int, slice], Tensor | None]  # site, layer and prompts -> what stands in place of what is written


class _Target(NamedTuple):
    """One part as a map: of a head's z, ``((z - rest) @ read) @ write`` is the part. None three times for an MLP."""

    part: Part
    read: Float[Tensor, "d_head r"] | None = None
    write: Float[Tensor, "r d_model"] | None = None
    rest: Float[Tensor, "d_head"] | None = None

    def delta(self, old: Tensor, new: Tensor | None) -> Float[Tensor, "n q d_model"]:
        """What is added where ``old`` (z, or an MLP's write) is replaced by ``new``; None: by nothing."""
        if self.read is None or self.write is None or self.rest is None:
            return -old if new is None else new - old
        head = getattr(self.part, "head", 0)
        new = self.rest if new is None else new[:, :, head]
        return ((new - old[:, :, head]) @ self.read) @ self.write


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
    sets, (bridge, metric) = _sets(what), taken(model, tokenizer, metric, prompts, other)
    reader = None if at is None else _reader_of(bridge, at)
    parts = _checked(bridge, sets, reader)
    sites = [Z, *([MLP_OUT] if any(isinstance(part, Mlp) for part in parts) else [])]
    _check_how(prompts, how, other, positions)
    start = min([part.layer for part in parts] + [head.layer for head in metric.heads])
    made = prepare(bridge, prompts, start, keep=[RESID_PRE, *sites])
    source = made if other is None else prepare(bridge, other, start, keep=sites, check=False)
    new = _instead(source, other or prompts, how, positions, seed, made.n_pos)
    values = _values(made, prompts, metric, _targets(bridge, made, sets), new, positions, reader)
    rows = [
        dict(what=name) | {at: getattr(parts[0], at, None) if len(parts) == 1 else None for at in INDEX}
        for name, parts in sets.items()
    ]
    about = dict(at=at or "everywhere", how=how, position=positions, metric=metric.name, unit=metric.unit)
    return tidy(rows, about, values, untouched(made, prompts, metric), metric).assign(seed=seed)


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
    check_position(positions, "positions")
    if how not in HOWS:
        raise OptionError(f"There is no {how!r} ablation: how is {', '.join(HOWS)}.")
    if (how == EXCHANGE) != (other is not None):
        raise OptionError(f"Other prompts are given with how={EXCHANGE!r}, and only with it.")
    if other is not None and len(other) != len(prompts):
        raise OptionError(f"There are {len(prompts)} prompts and {len(other)} others: give one for each.")
    if how == MEAN and len(prompts) < 2:
        raise OptionError("The mean over a single prompt is what it has itself: give two at least, or how='zero'.")
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
    """What stands in place of what is written, ``[n or 1, q or 1, ...]``; None is nothing. n_pos: of the prompts it is
    put into; whatever stands at their padding changes nothing."""
    if positions == ALL:
        at = torch.arange(n_pos, device=source.end.device).clamp(max=source.n_pos - 1).expand(len(source.end), -1)
    else:
        at = position_of(prompts, positions)[:, None].to(source.end.device)
    partner = another(len(prompts), seed).to(at.device) if how == RESAMPLE else slice(None)

    @cache
    def of_all(site: str, layer: int) -> Tensor:
        values = source.plain(site, layer, at)
        return values.mean(0, keepdim=True) if how == MEAN else values[partner]

    def new(site: str, layer: int, rows: slice) -> Tensor | None:
        if how == ZERO:
            return None
        values = of_all(site, layer)
        return values if len(values) == 1 else values[rows]

    return new


def _targets(bridge: TransformerBridge, made: Forward, sets: Mapping[str, list[Part]]) -> list[list[_Target]]:
    """Every part as a map. Raises :class:`LabelError` for a component that is not there or writes nothing."""
    components = any(isinstance(part, Component) for parts in sets.values() for part in parts)
    weights = labelled_weights(bridge) if components else None

    def target(part: Part) -> _Target:
        if isinstance(part, Mlp):
            return _Target(part)
        at = made.layers[part.layer - made.start].attention
        W_O = at.W_O[part.head]
        if isinstance(part, Head) or weights is None:
            return _Target(part, torch.eye(len(W_O)).to(W_O), W_O, W_O.new_zeros(len(W_O)))
        direction = direction_of(weights, part)[0].to(W_O)
        return _Target(part, (W_O @ direction)[:, None], direction[None], at.b_V[at.kv_index[part.head]])

    return [[target(part) for part in parts] for parts in sets.values()]


@torch.no_grad()
def _values(
    made: Forward, prompts: PromptSet, metric: Metric, targets: list[list[_Target]], new: New, positions: str,
    reader: tuple[Head, str] | None,
) -> Float[Tensor, "n k"]:  # fmt: skip
    """The metric after each ablation. Those that begin in one layer run together, from there on."""
    whole = reader is not None and reader[1] == KEY  # a changed key is met by queries everywhere
    at, mask = places(made, prompts, positions, whole=whole)
    if reader is not None:
        work = _Work(made, targets, new, at, mask)
        change = lambda rows, part: work.read_by(*reader, rows, part)  # noqa: E731
        return measure(made, prompts, metric, at, change, len(targets), start=reader[0].layer)
    firsts = [min(target.part.layer for target in parts) for parts in targets]
    out = made.final.new_empty(len(prompts), len(targets))
    for layer in sorted(set(firsts)):
        which = [i for i, first in enumerate(firsts) if first == layer]
        work = _Work(made, [targets[i] for i in which], new, at, mask)
        out[:, which] = measure(made, prompts, metric, at, work.everywhere, len(which), start=layer).to(out)
    return out


@dataclass(frozen=True)
class _Work:
    """Ablations as changes of a run at the positions ``at``, where ``mask`` says so."""

    made: Forward
    targets: list[list[_Target]]
    new: New
    at: Int[Tensor, "n q"]
    mask: Bool[Tensor, "n q"]

    def of(self, part: slice) -> dict[tuple[str, int], list[tuple[int, _Target]]]:
        """Site and layer -> variant and target, of some variants."""
        found: dict[tuple[str, int], list[tuple[int, _Target]]] = {}
        for i, parts in enumerate(self.targets[part]):
            for target in parts:
                found.setdefault((Z if target.read is not None else MLP_OUT, target.part.layer), []).append((i, target))
        return found

    def delta(
        self, site: str, layer: int, old: Tensor, some: list[tuple[int, _Target]], rows: slice, k: int
    ) -> Float[Tensor, "n k q d_model"]:
        """What is added to the stream, where ``old`` was written in every variant or in all alike."""
        new, out = self.new(site, layer, rows), old.new_zeros(len(old), k, old.shape[2], self.made.final.shape[-1])
        for i, target in some:
            out[:, i] += target.delta(old[:, i if old.shape[1] > 1 else 0], new)
        return out.mul_(self.mask[rows][:, None, :, None])

    def everywhere(self, rows: slice, part: slice) -> Change:
        """Everything later sees the change."""
        of, k, z = self.of(part), part.stop - part.start, {}
        start = min(layer for _, layer in of)

        def change(site: str, layer: int, value: Tensor) -> Tensor:
            if site == RESID_PRE and layer == start:
                return value.expand(-1, k, -1, -1)
            if site == Z and (Z, layer) in of:
                z[layer] = value
            elif site == ATTN_OUT and layer in z:
                return value + self.delta(Z, layer, z.pop(layer), of[Z, layer], rows, k)
            elif site == MLP_OUT and (site, layer) in of:
                return value + self.delta(site, layer, value, of[site, layer], rows, k)
            return value

        return change

    def read_by(self, head: Head, side: str, rows: slice, part: slice) -> Change:
        """One reader's query, key or value alone sees the change."""
        k, h, made, at = part.stop - part.start, head.head, self.made, self.at[rows]
        W = made.layers[head.layer - made.start].attention
        kv = int(W.kv_index[h])
        shift = torch.zeros(())
        for (site, layer), some in self.of(part).items():
            shift = shift + self.delta(site, layer, made.plain(site, layer, self.at, rows)[:, None], some, rows, k)
        seen: dict[str, Tensor] = {}

        def change(site: str, layer: int, value: Tensor) -> Tensor:
            if layer != head.layer:
                return value
            if site == RESID_PRE:
                seen["x"], seen["plain"], seen["moved"] = value, W.norm(value), W.norm(value + shift)
                return value.expand(-1, k, -1, -1)
            if (site, side) == (Q, QUERY):
                value = value.clone()
                value[..., h, :] = seen["moved"] @ W.W_Q[h] + W.b_Q[h]
            elif (site, side) == (Q, KEY):
                seen["query"] = value[..., h, :]
            elif (site, side) == (PATTERN, KEY):
                query = lambda site, layer, own: seen["query"][..., None, :]  # noqa: E731
                value = value.clone()
                value[:, :, h] = made.patterns(layer, seen["x"] + shift, at, rows, [h], query)[:, :, 0]
            elif (site, side) == (PATTERN, VALUE):
                seen["own"] = value[:, :, h, :, -at.shape[1] :]
            elif (site, side) == (Z, VALUE):
                value = value.clone()
                value[..., h, :] += seen["own"] @ ((seen["moved"] - seen["plain"]) @ W.W_V[kv])
            return value

        return change
