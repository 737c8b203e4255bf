"""Figures of weights alone: the known answer, the components of a head, a circuit's links, and what measures find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.inhibition.basis import DIFFERENCE, EVERY
from talking_heads_utils.experiments.inhibition.links import JOINT
from talking_heads_utils.experiments.inhibition.rivals import MEASURES
from talking_heads_utils.experiments.planted_pair import PLANTED_READER, PLANTED_WRITER, expected_scores
from talking_heads_utils.figures import style
from talking_heads_utils.labels import Head
from talking_heads_utils.roles import NAME_MOVER, S_INHIBITION
from talking_heads_utils.scores.scores import CompositionScores


def known_answer_figure(by_cosine: Mapping[float, CompositionScores]) -> go.Figure:
    """Scores of every component of both writers into both readers, with a slider over the planted angle."""
    pairs = [(w, r) for w in (PLANTED_WRITER.of_head, Head(0, 1)) for r in (PLANTED_READER, Head(1, 1))]
    frames = [
        go.Frame(name=f"{cosine:.2f}", data=_known_answer_traces(scores, cosine, pairs), traces=list(range(5)))
        for cosine, scores in by_cosine.items()
    ]
    figure = _grid([f"{w} → {r}" for w, r in pairs], height=340)
    for i, trace in enumerate(frames[0].data):
        at = i % len(pairs)  # the expected answer, last, belongs to the first panel
        figure.add_trace(trace, row=at // 2 + 1, col=at % 2 + 1)
    _null_line(figure, next(iter(by_cosine.values())).null_rms)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="score C", col=1)
    figure.update_xaxes(title_text="component", row=2)
    figure.frames = frames
    names = [frame.name for frame in frames]
    figure.update_layout(
        sliders=[style.slider(names, "cosine between what is written and read: ", pad=56)], legend_y=-0.5
    )
    return figure


def _known_answer_traces(scores: CompositionScores, cosine: float, pairs: list[tuple[Head, Head]]) -> list:
    x = list(range(scores.d_head))
    planted = [style.ACCENT if c == PLANTED_WRITER.component else style.CONTROL for c in x]
    bars = [
        go.Bar(x=x, y=scores.pair(*pair, "Q").numpy(), marker_color=planted if i == 0 else style.CONTROL,
               showlegend=False, hovertemplate=f"{pair[0]}.%{{x}}<br>C = %{{y:.3f}}<extra></extra>")
        for i, pair in enumerate(pairs)
    ]  # fmt: skip
    mark = dict(symbol="line-ew-open", size=16, color=style.EXPECTED, line_width=3)
    exact = expected_scores(cosine).numpy()
    return [*bars, go.Scatter(x=x, y=exact, mode="markers", name="expected exactly", marker=mark)]


def components_figure(
    scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str
) -> go.Figure:
    """Every component of each writer (four at most) into one reader; a menu chooses among several readers.

    Lines: median and maximum over the other heads of the writer's layer, component by component.
    """
    figure = _grid([str(writer) for writer in writers], height=430)
    sets = [
        [trace for i, w in enumerate(writers) for trace in _component_traces(scores, w, writers, reader, kind, i == 0)]
        for reader in readers
    ]
    for i, trace in enumerate(sets[0]):
        figure.add_trace(trace, row=i // 3 // 2 + 1, col=i // 3 % 2 + 1)
    _null_line(figure, scores.null_rms)
    top = max(scores.pair(w, r, kind).max().item() for w in writers for r in readers)
    figure.update_yaxes(range=[0, 1.15 * top])
    figure.update_yaxes(title_text=style.SCORE_TITLE, col=1)
    figure.update_xaxes(range=[-4, scores.d_head])
    figure.update_xaxes(title_text="component", row=2)
    figure.update_layout(bargap=0.1, legend_y=-0.16)
    if len(readers) > 1:
        menu = _menu([f"into {reader}, {style.KIND_READS[kind]}" for reader in readers], sets)
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
    label = dict(textposition="outside", textfont_size=12, textangle=0, constraintext="none", cliponaxis=False)
    bars = go.Bar(
        x=x, y=y, name="this head", marker_color=style.ACCENT, opacity=0.85, meta=str(reader), showlegend=in_legend,
        text=[f"{writer}.{c}" if c == best else "" for c in x], **label,
        customdata=np.stack([z, rank, scores.singular_values[writer.layer, writer.head].numpy()], 1),
        hovertemplate=f"{writer}.%{{x}} → %{{meta}}<br>C = %{{y:.3f}}, z = %{{customdata[0]:.1f}}<br>"
        "rank %{customdata[1]:,} of all earlier components<br>singular value %{customdata[2]:.2f}<extra></extra>",
    )  # fmt: skip
    line = dict(x=x, mode="lines", hoverinfo="skip", showlegend=in_legend)
    highest, median = control.amax(0).numpy(), control.median(0).values.numpy()
    return [
        bars,
        go.Scatter(
            y=highest, name="maximum of the layer's other heads", line=dict(color=style.CONTROL, width=1.6), **line
        ),
        go.Scatter(y=median, name="their median", line=dict(color=style.INK, width=1.6, dash="dot"), **line),
    ]


AT_BOTTOM = dict(yref="container", y=0, yanchor="bottom")  # a legend below what it explains, on a phone too
MODEL_COLOURS = (style.EXPECTED, "#0072B2", "#009E73")  # where models stand side by side


def links_figure(table: pd.DataFrame) -> go.Figure:
    """Percentile of the known writers of each link, with its interval, over the controls; dashes: the 95th percentile
    of as many heads drawn from the same layers. table: of
    :class:`~talking_heads_utils.experiments.inhibition.links.LinkRow`."""
    figure, found = style.new_figure(300, margin_t=12, modebar_remove=style.NO_BUTTONS), table[table["link"] != JOINT]
    own = found[found["control"] == ""]
    names = own["link"].tolist()
    for i, (control, part) in enumerate(found[found["control"] != ""].groupby("control", sort=False)):
        figure.add_scatter(
            x=part["value"].round(1).tolist(), y=part["link"].tolist(), name=f"control: {control}", mode="markers",
            marker=dict(color=style.CONTROL, size=9, symbol=("circle-open", "square-open", "diamond-open")[i % 3]),
            hovertemplate=f"%{{y}}, {control}: %{{x}}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=own["null_high"].round(1).tolist(), y=names, name="95% of random heads", mode="markers", hoverinfo="skip",
        marker=dict(color=style.INK, symbol="line-ns-open", size=18, line_width=2),
    )  # fmt: skip
    figure.add_scatter(
        x=own["value"].round(1).tolist(), y=names, name="the link", mode="markers",
        marker=dict(color=style.ACCENT, size=12),
        error_x=style.error_bars(own, "value", digits=1) | dict(color=style.ACCENT),
        customdata=own["p_holm"].round(4).tolist(),
        hovertemplate="%{y}: %{x}, p = %{customdata} after Holm<extra></extra>",
    )  # fmt: skip
    figure.update_layout(legend=AT_BOTTOM)
    figure.update_xaxes(title_text="percentile among all earlier heads", range=[0, 104])
    return figure.update_yaxes(
        categoryorder="array",
        categoryarray=names[::-1],
        tickvals=names,
        ticktext=[link.replace(" → ", " →<br>") for link in names],
    )


def listeners_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Every later head by how strongly its query reads the inhibition heads' components, a panel per model. tables:
    model -> of :class:`~talking_heads_utils.experiments.inhibition.listeners.ListenerRow`."""
    figure = style.stacked(len(tables), list(tables), 50 + 160 * len(tables), 0.2)
    for row, table in enumerate(tables.values(), 1):
        heads = table[table["head"] != EVERY].sort_values("rank")
        listens = heads["listener"].astype(bool)
        for name, part, look in (
            ("other later heads", heads[~listens], dict(color=style.CONTROL, size=7)),
            ("movers and their backups", heads[listens], dict(color=style.role_colour(NAME_MOVER), size=11)),
        ):
            figure.add_trace(go.Scatter(
                x=part["rank"].astype(int).tolist(), y=part["value"].astype(float).round(1).tolist(), name=name,
                mode="markers", marker=look, legendgroup=name, showlegend=row == 1,
                text=[f"{head}, {role or 'no role'}" for head, role in zip(part["head"], part["role"])],
                hovertemplate="%{text}<br>rank %{x}, percentile %{y}<extra></extra>",
            ), row=row, col=1)  # fmt: skip
    figure.update_yaxes(title_text="percentile", range=[0, 104])
    figure.update_xaxes(title_text="later heads, the strongest reader first", row=len(tables), col=1)
    return figure.update_layout(legend=AT_BOTTOM, modebar_remove=style.NO_BUTTONS)


