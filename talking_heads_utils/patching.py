"""Activation patching: what one run had at a site and position, put into another run.

What is patched at a position changes nothing before it and nothing below it. So only the positions from there on are
run, in the layers from the patched one on (:mod:`talking_heads_utils.variants`); prompts whose two runs cannot differ
there are not run at all.

Within :func:`~talking_heads_utils.editing.edit` a component's direction is that from before the edit.

Source: Vig et al. (2020), Meng et al. (2022); denoising and noising as in Heimersheim and Nanda (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches, variants
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.forward.engine import ATTN_OUT, MLP_OUT, RESID_PRE, Forward, Z, prepare
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.metrics import Metric, Outcome, position_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.variants import ALL, INDEX, Target, untouched

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

COMPONENT = "component"
SITES = (RESID_PRE, ATTN_OUT, MLP_OUT, Z)
DENOISE, NOISE = "denoise", "noise"
TOGETHER = "together"
_PREPARED = 64  # prompts whose keys and values are kept at once


class _Cell(NamedTuple):
    """What is patched, wherever. direction: of a component, the unit vector that it writes."""

    site: str
    layer: int
    head: int | None = None
    component: int | None = None
    direction: Float[Tensor, "d_model"] | None = None

    @property
    def joins(self) -> int:
        """The layer that the patched stream enters."""
        return self.layer if self.site == RESID_PRE else self.layer + 1

    def target(self, run: Forward) -> Target:
        """What is replaced in a run."""
        if self.head is not None:
            return Target.of_head(run, self.layer, self.head, self.direction)
        if self.site == ATTN_OUT:
            return Target(Z, self.layer, write=run.layers[self.layer].attention.W_O.flatten(0, 1))
        return Target(self.site, self.layer)


class _Spot(NamedTuple):
    """Where it is patched: in each prompt from ``into`` on, ``width`` positions, with what is from ``out_of`` on.

    differs: the prompts whose two runs can differ there at all.
    """

    name: str
    into: Int[Tensor, "n"]
    out_of: Int[Tensor, "n"]
    width: int
    differs: Bool[Tensor, "n"]


@torch.no_grad()
def patch(
    model: Any,
    clean: PromptSet,
    corrupted: PromptSet,
    *,
    sites: str | Sequence[str] = Z,
    positions: str | Sequence[str] = ALL,
    metric: str | Metric | Callable[[Outcome], Tensor] = "logit_diff",
    direction: str = DENOISE,
    layers: Sequence[int] | None = None,
    tokenizer: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Patch activations of one run into another, one site and position at a time, and measure what comes out.

    clean, corrupted: pairs of prompts. The answers that are scored are the clean prompts', whichever run is scored.
    sites: one or several of ``resid_pre``, ``attn_out``, ``mlp_out`` and ``z`` (each head by itself), or labels:
    ``L8H10.1`` is one singular component of a head's writing, ``L8H10`` all of that head's, each by itself.
    positions: ``all``, each by itself, for prompts of one length; ``together``, all at once; or names of the prompts'
    positions, such as ``["S2", "end"]``, each by itself and each in its own prompt's place.
    direction: ``denoise`` puts clean activations into the corrupted run, ``noise`` corrupted ones into the clean run.
    layers: those to patch in, all by default; labels name their own. metric: of the last token.

    Returns one row per site and position: ``site, layer, head, component, position, metric, unit, value, change, share,
    low, high, n, seed``. value: mean over prompts of the patched run. change: from the run that is not patched, with
    its 95% interval ``low`` to ``high`` over prompts. share: change by the difference of the two runs, 0 for a patch
    that does nothing and 1 for one that gives what the other run does. ``attrs`` has ``model, direction, clean,
    corrupted``, the last two the means without a patch.

    Raises :class:`TaskError` for prompts that do not pair or a position that one lacks, :class:`OptionError` for an
    unknown site, direction or layer, or a metric of another shape or NaN, :class:`LabelError` for a head or component
    that is not there, and what :func:`~talking_heads_utils.forward.engine.prepare` raises.

    Example::

        frame = patch(bridge, build_ioi(tokenizer, 32), build_ioi(tokenizer, 32, counterfactual="swap names"),
                      sites=["resid_pre", "z"], positions=["S2", "end"])
    """
    bridge, measure = variants.taken(model, tokenizer, metric, clean, corrupted)
    if direction not in (DENOISE, NOISE):
        raise OptionError(f"The direction is {DENOISE!r} or {NOISE!r}, not {direction!r}.")
    _check_pairs(clean, corrupted, positions)
    into, out_of = (corrupted, clean) if direction == DENOISE else (clean, corrupted)
    cells, spots = _cells(bridge, sites, layers), list(_spots(into, out_of, positions))
    answers = {name: getattr(clean, name) for name in ("answers", "distractors", "alternatives")}
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in batches.blocks(len(into), _PREPARED):
        some = [replace(prompts, **answers).select(rows) for prompts in (into, out_of)]
        found.append(_values(bridge, some[0], some[1], cells, spots, rows, measure, check=not found))
    plain, other, patched = (torch.cat(values) for values in zip(*found))
    ends = (other, plain) if direction == DENOISE else (plain, other)
    rows_of = [dict(site=c.site, position=s.name) | {at: getattr(c, at) for at in INDEX} for s in spots for c in cells]
    about = dict(metric=measure.name, unit=measure.unit, seed=seed)
    frame = variants.tidy(rows_of, about, patched.flatten(1), plain[:, None], measure)
    frame["share"] = frame["change"] / (other.double().mean() - plain.double().mean()).item()
    columns = ["site", *INDEX, "position", "metric", "unit", "value", "change", "share", "low", "high", "n", "seed"]
    frame = frame[columns]
    clean_mean, corrupted_mean = (end.double().mean().item() for end in ends)
    frame.attrs |= dict(model=bridge.cfg.model_name, direction=direction, clean=clean_mean, corrupted=corrupted_mean)
    return frame


