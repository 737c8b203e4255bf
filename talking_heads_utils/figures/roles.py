"""Figures of the roles that were found on IOI, and a sketch of their circuit. They take tables, never a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils import roles
from talking_heads_utils.experiments.verdicts import with_interval
from talking_heads_utils.figures.style import CONTROL, NO_BUTTONS, error_bars, new_figure, role_colour
from talking_heads_utils.labels import Head
from talking_heads_utils.roles import DUPLICATE_TOKEN, INDUCTION, NAME_MOVER, S_INHIBITION, S_SUPPRESSION

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


# --- the circuit as a sketch ---

Point = tuple[float, float]


# Where the sketch puts the box of a role: heads that work at S2 on the left, at the last token on the right.
PLACES = {
    DUPLICATE_TOKEN: (0.55, 1.3),
    INDUCTION: (0.55, 3.0),
    S_INHIBITION: (3.2, 2.5),
    S_SUPPRESSION: (1.8, 4.9),
    NAME_MOVER: (3.2, 4.9),
}
ANSWER = (3.2, 7.2)
COLUMNS = {"S2": (-0.05, 1.12), "end": (1.16, 4.35)}  # from where to where the boxes of a token stand
SEES = {S_INHIBITION: ("to_s2", "S2"), S_SUPPRESSION: ("to_s2", "S2"), NAME_MOVER: ("to_io", "IO")}
LISTED = 6  # heads that a box names


def sketch(table: pd.DataFrame, words: Mapping[str, str], answer: str) -> go.Figure:
    """The circuit as its roles were found: boxes of heads, and arrows with their effects on what reads them. table: of
    :meth:`talking_heads_utils.roles.Roles.frame`. words: position name -> token; answer: the right one."""
    figure = new_figure(450, margin_t=4, dragmode=False, modebar_remove=NO_BUTTONS)
    found = table[table["confirmed"].astype(bool)]
    boxes = {role: found[found["role"] == role] for role in PLACES if (found["role"] == role).any()}
    for name, (left, right) in COLUMNS.items():
        figure.add_shape(type="rect", x0=left, x1=right, y0=-0.6, y1=7.6, line_width=0, layer="below",
                         fillcolor="rgba(128,128,128,0.08)")  # fmt: skip
        figure.add_annotation(x=(left + right) / 2, y=0, text=f"at <b>{words[name]}</b> ({name})", showarrow=False)
    for role, part in boxes.items():
        for end, unit in _goes_to(role, boxes):
            _arrow(figure, PLACES[role], end, _effects(part["effect"], unit), role_colour(role))
            figure.add_trace(_told(role, part, end))
        _box(figure, PLACES[role], _listed(role, part), role_colour(role))
    _box(figure, ANSWER, f"next token: <b>{answer}</b>", CONTROL)
    figure.update_xaxes(visible=False, range=[-0.05, 4.35])
    return figure.update_yaxes(visible=False, range=[-0.6, 7.6])


def _told(role: str, part: pd.DataFrame, end: Point) -> go.Scatter:
    """A role's effects one by one: unseen points along its arrow, for those who point at it or take the data."""
    start, n = PLACES[role], len(part)
    along = [0.5 + 0.3 * ((i + 0.5) / n - 0.5) for i in range(n)]
    x, y = ([round(a + t * (b - a), 3) for t in along] for a, b in zip(start, end))
    columns = ["head", "reader", "effect", "low", "high", "unit", "n"]
    rows = part[columns].assign(reader=part["reader"].replace("", "the answer")).round(3)
    return go.Scatter(
        x=x, y=y, mode="markers", marker=dict(size=14, opacity=0, color=role_colour(role)), name=role,
        customdata=rows.to_numpy(object).tolist(), showlegend=False,
        hovertemplate="%{customdata[0]} on %{customdata[1]}: %{customdata[2]:+.2f} "
        "[%{customdata[3]:.2f}, %{customdata[4]:.2f}] %{customdata[5]}<extra></extra>",
    )  # fmt: skip


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
        lines.append(f"{part.drop_duplicates('head')[column].mean():.0%} of attention<br>goes to {name}")
    return "<br>".join(lines)


def _arrow(figure: go.Figure, start: Point, end: Point, text: str, colour: str) -> None:
    """From box to box, upwards or sideways, as long as the boxes leave room."""
    up = start[0] == end[0]
    room = dict(startstandoff=44, standoff=44) if up else dict(startstandoff=56, standoff=72)
    look = dict(arrowcolor=colour, arrowwidth=2.5, arrowhead=2, text="", **room)
    figure.add_annotation(
        x=end[0], y=end[1], ax=start[0], ay=start[1], axref="x", ayref="y", xref="x", yref="y", **look
    )
    beside = dict(xshift=8, xanchor="left") if up else dict(yshift=-28 if start[1] < 2 else 20, xshift=-8)
    x, y = 0.5 * (start[0] + end[0]), 0.5 * (start[1] + end[1])
    figure.add_annotation(x=x, y=y, text=text, showarrow=False, font_size=11, align="left", **beside)


def _box(figure: go.Figure, at: Point, text: str, colour: str) -> None:
    figure.add_annotation(x=at[0], y=at[1], text=text, showarrow=False, bordercolor=colour, borderwidth=2, borderpad=4,
                          font_size=11, bgcolor="rgba(128,128,128,0.1)")  # fmt: skip
