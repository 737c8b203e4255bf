"""One component removed from the movers' queries, as the paper describes it.

A component of an inhibition head leaves what the movers' queries read at ``end``; nothing else changes. What is
measured is I(m): the movers' attention to the answer less the mean to the others, mean over the movers above the head.
Components are chosen on some prompts and scored on others, and beside each stand other components of its layer whose
energy at ``end`` is the nearest. Source: Merullo et al. (2024), Section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.components import is_empty
from talking_heads_utils.effects import component_effects, inhibition_change, inhibition_score
from talking_heads_utils.errors import NotApplicable, UnsupportedModelError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import fresh_prompts, movers_and_heads, predicted
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.rows import ModelRow, column, maybe
from talking_heads_utils.experiments.verdicts import rank_p
from talking_heads_utils.forward.recording import Recording, record
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import bootstrap_mean, bootstrap_ratio, holm

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LENGTHS = (4, 6)  # of lists
N_CHOICE, N_SCORED = 200, 500  # IOI prompts
N_LISTS_CHOICE, N_LISTS = 200, 400
N_MATCHED = 99
LOWEST = 0.05  # the point of the matched ones' distribution that is shown
SAME = 1e-5  # attention: changes that are no further apart are as large


class ChosenBy(StrEnum):
    """What chose the component: its effect on other prompts, its composition score; or all of the head."""

    SELECTION = "selection"
    WEIGHTS = "weights"
    HEAD = "whole_head"


@dataclass(frozen=True)
class RemovalRow(ModelRow):
    """Components of inhibition heads, the strongest of each head on the selection half and the weights' own choice."""

    task: str = column("", "ioi, lists")
    n_items: int = column("items", "candidates: the two names, or the items of a list")
    head: str = column("", "inhibition head")
    component: str = column("", "that is removed; the head's name: all of it")
    chosen_by: str = column("", "selection: strongest on other prompts; weights: by composition score; whole_head")
    inhibition: float = column(
        "attention", "I(m): the movers' to the answer less the mean to the others, mean over the movers above the head"
    )
    change: float = column("attention", "of it, by the removal")
    low: float = column("attention", "95% interval over prompts, lower end")
    high: float = column("attention", "upper end")
    share: float | None = maybe(
        "share", "of I(m) that is gone; negative where it grows; empty where I(m) is not known to be above zero"
    )
    share_low: float | None = maybe("share", "95% interval, lower end")
    share_high: float | None = maybe("share", "upper end")
    matched: float | None = maybe(
        "attention", "change by other components of the layer, matched on energy: 5% point; empty for heads"
    )
    p: float | None = maybe("", "share of matched ones, this one included, that lower it as much")
    p_holm: float | None = maybe("", "the same, corrected for the number of heads")
    n_draws: int | None = maybe("components", "matched ones")
    n: int = column("prompts", "held out")


@dataclass(frozen=True)
class Measured:
    """What removals do to I(m) on n prompts.

    changes: by component, the mean over the movers above it; NaN where there is none. squares: of each component's
    coefficient at ``end``. Both are NaN of one that writes nothing. inhibition, whole: by head, I(m) and its change
    when all of that head is removed.
    """

    changes: Float[Tensor, "n layers n_heads d_head"]
    squares: Float[Tensor, "n layers n_heads d_head"]
    inhibition: Float[Tensor, "n heads"]
    whole: Float[Tensor, "n heads"]


def measure(bridge: TransformerBridge, prompts: PromptSet, movers: Sequence[Head], heads: Sequence[Head]) -> Measured:
    """Every component of every head below a mover, removed by itself, and all of each of ``heads``."""
    layers = sorted({mover.layer for mover in movers})
    found = [
        _measured(record(bridge, prompts.select(rows), layers), movers, heads)
        for rows in batches.blocks(len(prompts), 100)
    ]
    return Measured(*(torch.cat([getattr(part, f.name) for part in found]).cpu() for f in fields(Measured)))


def _measured(recording: Recording, movers: Sequence[Head], heads: Sequence[Head]) -> Measured:
    changes = component_effects(recording, movers).inhibition
    assert changes is not None
    empty = is_empty(recording.singular_values[: changes.shape[2]])  # they write nothing but rounding
    changes = changes.masked_fill(empty, torch.nan)
    squares = recording.activations(range(changes.shape[2])).square().masked_fill(empty, torch.nan)
    of_heads = []
    for head in heads:
        above = [mover for mover in movers if mover.layer > head.layer]
        shift = -recording.write(head.layer)[:, head.head, None]
        pairs = [(inhibition_score(recording, m), inhibition_change(recording, m, shift)[:, 0]) for m in above]
        of_heads.append(torch.stack([torch.stack(pair) for pair in pairs]).mean(0))
    inhibition, whole = torch.stack(of_heads, -1)
    return Measured(changes.nanmean(1), squares, inhibition, whole)


