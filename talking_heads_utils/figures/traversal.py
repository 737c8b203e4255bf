"""Figures of chapter 2 in which the point is moved by hand, and what that gains. They take tables of rows, never a
model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional.steering import Method
from talking_heads_utils.experiments.positional.subspace import Subspace
from talking_heads_utils.figures import style
from talking_heads_utils.figures.positional import index_colours, lengths_of, spans

RANDOM = "random"  # in place of a component
WHAT = {"attention": "the movers' attention to each item", "answered": "lists answered with it"}
KINDS = {"attended": ("attended most", "attention"), "answer": ("answered most", "answered")}
PARTS = {Part.HELD_OUT: "held out", Part.NEW_WORDING: "a new wording", Part.NEW_OBJECTS: "new objects"}
METHODS = {
    Method.ONE_SETTING: "one setting for all",
    Method.SCALING: "the cloud scaled",
    Method.CORRECTION: "correction of the logits",
    Method.BOTH: "setting and correction",
    Method.TOLD_INDEX: "index known (a bound)",
    Method.ORACLE: "answer known (a bound)",
}


# --- one component ---


def line_figure(table: pd.DataFrame) -> go.Figure:
    """Attention to each item, above, and lists answered with it, below, as one component is moved; dotted: a random
    direction, as far. The menu chooses component and length. table: of
    :class:`~talking_heads_utils.experiments.positional.traversal.LineRow`."""
    figure, items = style.stacked(2, list(WHAT.values()), 420, 0.14), int(table["n_items"].max())
    views = {
        f"{component}, lists of {n}": [
            trace for what in WHAT for i in range(items)
            for trace in _moved(table[table["n_items"] == n], component, what, i)
        ]
        for component in table["component"].unique() if component != RANDOM for n in lengths_of(table)
    }  # fmt: skip
    style.with_views(figure, views, panels=[row for row in (1, 2) for _ in range(3 * items)])
    figure.update_xaxes(title_text="moved along the component, standard deviations", row=2, col=1)
    figure.update_xaxes(showticklabels=False, row=1, col=1)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure.update_layout(legend_y=-0.14, legend_tracegroupgap=0)


def _moved(part: pd.DataFrame, component: str, what: str, index: int) -> list[go.Scatter]:
    """One item's interval, its curve, and that of the random direction."""
    rows = part[part["list_index"] == index].sort_values("amount").round({"amount": 2})
    own, other = rows[rows["component"] == component], rows[rows["component"] == RANDOM]
    (colour,), hidden = index_colours([index]), dict[str, Any](legendgroup=str(index), showlegend=False)
    low, high = (style.short(own[f"{what}_{end}"], 3) for end in ("low", "high"))
    shown = what == "attention" and len(own) > 0
    return [
        style.band(own["amount"].tolist(), low, high, f"item {index}, interval", _faint(colour, 0.16), **hidden),
        style.curve(own, "amount", what, f"item {index}", dict(color=colour, width=2.4), ", %{x:+.1f}: %{y:.0%}",
                    digits=3, marker_size=5, **hidden | dict(showlegend=shown)),
        go.Scatter(
            x=other["amount"].tolist(), y=style.short(other[what], 3), name=f"item {index}, random direction",
            mode="lines", line=dict(color=colour, width=1.4, dash="dot"), opacity=0.7, **hidden,
            hovertemplate="random direction, %{x:+.1f}: %{y:.0%}<extra></extra>",
        ),
    ]  # fmt: skip


def _faint(colour: str, opacity: float) -> str:
    red, green, blue = hex_to_rgb(colour)
    return f"rgba({red},{green},{blue},{opacity:g})"


# --- three components ---


def traversal_figure(table: pd.DataFrame, axes: Sequence[str]) -> go.Figure:
    """The item that is attended, or answered, most as two components are moved; the slider moves the third, the menu
    chooses length and read-out, and neither resets the other. The paler a cell, the smaller that item's share. axes:
    names of the components. table: of :class:`~talking_heads_utils.experiments.positional.traversal.MapRow`.

    Raises :class:`ValueError` for lengths with different numbers of settings of the third component."""
    thirds = {n: sorted(part["third"].unique().tolist()) for n, part in table.groupby("n_items")}
    n_steps = len(next(iter(thirds.values())))
    if any(len(values) != n_steps for values in thirds.values()):
        raise ValueError("All lengths must have as many settings of the third component: one slider moves them all.")
    middle, planes, views = n_steps // 2, [], {}
    for n in lengths_of(table):
        part = table[table["n_items"] == n]
        for kind, (words, share) in KINDS.items():
            cut = [_plane(part[part["third"] == third], n, kind, share) for third in thirds[n]]
            planes.append(cut)
            at = part[part["third"] == thirds[n][middle]].pivot(index="second", columns="first", values=share)
            views[f"lists of {n}: {words}"] = [_map(cut[middle], at, n, kind)]
    along = {f"{(i - middle) / middle:+.0%}" if i != middle else "0%": {
                 name: [cut[i][name] for cut in planes] for name in ("z", "customdata")
             } for i in range(n_steps)}  # fmt: skip
    look = dict(margin_t=70, xaxis_showgrid=False, yaxis_showgrid=False)
    x, y = f"moved along {axes[0]}, standard deviations", f"moved along {axes[1]}, s.d."
    figure = style.with_views(style.new_figure(390, x, y, **look), views)
    bar = style.restyle_slider(along, f"moved along {axes[2]}, of the way: ", pad=60, active=middle)
    return figure.update_layout(sliders=[bar])


