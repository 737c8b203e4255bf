"""What the best edits gain on prompts that no choice saw, beside random ones of the same norm, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing.components import ELSEWHERE, Components, Prompts
from talking_heads_utils.experiments.editing.harm import harm_at_end
from talking_heads_utils.experiments.editing.search import Candidate, score, with_untouched
from talking_heads_utils.experiments.positional.coordinates import index_of_answer
from talking_heads_utils.experiments.positional.gains import Gain, Strategy, gains
from talking_heads_utils.experiments.positional.steering import GainRow, axis, gain_rows, right_under
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.steer import grid, prepare
from talking_heads_utils.labels import Component
from talking_heads_utils.stats import Interval, share, share_change

EDIT = "edit"  # strategy of a row that is of an edit


@dataclass(frozen=True)
class EditGainRow(Row):
    model: str = column("", "as the command took it")
    prompts: str = column("", "known_wordings, new_wording or lists (both), all of the held-out half")
    n_items: int = column("items", "length of the lists")
    search: str = column("", "that found the edit: gradient, grid")
    draw: int | None = column("", "random components in place of the chosen ones; empty: the chosen")
    before: float = column("share", "lists answered without an edit")
    after: float = column("share", "lists answered with it")
    gain: float = column("points", "of accuracy")
    low: float = column("points", "95% interval of the gain over prompts, paired, lower end")
    high: float = column("points", "95% interval of the gain over prompts, paired, upper end")
    beyond: float | None = column("points", "gain beyond the mean over all draws; empty for a draw")
    beyond_low: float | None = column("points", "its 95% interval over prompts, paired, lower end")
    beyond_high: float | None = column("points", "its 95% interval over prompts, paired, upper end")
    objective: float = column("nats", "log-probability of the answer on the selection half, mean")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class HarmRow(Row):
    model: str = column("", "as the command took it")
    prompts: str = column("", "that the edit was not made for: ioi, lists")
    n_items: int | None = column("items", "length of the lists")
    search: str = column("", "that found the edit: gradient, grid")
    draw: int | None = column("", "random components in place of the chosen ones; empty: the chosen")
    before: float = column("share", "prompts answered without an edit")
    after: float = column("share", "prompts answered with it")
    change: float = column("points", "of accuracy")
    low: float = column("points", "95% interval of the change over prompts, paired, lower end")
    high: float = column("points", "95% interval of the change over prompts, paired, upper end")
    kl: float = column("nats", "divergence of the next token's distribution at end from the untouched one, mean")
    n: int = column("prompts", "scored")


@dataclass(frozen=True)
class TriedRow(Row):
    model: str = column("", "as the command took it")
    search: str = column("", "that found the edit: gradient, grid")
    draw: int | None = column("", "random components in place of the chosen ones; empty: the chosen")
    size: float = column("Frobenius norm", "of the edit")
    gain: float = column("points", "of accuracy on held-out lists in known wordings")
    low: float = column("points", "95% interval of the gain over prompts, paired, lower end")
    high: float = column("points", "95% interval of the gain over prompts, paired, upper end")
    kl: float = column("nats", "divergence on IOI and on short lists, mean of both")
    lost: float = column("points", "of accuracy there, mean of both")
    n: int = column("prompts", "held-out lists")


def edit_gains(
    run: Context, at: Components, chosen: Sequence[Candidate], sets: Sequence[tuple[Prompts, int | None]]
) -> list[EditGainRow]:
    """What edits gain on prompts that no choice saw, against no edit, paired. Each search of the chosen components is
    compared with the same search with random ones: the mean over draws, prompt by prompt."""
    rows = []
    for prompts, n_items in sets:
        before, *after = score(at.on(run, prompts, n_items)[1], with_untouched(chosen)).right.T
        for c, right in zip(chosen, after):
            gain = share_change(right, before)
            beyond: tuple[float | None, float | None, float | None] = (None, None, None)
            if c.draw is None:
                random = [r for o, r in zip(chosen, after) if o.search == c.search and o.draw is not None]
                beyond = points(share_change(right, torch.stack(random).double().mean(0)))
            rows.append(EditGainRow(
                run.model, prompts, n_items or at.n_items, c.search, c.draw, before.double().mean().item(),
                right.double().mean().item(), *points(gain), *beyond, c.objective, gain.n,
            ))  # fmt: skip
    return rows


def points(interval: Interval) -> tuple[float, float, float]:
    """An interval of shares in percentage points: mean, low, high."""
    return 100 * interval.mean, 100 * interval.low, 100 * interval.high


def harm(run: Context, at: Components, chosen: Sequence[Candidate]) -> list[HarmRow]:
    """IOI and short lists under some edits."""
    rows = []
    for prompts, n_items in ELSEWHERE:
        kl, right = harm_at_end(at.on(run, prompts, n_items)[1], with_untouched(chosen))
        before, *after = right.T
        for k, c in enumerate(chosen):
            change = share_change(after[k], before)
            rows.append(HarmRow(
                run.model, prompts, n_items, c.search, c.draw, before.double().mean().item(),
                after[k].double().mean().item(), *points(change), kl[:, k + 1].mean().item(), change.n,
            ))  # fmt: skip
    return rows


def tried(run: Context, at: Components, candidates: Sequence[Candidate]) -> list[TriedRow]:
    """Gain on held-out lists against damage elsewhere, of every edit that was tried, on the prompts of
    :func:`edit_gains` and :func:`harm`."""
    factors = with_untouched(candidates)
    before, *after = score(at.on(run, Prompts.KNOWN)[1], factors).right.T
    elsewhere = [harm_at_end(at.on(run, *prompts)[1], factors) for prompts in ELSEWHERE]
    kl = torch.stack([divergence.mean(0) for divergence, _ in elsewhere]).mean(0)
    kept = torch.stack([answered.double().mean(0) for _, answered in elsewhere]).mean(0)
    lost = 100 * (kept[0] - kept)
    return [
        TriedRow(run.model, c.search, c.draw, c.size, *points(gain), kl[k].item(), lost[k].item(), gain.n)
        for k, c in enumerate(candidates, 1) for gain in [share_change(after[k - 1], before)]
    ]  # fmt: skip


def gain_without(run: Context, at: Components, component: Component) -> Interval:
    """Paired change of accuracy on held-out lists, in shares, when one of the components is removed."""
    factors = torch.ones(2, len(at.every))
    factors[1, at.every.index(component)] = 0
    before, after = score(at.on(run, Prompts.KNOWN)[1], factors).right.T
    return share_change(after, before)


def against_steering(run: Context, at: Components, edit: Candidate, n_values: int = 5) -> list[GainRow]:
    """An edit, and steering along its three strongest components, chosen on the same prompts and scored on the same
    others. Raises :class:`OptionError` for fewer components."""
    if len(at.chosen) < 3:
        raise OptionError(f"Steering goes along three components, and {len(at.chosen)} were chosen: choose more.")
    (chosen_on, _), (scored_on, upper) = at.on(run, Prompts.SELECTION), at.on(run, Prompts.KNOWN)
    before, edited = score(upper, with_untouched([edit])).right.T
    both = (chosen_on, scored_on)
    steerings = [prepare(run.bridge, prompts, at.chosen[:3]) for prompts in both]
    settings = grid(axis(run, at.n_items, n_values, steerings[0].directions))
    right = torch.cat([right_under(s, p, settings) for s, p in zip(steerings, both)])
    index = torch.cat([index_of_answer(p) for p in both])
    found: dict[str, Gain] = {EDIT: Gain(share(edited), share_change(edited, before), [], float("nan"))}
    found |= gains(right, torch.arange(len(right)) < len(chosen_on), index, settings)
    del found[Strategy.NONE]
    return gain_rows(run.model, at.n_items, None, found)
