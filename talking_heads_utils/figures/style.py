"""One palette and one look for every figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from talking_heads_utils import roles

# Okabe and Ito's colours, told apart by readers who are colour-blind; one per head role, everywhere.
ROLE_COLOURS = {
    roles.PREVIOUS_TOKEN: "#0072B2",
    roles.DUPLICATE_TOKEN: "#B8860B",
    roles.INDUCTION: "#009E73",
    roles.S_INHIBITION: "#D55E00",
    roles.NAME_MOVER: "#CC79A7",
    roles.BACKUP_MOVER: "#56B4E9",
    roles.NEGATIVE_MOVER: "#7B61A8",
    roles.S_SUPPRESSION: "#00727A",
    roles.S_COPY: "#A0522D",
    roles.NO_NAME: "#5F6B7A",
}
CONTROL = "#8A8F98"  # random heads, random directions, everything that is no claim
EXPECTED = "#7B61A8"  # the exact answer, where it is known
FAINT = "#C4A484"  # a second control
FIRST_NAME, SECOND_NAME = "#0072B2", "#D55E00"  # of the two names, as a prompt has them
ACCENT = ROLE_COLOURS[roles.S_INHIBITION]
INDEX_COLOURS = ("#5B6FE0", "#2E9BE6", "#12A594", "#5BA83A", "#C29A0B", "#EE7F1B", "#DB3B4B", "#A2499F")  # of a list
KIND_COLOURS = {"Q": "#CC79A7", "K": "#009E73", "V": "#0072B2"}
KIND_READS = {"Q": "query", "K": "key", "V": "value"}
NO_BUTTONS = ["toImage", "zoom", "pan", "resetScale"]  # of plotly's bar, where a title needs its place on a phone
INK = "#2b2f36"  # replaced on the page by the theme's own text colour, that of lines by book.css
NULL_LINE = dict(color=INK, dash="dash", width=1.4)  # what chance gives, over bars too
BAND = "rgba(138,143,152,0.28)"  # the range of matched draws
SCORE_TITLE = "composition score C"

_GRID = "rgba(128,128,128,0.22)"


def new_figure(height: int, x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """An empty figure in the book's look: transparent, so that it sits on a light or a dark page. x, y: titles of the
    axes."""
    lines = dict.fromkeys(("gridcolor", "zerolinecolor", "linecolor"), _GRID)
    axis = dict(**lines, automargin=True, title_standoff=8, title_font_size=13)
    figure = go.Figure()
    figure.update_layout(
        template=go.layout.Template(layout=dict(xaxis=axis, yaxis=axis)),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=dict(size=13, color=INK),
        colorway=list(ROLE_COLOURS.values()),
        height=height,
        margin=dict(l=8, r=8, t=36, b=8),
        hoverlabel=dict(align="left"),
        legend=dict(orientation="h", y=-0.2, x=0, yanchor="top"),
        **{f"{axis}axis_title_text": title for axis, title in (("x", x), ("y", y)) if title},
        **layout,
    )
    return figure


def stacked(rows: int, titles: Sequence[str], height: int, spacing: float) -> go.Figure:
    """Panels one below the other, each with its title at the left, where the buttons leave room on a phone."""
    figure = make_subplots(
        rows=rows, cols=1, subplot_titles=titles, vertical_spacing=spacing, figure=new_figure(height, margin_t=56)
    )
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    figure.update_xaxes(tickangle=0)
    return figure


def words(name: str) -> str:
    """A name in code as words."""
    return name.replace("_", " ")


def short(values: pd.Series, digits: int = 4) -> list[float]:
    """A column as numbers of few digits, which is what a page carries."""
    return values.astype(float).round(digits).tolist()


def error_bars(table: pd.DataFrame, value: str, digits: int = 3, ends: str = "") -> dict:
    """Error bars from the columns ``low`` and ``high`` of a table, around a third. ends: how their names begin."""
    return dict(
        array=(table[f"{ends}high"] - table[value]).round(digits).tolist(),
        arrayminus=(table[value] - table[f"{ends}low"]).round(digits).tolist(),
        thickness=1.2,
    )


def named(names: Sequence[str], **more: Any) -> dict:
    """An axis of things side by side, each with its name."""
    return dict(tickvals=list(range(len(names))), ticktext=list(names), range=[-0.5, len(names) - 0.5], **more)


def role_colour(role: str | None) -> str:
    """The colour of a role; grey for a head without one."""
    return CONTROL if role is None else ROLE_COLOURS.get(role, CONTROL)


def dropdown(buttons: list[dict]) -> dict:
    """A dropdown above the plot, at its left."""
    place = dict(x=0, xanchor="left", y=1.0, yanchor="bottom", pad=dict(b=26))
    return dict(buttons=buttons, showactive=True, bgcolor="rgba(160,160,160,0.15)", bordercolor=_GRID, **place)


def lists_of(n_items: int) -> str:
    """``lists of 6``."""
    return f"lists of {n_items}"


def views_of(
    table: pd.DataFrame, traces: Callable[[pd.DataFrame], list], **names: Callable[[Any], str]
) -> dict[str, list]:
    """Label -> traces of the rows with the same values in the columns ``names``, each value in words."""
    return {", ".join(say(value) for say, value in zip(names.values(), key)): traces(part)
            for key, part in table.groupby(list(names), sort=False)}  # fmt: skip


def with_views(
    figure: go.Figure,
    views: Mapping[str, Sequence[Any]],
    *,
    panels: Sequence[int] | None = None,
    layouts: Sequence[dict] | None = None,
) -> go.Figure:
    """Add the traces of every view, as many in each, and a dropdown that shows one view at a time, the first at first.
    A single view has no dropdown.

    views: label -> traces. panels: the subplot row of each trace of a view. layouts: what else each entry changes, such
    as titles.
    """
    buttons = []
    for i, (label, traces) in enumerate(views.items()):
        for k, trace in enumerate(traces):
            trace.visible = i == 0
            figure.add_trace(trace, **(dict(row=panels[k], col=1) if panels else {}))
        shown = {"visible": [j == i for j in range(len(views)) for _ in traces]}
        buttons.append(dict(label=label, method="update", args=[shown, *([layouts[i]] if layouts else [])]))
    if len(views) == 1:
        return figure.update_layout(layouts[0] if layouts else {})
    return figure.update_layout(updatemenus=[dropdown(buttons)], margin_t=70)


def band(
    x: Sequence[float], low: Sequence[float], high: Sequence[float], name: str, colour: str = BAND, **more: Any
) -> go.Scatter:
    """A range over x, as an area."""
    return go.Scatter(
        x=[*x, *reversed(x)], y=[*high, *reversed(low)], fill="toself", fillcolor=colour, line_width=0, name=name,
        mode="lines", hoverinfo="skip", **more,
    )  # fmt: skip


def level(ends: Sequence[float], value: float, name: str, line: Mapping[str, Any], **more: Any) -> go.Scatter:
    """A line at one height from end to end."""
    return go.Scatter(x=list(ends), y=[value] * len(ends), mode="lines", name=name, line=line, **more)


def curve(
    rows: pd.DataFrame,
    x: str,
    value: str,
    name: str,
    line: Mapping[str, Any],
    hover: str = "",
    *,
    ends: str = "",
    bars: Mapping[str, Any] | None = None,
    digits: int = 4,
    **more: Any,
) -> go.Scatter:
    """A column over another as a line. hover: what it tells after the name. bars: how intervals look; None: they are
    not drawn. ends: how the names of their columns begin."""
    error_y = None if bars is None else error_bars(rows, value, min(digits, 3), ends) | dict(bars)
    return go.Scatter(
        x=rows[x].tolist(), y=short(rows[value], digits), error_y=error_y, name=name, line=line,
        hovertemplate=f"{name}{hover}<extra></extra>" if hover else None, **dict(mode="lines+markers") | more,
    )  # fmt: skip


def slider(names: Sequence[str], prefix: str, *, pad: int, active: int = 0) -> dict:
    """A slider below the plot that shows the frame of each name at once."""
    options = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    return _slider("animate", {name: [[name], options] for name in names}, prefix, pad, active)


def restyle_slider(updates: Mapping[str, dict], prefix: str, *, pad: int, active: int = 0) -> dict:
    """A slider below the plot that sets properties of all traces, and leaves alone what another slider sets.

    updates: label -> property -> one value per trace.
    """
    return _slider("restyle", {name: [update] for name, update in updates.items()}, prefix, pad, active)


def _slider(method: str, arguments: Mapping[str, list], prefix: str, pad: int, active: int) -> dict:
    steps = [dict(label=name, method=method, args=args) for name, args in arguments.items()]
    return dict(steps=steps, active=active, currentvalue=dict(prefix=prefix), pad=dict(t=pad), x=0, len=1)
