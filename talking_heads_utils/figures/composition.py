"""Figures of component scores: the known answer, the components of a head, their ranks, and a circuit's links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.inhibition.published import constant_best
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    INK,
    KIND_READS,
    NULL_LINE,
    SCORE_TITLE,
    dropdown,
    new_figure,
    slider,
)
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.planted.pair import PLANTED_READER, PLANTED_WRITER, expected_scores
from talking_heads_utils.scores.scores import CompositionScores

if TYPE_CHECKING:
    import pandas as pd

CROWDED, NAMES_AT = 50, 70  # on the figure of ranks: up to which rank names stand in a column, and at which rank


def known_answer_figure(by_cosine: Mapping[float, CompositionScores]) -> go.Figure:
    """Scores of every component of both writers into both readers, with a slider over the planted angle."""
    pairs = [(w, r) for w in (PLANTED_WRITER.of_head, Head(0, 1)) for r in (PLANTED_READER, Head(1, 1))]
    start = next(iter(by_cosine.values()))
    frames = [
        go.Frame(name=f"{cosine:.2f}", data=_known_answer_traces(scores, cosine, pairs), traces=list(range(5)))
        for cosine, scores in by_cosine.items()
    ]
    figure = _grid([f"{w} → {r}" for w, r in pairs], height=540)
    for i, trace in enumerate(frames[0].data):
        at = i % len(pairs)  # the expected answer, last, belongs to the first panel
        figure.add_trace(trace, row=at // 2 + 1, col=at % 2 + 1)
    _null_line(figure, start.null_rms)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="score C", col=1)
    figure.update_xaxes(title_text="component", row=2)
    figure.frames = frames
    names = [frame.name for frame in frames]
    figure.update_layout(sliders=[slider(names, "cosine between what is written and read: ", pad=56)], legend_y=-0.5)
    return figure


def _known_answer_traces(scores: CompositionScores, cosine: float, pairs: list[tuple[Head, Head]]) -> list:
    x = list(range(scores.d_head))
    planted = [ACCENT if c == PLANTED_WRITER.component else CONTROL for c in x]
    bars = [
        go.Bar(
            x=x,
            y=scores.pair(*pair, "Q").numpy(),
            marker_color=planted if i == 0 else CONTROL,
            hovertemplate=f"{pair[0]}.%{{x}}<br>C = %{{y:.3f}}<extra></extra>",
            showlegend=False,
        )
        for i, pair in enumerate(pairs)
    ]
    mark = dict(symbol="line-ew-open", size=16, color=EXPECTED, line_width=3)
    exact = expected_scores(cosine).numpy()
    return [*bars, go.Scatter(x=x, y=exact, mode="markers", name="expected exactly", marker=mark)]


def components_figure(
    scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str
) -> go.Figure:
    """Every component of each writer (four at most) into one reader; a menu chooses among several readers.

    Lines: median and maximum over the other heads of the writer's layer, component by component.
    """
    figure = _grid([str(writer) for writer in writers], height=540)
    sets = [
        [trace for i, w in enumerate(writers) for trace in _component_traces(scores, w, writers, reader, kind, i == 0)]
        for reader in readers
    ]
    for i, trace in enumerate(sets[0]):
        figure.add_trace(trace, row=i // 3 // 2 + 1, col=i // 3 % 2 + 1)
    _null_line(figure, scores.null_rms)
    top = max(scores.pair(w, r, kind).max().item() for w in writers for r in readers)
    figure.update_yaxes(range=[0, 1.15 * top])
    figure.update_yaxes(title_text=SCORE_TITLE, col=1)
    figure.update_xaxes(range=[-4, scores.d_head])
    figure.update_xaxes(title_text="component", row=2)
    figure.update_layout(bargap=0.1, legend_y=-0.16)
    if len(readers) > 1:
        menu = _menu([_into(reader, kind) for reader in readers], sets, ("y", "customdata", "text", "meta"))
        figure.update_layout(updatemenus=[menu], margin_t=92)
    return figure


def _component_traces(
    scores: CompositionScores, writer: Head, writers: Sequence[Head], reader: Head, kind: str, in_legend: bool
) -> list:
    block, _ = scores.block(reader, kind)
    x = list(range(scores.d_head))
    y = scores.pair(writer, reader, kind).numpy()
    z, rank = (t[writer.layer, writer.head, :, reader.head].numpy() for t in (block.z, block.rank))
    others = [h for h in range(scores.n_heads) if Head(writer.layer, h) not in writers]
    control = block.score[writer.layer, others, :, reader.head]
    best = int(np.nanargmax(y))
    bars = go.Bar(
        x=x,
        y=y,
        name="this head",
        marker_color=ACCENT,
        opacity=0.85,
        text=[f"{writer}.{c}" if c == best else "" for c in x],
        textposition="outside",
        textfont_size=12,
        textangle=0,
        constraintext="none",
        cliponaxis=False,
        customdata=np.stack([z, rank, scores.singular_values[writer.layer, writer.head].numpy()], 1),
        meta=str(reader),
        hovertemplate=f"{writer}.%{{x}} → %{{meta}}<br>C = %{{y:.3f}}, z = %{{customdata[0]:.1f}}<br>"
        "rank %{customdata[1]:,} of all earlier components<br>singular value %{customdata[2]:.2f}<extra></extra>",
        showlegend=in_legend,
    )
    line = dict(x=x, mode="lines", hoverinfo="skip", showlegend=in_legend)
    highest, median = control.amax(0).numpy(), control.median(0).values.numpy()
    return [
        bars,
        go.Scatter(y=highest, name="maximum of the layer's other heads", line=dict(color=CONTROL, width=1.6), **line),
        go.Scatter(y=median, name="their median", line=dict(color=INK, width=1.6, dash="dot"), **line),
    ]


def finding_figure(
    scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str, *, role: str
) -> go.Figure:
    """How far the best component of every earlier head stands out of random directions, mean over the readers, layer
    by layer: the writers, which have that role, among all others. Dashed: the largest of the random directions, in
    any reader."""
    figure = new_figure(400)
    below = min(reader.layer for reader in readers)
    z = torch.stack([scores.best_z(kind)[:below, :, reader.layer, reader.head] for reader in readers]).mean(0)
    for name, heads, look in (
        (
            "other heads",
            [h for h in heads_in(range(below), scores.n_heads) if h not in writers],
            dict(mode="markers", marker=dict(color=CONTROL, size=6)),
        ),
        (
            role,
            writers,
            dict(mode="markers+text", marker=dict(color=ACCENT, size=11), textposition="middle left"),
        ),
    ):
        figure.add_scatter(
            x=[h.layer + 0.05 * (h.head - (scores.n_heads - 1) / 2) for h in heads],
            y=[round(z[h.layer, h.head].item(), 2) for h in heads],
            text=[str(constant_best(scores, h, readers, kind) or h) for h in heads],
            name=name,
            cliponaxis=False,
            hovertemplate="%{text}: mean z %{y:.1f}<extra></extra>",
            **look,
        )
    figure.add_hline(y=max(scores.largest_random_z(reader, kind) for reader in readers), line=NULL_LINE)
    figure.update_xaxes(title_text="layer of the head", dtick=1)
    figure.update_yaxes(title_text="z of its best component", rangemode="tozero")
    return figure


def rank_figure(
    scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str, *, labelled: int = 3
) -> go.Figure:
    """All earlier components of a reader by rank, the best of each chosen writer marked; a menu chooses the reader."""
    figure = new_figure(470, margin_t=84)
    sets = [_rank_traces(scores, writers, reader, kind, labelled) for reader in readers]
    figure.add_traces(sets[0])
    figure.add_hline(
        y=scores.null_rms, line=NULL_LINE, annotation_text="random direction", annotation_position="bottom left"
    )
    last = np.log10(max(len(scores.table(reader, kind)) for reader in readers))
    figure.update_xaxes(title_text="rank among earlier components", type="log", dtick=1)
    figure.update_xaxes(range=[-0.2, last + 0.15])
    figure.update_yaxes(title_text=SCORE_TITLE, rangemode="tozero")
    changing = ("x", "y", "text", "textposition")
    figure.update_layout(updatemenus=[_menu([_into(reader, kind) for reader in readers], sets, changing)])
    return figure


def _rank_traces(
    scores: CompositionScores, writers: Sequence[Head], reader: Head, kind: str, labelled: int
) -> list[go.Scatter]:
    table = scores.table(reader, kind)
    thin = table.iloc[np.unique(np.geomspace(1, len(table), 300).astype(int)) - 1]
    chosen = table["writer"].str.rsplit(".", n=1).str[0].isin([str(writer) for writer in writers])
    best = table[chosen].drop_duplicates(subset=["writer_layer", "writer_head"])

    others = table[~chosen].head(labelled)

    def points(rows: pd.DataFrame, name: str, mode: str, **look: Any) -> go.Scatter:
        hover = "%{text}<br>rank %{x:,}, C = %{y:.3f}<extra></extra>"
        of = dict(x=rows["rank"], y=rows["score"], text=rows["writer"])
        return go.Scatter(**of, name=name, mode=mode, hovertemplate=hover, **look)

    small, large = dict(color=CONTROL, size=8, symbol="diamond"), dict(color=ACCENT, size=11)
    return [
        points(thin, "all earlier components", "lines+markers", line_color=CONTROL, marker_size=3),
        points(others, "strongest of other heads", "markers", marker=small),
        points(best, "best of each chosen head", "markers", marker=large),
        *_rank_names(table[table["writer"].isin([*others["writer"], *best["writer"]])]),
    ]


def _rank_names(rows: pd.DataFrame) -> list[go.Scatter]:
    """Names of the marked components, and lines to them. The first ones lie so close that theirs form a column right of
    them, in the same order; the others' stand by their points."""
    rows, top = rows.sort_values("rank"), rows["score"].max()
    points = list(zip(rows["rank"].tolist(), rows["score"].tolist()))
    crowded = sum(rank <= CROWDED for rank, _ in points)
    column = [(NAMES_AT, (1.02 - 0.065 * i) * top) for i in range(crowded)]
    led = [at for start, end in zip(points, column) for at in (start, end, (None, None))]
    places = ["middle right" if i < crowded else "bottom left" for i in range(len(points))]
    named = [*column, *((rank / 1.15, score) for rank, score in points[crowded:])]
    look = dict(hoverinfo="skip", showlegend=False, cliponaxis=False)
    line = dict(color=CONTROL, width=0.8)
    return [
        go.Scatter(x=[x for x, _ in led], y=[y for _, y in led], mode="lines", line=line, **look),
        go.Scatter(x=[x for x, _ in named], y=[y for _, y in named], text=rows["writer"].tolist(), mode="text",
                   textposition=places, textfont_size=12, **look),
    ]  # fmt: skip


