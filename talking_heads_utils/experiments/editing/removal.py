"""What removing components, and scaling them one or two at a time, does to the mover and to accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from talking_heads_utils.components import is_empty, write_directions
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing.components import Components, Prompts, prompts_of
from talking_heads_utils.experiments.editing.search import score
from talking_heads_utils.experiments.editing.upper import prepare
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.steer import grid
from talking_heads_utils.labels import Component
from talking_heads_utils.metrics import contrast
from talking_heads_utils.stats import Interval, bootstrap_mean, share_change


class Kind(StrEnum):
    """What is removed: nothing, a chosen component, a random one of its layer, or all components of its head."""

    NOTHING = "nothing"
    CHOSEN = "chosen"
    RANDOM = "random"
    HEAD = "head"


@dataclass(frozen=True)
class RemovalRow(Row):
    model: str = column("", "as the command took it")
    removed: str = column("", "component or head; empty for nothing")
    kind: str = column("", "nothing, chosen, random, head")
    drawn_for: str | None = column("", "the chosen component that a random one was drawn for")
    size: float = column("Frobenius norm", "of what is removed")
    n_items: int = column("items", "length of the lists")
    inhibition: float = column("attention", "I(m): the mover's to the answer less the mean to the other items")
    inhibition_change: float = column("attention", "of I(m), by the removal")
    inhibition_low: float = column("attention", "95% interval of the change over prompts, paired, lower end")
    inhibition_high: float = column("attention", "95% interval of the change over prompts, paired, upper end")
    accuracy: float = column("share", "held-out lists answered")
    accuracy_change: float = column("points", "of accuracy, by the removal")
    accuracy_low: float = column("points", "95% interval of the change over prompts, paired, lower end")
    accuracy_high: float = column("points", "95% interval of the change over prompts, paired, upper end")
    n: int = column("prompts", "held-out lists")


@dataclass(frozen=True)
class ScaleRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    component: str = column("", "that is scaled")
    scale: float = column("", "of its singular value; 1 is untouched")
    other: str | None = column("", "that is scaled as well, if any")
    other_scale: float = column("", "of the other's singular value")
    accuracy: float = column("share", "lists of the selection half answered")


def removal(run: Context, at: Components) -> list[RemovalRow]:
    """Every chosen component removed by an edit, beside each draw's and all components of a head, on held-out lists."""
    prompts = at.on(run, Prompts.KNOWN)[0]
    S = write_directions(run.weights)[1]
    sets: list[tuple[str, Kind, Component | None, list[Component]]] = [("", Kind.NOTHING, None, [])]
    sets += [(str(c), Kind.CHOSEN, None, [c]) for c in at.chosen]
    sets += [(str(c), Kind.RANDOM, own, [c]) for draw in at.random for own, c in zip(at.chosen, draw)]
    for h in dict.fromkeys(c.of_head for c in at.chosen):
        there = (~is_empty(S[h.layer, h.head])).nonzero()[:, 0].tolist()
        sets.append((str(h), Kind.HEAD, None, [Component(h.layer, h.head, i) for i in there]))
    every = list(dict.fromkeys(c for *_, part in sets for c in part))
    factors = torch.ones(len(sets), len(every))
    for k, (*_, part) in enumerate(sets):
        factors[k, [every.index(c) for c in part]] = 0
    found = score(prepare(run.bridge, prompts, every), factors, run.mover)
    assert found.attention is not None  # since a mover is named
    inhibition = (found.attention * contrast(prompts)[:, None]).sum(-1)
    rows, right = [], found.right
    for k, (name, kind, own, part) in enumerate(sets):
        size = sum(float(S[c.layer, c.head, c.component]) ** 2 for c in part) ** 0.5
        moved = bootstrap_mean(inhibition[:, k] - inhibition[:, 0])
        change = share_change(right[:, k], right[:, 0]) if part else Interval(0.0, 0.0, 0.0, len(right))
        rows.append(RemovalRow(
            run.model, name, kind, None if own is None else str(own), size, at.n_items, inhibition[:, k].mean().item(),
            *moved[:3], right[:, k].double().mean().item(), 100 * change.mean, 100 * change.low, 100 * change.high,
            change.n,
        ))  # fmt: skip
    return rows


def scale_one(
    run: Context, at: Components, values: Sequence[float], lengths: Sequence[int], n_prompts: int = 40
) -> list[ScaleRow]:
    """Accuracy on the selection half when one chosen component is scaled, by list length."""
    rows, k = [], len(at.chosen)
    for n_items in lengths:
        upper = prepare(run.bridge, prompts_of(run, Prompts.SELECTION, n_items, n_prompts), at.chosen)
        factors = torch.ones(len(values), k, k)
        factors[:, range(k), range(k)] = torch.tensor(list(values))[:, None]
        right = score(upper, factors.flatten(0, 1)).right.double().mean(0).view(len(values), k)
        rows += [
            ScaleRow(run.model, n_items, str(c), value, None, 1.0, right[i, j].item())
            for i, value in enumerate(values) for j, c in enumerate(at.chosen)
        ]  # fmt: skip
    return rows


def scale_two(
    run: Context, at: Components, values: Sequence[float], lengths: Sequence[int], n_prompts: int = 40
) -> list[ScaleRow]:
    """Accuracy on the selection half when the two strongest components are scaled, by list length."""
    rows, pair = [], at.chosen[:2]
    for n_items in lengths:
        upper = prepare(run.bridge, prompts_of(run, Prompts.SELECTION, n_items, n_prompts), pair)
        right = score(upper, grid(values, 2)).right.double().mean(0).tolist()
        both = [(a, b) for a in values for b in values]
        rows += [ScaleRow(run.model, n_items, str(pair[0]), a, str(pair[1]), b, r) for (a, b), r in zip(both, right)]
    return rows
