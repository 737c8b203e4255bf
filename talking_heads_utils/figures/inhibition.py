"""Figures of chapter 1's second half: what components do to a mover. They take tables of rows, never a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.inhibition.concentration import RANDOM, TOP, WHOLE
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    KIND_COLOURS,
    NULL_LINE,
    SCORE_TITLE,
    error_bars,
    new_figure,
    with_views,
)

if TYPE_CHECKING:
    import pandas as pd

PLACE, IDENTITY = "place of the answer", "items named twice"
SET_COLOURS = {WHOLE: EXPECTED, RANDOM: CONTROL, TOP: ACCENT}
CARRY_COLOURS = {PLACE: KIND_COLOURS["V"], IDENTITY: KIND_COLOURS["Q"]}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down", "hexagram")


def effects_figure(table: pd.DataFrame) -> go.Figure:
    """Per inhibition head (menu): what removing each component does to I(m), above, and its composition score, below.
    Both panels answer to one hover. table: of :func:`~experiments.inhibition.toys.component_rows`."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, figure=new_figure(520, hovermode="x")
    )
    views = {
        f"{model}: {head} into {part['mover'].iloc[0]}": _effect_traces(part, head)
        for (model, head), part in table.groupby(["model", "head"], sort=False)
    }
    figure.update_yaxes(title_text="change of I(m)", row=1, col=1)
    figure.update_yaxes(title_text=SCORE_TITLE, rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="component", row=2, col=1)
    figure.update_layout(hoversubplots="axis", bargap=0.15, legend_y=-0.16)
    return with_views(figure, views, panels=(1, 1, 2, 2))


def _effect_traces(part: pd.DataFrame, head: str) -> list:
    """Effect with its interval, the strongest of the layer's other heads, score, and what chance gives."""
    x = part["component"].tolist()
    bars = dict(x=x, marker_color=ACCENT, showlegend=False)
    error = dict(array=_short(part["error"]), color=CONTROL, thickness=1)
    name = f"{head}.%{{x}}"
    return [
        go.Bar(y=_short(part["effect"]), error_y=error, hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>", **bars),
        go.Scatter(x=x, y=_short(part["others_effect"]), name="strongest of the layer's other heads", hoverinfo="skip",
                   mode="lines", line=dict(color=CONTROL, width=1.2, shape="hvh")),
        go.Bar(y=_short(part["score"]), hovertemplate=f"{name}: C = %{{y:.3f}}<extra></extra>", **bars),
        go.Scatter(x=[x[0], x[-1]], y=[part["null"].iloc[0]] * 2, mode="lines", line=NULL_LINE, hoverinfo="skip",
                   name="random direction"),
    ]  # fmt: skip


def concentration_figure(table: pd.DataFrame) -> go.Figure:
    """Top k components against k random ones and the whole head; a menu chooses the head. table: of
    :func:`~experiments.inhibition.toys.curves`."""
    figure = new_figure(380)
    figure.update_xaxes(title_text="k, components out of the mover's query", dtick=1)
    figure.update_yaxes(title_text="change of I(m)", rangemode="tozero")
    views = {
        f"{model}: {head}": [_line(part[part["what"] == what], what, colour) for what, colour in SET_COLOURS.items()]
        for (model, head), part in table.groupby(["model", "head"], sort=False)
    }
    return with_views(figure, views)


def _line(part: pd.DataFrame, name: str, colour: str) -> go.Scatter:
    return go.Scatter(
        x=part["k"].tolist(), y=_short(part["mean"]), error_y=error_bars(part, "mean", digits=4) | dict(color=colour),
        mode="lines+markers", name=name, line=dict(color=colour, width=2),
        hovertemplate=f"{name}, k = %{{x}}: %{{y:.3f}}<extra></extra>",
    )  # fmt: skip


def carries_figure(table: pd.DataFrame) -> go.Figure:
    """Share of the variance that place and identity predict on lists, per model; a menu chooses the split. Bars end at
    zero: a share below it stands as a number."""
    figure = new_figure(360, barmode="group", hovermode="x")
    figure.update_yaxes(title_text="variance predicted out of fold", range=[0, 1.05])
    on_lists = table[table["carries"].isin(CARRY_COLOURS)]
    views = {
        str(split): [_carries_bars(part[part["carries"] == kind], kind) for kind in CARRY_COLOURS]
        for split, part in on_lists.groupby("split", sort=False)
    }
    return with_views(figure, views)


def _carries_bars(part: pd.DataFrame, kind: str) -> go.Bar:
    return go.Bar(
        x=part["model"].tolist(), y=_short(part["share"].clip(lower=0)), name=kind, marker_color=CARRY_COLOURS[kind],
        text=[f"{value:.2f}" if value < 0 else "" for value in part["share"]], textposition="outside", textangle=0,
        constraintext="none", customdata=part[["components", "share"]].round(3).to_numpy().tolist(),
        hovertemplate=f"{kind}: %{{customdata[1]}}<br>%{{customdata[0]}}<extra></extra>",
    )  # fmt: skip


def rates_figure(table: pd.DataFrame) -> go.Figure:
    """How many times more often than in the text each category is among a component's most active positions; grey:
    components of random heads."""
    figure = new_figure(360)
    own = table["inhibition"].astype(bool)
    control = table[~own]
    figure.add_trace(
        go.Box(x=control["category"].tolist(), y=_short(control["ratio"]), name="components of other heads",
               marker_color=CONTROL, boxpoints="all", hoverinfo="skip")
    )  # fmt: skip
    for i, (name, part) in enumerate(table[own].groupby("component", sort=False)):
        figure.add_trace(
            go.Scatter(
                x=part["category"].tolist(), y=_short(part["ratio"]), mode="markers", name=str(name),
                marker=dict(color=ACCENT, size=11, symbol=SYMBOLS[i % len(SYMBOLS)]),
                customdata=part[["share", "base"]].round(3).to_numpy().tolist(),
                hovertemplate=f"{name}: %{{customdata[0]:.0%}} of its top 1%,<br>%{{customdata[1]:.0%}} of the text"
                "<extra></extra>",
            )
        )  # fmt: skip
    figure.add_hline(y=1, line=NULL_LINE)
    figure.update_yaxes(title_text="rate, times that of the text", rangemode="tozero")
    return figure


def _short(values: pd.Series) -> list[float]:
    return values.astype(float).round(4).tolist()
