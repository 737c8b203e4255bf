"""Figures that introduce the models which run anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice, zip_longest
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from talking_heads_utils.experiments.gate import ANYWHERE
from talking_heads_utils.experiments.inhibition.concentration import RANDOM, TOP, shares
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    KIND_COLOURS,
    NULL_LINE,
    error_bars,
    menu_of_views,
    new_figure,
    stacked,
)
from talking_heads_utils.prompts import lists as laundry

if TYPE_CHECKING:
    import pandas as pd

LINES = (ACCENT, KIND_COLOURS["V"], KIND_COLOURS["K"])


def accuracy_figure(
    measured: Mapping[str, pd.DataFrame], predicted: Mapping[str, Sequence[float]] | None = None, control: str = ""
) -> go.Figure:
    """Accuracy by list length with its interval, a line a model, and what a formula predicts as marks. control: which
    of the models is grey."""
    figure, colours = new_figure(420), cycle(LINES)
    for name, rows in measured.items():
        colour = CONTROL if name == control else next(colours)
        bars = dict(array=rows["high"] - rows["accuracy"], arrayminus=rows["accuracy"] - rows["low"], thickness=1.2)
        figure.add_scatter(
            x=rows["n_items"], y=rows["accuracy"], error_y=bars, name=name, mode="lines+markers", line_color=colour
        )
    for name, values in (predicted or {}).items():
        mark = dict(symbol="line-ew-open", size=16, color=EXPECTED, line_width=3)
        x = measured[name]["n_items"]
        figure.add_scatter(x=x, y=list(values), name=f"predicted: {name}", mode="markers", marker=mark)
    figure.update_xaxes(title_text="items in the list")
    figure.update_yaxes(title_text="accuracy among the items", range=[0, 1.04])
    return figure


def training_figure(log: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> go.Figure:
    """Accuracy by step for a few list lengths, out of a run's training.json."""
    figure = new_figure(420)
    steps = [entry["step"] for entry in log]
    for name in shown:
        figure.add_scatter(x=steps, y=[entry["accuracy"][name] for entry in log], name=name, mode="lines")
    figure.update_xaxes(title_text="training step")
    figure.update_yaxes(title_text="accuracy over the vocabulary", range=[0, 1.04])
    return figure