def matched(energy: Float[Tensor, "layers n_heads d_head"], c: Component, heads: Sequence[Head]) -> list[Component]:
    """The :data:`N_MATCHED` components whose energy is nearest to that of ``c``: of its own layer and, where that has
    too few, of the layers nearest to it. None is of one of ``heads``, and all write."""
    log = energy.clamp(min=1e-12).log()
    apart = (log - log[c.layer, c.head, c.component]).abs()
    for head in heads:
        apart[head.layer, head.head] = torch.nan
    there = apart.isfinite().nonzero().tolist()
    order = sorted(there, key=lambda at: (abs(at[0] - c.layer), float(apart[tuple(at)]), at))
    return [Component(*at) for at in order[:N_MATCHED]]


def run(c: Context) -> list[RemovalRow]:
    """IOI prompts that chose no role, and lists of 4 and of 6 where the model may be asked about them. Raises
    :class:`NotApplicable` for a model without an S-inhibition head below a name mover."""
    movers, heads = movers_and_heads(c)
    by_weights = {head: _first(head, scores) for head, scores in predicted(c).items()}
    rows = []
    for task, n_items, prompts in _tasks(c):
        try:
            choice, scored = (measure(c.bridge, half, movers, heads) for half in prompts)
        except UnsupportedModelError as error:
            raise NotApplicable(str(error)) from error
        lowering = -choice.changes.mean(0)
        by_effect = {head: _first(head, lowering[head.layer, head.head]) for head in heads}
        for chosen_by, chosen in ((ChosenBy.SELECTION, by_effect), (ChosenBy.WEIGHTS, by_weights)):
            rows += _component_rows(c, (task, n_items), chosen_by, chosen, (choice, scored), heads)
        rows += [_row(c, (task, n_items), ChosenBy.HEAD, head, str(head), scored.inhibition[:, i], scored.whole[:, i])
                 for i, head in enumerate(heads)]  # fmt: skip
    return rows


def _first(head: Head, values: Float[Tensor, "d_head"]) -> Component:
    """The component with the largest value."""
    return Component(head.layer, head.head, int(values.nan_to_num(-torch.inf).argmax()))


def _tasks(c: Context) -> Iterator[tuple[str, int, list[PromptSet]]]:
    """Task, number of candidates, the prompts that choose and those that are scored."""
    drawn = fresh_prompts(c.tokenizer, (c.n(N_CHOICE), c.n(N_SCORED)), c.seed)
    yield "ioi", 2, [ioi.build_ioi(c.tokenizer, prompts=some) for some in drawn]
    try:
        asked = c.lengths
    except NotApplicable:  # the paper's task is IOI
        asked = ()
    for n_items in (n for n in LENGTHS if n in asked):
        sizes = ((Part.SELECTION, c.n(N_LISTS_CHOICE)), (Part.HELD_OUT, c.n(N_LISTS)))
        yield "lists", n_items, [c.kept(Lists(part, n_items, n)) for part, n in sizes]


def _component_rows(
    c: Context, task: tuple[str, int], chosen_by: ChosenBy, chosen: Mapping[Head, Component],
    halves: tuple[Measured, Measured], heads: Sequence[Head],
) -> list[RemovalRow]:  # fmt: skip
    """One row a head, beside the components matched to it on the prompts that choose."""
    choice, scored = halves
    energy, drops = choice.squares.mean(0), scored.changes.mean(0)
    drawn, p = {}, []
    for head in heads:
        own = chosen[head]
        drawn[head] = torch.stack([drops[o.layer, o.head, o.component] for o in matched(energy, own, heads)]).double()
        p.append(rank_p(-(drops[own.layer, own.head, own.component] + SAME).item(), -drawn[head]))
    rows = []
    for i, (head, p_holm) in enumerate(zip(heads, holm(torch.tensor(p, dtype=torch.float64)).tolist())):
        change = scored.changes[:, head.layer, head.head, chosen[head].component]
        null = dict(matched=drawn[head].quantile(LOWEST).item(), p=p[i], p_holm=p_holm, n_draws=len(drawn[head]))
        rows.append(_row(c, task, chosen_by, head, str(chosen[head]), scored.inhibition[:, i], change, **null))
    return rows


def _row(
    c: Context, task: tuple[str, int], chosen_by: ChosenBy, head: Head, component: str,
    inhibition: Float[Tensor, "n"], change: Float[Tensor, "n"], **null: Any,
) -> RemovalRow:  # fmt: skip
    """null: what is known of the matched ones."""
    before, found = (bootstrap_mean(values, seed=c.seed) for values in (inhibition, change))
    if before.low > 0:
        share = bootstrap_ratio(-change, inhibition, seed=c.seed)
        null |= dict(share=share.mean, share_low=share.low, share_high=share.high)
    return RemovalRow(c.model, *task, str(head), component, chosen_by, before.mean, *found[:3], **null, n=found.n)
