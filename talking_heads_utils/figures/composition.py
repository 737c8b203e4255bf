"""Figures of component scores: the known answer, one pair of heads, ranks, links, and the explorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from talking_heads_utils.figures.page import quantise, with_controls
from talking_heads_utils.figures.style import ACCENT, CONTROL, KIND_READS, dropdown, new_figure
from talking_heads_utils.known_answer import PLANTED_READER, PLANTED_WRITER, expected_scores
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.scores import CompositionScores

if TYPE_CHECKING:
    import pandas as pd

SCORE_TITLE = "composition score C"


def known_answer_figure(by_cosine: Mapping[float, CompositionScores]) -> go.Figure:
    """Scores of every component of both writers into both readers, with a slider over the planted angle."""
    pairs = [(w, r) for w in (PLANTED_WRITER.of_head, Head(0, 1)) for r in (PLANTED_READER, Head(1, 1))]
    first = next(iter(by_cosine.values()))
    figure = _grid([f"{w} → {r}" for w, r in pairs], height=470)
    x = list(range(first.d_head))
    for i, pair in enumerate(pairs):
        planted = [i == 0 and c == PLANTED_WRITER.component for c in x]
        colours = [ACCENT if p else CONTROL for p in planted]
        figure.add_bar(x=x, y=first.pair(*pair, "Q").numpy(), marker_color=colours, row=i // 2 + 1, col=i % 2 + 1,
                       hovertemplate=f"{pair[0]}.%{{x}}<br>C = %{{y:.3f}}<extra></extra>", showlegend=False)  # fmt: skip
    figure.add_scatter(x=x, y=expected_scores(next(iter(by_cosine))).numpy(), mode="markers", name="expected exactly",
                       marker=dict(symbol="line-ew-open", size=14, color="black", line_width=2), row=1, col=1)  # fmt: skip
    _null_line(figure, first.null_rms, "random direction")
    figure.update_yaxes(range=[0, 1])
    figure.update_yaxes(title_text=SCORE_TITLE, col=1)
    figure.update_xaxes(title_text="component", row=2)
    figure.frames = [
        go.Frame(
            name=f"{cosine:.2f}",
            data=[dict(y=scores.pair(*pair, "Q").numpy()) for pair in pairs] + [dict(y=expected_scores(cosine).numpy())],
            traces=list(range(5)),
        )
        for cosine, scores in by_cosine.items()
    ]
    return _slider(figure, [frame.name for frame in figure.frames], "cosine between what is written and read: ")


def components_figure(
    scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str
) -> go.Figure:
    """Every component of each writer into one reader, over the range of the other heads of that writer's layer.

    A dropdown chooses the reader. Grey: median and maximum over the layer's other heads, component by component.
    """
    figure = _grid([str(writer) for writer in writers], height=540)
    top = max(scores.pair(w, r, kind).max().item() for w in writers for r in readers) * 1.15
    for i, trace in enumerate(_component_traces(scores, writers, readers[0], kind)):
        figure.add_trace(trace, row=i // 3 // 2 + 1, col=i // 3 % 2 + 1)
    _null_line(figure, scores.null_rms, "random direction")
    figure.update_yaxes(range=[0, top])
    figure.update_yaxes(title_text=SCORE_TITLE, col=1)
    figure.update_xaxes(title_text="component (by singular value)", row=2)
    buttons = []
    for reader in readers:
        traces = _component_traces(scores, writers, reader, kind)
        update = {"y": [t.y for t in traces], "customdata": [t.customdata for t in traces], "text": [t.text for t in traces]}
        buttons.append(dict(label=f"into {reader}, {KIND_READS[kind]}", method="restyle", args=[update, list(range(len(traces)))]))
    figure.update_layout(updatemenus=[dropdown(buttons)], margin_t=92, bargap=0.1, legend_y=-0.16)
    return figure


def _component_traces(scores: CompositionScores, writers: Sequence[Head], reader: Head, kind: str) -> list[go.Bar | go.Scatter]:
    block, _ = scores.block(reader, kind)
    x = list(range(scores.d_head))
    traces = []
    for i, writer in enumerate(writers):
        y = scores.pair(writer, reader, kind).numpy()
        others = block.score[writer.layer, [h for h in range(scores.n_heads) if Head(writer.layer, h) not in writers], :, reader.head]
        z, rank = (t[writer.layer, writer.head, :, reader.head] for t in (block.z, block.rank))
        custom = np.stack([z.numpy(), rank.numpy(), scores.singular_values[writer.layer, writer.head].numpy()], 1)
        best = int(np.nanargmax(y))
        text = [f"{writer}.{best}" if c == best else "" for c in x]
        hover = (f"{writer}.%{{x}} → %{{meta}}<br>C = %{{y:.3f}}, z = %{{customdata[0]:.1f}}"
                 "<br>rank %{customdata[1]:,} of all earlier components<br>singular value %{customdata[2]:.2f}<extra></extra>")  # fmt: skip
        shared = dict(x=x, mode="lines", line_width=1.2, hoverinfo="skip", showlegend=i == 0)
        traces += [
            go.Bar(x=x, y=y, marker_color=ACCENT, name="this head", customdata=custom, text=text, textposition="outside",
                   textfont_size=12, cliponaxis=False, hovertemplate=hover, meta="reader", showlegend=i == 0, legendgroup="this"),
            go.Scatter(y=others.amax(0).numpy(), name="maximum of the layer's other heads", line_color=CONTROL, **shared),
            go.Scatter(y=others.median(0).values.numpy(), name="their median", line=dict(color=CONTROL, dash="dot"), **(shared | {"line_width": None})),
        ]  # fmt: skip
    return traces


def rank_figure(
    scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str, *, labelled: int = 5
) -> go.Figure:
    """All earlier components of a reader by rank, with the best of each chosen writer marked; dropdown for the reader."""
    figure = new_figure(470, margin_t=84)
    sets = [_rank_traces(scores, writers, reader, kind, labelled) for reader in readers]
    figure.add_traces(sets[0])
    figure.add_hline(y=scores.null_rms, line=dict(color=CONTROL, dash="dash", width=1.2),
                     annotation_text="random direction", annotation_position="bottom left")  # fmt: skip
    figure.update_xaxes(title_text="rank among all earlier components (log scale)", type="log", dtick=1)
    figure.update_yaxes(title_text=SCORE_TITLE, rangemode="tozero")
    buttons = []
    for reader, traces in zip(readers, sets):
        update = {key: [getattr(t, key) for t in traces] for key in ("x", "y", "text")}
        buttons.append(dict(label=f"into {reader}, {KIND_READS[kind]}", method="restyle", args=[update, list(range(len(traces)))]))
    figure.update_layout(updatemenus=[dropdown(buttons)])
    return figure


def _rank_traces(scores: CompositionScores, writers: Sequence[Head], reader: Head, kind: str, labelled: int) -> list[go.Scatter]:
    table = scores.table(reader, kind)
    kept = np.unique(np.r_[0:60, np.geomspace(60, len(table) - 1, 140).astype(int)])
    thin = table.iloc[kept]
    of = table["writer"].str.rsplit(".", n=1).str[0]
    names = [str(writer) for writer in writers]
    best = table[of.isin(names)].drop_duplicates(subset=["writer_layer", "writer_head"])
    others = table[~of.isin(names)].head(labelled)
    hover = "%{text}<br>rank %{x:,}, C = %{y:.3f}<extra></extra>"
    return [
        go.Scatter(x=thin["rank"], y=thin["score"], text=thin["writer"], mode="lines+markers", name="all earlier components",
                   line_color=CONTROL, marker_size=3, hovertemplate=hover),
        go.Scatter(x=others["rank"], y=others["score"], text=others["writer"], mode="markers+text", name="strongest of other heads",
                   textposition="bottom left", marker=dict(color=CONTROL, size=8, symbol="diamond"), textfont_size=11, hovertemplate=hover),
        go.Scatter(x=best["rank"], y=best["score"], text=best["writer"], mode="markers+text", name="best of each S-inhibition head",
                   textposition="top right", marker=dict(color=ACCENT, size=11), textfont_size=13, hovertemplate=hover),
    ]  # fmt: skip


def links_figure(table: pd.DataFrame) -> go.Figure:
    """Percentiles of published pairs over those of other heads of the same layers, by measure; dropdown for the link."""
    links = list(dict.fromkeys(table["link"]))
    figure = new_figure(400, margin_t=84)
    sets = [_link_traces(table[table["link"] == link]) for link in links]
    figure.add_traces(sets[0])
    figure.update_xaxes(title_text="percentile among all earlier heads of the reader (100: the strongest)", range=[-4, 104])
    figure.update_yaxes(tickvals=[0, 1], ticktext=["whole<br>head", "one<br>component"], range=[-0.6, 1.6], showgrid=False)
    buttons = []
    for link, traces in zip(links, sets):
        update = {key: [getattr(t, key) for t in traces] for key in ("x", "y", "text")}
        buttons.append(dict(label=link, method="restyle", args=[update, list(range(len(traces)))]))
    figure.update_layout(updatemenus=[dropdown(buttons)])
    return figure


def _link_traces(rows: pd.DataFrame) -> list[go.Scatter]:
    jitter = np.random.default_rng(0).uniform(0.05, 0.3, len(rows))
    level = (rows["measure"] == "one component").to_numpy(float)
    y = np.where(rows["published"], level + jitter, level - jitter)
    traces = []
    for published, name, colour, size in ((False, "other heads of the same layers", CONTROL, 5), (True, "published pairs", ACCENT, 10)):
        part = rows["published"].to_numpy() == published
        traces.append(go.Scatter(
            x=rows["percentile"][part], y=y[part], text=(rows["writer"] + " → " + rows["reader"])[part], mode="markers", name=name,
            marker=dict(color=colour, size=size, opacity=0.5 if not published else 0.95),
            hovertemplate="%{text}<br>percentile %{x:.0f}<extra></extra>"))  # fmt: skip
    return traces


def explorer_figure(scores: CompositionScores, reader: Head, kind: str, *, shown: int = 12) -> go.Figure:
    """Every earlier component of one reader: the strongest as bars, all of them as a map, writer heads by components."""
    frame = _explorer_frame(scores, reader, kind, shown)
    chance = scores.null_rms
    figure = make_subplots(rows=2, cols=1, row_heights=[0.36, 0.64], vertical_spacing=0.13, figure=new_figure(760))
    bars, cells = frame["data"]
    figure.add_bar(**bars, marker_color=ACCENT, hovertemplate="%{x}<br>C = %{y:.3f}, %{customdata}<extra></extra>", row=1, col=1)
    figure.add_heatmap(
        **cells, x=list(range(scores.d_head)), y=[str(Head(l, h)) for l in range(scores.n_layers - 1) for h in range(scores.n_heads)],
        zmin=0, zmax=8 * chance, colorscale=_chance_scale(), hovertemplate="%{y}.%{x}<br>C = %{z:.3f}<extra></extra>",
        colorbar=dict(title="C", tickvals=[chance * m for m in (1, 2, 4, 8)], ticktext=["chance", "2×", "4×", "8×"],
                      thickness=12, len=0.6, y=0.3),
        row=2, col=1,
    )  # fmt: skip
    figure.add_hline(y=chance, line=dict(color=CONTROL, dash="dash", width=1.2), row=1, col=1)
    figure.update_yaxes(title_text=SCORE_TITLE, rangemode="tozero", row=1, col=1)
    figure.update_xaxes(tickangle=-45, row=1, col=1)
    figure.update_xaxes(title_text="component (by singular value)", row=2, col=1)
    figure.update_yaxes(title_text="writer head", row=2, col=1, tickvals=[str(Head(l, 0)) for l in range(scores.n_layers - 1)])
    figure.update_layout(**frame["layout"], showlegend=False)
    return figure


def explorer(scores: CompositionScores, reader: Head, *, shown: int = 12) -> go.Figure:
    """:func:`explorer_figure` with menus for reader and kind that work on the static page; data by layer, on demand."""
    kinds = sorted({kind for kind, _ in scores.blocks}, key="QKV".index)
    frames = {}
    for layer in range(1, scores.n_layers):
        for head in range(scores.n_heads):
            for kind in kinds:
                frame = _explorer_frame(scores, Head(layer, head), kind, shown)
                bars, cells = frame["data"]
                plain = {key: list(value) if key != "y" else [round(float(v), 4) for v in value] for key, value in bars.items()}
                frames[layer, head, kind] = {"data": [plain, {"z": quantise(cells["z"])}], "layout": frame["layout"]}
    controls = [
        dict(name="Reader layer", values=list(range(1, scores.n_layers)), start=reader.layer),
        dict(name="Reader head", values=list(range(scores.n_heads)), start=reader.head),
        dict(name="Input", values=kinds, labels=[f"{kind} ({KIND_READS[kind]})" for kind in kinds], start="Q"),
    ]
    return with_controls(explorer_figure(scores, reader, "Q", shown=shown), controls, frames)


def explorer_widget(scores: CompositionScores, reader: Head, *, shown: int = 12):
    """:func:`explorer_figure` behind ipywidgets menus, for a live kernel."""
    import ipywidgets

    def draw(layer: int, head: int, kind: str) -> None:
        explorer_figure(scores, Head(layer, head), kind, shown=shown).show()

    return ipywidgets.interactive(
        draw, layer=ipywidgets.Dropdown(options=range(1, scores.n_layers), value=reader.layer, description="Reader layer"),
        head=ipywidgets.Dropdown(options=range(scores.n_heads), value=reader.head, description="Reader head"),
        kind=ipywidgets.Dropdown(options=sorted({k for k, _ in scores.blocks}, key="QKV".index), description="Input"),
    )  # fmt: skip


def _explorer_frame(scores: CompositionScores, reader: Head, kind: str, shown: int) -> dict:
    block, _ = scores.block(reader, kind)
    score = block.score[..., reader.head]
    z = block.z[..., reader.head].flatten()
    best = score.flatten().nan_to_num(nan=-1.0).topk(shown).indices
    names = [str(Component(*map(int, torch.unravel_index(index, score.shape)))) for index in best]
    bars = dict(x=names, y=score.flatten()[best].numpy(), customdata=[f"z = {z[i]:.1f}, rank {n}" for n, i in enumerate(best, 1)])
    title = f"What {reader} reads into its {KIND_READS[kind]}: {score.numel():,} earlier components"
    return dict(data=[bars, dict(z=score.flatten(0, 1).numpy())], layout=dict(title=dict(text=title, font_size=14)))


def _chance_scale() -> list[list]:
    """Blue below chance (1/8 of the range), white at it, ever darker red above."""
    return [[0, "#2166ac"], [1 / 8, "#f7f7f7"], [1 / 4, "#fdbb84"], [1 / 2, "#e34a33"], [1, "#7f0000"]]


def _grid(titles: list[str], height: int) -> go.Figure:
    return make_subplots(
        rows=2, cols=2, shared_xaxes=True, shared_yaxes=True, subplot_titles=titles, vertical_spacing=0.12,
        horizontal_spacing=0.04, figure=new_figure(height),
    )  # fmt: skip


def _null_line(figure: go.Figure, value: float, name: str) -> None:
    """A dashed line at the null in every subplot, with one entry in the legend."""
    figure.add_hline(y=value, line=dict(color=CONTROL, dash="dash", width=1.2), row="all", col="all")
    figure.add_scatter(x=[None], y=[None], mode="lines", line=dict(color=CONTROL, dash="dash"), name=name)


def _slider(figure: go.Figure, names: list[str], prefix: str) -> go.Figure:
    options = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    steps = [dict(label=name, method="animate", args=[[name], options]) for name in names]
    figure.update_layout(
        sliders=[dict(steps=steps, currentvalue=dict(prefix=prefix), pad=dict(t=56), x=0, len=1)], legend_y=-0.5
    )
    return figure