def _check_pairs(clean: PromptSet, corrupted: PromptSet, positions: str | Sequence[str]) -> None:
    if len(clean) != len(corrupted):
        raise TaskError(
            f"There are {len(clean)} clean prompts and {len(corrupted)} corrupted ones: give them in pairs."
        )
    if not isinstance(positions, str):
        variants.listed(positions, "positions")
    if positions not in (ALL, TOGETHER):
        return
    lengths, others = clean.mask.sum(1), corrupted.mask.sum(1)
    if (bad := (lengths != others).nonzero().flatten()).numel():
        row = int(bad[0])
        raise TaskError(
            f"Pair {row} has {lengths[row]} clean tokens and {others[row]} corrupted ones ({clean.texts[row]!r}, "
            f"{corrupted.texts[row]!r}): name positions, such as positions=['end'], or make them equally long."
        )
    if positions == ALL and (bad := (lengths != lengths[0]).nonzero().flatten()).numel():
        row = int(bad[0])
        raise TaskError(
            f"Prompt {row} has {lengths[row]} tokens and prompt 0 has {lengths[0]}, so a position means another thing "
            "in each: name positions, take positions='together', or select prompts of one length."
        )


def _cells(bridge: TransformerBridge, sites: str | Sequence[str], layers: Sequence[int] | None) -> list[_Cell]:
    """All that is patched at one position, in the order in which variants join."""
    n_layers, n_heads = bridge.cfg.n_layers, bridge.cfg.n_heads
    chosen = range(n_layers) if layers is None else variants.listed(layers, "layers")
    if bad := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise OptionError(f"No layer {bad[0]}: {bridge.cfg.model_name} has layers 0..{n_layers - 1}.")
    cells: list[_Cell] = []
    for site in [sites] if isinstance(sites, str) else sites:
        if site == Z:
            cells += [_Cell(Z, head.layer, head.head) for head in heads_in(chosen, n_heads)]
        elif site in SITES:
            cells += [_Cell(site, layer) for layer in chosen]
        else:
            cells += _components(bridge, site)
    if none := [c.layer for c in cells if c.site == MLP_OUT and getattr(bridge.blocks[c.layer], "mlp", None) is None]:
        raise OptionError(f"Layer {none[0]} of {bridge.cfg.model_name} has no MLP to patch.")
    if not cells:
        raise OptionError(f"Nothing to patch: name sites, of {', '.join(SITES)} or labels such as L8H10.1.")
    return sorted(cells, key=lambda cell: (cell.joins, (RESID_PRE, Z, COMPONENT, ATTN_OUT, MLP_OUT).index(cell.site)))


