"""Figures of the roles that were found on IOI. They take tables of results, never a model."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils import roles
from talking_heads_utils.experiments.verdicts import with_interval
from talking_heads_utils.figures.style import CONTROL, error_bars, new_figure, role_colour, stacked

if TYPE_CHECKING:
    import pandas as pd


def roles_figure(table: pd.DataFrame) -> go.Figure:
    """Above, direct effects on the logit difference by head; below, what each inhibition head does to the log-odds of
    each mover's attention. Bars: 95% intervals over prompts. table: :meth:`talking_heads_utils.roles.Roles.frame`."""
    titles = ("direct effect on the logit difference, logits", "change of a mover's attention, IO to S1, nats")
    figure = stacked(2, titles, 620, 0.22)
    confirmed = table[table["confirmed"].astype(bool)]
    direct = confirmed[confirmed["path"] == roles.DIRECT].sort_values("effect", ascending=False)
    for role, part in direct.groupby("role", sort=False):
        text = [
            f"{row['head']}, {role}: {with_interval(row, 'effect')} logits, n = {row['n']}<br>"
            f"attention from end: IO {row['to_io']:.2f}, S1 {row['to_s1']:.2f}, S2 {row['to_s2']:.2f}"
            for _, row in part.iterrows()
        ]
        figure.add_trace(_bars(part, part["head"], str(role), role_colour(str(role)), text), row=1, col=1)
    query = confirmed[confirmed["role"] == roles.S_INHIBITION]
    colours = (role_colour(roles.S_INHIBITION), "#F0A66B", "#8C3B00", "#C9A28A")
    for colour, (head, part) in zip(cycle(colours), query.groupby("head", sort=False)):
        text = [f"{head} into {r.reader}: {r.effect:.2f} [{r.low:.2f}, {r.high:.2f}] nats" for r in part.itertuples()]
        figure.add_trace(_bars(part, part["reader"], f"S-inhibition: {head}", colour, text), row=2, col=1)
    figure.update_xaxes(title_text="head", row=1, col=1)
    figure.update_xaxes(title_text="name mover whose query is patched", row=2, col=1)
    figure.update_xaxes(categoryorder="array", categoryarray=direct["head"].tolist(), row=1, col=1)
    return figure


def _bars(part: pd.DataFrame, x: pd.Series, name: str, colour: str, text: list[str]) -> go.Bar:
    bars = error_bars(part, "effect")
    return go.Bar(
        x=x.tolist(), y=part["effect"].round(4).tolist(), error_y=bars, name=name, marker_color=colour, hovertext=text,
        hoverinfo="text",
    )  # fmt: skip


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
