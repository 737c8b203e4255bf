"""Figures of chapter 1's second half: what components do to a mover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.inhibition.concentration import RANDOM, TOP, WHOLE
from talking_heads_utils.experiments.inhibition.signal import IDENTITY, PLACE
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    KIND_COLOURS,
    NULL_LINE,
    SCORE_TITLE,
    error_bars,
    menu_of_views,
    new_figure,
)
from talking_heads_utils.labels import Head

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from talking_heads_utils.experiments.inhibition.study import Study

SET_COLOURS = {TOP: ACCENT, RANDOM: CONTROL, WHOLE: EXPECTED}
CARRY_COLOURS = {PLACE: KIND_COLOURS["V"], IDENTITY: KIND_COLOURS["Q"]}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down", "hexagram")


def effects_figure(studies: Sequence[Study], n_heads: int = 3, n_components: int = 32) -> go.Figure:
    """Per inhibition head (menu): what removing each component does to I(m), above, and its composition score, below.
    Both panels answer to one hover."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, figure=new_figure(520, hovermode="x")
    )
    views = [(s, head) for s in studies for head in s.inhibition[:n_heads]]
    for i, (s, head) in enumerate(views):
        for trace, row in zip(_effect_traces(s, head, n_components), (1, 1, 2, 2)):
            trace.visible = i == 0
            figure.add_trace(trace, row=row, col=1)
    labels = [f"{s.name}: {head} into {s.mover}" for s, head in views]
    figure.update_yaxes(title_text="change of I(m)", row=1, col=1)
    figure.update_yaxes(title_text=SCORE_TITLE, rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="component", row=2, col=1)
    figure.update_layout(
        hoversubplots="axis", updatemenus=[menu_of_views(labels, 4)], margin_t=70, bargap=0.15, legend_y=-0.16
    )
    return figure