def _plane(part: pd.DataFrame, n: int, kind: str, share: str) -> dict:
    """Cells of one plane: index plus strength, from 0 where the item has no more than an even share to 1."""
    wide = part.assign(
        strength=((part[share] - 1 / n) / (1 - 1 / n)).clip(0, 0.999) + part[kind].astype(float),
        said=[f"item {int(i)}: {s:.0%}" for i, s in zip(part[kind], part[share])],
    )  # fmt: skip
    z, said = (wide.pivot(index="second", columns="first", values=name) for name in ("strength", "said"))
    return dict(z=[[round(v, 2) for v in row] for row in z.to_numpy(float).tolist()],
                customdata=said.to_numpy().tolist())  # fmt: skip


def _map(cells: dict, at: pd.DataFrame, n: int, kind: str) -> go.Heatmap:
    scale = []
    for i, colour in enumerate(index_colours(range(n))):
        scale += [[i / n, _faint(colour, 0.2)], [(i + 1) / n, _faint(colour, 1)]]
    bar = dict(title="item", thickness=12, tickvals=[i + 0.5 for i in range(n)], ticktext=[str(i) for i in range(n)])
    return go.Heatmap(
        **cells, x=[round(v, 2) for v in at.columns], y=[round(v, 2) for v in at.index], zmin=0, zmax=n,
        colorscale=scale, colorbar=bar, hovertemplate=f"{KINDS[kind][0]}, %{{customdata}}<extra></extra>",
    )  # fmt: skip


# --- what it gains ---


def gains_figure(table: pd.DataFrame) -> go.Figure:
    """Gain in accuracy by what is changed, along the chosen three and along matched triples; the menu chooses length
    and kind of lists, those with matched triples first. table: of
    :class:`~talking_heads_utils.experiments.positional.steering.GainRow`."""
    names, views = list(METHODS.values()), {}
    figure = style.new_figure(310, "gain in accuracy, points", margin_t=16, legend_y=-0.2)
    table = table[table["method"].isin(list(METHODS))]
    controlled = set(table.loc[table["subspace"] == Subspace.MATCHED, "n_items"])
    for n in sorted(lengths_of(table), key=lambda n: n not in controlled):
        for kind, words in PARTS.items():
            part = table[(table["n_items"] == n) & (table["part"] == kind)]
            if len(part):
                views[f"lists of {n}: {words}"] = _gains(part)
    figure.add_vline(x=0, line=dict(color=style.CONTROL, width=1))
    figure.update_yaxes(style.named(names) | dict(range=[len(names) - 0.5, -0.5]))
    return style.with_views(figure, views)


def _gains(part: pd.DataFrame) -> list:
    order = list(METHODS)
    own, drawn = (part[part["subspace"] == s] for s in (Subspace.CHOSEN, Subspace.MATCHED))
    y, x = spans([order.index(m) + 0.25 for m in drawn["method"]], drawn["gain_low"], drawn["gain_high"])
    colours = [style.EXPECTED if m == Method.CORRECTION else style.ACCENT for m in own["method"]]
    return [
        go.Scatter(
            x=x, y=y, mode="lines", name="95% of matched triples", line=dict(color=style.CONTROL, width=8),
            customdata=[mean for mean in style.short(drawn["gain"], 1) for _ in range(3)],
            hovertemplate="matched triples: mean %{customdata:+.1f} points<extra></extra>",
        ),
        go.Scatter(
            x=style.short(own["gain"], 2), y=[order.index(m) - 0.1 for m in own["method"]], mode="markers",
            name="the chosen three", marker=dict(color=colours, size=10),
            error_x=style.error_bars(own, "gain", ends="gain_") | dict(color=style.ACCENT),
            hovertemplate="%{x:+.1f} points<extra></extra>",
        ),
    ]  # fmt: skip