def basis_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """How far the best singular component of a head beats the best direction of random bases, mean over movers; a
    point per head, a bar over the group. tables: model -> of
    :class:`~talking_heads_utils.experiments.inhibition.basis.BasisRow`."""
    figure = style.new_figure(300, margin_t=12)
    for model, table in tables.items():
        rows = table[(table["reader"] == EVERY) & (table["group"] != DIFFERENCE)]
        for group, part in rows.groupby("group", sort=False):
            name, colour = f"{model},<br>{group}", style.ACCENT if group == S_INHIBITION else style.CONTROL
            heads, whole = part[part["head"] != EVERY], part[part["head"] == EVERY]
            figure.add_scatter(
                x=[name] * len(heads), y=heads["ratio"].round(3).tolist(), mode="markers", showlegend=False,
                marker=dict(color=colour, size=8, opacity=0.7), text=heads["head"].tolist(),
                hovertemplate="%{text}: %{y:.2f} times<extra></extra>",
            )  # fmt: skip
            figure.add_scatter(
                x=[name] * len(whole), y=whole["ratio"].round(3).tolist(), mode="markers", showlegend=False,
                error_y=style.error_bars(whole, "ratio") | dict(color=style.INK, thickness=1.6), hoverinfo="skip",
                marker=dict(color=style.INK, size=26, symbol="line-ew-open", line_width=2.5),
            )  # fmt: skip
    figure.add_hline(
        y=1, line=style.NULL_LINE, annotation_text="no better than a random basis", annotation_position="top left"
    )
    return figure.update_yaxes(title_text="best component, times random best")


