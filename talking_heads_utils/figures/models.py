"""Figures that introduce the models which run anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.experiments.gate import ANYWHERE
from talking_heads_utils.figures import style
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.training.seeds import RANDOM, TOP, carried

LINES = (style.ACCENT, style.KIND_COLOURS["V"], style.KIND_COLOURS["K"])


def accuracy_figure(
    measured: Mapping[str, pd.DataFrame], predicted: Mapping[str, Sequence[float]] | None = None, control: str = ""
) -> go.Figure:
    """Accuracy by list length with its interval, a line a model, and what a formula predicts as marks. control: which
    of the models is grey."""
    figure = style.new_figure(420, "items in the list", "accuracy among the items", yaxis_range=[0, 1.04])
    colours = cycle(LINES)
    for name, rows in measured.items():
        colour = style.CONTROL if name == control else next(colours)
        bars = dict(array=rows["high"] - rows["accuracy"], arrayminus=rows["accuracy"] - rows["low"], thickness=1.2)
        figure.add_scatter(
            x=rows["n_items"], y=rows["accuracy"], error_y=bars, name=name, mode="lines+markers", line_color=colour
        )
    for name, values in (predicted or {}).items():
        mark = dict(symbol="line-ew-open", size=16, color=style.EXPECTED, line_width=3)
        x = measured[name]["n_items"]
        figure.add_scatter(x=x, y=list(values), name=f"predicted: {name}", mode="markers", marker=mark)
    return figure


def training_figure(log: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> go.Figure:
    """Accuracy by step for a few list lengths, out of a run's training.json."""
    figure = style.new_figure(420, "training step", "accuracy over the vocabulary", yaxis_range=[0, 1.04])
    steps = [entry["step"] for entry in log]
    for name in shown:
        figure.add_scatter(x=steps, y=[entry["accuracy"][name] for entry in log], name=name, mode="lines")
    return figure


def seeds_figure(runs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Runs of one recipe side by side, a menu for the recipe. Above, accuracy by list length; below, the share of what
    the inhibition heads together do to I(m) that k directions of their write carry, random directions in grey.

    runs: of :func:`talking_heads_utils.training.seeds.all_runs`.
    """
    figure = style.stacked(2, ("accuracy over the vocabulary", "share of the effect on I(m)"), 560, 0.2)
    models = list(dict.fromkeys(run["model"] for run in runs))
    most = max(sum(run["model"] == model for run in runs) for model in models)
    views = {}
    for model in models:
        of_model = [run for run in runs if run["model"] == model]
        padded = [*of_model, *[None] * (most - len(of_model))]  # every view has as many traces
        views[model] = [trace for run, colour in zip(padded, cycle(LINES)) for trace in _seed_traces(run, colour)]
        random = [carried(run["channel"], RANDOM) for run in of_model if "channel" in run]
        mean = {k: sum(shares[k] for shares in random) / len(random) for k in (random[0] if random else ())}
        views[model].append(
            _curve(mean, "random directions", line=dict(color=style.CONTROL, dash="dash"), mode="lines")
        )
    style.with_views(figure, views, panels=[*(1, 2) * most, 2])
    figure.update_yaxes(range=[0, 1.06])
    figure.update_xaxes(title_text="items in the list", dtick=1, row=1, col=1)
    figure.update_xaxes(title_text="k, directions out of the mover's query", dtick=1, row=2, col=1)
    return figure.update_layout(margin_t=96)


def _seed_traces(run: Mapping[str, Any] | None, colour: str) -> list[go.Scatter]:
    """Accuracy by length, and the channel's curve; empty where there is no run, or no channel."""
    run = run or dict(seed="", accuracy={})
    lengths = {int(kind[2:]): value for kind, value in run["accuracy"].items() if kind != "ioi"}
    name, look = f"seed {run['seed']}", dict(line_color=colour, mode="lines+markers")
    above, below = _curve(lengths, name, **look), _curve(carried(run.get("channel", []), TOP), name, **look)
    return [above, below.update(showlegend=False)]


def _curve(values: Mapping[int, float], name: str, **look: Any) -> go.Scatter:
    return go.Scatter(
        x=list(values), y=[round(value, 4) for value in values.values()], name=name, legendgroup=name,
        showlegend=bool(values), hovertemplate=f"{name}, %{{x}}: %{{y:.3f}}<extra></extra>", **look,
    )  # fmt: skip


def gate_figure(gate: pd.DataFrame) -> go.Figure:
    """Accuracy on lists by list index of the answer, kept and shuffled order apart, a menu for the length; dashed:
    chance. gate: of :class:`~talking_heads_utils.experiments.gate.Cell` rows."""
    look = dict(xaxis_dtick=1, yaxis_range=[0, 1.04])
    figure = style.new_figure(440, "list index of the answer, from 0", "accuracy among the items", **look)
    cells = gate[(gate["task"] == laundry.TASK) & (gate["index"] != ANYWHERE)].sort_values(["n_items", "index"])
    orders = {laundry.KEPT: LINES[1], laundry.SHUFFLED: LINES[0]}
    views = {}
    for n_items, part in cells.groupby("n_items"):
        by = {order: part[part["order"] == order] for order in orders}
        lines = [style.curve(by[o], "index", "accuracy", f"{o} order", dict(color=orders[o]), bars={}) for o in orders]
        chance = style.level([0, int(n_items) - 1], 1 / n_items, "chance", style.NULL_LINE)
        views[style.lists_of(n_items)] = [*lines, chance]
    return style.with_views(figure, views).update_layout(margin_t=72)


def words_figure(table: pd.DataFrame) -> go.Figure:
    """Greedy exact answers to tasks of words by number of examples, a menu for the task; both controls in grey. table:
    of :func:`talking_heads_utils.experiments.icl.tasks.words`."""
    looks = ((style.ACCENT, "solid"), (style.CONTROL, "dash"), (style.CONTROL, "dot"))

    def traces(part: pd.DataFrame) -> list:
        return [
            style.curve(part[part["examples"] == kind].sort_values("n_examples"), "n_examples", "accuracy",
                        f"examples: {kind}", dict(color=colour, dash=dash), bars={})
            for kind, (colour, dash) in zip(dict.fromkeys(table["examples"]), looks)
        ]  # fmt: skip

    figure = style.new_figure(440, "examples in the prompt", "greedy exact answers", yaxis_range=[0, 1.04])
    return style.with_views(figure, style.views_of(table, traces, task=style.words)).update_layout(margin_t=72)
