"""A circuit as a graph: a sketch of the roles that were found, and who writes to whom by weights alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils.experiments.inhibition.links import edges_above, expected_edges
from talking_heads_utils.figures.style import (
    CONTROL,
    KIND_COLOURS,
    KIND_READS,
    NO_BUTTONS,
    new_figure,
    role_colour,
    slider,
)
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.roles import (
    DUPLICATE_TOKEN,
    INDUCTION,
    NAME_MOVER,
    S_INHIBITION,
    S_SUPPRESSION,
    Link,
    role_of,
)
from talking_heads_utils.scores.scores import CompositionScores

if TYPE_CHECKING:
    import pandas as pd

Edge = tuple[Head, Head, str]  # writer, reader, hover text
Point = tuple[float, float]


# Where the sketch puts the box of a role: heads that work at S2 on the left, at the last token on the right.
PLACES = {
    DUPLICATE_TOKEN: (0.8, 1.3),
    INDUCTION: (0.8, 3.0),
    S_INHIBITION: (3.2, 3.1),
    S_SUPPRESSION: (0.8, 5.25),
    NAME_MOVER: (3.2, 5.25),
}
ANSWER = (3.2, 7.2)
SEES = {S_INHIBITION: ("to_s2", "S2"), S_SUPPRESSION: ("to_s2", "S2"), NAME_MOVER: ("to_io", "IO")}
LISTED = 6  # heads that a box names


def sketch(table: pd.DataFrame, words: Mapping[str, str], answer: str) -> go.Figure:
    """The circuit as its roles were found: boxes of heads, and arrows with their effects on what reads them. table: of
    :meth:`talking_heads_utils.roles.Roles.frame`. words: position name -> token; answer: the right one."""
    figure = new_figure(450, margin_t=4, dragmode=False, modebar_remove=NO_BUTTONS)
    found = table[table["confirmed"].astype(bool)]
    boxes = {role: found[found["role"] == role] for role in PLACES if (found["role"] == role).any()}
    figure.add_scatter(
        x=[PLACES[INDUCTION][0], PLACES[S_INHIBITION][0]], y=[0, 0], mode="markers+text", hoverinfo="skip",
        text=[f"at <b>{words[name]}</b> ({name})" for name in ("S2", "end")], textposition="bottom center",
        marker=dict(color=CONTROL, size=7), showlegend=False, cliponaxis=False,
    )  # fmt: skip
    for role, part in boxes.items():
        for end, unit in _goes_to(role, boxes):
            _arrow(figure, PLACES[role], end, _effects(part["effect"], unit), role_colour(role))
        _box(figure, PLACES[role], _listed(role, part), role_colour(role))
    _box(figure, ANSWER, f"next token: <b>{answer}</b>", CONTROL)
    figure.update_xaxes(visible=False, range=[-0.1, 4.2])
    return figure.update_yaxes(visible=False, range=[-0.6, 7.5])


def _goes_to(role: str, there: Collection[str]) -> list[tuple[Point, str]]:
    """What the heads of a role write to, and the unit of their effect on it."""
    if role in (NAME_MOVER, S_SUPPRESSION):
        return [(ANSWER, "logits")]
    reader, unit = (NAME_MOVER, "nats, in queries") if role == S_INHIBITION else (S_INHIBITION, "nats, in values")
    return [(PLACES[reader], unit)] if reader in there else []


def _effects(effects: pd.Series, unit: str) -> str:
    low, high = effects.min(), effects.max()
    return f"{low:+.2f}{'' if len(effects) == 1 else f' to {high:+.2f}'}<br>{unit}"


def _listed(role: str, part: pd.DataFrame) -> str:
    """The role, its heads, the strongest first, and where they look on average."""
    heads = list(dict.fromkeys(part.sort_values("effect", key=abs, ascending=False)["head"]))
    lines = [f"<b>{role}</b>", *(" ".join(heads[:LISTED][i : i + 2]) for i in range(0, len(heads[:LISTED]), 2))]
    lines += [f"+ {len(heads) - LISTED}"] if len(heads) > LISTED else []
    if role in SEES:
        column, name = SEES[role]
        lines.append(f"{part.drop_duplicates('head')[column].mean():.0%} of attention to {name}")
    return "<br>".join(lines)


def _arrow(figure: go.Figure, start: Point, end: Point, text: str, colour: str) -> None:
    """From box to box, upwards or sideways, as long as the boxes leave room."""
    up = start[0] == end[0]
    room = dict(startstandoff=36, standoff=36) if up else dict(startstandoff=56, standoff=72)
    look = dict(arrowcolor=colour, arrowwidth=2.5, arrowhead=2, text="", **room)
    figure.add_annotation(
        x=end[0], y=end[1], ax=start[0], ay=start[1], axref="x", ayref="y", xref="x", yref="y", **look
    )
    beside = dict(xshift=8, xanchor="left") if up else dict(yshift=-20 if start[1] < 2 else 20, xshift=-8)
    x, y = 0.5 * (start[0] + end[0]), 0.5 * (start[1] + end[1])
    figure.add_annotation(x=x, y=y, text=text, showarrow=False, font_size=11, align="left", **beside)


def _box(figure: go.Figure, at: Point, text: str, colour: str) -> None:
    figure.add_annotation(x=at[0], y=at[1], text=text, showarrow=False, bordercolor=colour, borderwidth=2, borderpad=4,
                          font_size=11, bgcolor="rgba(128,128,128,0.1)")  # fmt: skip


def link_figure(scores: CompositionScores, link: Link, *, thresholds: Sequence[float], start: float) -> go.Figure:
    """Every head whose best component a link's readers read with a z above a threshold (slider), small enough for one
    screen. The title counts the published edges among them, and how many there would be if those out of each layer fell
    evenly on its heads."""
    kind, roles = link.kind, {link.writers_role: link.writers, link.readers_role: link.readers}
    found = {z: edges_above(scores, link, z) for z in thresholds}
    colours = (CONTROL, role_colour(link.writers_role))
    figure = new_figure(400, margin_t=56, dragmode=False, modebar_remove=NO_BUTTONS)
    for part, colour in zip(_by_writer(found[start]), colours):
        edges = [edge[:3] for edge in part]
        figure.add_trace(_line_trace(edges, kind, False).update(line_color=colour))
        figure.add_trace(_hover_trace(edges, kind).update(marker_color=colour))
    nodes = _node_traces(scores, roles, True, rest="other heads")
    for trace, place in zip(nodes[1:], ("bottom center", "top center")):
        trace.update(mode="markers+text", textposition=place, textfont_size=11, cliponaxis=False)
    figure.add_traces(nodes)
    figure.frames = [
        go.Frame(
            name=f"{z:g}",
            data=[xy([e[:3] for e in part]) for part in _by_writer(edges) for xy in (_line_xy, _hover_xy)],
            traces=list(range(4)),
            layout=dict(title=_counted(scores, link, edges, z)),
        )
        for z, edges in found.items()
    ]
    active = list(found).index(start)
    top = max(reader.layer for reader in link.readers)
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


def _counted(scores: CompositionScores, link: Link, edges: Sequence[tuple], z: float) -> dict:
    known = sum(edge[3] for edge in edges)
    text = (
        f"{len(edges)} edges with z of {z:g} or more: {known} of the {len(link.pairs)}<br>"
        f"published ones; evenly within layers it would be {expected_edges(link, edges, scores.n_heads):.1f}"
    )
    return dict(text=text, font=dict(size=13), x=0.01, xanchor="left", y=0.97, yanchor="top")


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
    scores: CompositionScores, roles: Mapping[str, list[Head]], showlegend: bool, rest: str = "no published role"
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