def rivals_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """How well each measure ranks known writers, mean over readers with its interval; small points: readers. tables:
    model -> of :class:`~talking_heads_utils.experiments.inhibition.rivals.RivalRow`."""
    panels = {"auc": "known writers before other heads (AUC)",
              "r_precision": "known writers in the first R (R-precision)"}  # fmt: skip
    figure = style.stacked(2, list(panels.values()), 420, 0.18)
    for i, (model, table) in enumerate(tables.items()):
        rows, colour = table[table["link"] == EVERY], MODEL_COLOURS[i % len(MODEL_COLOURS)]
        means, readers = rows[rows["reader"] == EVERY], rows[rows["reader"] != EVERY]
        shift = 0.18 * (i - (len(tables) - 1) / 2)
        for row, value in enumerate(panels, 1):
            for part, look in ((readers, dict(size=5, opacity=0.4)), (means, dict(size=11))):
                whole = part is means
                figure.add_trace(go.Scatter(
                    x=[MEASURES.index(m) + shift for m in part["measure"]], y=part[value].round(3).tolist(),
                    mode="markers", marker=dict(color=colour, **look), name=model, legendgroup=model,
                    showlegend=whole and row == 1, text=part["reader"].tolist(),
                    error_y=style.error_bars(part, value, ends=f"{value}_") if whole else None,
                    hovertemplate=f"{model}, %{{text}}: %{{y:.2f}}<extra></extra>",
                ), row=row, col=1)  # fmt: skip
    names = [measure.replace("_", "<br>") for measure in MEASURES]
    figure.update_xaxes(tickvals=list(range(len(MEASURES))), ticktext=names, range=[-0.5, len(MEASURES) - 0.5])
    figure.update_xaxes(showticklabels=False, row=1, col=1)
    figure.update_yaxes(range=[-0.03, 1.05])
    figure.add_hline(y=0.5, line=style.NULL_LINE, row=1, col=1)
    return figure.update_layout(legend=AT_BOTTOM, modebar_remove=style.NO_BUTTONS)


def _menu(labels: Sequence[str], sets: Sequence[list]) -> dict:
    """A dropdown that replaces what the first traces of a figure show by what those of the chosen set do."""
    buttons = []
    for label, traces in zip(labels, sets):
        update = {key: [getattr(trace, key) for trace in traces] for key in ("y", "customdata", "text", "meta")}
        buttons.append(dict(label=label, method="restyle", args=[update, list(range(len(traces)))]))
    return style.dropdown(buttons)


def _grid(titles: list[str], height: int) -> go.Figure:
    look = dict(shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.12, horizontal_spacing=0.04)
    return make_subplots(rows=2, cols=2, subplot_titles=titles, figure=style.new_figure(height, margin_t=56), **look)


def _null_line(figure: go.Figure, value: float) -> None:
    """A dashed line at the null in every subplot, with one entry in the legend."""
    figure.add_hline(y=value, line=style.NULL_LINE, row="all", col="all")
    figure.add_scatter(x=[None], y=[None], mode="lines", line=style.NULL_LINE, name="random direction")
