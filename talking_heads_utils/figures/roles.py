"""Figures of the roles that were found on IOI. They take tables of results, never a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils import roles
from talking_heads_utils.experiments.verdicts import with_interval
from talking_heads_utils.figures.style import CONTROL, NO_BUTTONS, error_bars, new_figure, role_colour, stacked
from talking_heads_utils.labels import Head

if TYPE_CHECKING:
    import pandas as pd


ATTENDED = {"to_io": ("to IO", "#0072B2"), "to_s1": ("to S1", "#D55E00"), "to_s2": ("to S2", "#B8860B")}
SIZES = (9.0, 26.0)  # of the markers of the smallest and the largest effect


def roles_figure(table: pd.DataFrame, n_layers: int, n_heads: int) -> go.Figure:
    """The heads that were found among all heads, above: the larger the mark, the larger the effect; below, where those
    look that work at the last token. table: of :meth:`talking_heads_utils.roles.Roles.shown`."""
    seen = " ".join(f"<span style='color:{colour}'><b>{name}</b></span>" for name, colour in ATTENDED.values())
    figure = stacked(2, ("heads with a role", f"attention from end: {seen}"), 660, 0.14)
    every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    dots = dict(mode="markers", marker=dict(color=CONTROL, size=3, opacity=0.5), hoverinfo="skip", showlegend=False)
    figure.add_trace(go.Scatter(x=[head for _, head in every], y=[layer for layer, _ in every], **dots), row=1, col=1)
    for trace in _marks(table):
        figure.add_trace(trace, row=1, col=1)
    looks = table[table["to_io"].notna() & (table["role"] != roles.NO_NAME)].iloc[::-1]
    for column, (name, colour) in ATTENDED.items():
        figure.add_trace(go.Bar(
            y=(looks["head"] + ", " + looks["role"]).tolist(), x=looks[column].round(3).tolist(), name=name,
            orientation="h", marker_color=colour, showlegend=False,
            hovertemplate=f"%{{y}} {name}: %{{x:.2f}}<extra></extra>",
        ), row=2, col=1)  # fmt: skip
    figure.update_xaxes(title_text="head", dtick=1, range=[-0.6, n_heads - 0.4], title_standoff=0, row=1, col=1)
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_yaxes(dtick=1, tickfont_size=11, row=2, col=1)
    figure.update_xaxes(range=[0, 1], tickformat=".0%", row=2, col=1)
    return figure.update_layout(barmode="stack", legend_y=-0.08, modebar_remove=NO_BUTTONS)


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
                       f"n = {r.n}" for r in part.itertuples()],
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