def seeds_figure(runs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Runs of one recipe side by side, a menu for the recipe. Above, accuracy by list length; below, the share of what
    the inhibition heads together do to I(m) that k directions of their write carry, random directions in grey."""
    titles = ("accuracy over the vocabulary", "share of the effect on I(m)")
    figure = stacked(2, titles, 560, 0.2)
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_model.setdefault(run["model"], []).append(run)
    models, most = list(by_model), max(map(len, by_model.values()))
    for model, of_model in by_model.items():
        for own, colour in zip_longest(of_model, islice(cycle(LINES), most)):
            for row, trace in enumerate(_seed_traces(own, colour), 1):
                trace.visible = model == models[0]
                figure.add_trace(trace, row=row, col=1)
        random = go.Scatter(**_random_directions(of_model), visible=model == models[0])
        figure.add_trace(random, row=2, col=1)
    figure.update_yaxes(range=[0, 1.06])
    figure.update_xaxes(title_text="items in the list", dtick=1, row=1, col=1)
    figure.update_xaxes(title_text="k, directions out of the mover's query", dtick=1, row=2, col=1)
    figure.update_layout(updatemenus=[menu_of_views(models, 2 * most + 1)], margin_t=96)
    return figure


def _seed_traces(run: Mapping[str, Any] | None, colour: str) -> list[go.Scatter]:
    """Accuracy by length, and the channel's curve; empty where there is no run, or no channel."""
    name = f"seed {run['seed']}" if run else ""
    style = dict(mode="lines+markers", line_color=colour, name=name, legendgroup=name)
    lengths = {int(k[2:]): v for k, v in run["accuracy"].items() if k != "ioi"} if run else {}
    curve = _shares(run, TOP) if run else {}
    say = f"{name}, %{{x}}: %{{y:.3f}}<extra></extra>"
    return [
        go.Scatter(
            x=list(values), y=list(values.values()), showlegend=bool(values) and first, hovertemplate=say, **style
        )
        for values, first in ((lengths, True), (curve, False))
    ]


def _shares(run: Mapping[str, Any], what: str) -> dict[int, float]:
    """What so many directions carry, for a figure; empty for a run without a channel."""
    import pandas as pd

    found = shares(list(pd.DataFrame(run["channel"]).itertuples()), what) if "channel" in run else {}
    return {k: round(share, 4) for k, share in found.items()}


def _random_directions(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As many random directions, mean over the runs."""
    found = [share for run in runs if (share := _shares(run, RANDOM))]
    ks = list(found[0]) if found else []
    mean = [round(sum(share[k] for share in found) / len(found), 4) for k in ks]
    return dict(
        x=ks, y=mean, mode="lines", line=dict(color=CONTROL, dash="dash"), name="random directions",
        showlegend=bool(ks), hovertemplate="%{x} random: %{y:.3f}<extra></extra>",
    )  # fmt: skip


def gate_figure(gate: pd.DataFrame) -> go.Figure:
    """Accuracy on lists by list index of the answer, kept and shuffled order apart, a menu for the length; dashed:
    chance. gate: of :class:`~talking_heads_utils.experiments.gate.Cell` rows."""
    figure = new_figure(440)
    cells = gate[(gate["task"] == laundry.TASK) & (gate["index"] != ANYWHERE)]
    lengths = sorted(cells["n_items"].unique())
    for n_items in lengths:
        for order, colour in ((laundry.KEPT, LINES[1]), (laundry.SHUFFLED, LINES[0])):
            part = cells[(cells["n_items"] == n_items) & (cells["order"] == order)].sort_values("index")
            figure.add_scatter(
                x=part["index"].tolist(), y=part["accuracy"].round(4).tolist(), error_y=error_bars(part, "accuracy"),
                name=f"{order} order", mode="lines+markers", line_color=colour, visible=bool(n_items == lengths[0]),
            )  # fmt: skip
        figure.add_scatter(
            x=[0, int(n_items) - 1], y=[1 / n_items] * 2, name="chance", mode="lines", line=NULL_LINE,
            visible=bool(n_items == lengths[0]),
        )  # fmt: skip
    figure.update_xaxes(title_text="list index of the answer, from 0", dtick=1)
    figure.update_yaxes(title_text="accuracy among the items", range=[0, 1.04])
    figure.update_layout(updatemenus=[menu_of_views([f"lists of {n}" for n in lengths], 3)], margin_t=72)
    return figure


def words_figure(words: pd.DataFrame) -> go.Figure:
    """Greedy exact answers to tasks of words by number of examples, a menu for the task; both controls in grey. words:
    of :func:`talking_heads_utils.experiments.icl.words.words_table`."""
    figure = new_figure(440)
    tasks, kinds = list(dict.fromkeys(words["task"])), list(dict.fromkeys(words["examples"]))
    dashes = ("solid", "dash", "dot")
    for task in tasks:
        for kind, dash in zip(kinds, dashes):
            part = words[(words["task"] == task) & (words["examples"] == kind)].sort_values("n_examples")
            figure.add_scatter(
                x=part["n_examples"].tolist(), y=part["accuracy"].round(4).tolist(), name=f"examples: {kind}",
                error_y=error_bars(part, "accuracy"), mode="lines+markers", visible=task == tasks[0],
                line=dict(color=ACCENT if kind == kinds[0] else CONTROL, dash=dash),
            )  # fmt: skip
    figure.update_xaxes(title_text="examples in the prompt")
    figure.update_yaxes(title_text="greedy exact answers", range=[0, 1.04])
    figure.update_layout(updatemenus=[menu_of_views([t.replace("_", " ") for t in tasks], len(kinds))], margin_t=72)
    return figure
