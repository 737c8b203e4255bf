"""Activation patching: what one run had at a site and position, put into another run.

What is patched at a position changes nothing before it, below it, or beside it in its own layer. So each variant is
known, without a run, up to the stream that enters the next layer; there it joins the variants of its position, and only
the layers from there on and the positions from its own on are run (:mod:`talking_heads_utils.forward.engine`).

Within :func:`~talking_heads_utils.editing.edit` a component's direction is that from before the edit.

Source: Vig et al. (2020), Meng et al. (2022); denoising and noising as in Heimersheim and Nanda (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.forward import engine
from talking_heads_utils.forward.engine import ATTN_OUT, MLP_OUT, RESID_PRE, Forward, Z
from talking_heads_utils.inputs import labelled_weights, listed, taken
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.metrics import Metric, Outcome, position_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.variants import ALL, INDEX, from_end, needs_all, plain_patterns, score, tidy

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

COMPONENT = "component"
SITES = (RESID_PRE, ATTN_OUT, MLP_OUT, Z)
DENOISE, NOISE = "denoise", "noise"
TOGETHER = "together"
_PREPARED = 64  # prompts whose keys and values are kept at once
_NUMBERS = 3_000_000  # that the largest tensor of one run may have: what stays near the processor


@dataclass(frozen=True)
class _Cell:
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


@dataclass(frozen=True)
class _Spot:
    """Where it is patched: in each prompt from ``into`` on, ``width`` positions, with what is from ``out_of`` on.

    differs: the prompts whose two runs can differ there at all.
    """

    name: str
    into: Int[Tensor, "n"]
    out_of: Int[Tensor, "n"]
    width: int
    differs: Bool[Tensor, "n"]

    def of(self, rows: slice, device: torch.device) -> _Spot:
        some = {name: getattr(self, name)[rows].to(device) for name in ("into", "out_of", "differs")}
        return replace(self, **some)


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
    bridge, measure = taken(model, tokenizer, metric, clean, corrupted)
    if direction not in (DENOISE, NOISE):
        raise OptionError(f"The direction is {DENOISE!r} or {NOISE!r}, not {direction!r}.")
    _check_pairs(clean, corrupted, positions)
    into, out_of = (corrupted, clean) if direction == DENOISE else (clean, corrupted)
    cells, spots = _cells(bridge, sites, layers), list(_spots(into, out_of, positions))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in batches.blocks(len(into), _PREPARED):
        a, b, c = (prompts.select(rows) for prompts in (into, out_of, clean))
        found.append(_Pairs.of(bridge, a, b, c, cells, measure, check=not found).values(spots, rows))
    plain, other, patched = (torch.cat(values) for values in zip(*found))
    ends = (other, plain) if direction == DENOISE else (plain, other)
    rows_of = [dict(site=c.site, position=s.name) | {at: getattr(c, at) for at in INDEX} for s in spots for c in cells]
    about = dict(metric=measure.name, unit=measure.unit, seed=seed)
    frame = tidy(rows_of, about, patched.flatten(1), plain[:, None], measure)
    frame["share"] = frame["change"] / (other.double().mean() - plain.double().mean()).item()
    frame = frame[
        ["site", *INDEX, "position", "metric", "unit", "value", "change", "share", "low", "high", "n", "seed"]
    ]
    clean_mean, corrupted_mean = (end.double().mean().item() for end in ends)
    frame.attrs |= dict(model=bridge.cfg.model_name, direction=direction, clean=clean_mean, corrupted=corrupted_mean)
    return frame


def _check_pairs(clean: PromptSet, corrupted: PromptSet, positions: str | Sequence[str]) -> None:
    if len(clean) != len(corrupted):
        raise TaskError(
            f"There are {len(clean)} clean prompts and {len(corrupted)} corrupted ones: give them in pairs."
        )
    if not isinstance(positions, str):
        listed(positions, "positions")
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
    chosen = range(n_layers) if layers is None else listed(layers, "layers")
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
    weights = labelled_weights(bridge)
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


@dataclass(frozen=True)
class _Pairs:
    """A block of pairs, both runs kept. scored: the prompts that are patched into, with the clean ones' answers."""

    into: Forward
    out_of: Forward
    scored: tuple[PromptSet, PromptSet]
    cells: list[_Cell]
    metric: Metric

    @classmethod
    def of(
        cls, bridge: TransformerBridge, into: PromptSet, out_of: PromptSet, clean: PromptSet, cells: list[_Cell],
        metric: Metric, *, check: bool,
    ) -> _Pairs:  # fmt: skip
        sites = {Z if cell.site in (COMPONENT, ATTN_OUT) else cell.site for cell in cells}
        run_into = engine.prepare(bridge, into, keep=(RESID_PRE, Z), check=check)
        run_out_of = engine.prepare(bridge, out_of, keep=tuple(sites), check=False)
        answers = {name: getattr(clean, name) for name in ("answers", "distractors", "alternatives")}
        return cls(run_into, run_out_of, (replace(into, **answers), replace(out_of, **answers)), cells, metric)

    def values(self, spots: list[_Spot], rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The metric of both plain runs, ``[n]``, and of the patched ones, ``[n, n_spots, n_cells]``."""
        seen = [plain_patterns(run, self.metric.heads) for run in (self.into, self.out_of)]
        plain, other = (
            score(run, self.metric, run.final[:, None], scored, patterns)[:, 0].cpu()
            for run, patterns, scored in zip((self.into, self.out_of), seen, self.scored)
        )
        patched = plain[:, None, None].repeat(1, len(spots), len(self.cells))
        for i, spot in enumerate(spots):
            for which, cells, values in self._patched(spot.of(rows, self.into.end.device), seen[0]):
                patched[which[:, None], i, cells] = values.to(patched)
        return plain, other, patched

    def _patched(self, spot: _Spot, plain: dict[Head, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Which prompts, which cells, and the metric's values there, a block at a time."""
        at_end = spot.into + spot.width > self.into.end
        reached = torch.tensor([cell.joins < self.into.n_layers for cell in self.cells])
        which = spot.differs.nonzero().flatten().cpu()
        cells = (reached | at_end.any().cpu()).nonzero().flatten()
        if not len(which) or not len(cells):
            return
        q = int((self.into.end - spot.into).max()) + 1
        d_vocab = self.into.unembed.shape[1] * needs_all(self.metric, self.scored[0])
        size = max(1, _NUMBERS // max(q * self.into.width, d_vocab))
        for some in batches.blocks(len(cells), min(len(cells), size)):
            chosen = [self.cells[i] for i in cells[some].tolist()]
            for part in batches.blocks(len(which), max(1, size // len(chosen))):
                rows = which[part]
                yield rows, cells[some], self._run(spot, chosen, rows, plain)

    def _run(
        self, spot: _Spot, cells: list[_Cell], rows: Int[Tensor, "rows"], plain: dict[Head, Tensor]
    ) -> Float[Tensor, "rows k"]:
        """Variants join where their stream is known, and run from there on."""
        run, patterns, x = self.into, dict[Head, Tensor](), None
        chosen = rows.to(run.end.device)
        end = (run.end - spot.into)[chosen]
        at = spot.into[:, None] + torch.arange(int(end.max()) + 1, device=end.device)
        look = engine.reading(self.metric.heads, patterns) if self.metric.heads else None
        for layer in range(cells[0].joins, run.n_layers + 1):
            new = self._joining(layer, [cell for cell in cells if cell.joins == layer], spot, at, chosen)
            x = new if x is None else x if new is None else torch.cat([x, new], 1)
            if layer < run.n_layers and x is not None:
                x = run.layer(layer, x, at, chosen, look, only_end=layer == run.n_layers - 1)
        assert x is not None
        seen = {}
        for head in self.metric.heads:  # those that joined above the head have the plain run's pattern
            read = [from_end(run, patterns[head], at[chosen], end)] if head in patterns else []
            n_read = sum(pattern.shape[1] for pattern in read)
            seen[head] = torch.cat([*read, plain[head][chosen].expand(-1, x.shape[1] - n_read, -1)], 1)
        return score(run, self.metric, x[:, :, 0], self.scored[0].select(rows), seen)

    def _joining(self, layer: int, cells: list[_Cell], spot: _Spot, at: Tensor, rows: Tensor) -> Tensor | None:
        """The streams that enter a layer and hold a patch, ``[rows, k, q, d_model]``; of the last, at ``end`` alone."""
        if not cells:
            return None
        run, width = self.into, min(spot.width, at.shape[1])
        new = self._streams(cells, spot, at[:, :width], rows)
        if layer < run.n_layers:
            before = run.plain(RESID_PRE, layer, at[:, width:], rows)
            return torch.cat([new, before[:, None].expand(-1, len(cells), -1, -1)], 2)
        end = (run.end - spot.into)[rows]
        at_end = new[torch.arange(len(rows), device=end.device), :, end.clamp(max=width - 1)]
        return torch.where((end < width)[:, None, None], at_end, run.final[rows, None])[:, :, None]

    def _streams(self, cells: list[_Cell], spot: _Spot, at: Tensor, rows: Tensor) -> Float[Tensor, "rows k width d"]:
        """The stream that each cell's patch leaves, at the patched positions. Cells join at one layer, in order."""
        run, source = self.into, spot.out_of[:, None] + torch.arange(at.shape[1], device=rows.device)
        parts = []
        if ours := [cell for cell in cells if cell.site == RESID_PRE]:
            parts += [self.out_of.plain(RESID_PRE, ours[0].layer, source, rows)[:, None]] * len(ours)
        if ours := [cell for cell in cells if cell.site != RESID_PRE]:
            layer = ours[0].layer
            x, z = (run.plain(site, layer, at, rows)[:, None] for site in (RESID_PRE, Z))
            attention, attending = run.write(layer, z), [cell for cell in ours if cell.site != MLP_OUT]
            if attending:
                z_new = self.out_of.plain(Z, layer, source, rows)[:, None]
                middle = x + torch.cat([attention + self._change(layer, cell, z_new - z) for cell in attending], 1)
                parts.append(middle + run.mlp(layer, x.expand_as(middle), middle))
            for _ in ours[len(attending) :]:
                parts.append(x + attention + self.out_of.plain(MLP_OUT, layer, source, rows)[:, None])
        return torch.cat(parts, 1)

    def _change(self, layer: int, cell: _Cell, z: Float[Tensor, "n 1 w n_heads d_head"]) -> Float[Tensor, "n 1 w d"]:
        """What attention writes of a difference of ``z``: all of it, a head's, or a component's."""
        W_O = self.into.layers[layer - self.into.start].attention.W_O
        if cell.head is None:
            return z.flatten(-2) @ W_O.flatten(0, 1)
        written = z[..., cell.head, :] @ W_O[cell.head]
        if cell.direction is None:
            return written
        along = cell.direction.to(written)
        return (written @ along)[..., None] * along
