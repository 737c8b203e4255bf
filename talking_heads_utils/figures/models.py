"""Figures that introduce the models which run anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from talking_heads_utils.figures.style import ACCENT, CONTROL, EXPECTED, new_figure

if TYPE_CHECKING:
    import pandas as pd


def accuracy_figure(
    measured: Mapping[str, pd.DataFrame], predicted: Mapping[str, Sequence[float]] | None = None
) -> go.Figure:
    """Accuracy by list length with its interval, a line a model, and what a formula predicts as marks."""
    figure = new_figure(420)
    for (name, rows), colour in zip(measured.items(), (ACCENT, CONTROL, "#0072B2", "#009E73")):
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