def links_figure(table: pd.DataFrame) -> go.Figure:
    """Percentiles of published pairs over those of other heads of the same layers, by measure, out of
    :func:`talking_heads_utils.experiments.inhibition.links.link_table`; a menu chooses the link."""
    links = list(dict.fromkeys(table["link"]))
    sets = [_link_traces(table[table["link"] == link]) for link in links]
    figure = new_figure(400, margin_t=84)
    figure.add_traces(sets[0])
    figure.update_xaxes(title_text="percentile among earlier heads", range=[-4, 104])
    figure.update_yaxes(tickvals=[0, 1], ticktext=["whole<br>head", "one<br>component"])
    figure.update_yaxes(range=[-0.6, 1.6], showgrid=False)
    figure.update_layout(updatemenus=[_menu(links, sets, ("x", "y", "text"))])
    return figure


def _link_traces(rows: pd.DataFrame) -> list[go.Scatter]:
    jitter = np.random.default_rng(0).uniform(0.05, 0.3, len(rows))
    level = (rows["measure"] == "one component").to_numpy(float)
    published = rows["published"].to_numpy()
    names = (rows["writer"] + " → " + rows["reader"]).to_numpy()
    looks = (
        (~published, -jitter, "other heads of the same layers", dict(color=CONTROL, size=5, opacity=0.5)),
        (published, jitter, "published pairs", dict(color=ACCENT, size=10, opacity=0.95)),
    )
    return [
        go.Scatter(
            x=rows["percentile"].to_numpy()[part],
            y=(level + shift)[part],
            text=names[part],
            name=name,
            mode="markers",
            marker=marker,
            hovertemplate="%{text}<br>percentile %{x:.0f}<extra></extra>",
        )
        for part, shift, name, marker in looks
    ]


def _into(reader: Head, kind: str) -> str:
    return f"into {reader}, {KIND_READS[kind]}"


def _menu(labels: Sequence[str], sets: Sequence[list], keys: Sequence[str]) -> dict:
    """A dropdown that replaces ``keys`` of the first traces of a figure by those of the chosen set."""
    buttons = []
    for label, traces in zip(labels, sets):
        update = {key: [getattr(trace, key) for trace in traces] for key in keys}
        buttons.append(dict(label=label, method="restyle", args=[update, list(range(len(traces)))]))
    return dropdown(buttons)


def _grid(titles: list[str], height: int) -> go.Figure:
    look = dict(shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.12, horizontal_spacing=0.04)
    return make_subplots(rows=2, cols=2, subplot_titles=titles, figure=new_figure(height, margin_t=56), **look)


def _null_line(figure: go.Figure, value: float) -> None:
    """A dashed line at the null in every subplot, with one entry in the legend."""
    figure.add_hline(y=value, line=NULL_LINE, row="all", col="all")
    figure.add_scatter(x=[None], y=[None], mode="lines", line=NULL_LINE, name="random direction")
