"""Figures of the roles that were found on IOI. They take tables of results, never a model."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils import roles
from talking_heads_utils.experiments.verdicts import with_interval
from talking_heads_utils.figures.style import CONTROL, NO_BUTTONS, error_bars, new_figure, role_colour
from talking_heads_utils.labels import Head

ATTENDED = {"to_io": ("attention to IO", "#0072B2"), "to_s1": ("to S1", "#D55E00"), "to_s2": ("to S2", "#B8860B")}
SIZES = (8.0, 20.0)  # of the markers of the smallest and the largest effect


def roles_figure(table: pd.DataFrame, n_layers: int, n_heads: int) -> go.Figure:
    """The heads that were found among all heads, by layer and head: the larger the mark, the larger the effect; the bar
    in it: where it looks from the last token. table: of :meth:`talking_heads_utils.roles.Roles.shown`."""
    figure = new_figure(400, margin_t=12, modebar_remove=NO_BUTTONS)
    every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    figure.add_scatter(
        x=[head for _, head in every], y=[layer for layer, _ in every], mode="markers", hoverinfo="skip",
        marker=dict(color=CONTROL, size=3, opacity=0.5), showlegend=False,
    )  # fmt: skip
    figure.add_traces(_marks(table))
    for column, (name, colour) in ATTENDED.items():
        figure.add_trace(_looks(table[table["to_io"].notna()], column, name, colour))
    figure.update_xaxes(title_text="head", dtick=1, range=[-0.5, n_heads - 0.1])
    figure.update_layout(legend_font_size=11)
    return figure.update_yaxes(title_text="layer")


def _looks(table: pd.DataFrame, column: str, name: str, colour: str) -> go.Scatter:
    """A line right of each mark, as long as the share of attention, one above the other."""
    x, y, level = [], [], list(ATTENDED).index(column) - 1
    for label, share in zip(table["head"], table[column]):
        head = Head.parse(label)
        x += [head.head + 0.22, head.head + 0.22 + 0.6 * share, None]
        y += [head.layer + 0.5 * level] * 2 + [None]
    return go.Scatter(x=x, y=y, mode="lines", line=dict(color=colour, width=4), name=name, hoverinfo="skip")


def _marks(table: pd.DataFrame) -> list[go.Scatter]:
    """A mark per head, coloured by role; the area goes by the effect in its unit."""
    largest = table.groupby("unit")["effect"].transform(lambda values: values.abs().max())
    size = (SIZES[0] + (SIZES[1] - SIZES[0]) * (table["effect"].abs() / largest) ** 0.5).round(1)
    traces = []
    for role, part in table.groupby("role", sort=False):
        heads, colour = [Head.parse(name) for name in part["head"]], role_colour(str(role))
        traces.append(go.Scatter(
            x=[head.head for head in heads], y=[head.layer for head in heads], mode="markers", name=str(role),
            marker=dict(color=colour, size=size[part.index].tolist(), opacity=0.9), hoverinfo="text",
            hovertext=[f"{r.head}, {role}<br>on {r.acts_on}<br>{r.effect:.2f} [{r.low:.2f}, {r.high:.2f}] {r.unit}, "
                       f"n = {r.n}<br>attention: IO {r.to_io:.2f}, S1 {r.to_s1:.2f}, S2 {r.to_s2:.2f}"
                       for r in part.itertuples()],
        ))  # fmt: skip
    return traces


def exchange_figure(table: pd.DataFrame) -> go.Figure:
    """Change of the logit difference when heads write what they write without a duplicate, beside the 95% range of
    matched sets of heads without a role. table: the exchanges of
    :func:`talking_heads_utils.experiments.inhibition.circuit.exchange_rows`."""
    figure = new_figure(420, barmode="overlay")
    names = table["part"].tolist()
    text = [
        f"{row['heads']}: {with_interval(row, 'effect')} logits, {row['share']:.0%} of the whole change, "
        f"n = {row['n']}<br>{row['n_sets']:.0f} matched sets: {row['control_low']:.2f} to {row['control_high']:.2f}"
        for _, row in table.iterrows()
    ]
    colours = [role_colour(name) if name in roles.ALL else "#2f6f8f" for name in names]
    figure.add_bar(
        x=names, y=table["effect"].round(4).tolist(), error_y=error_bars(table, "effect"), marker_color=colours,
        name="heads found", hovertext=text, hoverinfo="text", showlegend=False,
    )  # fmt: skip
    middle = (table["control_low"] + table["control_high"]) / 2
    reach = ((table["control_high"] - table["control_low"]) / 2).round(4).tolist()
    figure.add_scatter(
        x=names, y=middle.round(4).tolist(), mode="markers", marker=dict(color=CONTROL, size=9, symbol="diamond"),
        error_y=dict(array=reach, thickness=6, width=0, color=CONTROL),
        name="matched sets of heads without a role",
    )  # fmt: skip
    figure.update_yaxes(title_text="change of the logit difference, logits")
    return figure
