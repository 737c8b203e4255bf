"""A circuit as a graph: who writes to whom, read from weights alone."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from talking_heads_utils.experiments.inhibition.published import (
    MEASURES,
    ONE_COMPONENT,
    Link,
    Roles,
    edges_above,
    expected_published,
    published_edges,
)
from talking_heads_utils.figures.style import (
    CONTROL,
    KIND_COLOURS,
    KIND_READS,
    NO_BUTTONS,
    new_figure,
    role_colour,
    slider,
    stacked,
)
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.roles import role_of
from talking_heads_utils.scores.scores import CompositionScores

Edge = tuple[Head, Head, str]  # writer, reader, hover text
Panel = tuple[dict[str, list[Edge]], tuple[int, int]]  # edges by kind; how many are published, how many there are


def circuit_figure(scores: CompositionScores, roles: Roles, links: Sequence[Link], *, largest_k: int = 8) -> go.Figure:
    """The k strongest writers of every reader in ``links``, by one component (above) and by the whole head (below).

    Any head of the model may be a writer. A slider sets k; the titles count how many of the edges come from a head
    which the literature links to that reader.
    """
    figure = stacked(2, [" "] * 2, 980, 0.09)
    kinds = list(dict.fromkeys(kind for *_, kind in links))
    by_k = {k: [_edges(scores, roles, links, measure, k) for measure in MEASURES] for k in range(1, largest_k + 1)}
    start = 3
    for row, (lines, _) in enumerate(by_k[start], 1):
        for kind in kinds:
            figure.add_trace(_line_trace(lines[kind], kind, showlegend=row == 1), row=row, col=1)
            figure.add_trace(_hover_trace(lines[kind], kind), row=row, col=1)
        for trace in _node_traces(scores, roles, showlegend=row == 1):
            figure.add_trace(trace, row=row, col=1)
    per_panel = 2 * len(kinds) + len(_node_traces(scores, roles, False))
    moving = [panel * per_panel + i for panel in range(2) for i in range(2 * len(kinds))]
    figure.frames = [_frame(k, panels, kinds, moving) for k, panels in by_k.items()]
    for row in (1, 2):
        figure.update_yaxes(title_text="layer", tickvals=list(range(scores.n_layers)), row=row, col=1)
        figure.update_xaxes(tickvals=list(range(scores.n_heads)), range=[-0.6, scores.n_heads - 0.4], row=row, col=1)
    figure.update_xaxes(title_text="head", row=2, col=1)
    for annotation, text in zip(figure.layout.annotations, _titles(by_k[start])):
        annotation.text = text
    names = [str(k) for k in by_k]
    figure.update_layout(
        sliders=[slider(names, "strongest writers shown per reader: ", pad=44, active=start - 1)], legend_y=-0.2
    )
    return figure


def link_figure(
    scores: CompositionScores, roles: Roles, link: Link, *, thresholds: Sequence[float], start: float
) -> go.Figure:
    """Every head whose best component a link's readers read with a z above a threshold (slider), small enough for one
    screen. The title counts the published edges among them, and how many there would be if those out of each layer fell
    evenly on its heads."""
    writers, readers, kind = link
    found = {z: edges_above(scores, roles, link, z) for z in thresholds}
    colours = (CONTROL, role_colour(writers))
    figure = new_figure(400, margin_t=56, dragmode=False, modebar_remove=NO_BUTTONS)
    for part, colour in zip(_by_writer(found[start]), colours):
        edges = [edge[:3] for edge in part]
        figure.add_trace(_line_trace(edges, kind, False).update(line_color=colour))
        figure.add_trace(_hover_trace(edges, kind).update(marker_color=colour))
    nodes = _node_traces(scores, {role: roles[role] for role in (writers, readers)}, True, rest="other heads")
    for trace, place in zip(nodes[1:], ("bottom center", "top center")):
        trace.update(mode="markers+text", textposition=place, textfont_size=11, cliponaxis=False)
    figure.add_traces(nodes)
    figure.frames = [
        go.Frame(
            name=f"{z:g}",
            data=[xy([e[:3] for e in part]) for part in _by_writer(edges) for xy in (_line_xy, _hover_xy)],
            traces=list(range(4)),
            layout=dict(title=_counted(scores, roles, link, edges, z)),
        )
        for z, edges in found.items()
    ]
    active = list(found).index(start)
    top = max(reader.layer for reader in roles[readers])
    figure.update_yaxes(title_text="layer", tickvals=list(range(top + 1)), range=[-0.5, top + 0.5])
    figure.update_xaxes(title_text="head", tickvals=list(range(scores.n_heads)), range=[-0.9, scores.n_heads - 0.1])
    names = [frame.name for frame in figure.frames]
    figure.update_layout(
        title=figure.frames[active].layout.title, sliders=[slider(names, "z of at least: ", pad=44, active=active)]
    )
    return figure


def _by_writer(edges: Sequence[tuple]) -> list[list[tuple]]:
    """Edges that nobody published, and those that are published: these are drawn above."""
    return [[edge for edge in edges if edge[3] == published] for published in (False, True)]


def _counted(scores: CompositionScores, roles: Roles, link: Link, edges: Sequence[tuple], z: float) -> dict:
    writers, readers = (roles[role] for role in link[:2])
    published = sum(w.layer < r.layer for w in writers for r in readers)
    known = sum(edge[3] for edge in edges)
    text = (
        f"{len(edges)} edges with z of {z:g} or more: {known} of the {published}<br>"
        f"published ones; evenly within layers it would be {expected_published(roles, link, edges, scores.n_heads):.1f}"
    )
    return dict(text=text, font=dict(size=13), x=0.01, xanchor="left", y=0.97, yanchor="top")


def _edges(scores: CompositionScores, roles: Roles, links: Sequence[Link], measure: str, k: int) -> Panel:
    """The edges of one measure."""
    edges = published_edges(scores, roles, links, k, measure)
    lines: dict[str, list[Edge]] = {kind: [] for *_, kind in links}
    for head, component, reader, kind, value, _ in edges:
        source = component if measure == ONE_COMPONENT else head
        lines[kind].append((head, reader, f"{source} → {reader}, {KIND_READS[kind]}<br>C = {value:.3f}"))
    return lines, (sum(known for *_, known in edges), len(edges))


def _titles(panels: Sequence[Panel]) -> list[str]:
    return [f"{measure}: {known} of {total} edges published" for measure, (_, (known, total)) in zip(MEASURES, panels)]


def _frame(k: int, panels: Sequence[Panel], kinds: list[str], moving: list[int]) -> go.Frame:
    data = [trace for lines, _ in panels for kind in kinds for trace in (_line_xy(lines[kind]), _hover_xy(lines[kind]))]
    return go.Frame(
        name=str(k), data=data, traces=moving, layout=dict(annotations=[dict(text=text) for text in _titles(panels)])
    )


def _line_xy(edges: Sequence[Edge]) -> dict:
    x, y = [], []
    for writer, reader, _ in edges:
        x += [writer.head, reader.head, None]
        y += [writer.layer, reader.layer, None]
    return dict(x=x, y=y)


def _hover_xy(edges: Sequence[Edge]) -> dict:
    """A point a third of the way along each edge carries its text."""
    x = [(2 * w.head + r.head) / 3 for w, r, _ in edges]
    y = [(2 * w.layer + r.layer) / 3 for w, r, _ in edges]
    return dict(x=x, y=y, text=[text for *_, text in edges])


def _line_trace(edges: Sequence[Edge], kind: str, showlegend: bool) -> go.Scatter:
    return go.Scatter(
        **_line_xy(edges),
        mode="lines",
        line=dict(color=KIND_COLOURS[kind], width=1.6),
        opacity=0.75,
        hoverinfo="skip",
        name=f"into the {KIND_READS[kind]}",
        legendgroup=kind,
        showlegend=showlegend,
    )


def _hover_trace(edges: Sequence[Edge], kind: str) -> go.Scatter:
    return go.Scatter(
        **_hover_xy(edges),
        mode="markers",
        marker=dict(color=KIND_COLOURS[kind], size=6),
        legendgroup=kind,
        showlegend=False,
        hovertemplate="%{text}<extra></extra>",
    )


def _node_traces(
    scores: CompositionScores, roles: Roles, showlegend: bool, rest: str = "no published role"
) -> list[go.Scatter]:
    heads = heads_in(range(scores.n_layers), scores.n_heads)
    traces = []
    for role in (None, *roles):
        part = [head for head in heads if role_of(head, roles) == role]
        traces.append(
            go.Scatter(
                x=[h.head for h in part],
                y=[h.layer for h in part],
                mode="markers",
                name=role or rest,
                marker=dict(color=role_colour(role), size=11 if role else 4, opacity=1 if role else 0.5),
                legendgroup=role or "none",
                text=[str(h) for h in part],
                hovertemplate=f"%{{text}}<br>{role or rest}<extra></extra>",
                showlegend=showlegend,
            )
        )
    return traces
