"""Figures of chapter 3: what removing, scaling and the best edits do, and what they break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils.experiments.editing.study import GRADIENT, GRID, RANDOM, drawn
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    KIND_COLOURS,
    NULL_LINE,
    dropdown,
    error_bars,
    menu_of_views,
    new_figure,
    slider,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FOUND_COLOURS = {GRADIENT: ACCENT, GRID: KIND_COLOURS["V"], RANDOM: CONTROL}
GAIN_COLOURS = {
    GRADIENT: ACCENT, drawn(GRADIENT): CONTROL, GRID: KIND_COLOURS["V"], drawn(GRID): "#C3C8D0",
}  # fmt: skip
REMOVED_COLOURS = {"channel": ACCENT, "random": CONTROL, "whole head": EXPECTED}


def finding_figure(table: pd.DataFrame) -> go.Figure:
    """What the best edits gain in every model at once, beside the same searches with random components.

    table: rows of :func:`talking_heads_utils.experiments.editing.study.gains_table` for one set of prompts.
    """
    figure = new_figure(400, barmode="group")
    for found_by, colour in GAIN_COLOURS.items():
        part = table[table["edit"] == found_by]
        hover = f"%{{x}}, {found_by}: %{{y:+.1f}} points<extra></extra>"
        figure.add_bar(x=part["model"].tolist(), y=part["gain"].round(2).tolist(), error_y=error_bars(part, "gain"),
                       name=found_by, marker_color=colour, hovertemplate=hover)  # fmt: skip
    figure.add_hline(y=0, line=NULL_LINE)
    figure.update_yaxes(title_text="gain in accuracy, points")
    return figure


def removal_figure(table: pd.DataFrame) -> go.Figure:
    """Change of I(m) against change of accuracy when a component, a random one or a whole head is removed; a menu
    chooses the model."""
    figure = new_figure(430)
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        for kind, colour in REMOVED_COLOURS.items():
            part = table[(table["model"] == model) & (table["kind"] == kind)]
            x, y = part["change of I(m)"], 100 * part["change of accuracy"]
            error = dict(array=(100 * part["change of accuracy high"] - y).round(2).tolist(),
                         arrayminus=(y - 100 * part["change of accuracy low"]).round(2).tolist(),
                         thickness=0.8)  # fmt: skip
            figure.add_trace(
                go.Scatter(x=x.round(4).tolist(), y=y.round(2).tolist(), error_y=error, name=kind, mode="markers",
                           marker=dict(color=colour, size=9), visible=i == 0, text=part["removed"].tolist(),
                           hovertemplate="%{text}: I(m) %{x:+.2f}, accuracy %{y:+.0f} points<extra></extra>")
            )  # fmt: skip
    figure.update_xaxes(title_text="change of the mover's I(m)")
    figure.update_yaxes(title_text="change of accuracy, points")
    figure.update_layout(updatemenus=[menu_of_views(models, len(REMOVED_COLOURS))], margin_t=70)
    return figure


def lines_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy as one component is scaled, a line per component; a slider for the list length, a menu for the model."""
    figure = new_figure(430)
    models, lengths = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["n_items"]))
    views = {model: list(dict.fromkeys(table.loc[table["model"] == model, "component"])) for model in models}
    if len({len(names) for names in views.values()}) != 1:
        raise ValueError("All models must have as many components, so that one menu shows them.")

    def lines(n_items: int) -> list[go.Scatter]:
        found = []
        for model, names in views.items():
            for name in names:
                part = table[(table["model"] == model) & (table["component"] == name) & (table["n_items"] == n_items)]
                found.append(go.Scatter(x=part["scale"].tolist(), y=part["accuracy"].round(3).tolist(), name=name,
                                        mode="lines+markers"))  # fmt: skip
        return found

    first = lines(lengths[0])
    per_view = len(next(iter(views.values())))
    for i, trace in enumerate(first):
        trace.visible = i < per_view
        trace.line.color = figure.layout.colorway[i % per_view % len(figure.layout.colorway)]
        figure.add_trace(trace)
    figure.frames = [go.Frame(name=str(n), data=lines(n), traces=list(range(len(first)))) for n in lengths]
    figure.update_xaxes(title_text="scale of the component")
    figure.update_yaxes(title_text="accuracy", range=[0, 1.04])
    figure.update_layout(
        updatemenus=[menu_of_views(models, per_view)], margin_t=70, legend_y=-0.75,
        sliders=[slider([str(n) for n in lengths], "items in the list: ", pad=50)],
    )  # fmt: skip
    return figure