def _effect_traces(s: Study, head: Head, n: int) -> list:
    """Effect with its interval, the largest of the other heads of the layer, score, and the same control."""
    values = s.effects.inhibition[:, head.layer].cpu()
    n = min(n, values.shape[-1])
    x = list(range(n))
    own = values[:, head.head, :n]
    error = 1.96 * own.std(0) / len(own) ** 0.5
    others = [h for h in range(values.shape[1]) if Head(head.layer, h) not in s.inhibition]
    scores = s.scores.block(s.mover, "Q")[0].score[head.layer, :, :n, s.mover.head]
    bars = dict(marker_color=ACCENT, showlegend=False)
    grey = dict(x=x, mode="lines", line=dict(color=CONTROL, width=1.2, shape="hvh"))
    name = f"{head}.%{{x}}"
    return [
        go.Bar(x=x, y=_short(own.mean(0)), error_y=dict(array=_short(error), color=CONTROL, thickness=1), **bars,
               hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>"),
        go.Scatter(y=_short(values[:, others, :n].mean(0).min(0).values) if others else [None] * n,
                   name="strongest of the layer's other heads", hoverinfo="skip", **grey),
        go.Bar(x=x, y=_short(scores[head.head]), hovertemplate=f"{name}: C = %{{y:.3f}}<extra></extra>", **bars),
        go.Scatter(x=[0, n - 1], y=[s.scores.null_rms] * 2, mode="lines", line=NULL_LINE, hoverinfo="skip",
                   name="random direction"),
    ]  # fmt: skip


def concentration_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Top k components against k random ones and the whole head; a menu chooses the head."""
    figure = new_figure(380)
    for i, table in enumerate(tables.values()):
        for what in (WHOLE, RANDOM, TOP):
            part = table[table["what"] == what]
            figure.add_trace(_band(part, SET_COLOURS[what], what, visible=i == 0))
    figure.update_xaxes(title_text="k, components out of the mover's query", dtick=1)
    figure.update_yaxes(title_text="change of I(m)", rangemode="tozero")
    figure.update_layout(updatemenus=[menu_of_views(list(tables), 3)], margin_t=70)
    return figure


def _band(part: pd.DataFrame, colour: str, name: str, visible: bool) -> go.Scatter:
    """A line with error bars of a table's interval."""
    return go.Scatter(
        x=part["k"].tolist(),
        y=part["mean"].round(4).tolist(),
        error_y=error_bars(part, "mean", digits=4) | dict(color=colour),
        mode="lines+markers",
        name=name,
        line=dict(color=colour, width=2),
        visible=visible,
        hovertemplate=f"{name}, k = %{{x}}: %{{y:.3f}}<extra></extra>",
    )


def carries_figure(table: pd.DataFrame) -> go.Figure:
    """Share of the variance that place and identity predict, per model; a menu chooses the split. Bars end at zero: a
    share below it stands as a number."""
    figure = new_figure(360, barmode="group", hovermode="x")
    splits = list(dict.fromkeys(table["split"]))
    models = list(dict.fromkeys(table["model"]))
    for i, split in enumerate(splits):
        for carries, colour in CARRY_COLOURS.items():
            part = table[(table["split"] == split) & (table["carries"] == carries)].set_index("model").loc[models]
            figure.add_trace(
                go.Bar(
                    x=models,
                    y=part["r2"].clip(lower=0).round(3).tolist(),
                    name=carries,
                    marker_color=colour,
                    visible=i == 0,
                    text=[f"{value:.2f}" if value < 0 else "" for value in part["r2"]],
                    textposition="outside",
                    textangle=0,
                    constraintext="none",
                    customdata=part[["components", "r2"]].round(3).to_numpy().tolist(),
                    hovertemplate=f"{carries}: %{{customdata[1]}}<br>%{{customdata[0]}}<extra></extra>",
                )
            )
    figure.update_yaxes(title_text="variance predicted out of fold", range=[0, 1.05])
    figure.update_layout(updatemenus=[menu_of_views(splits, 2)], margin_t=70)
    return figure


def recovery_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Precision and recall of heads taken in the order of the weights; a menu chooses the model."""
    figure = new_figure(360)
    for i, table in enumerate(tables.values()):
        for column, colour in (("precision", ACCENT), ("recall", EXPECTED)):
            figure.add_trace(
                go.Scatter(
                    x=table["k"].tolist(),
                    y=table[column].round(4).tolist(),
                    text=table["head"].tolist(),
                    mode="lines+markers",
                    name=column,
                    line=dict(color=colour, width=2),
                    visible=i == 0,
                    hovertemplate=f"%{{text}} is number %{{x}}: {column} %{{y:.2f}}<extra></extra>",
                )
            )
        chance = table["chance"].iloc[0]
        figure.add_trace(
            go.Scatter(x=[1, len(table)], y=[chance] * 2, mode="lines", line=NULL_LINE, name="precision by chance",
                       visible=i == 0, hoverinfo="skip")
        )  # fmt: skip
    figure.update_xaxes(title_text="heads taken, in the order of the weights")
    figure.update_yaxes(range=[0, 1.05])
    figure.update_layout(updatemenus=[menu_of_views(list(tables), 3)], margin_t=70)
    return figure


def rates_figure(table: pd.DataFrame) -> go.Figure:
    """How many times more often than in the text each category is among a component's most active positions; grey:
    components of random heads."""
    figure = new_figure(360)
    control, chosen = table[~table["inhibition"]], list(dict.fromkeys(table["component"][table["inhibition"]]))
    figure.add_trace(
        go.Box(x=control["category"].tolist(), y=control["ratio"].round(3).tolist(), name="components of other heads",
               marker_color=CONTROL, boxpoints="all", hoverinfo="skip")
    )  # fmt: skip
    for i, name in enumerate(chosen):
        part = table[table["component"] == name]
        symbol = SYMBOLS[i % len(SYMBOLS)]
        figure.add_trace(
            go.Scatter(
                x=part["category"].tolist(),
                y=part["ratio"].round(3).tolist(),
                mode="markers",
                name=name,
                marker=dict(color=ACCENT, size=11, symbol=symbol),
                customdata=part[["share", "base"]].round(3).to_numpy().tolist(),
                hovertemplate=f"{name}: %{{customdata[0]:.0%}} of its top 1%,<br>%{{customdata[1]:.0%}} of the text"
                "<extra></extra>",
            )
        )
    figure.add_hline(y=1, line=NULL_LINE)
    figure.update_yaxes(title_text="rate, times that of the text", rangemode="tozero")
    return figure


def _short(values: ArrayLike) -> list[float]:
    return np.round(np.asarray(values, dtype=float), 4).tolist()
