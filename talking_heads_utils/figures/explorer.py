"""The explorer: what any head of a model reads, component by component, in a kernel and on the static page."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from talking_heads_utils.figures.page import quantise, with_controls
from talking_heads_utils.figures.style import ACCENT, KIND_READS, NULL_LINE, SCORE_TITLE, new_figure
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.scores.scores import CompositionScores

N_BARS = 12


def explorer_figure(scores: CompositionScores, reader: Head, kind: str) -> go.Figure:
    """Every earlier component of one reader: the strongest as bars, all as a map of writer heads by components."""
    frame, rows = _view(scores, reader, kind), _writers(scores)
    cells = np.pad(frame["z"], ((0, len(rows) - len(frame["z"])), (0, 0)), constant_values=np.nan)
    chance = scores.null_rms
    figure = make_subplots(
        rows=2, cols=1, row_heights=[0.36, 0.64], vertical_spacing=0.13, figure=new_figure(780, margin_t=64)
    )
    hover = "%{x}<br>C = %{y:.3f}, %{customdata}<extra></extra>"
    figure.add_bar(**frame["bars"], marker_color=ACCENT, hovertemplate=hover, row=1, col=1)
    ticks = dict(tickvals=[chance * m for m in (1, 2, 4, 8)], ticktext=["1", "2", "4", "8"])
    figure.add_heatmap(
        x=list(range(scores.d_head)),
        y=rows,
        z=cells,
        zmin=0,
        zmax=8 * chance,
        colorscale=_chance_scale(),
        colorbar=dict(title="C / chance", thickness=12, len=0.6, y=0.3, **ticks),
        hovertemplate="%{y}.%{x}<br>C = %{z:.3f}<extra></extra>",
        row=2,
        col=1,
    )
    figure.add_hline(y=chance, line=NULL_LINE, row=1, col=1)
    figure.update_yaxes(title_text=SCORE_TITLE, rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="writer head", tickvals=rows[:: scores.n_heads], row=2, col=1)
    figure.update_xaxes(tickangle=-45, row=1, col=1)
    figure.update_xaxes(title_text="component", row=2, col=1)
    figure.update_layout(**frame["layout"], showlegend=False)
    return figure


def static_explorer(scores: CompositionScores, reader: Head) -> go.Figure:
    """:func:`explorer_figure` with menus for reader and kind that work without a kernel; data by layer, on demand."""
    kinds, n_rows = scores.kinds, len(_writers(scores))
    frames = {}
    for layer in range(1, scores.n_layers):
        for head in range(scores.n_heads):
            for kind in kinds:
                view = _view(scores, Head(layer, head), kind)
                bars = view["bars"] | {"y": [round(value, 4) for value in view["bars"]["y"].tolist()]}
                packed = {"z": quantise(view["z"], n_rows)}
                frames[layer, head, kind] = {"data": [bars, packed], "layout": view["layout"]}
    labels = [f"{kind} ({KIND_READS[kind]})" for kind in kinds]
    controls: list[dict[str, Any]] = [
        dict(name="Reader layer", values=list(range(1, scores.n_layers)), start=reader.layer),
        dict(name="Reader head", values=list(range(scores.n_heads)), start=reader.head),
        dict(name="Input", values=kinds, labels=labels, start=kinds[0]),
    ]
    return with_controls(explorer_figure(scores, reader, kinds[0]), controls, frames)


def live_explorer(scores: CompositionScores, reader: Head) -> ipywidgets.Widget:
    """:func:`explorer_figure` behind ipywidgets menus, where a kernel runs."""

    def draw(layer: int, head: int, kind: str) -> None:
        explorer_figure(scores, Head(layer, head), kind).show()

    def menu(name: str, options: list, value: int | str) -> ipywidgets.Dropdown:
        return ipywidgets.Dropdown(options=options, value=value, description=name)

    kinds = scores.kinds
    return ipywidgets.interactive(
        draw,
        layer=menu("Reader layer", list(range(1, scores.n_layers)), reader.layer),
        head=menu("Reader head", list(range(scores.n_heads)), reader.head),
        kind=menu("Input", kinds, kinds[0]),
    )


def _view(scores: CompositionScores, reader: Head, kind: str) -> dict:
    """What changes with the reader: the bars, the map ``[writer heads, components]`` and the title."""
    block, _ = scores.block(reader, kind)
    score, z = block.score[..., reader.head], block.z[..., reader.head].flatten()
    best = score.flatten().nan_to_num(nan=-1.0).argsort(descending=True, stable=True)[:N_BARS]
    names = [str(Component(*map(int, torch.unravel_index(index, score.shape)))) for index in best]
    about = [f"z = {z[index]:.1f}, rank {place}" for place, index in enumerate(best, 1)]
    title = f"What {reader} reads into its {KIND_READS[kind]}:<br>{score.numel():,} earlier components"
    return {
        "bars": dict(x=names, y=score.flatten()[best].numpy(), customdata=about),
        "z": score.flatten(0, 1).numpy(),
        "layout": dict(title=dict(text=title, font=dict(size=14), x=0.01, xanchor="left")),
    }


def _writers(scores: CompositionScores) -> list[str]:
    """Every head that can write to a later one: the rows of the map."""
    return [str(head) for head in heads_in(range(scores.n_layers - 1), scores.n_heads)]


def _chance_scale() -> list[list]:
    """Blue below chance (1/8 of the range), white at it, ever darker red above."""
    return [[0, "#2166ac"], [1 / 8, "#f7f7f7"], [1 / 4, "#fdbb84"], [1 / 2, "#e34a33"], [1, "#7f0000"]]