def planes_figure(
    planes: Mapping[str, Mapping[int, Tensor]], values: Sequence[float], pairs: Mapping[str, tuple[str, str]]
) -> go.Figure:
    """Accuracy over the scales of two components; a slider for the list length, a menu for the model.

    planes: label -> list length -> accuracy ``[v, v]``, the first component of ``pairs`` along rows.
    """
    figure = new_figure(480)
    lengths = list(next(iter(planes.values())))
    ticks = [f"{value:g}" for value in values]
    for i, label in enumerate(planes):
        figure.add_trace(
            go.Heatmap(z=_cells(planes[label][lengths[0]]), x=ticks, y=ticks, zmin=0, zmax=1, colorscale="Blues",
                       visible=i == 0, colorbar=dict(title="accuracy", thickness=12),
                       hovertemplate="%{z:.2f}<extra></extra>")
        )  # fmt: skip
    figure.frames = [
        go.Frame(name=str(n), data=[go.Heatmap(z=_cells(planes[label][n])) for label in planes],
                 traces=list(range(len(planes))))
        for n in lengths
    ]  # fmt: skip
    titles = [{"yaxis.title.text": f"scale of {a}", "xaxis.title.text": f"scale of {b}"} for a, b in pairs.values()]
    figure.update_yaxes(title_text=titles[0]["yaxis.title.text"], type="category")
    figure.update_xaxes(title_text=titles[0]["xaxis.title.text"], type="category")
    figure.update_layout(
        updatemenus=[menu_of_views(list(planes), 1, titles)], margin_t=70,
        sliders=[slider([str(n) for n in lengths], "items in the list: ", pad=50)],
    )  # fmt: skip
    return figure


def _cells(plane: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in plane.tolist()]


def gains_figure(table: pd.DataFrame) -> go.Figure:
    """Gain of the best edits on prompts that no choice saw, beside random edits of the same norm; a menu chooses the
    model."""
    figure = new_figure(420, barmode="group")
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        for found_by, colour in GAIN_COLOURS.items():
            part = table[(table["model"] == model) & (table["edit"] == found_by)]
            names = [name.replace(" ", "<br>", 1) for name in part["prompts"]]
            figure.add_trace(
                go.Bar(x=names, y=part["gain"].round(2).tolist(), error_y=error_bars(part, "gain", digits=2),
                       name=found_by, marker_color=colour, visible=i == 0,
                       hovertemplate=f"{found_by}: %{{y:+.1f}} points<extra></extra>")
            )  # fmt: skip
    figure.add_hline(y=0, line=NULL_LINE)
    figure.update_yaxes(title_text="gain in accuracy, points")
    figure.update_layout(updatemenus=[menu_of_views(models, len(GAIN_COLOURS))], margin_t=70, legend_y=-0.3)
    return figure


def pareto_figure(table: pd.DataFrame) -> go.Figure:
    """Gain on held-out lists against divergence on other prompts, one point per edit that was tried; a menu for the
    model."""
    figure = new_figure(440)
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        for found_by, colour in FOUND_COLOURS.items():
            part = table[(table["model"] == model) & table["found_by"].str.startswith(found_by)]
            data = part[["size", "lost", "low", "high"]].round(2).to_numpy().tolist()
            figure.add_trace(
                go.Scatter(x=part["kl"].clip(lower=1e-6).tolist(), y=part["gain"].round(2).tolist(), name=found_by,
                           mode="markers", marker=dict(color=colour, size=8, opacity=0.75), visible=i == 0,
                           customdata=data,
                           hovertemplate="gain %{y:+.0f} points (%{customdata[2]:+.0f} to %{customdata[3]:+.0f})<br>"
                           "divergence %{x:.3g} nats, lost elsewhere %{customdata[1]:.0f} points<br>"
                           "Frobenius norm %{customdata[0]:.2f}<extra></extra>")
            )  # fmt: skip
    figure.add_hline(y=0, line=NULL_LINE)
    figure.update_xaxes(
        title_text="divergence on IOI and lists of 4, nats", type="log", exponentformat="power", dtick=1
    )
    figure.update_yaxes(title_text="gain on held-out lists, points")
    figure.update_layout(updatemenus=[menu_of_views(models, len(FOUND_COLOURS))], margin_t=70)
    return figure


def heads_figure(patterns: Mapping[str, Tensor]) -> go.Figure:
    """How far every head's attention pattern moves; a menu chooses model and edit. The edits of one model share their
    colours' range. patterns: ``"model: edit"`` -> distances."""
    figure = new_figure(360)
    buttons = []
    largest: dict[str, float] = {}
    for label, values in patterns.items():
        model = label.rsplit(": ", 1)[0]
        largest[model] = max(largest.get(model, 0.0), float(values.max()))
    for i, (label, values) in enumerate(patterns.items()):
        layers, heads = values.shape
        figure.add_trace(
            go.Heatmap(z=_cells(values), x=[f"H{h}" for h in range(heads)], y=[f"L{n}" for n in range(layers)],
                       zmin=0, zmax=largest[label.rsplit(": ", 1)[0]], colorscale="Oranges", visible=i == 0,
                       colorbar=dict(title="moved", thickness=12),
                       hovertemplate="%{y}%{x}: %{z:.3f}<extra></extra>")
        )  # fmt: skip
        shown = [j == i for j in range(len(patterns))]
        buttons.append(dict(label=label, method="update", args=[{"visible": shown}]))
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(updatemenus=[dropdown(buttons)], margin_t=70)
    return figure