def _components(bridge: TransformerBridge, label: str) -> Iterator[_Cell]:
    try:
        only = Component.parse(label) if "." in label else None
        head = Head.parse(label) if only is None else only.of_head
    except LabelError as error:
        known = f"one of {', '.join(SITES)}, or a label as in 'L8H10' or 'L8H10.1'"
        raise OptionError(f"{label!r} is no site: name {known}.") from error
    weights = variants.labelled_weights(bridge)
    directions = write_directions(weights)[0][weights.head(head).layer, head.head].nan_to_num()
    for k in range(weights.d_head) if only is None else (weights.component(only).component,):
        yield _Cell(COMPONENT, head.layer, head.head, k, directions[k])


def _spots(into: PromptSet, out_of: PromptSet, positions: str | Sequence[str]) -> Iterator[_Spot]:
    n_pos = min(into.tokens.shape[1], out_of.tokens.shape[1])
    apart = (into.tokens[:, :n_pos] != out_of.tokens[:, :n_pos]) & into.mask[:, :n_pos]
    first = torch.where(apart.any(1), apart.int().argmax(1), n_pos)
    if positions == TOGETHER:
        start = first.clamp(max=into.positions["end"])
        yield _Spot(TOGETHER, start, start, n_pos - int(start.min()), apart.any(1))
        return
    if positions == ALL:
        every = [torch.full((len(into),), p) for p in range(int(into.positions["end"][0]) + 1)]
        places = [(str(p), at, at) for p, at in enumerate(every)]
    else:
        names = [positions] if isinstance(positions, str) else positions
        places = [(name, position_of(into, name), position_of(out_of, name)) for name in names]
    for name, at, source in places:
        yield _Spot(name, at, source, 1, (at != source) | (first <= at))


def _values(
    bridge: TransformerBridge, into: PromptSet, out_of: PromptSet, cells: list[_Cell], spots: list[_Spot], rows: slice,
    metric: Metric, *, check: bool,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n n_spots n_cells"]]:  # fmt: skip
    """The metric of both plain runs and of the patched ones, of the pairs in ``rows``."""
    run = prepare(bridge, into, keep=(RESID_PRE,), check=check)
    source = prepare(bridge, out_of, keep=tuple({cell.target(run).site for cell in cells}), check=False)
    plain, other = (untouched(r, prompts, metric)[:, 0].cpu() for r, prompts in ((run, into), (source, out_of)))
    patched = plain[:, None, None].repeat(1, len(spots), len(cells))
    for i, spot in enumerate(spots):
        which = spot.differs[rows].nonzero().flatten()
        first, there = (at[rows].to(run.end.device)[:, None] for at in (spot.into, spot.out_of))
        steps = torch.arange(int((run.end[:, None] - first).max()) + 1, device=run.end.device)
        at, reaches_end = first + steps, bool((first[:, 0] + spot.width > run.end).any())
        chosen = [k for k, cell in enumerate(cells) if reaches_end or cell.joins < run.n_layers]
        if not len(which) or not chosen:
            continue
        new = lambda site, layer, rows, at=there + steps: source.plain(site, layer, at, rows)  # noqa: E731
        targets, mask = [[cells[k].target(run)] for k in chosen], (steps < spot.width).expand_as(at)
        found = variants.replaced(run, into, metric, targets, new, at, mask, which.to(run.end.device))
        patched[which[:, None], i, torch.tensor(chosen)] = found.to(patched)
    return plain, other, patched
