"""Figures of chapter 2: where prompts sit, what that point says, how it is moved, and what moving it buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.positional.coordinates import Feature
from talking_heads_utils.experiments.positional.decoding import Split, Subspace
from talking_heads_utils.experiments.positional.gains import Strategy
from talking_heads_utils.experiments.positional.steering import Traversal
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    KIND_COLOURS,
    NULL_LINE,
    by_menu,
    dropdown,
    error_bars,
    new_figure,
    restyle_slider,
    slider,
    stacked,
)

if TYPE_CHECKING:
    import pandas as pd

    from talking_heads_utils.experiments.positional.sweep_results import Result

FEATURES = {Feature.LIST_INDEX: "list index", Feature.POSITION: "position", Feature.IDENTITY: "identity"}
COLOURS = dict(zip(Feature, (KIND_COLOURS["V"], KIND_COLOURS["K"], KIND_COLOURS["Q"])))
SUBSPACES = {
    Subspace.COMPONENTS: "three<br>components",
    Subspace.FITTED: "triple fitted<br>to list index",
    Subspace.RANDOM: "random<br>triples",
}
SPLITS = {Split.PROMPTS: "other prompts", Split.WORDINGS: "other wordings"}
STRATEGIES = {
    Strategy.NONE: "no steering",
    Strategy.ONE: "one setting",
    Strategy.TOLD_INDEX: "told the answer's<br>list index (a bound)",
    Strategy.ORACLE: "oracle per prompt<br>(a bound)",
}
HALF = 0.5  # of the mover's attention: with less on every item, none is said to have won
NOBODY = -1  # such a cell's list index
_SCALE = "Turbo"


def finding_figure(decoded: pd.DataFrame, steered: pd.DataFrame) -> go.Figure:
    """Above: list index and identity decoded from the three components and from random triples, model by model. Below:
    what one setting for all prompts gains, with the components and with random directions.

    decoded: :class:`DecodingRow`, of one split. steered: :class:`GainRow`.
    """
    titles = ["answers decoded from three directions", "gain of one setting for all prompts, points"]
    figure = stacked(2, titles, 700, 0.17)
    for subspace, opacity in ((Subspace.COMPONENTS, 1), (Subspace.RANDOM, 0.4)):
        for feature in (Feature.LIST_INDEX, Feature.IDENTITY):
            part = decoded[(decoded["subspace"] == subspace) & (decoded["feature"] == feature)]
            name = f"{FEATURES[feature]}, {SUBSPACES[subspace].replace('<br>', ' ')}"
            figure.add_bar(x=[_broken(model) for model in part["model"]], y=part["right"].round(3).tolist(), name=name,
                           opacity=opacity, error_y=error_bars(part, "right"), marker_color=COLOURS[feature],
                           hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>", row=1, col=1)  # fmt: skip
    one = steered[steered["strategy"] == Strategy.ONE]
    own, random = one[one["draw"].isna()], one[one["draw"].notna()]
    means = random.groupby(["model", "n_items"], sort=False)["gain"].mean()
    hover = "%{x}: %{y:+.0f} points<extra></extra>"
    for part, y, name, colour in ((own, own["gain"], "gain", ACCENT),
                                  (means.reset_index(), means, "gain, random directions", CONTROL)):  # fmt: skip
        labels = [f"{_broken(model)}<br>{n} items" for model, n in zip(part["model"], part["n_items"])]
        figure.add_bar(x=labels, y=y.round(2).tolist(), error_y=error_bars(own, "gain") if part is own else None,
                       name=name, marker_color=colour, hovertemplate=hover, row=2, col=1)  # fmt: skip
    figure.add_hline(y=decoded["chance"].iloc[0], line=NULL_LINE, row=1, col=1)
    figure.update_yaxes(range=[0, 1.04], row=1, col=1)
    return figure.update_layout(barmode="group", legend_y=-0.2)


def _broken(model: str) -> str:
    """A model's name in lines short enough for a phone."""
    return model.replace("/", "/<br>").replace("-", "-<br>")


def points_figure(cloud: pd.DataFrame, axes: Sequence[str]) -> go.Figure:
    """Prompts in three coordinates: a slider for the list length, a menu for colour by list index or by answer.

    cloud: :class:`PointRow`.
    """
    figure = new_figure(560)
    clouds = dict(tuple(cloud.groupby("n_items", sort=False)))
    figure.frames = [go.Frame(name=str(n), data=_clouds(part, n), traces=[0, 1]) for n, part in clouds.items()]
    for i, trace in enumerate(figure.frames[0].data):
        figure.add_trace(trace.update(visible=i == 0))
    buttons = [
        dict(label=f"colour: {what}", method="restyle", args=[{"visible": [i == j for j in range(2)]}])
        for i, what in enumerate(("list index of the answer", "the answer itself"))
    ]
    titles = [{"title": {"text": name, "font": {"size": 12}}, "tickfont": {"size": 10}, "nticks": 6} for name in axes]
    names = dict(zip(("xaxis", "yaxis", "zaxis"), titles))
    return figure.update_layout(
        updatemenus=[dropdown(buttons)], margin_t=70, showlegend=False,
        sliders=[slider([str(n) for n in clouds], "items in the list: ", pad=20)],
        scene=dict(**names, aspectmode="cube", camera_eye=dict(x=2.4, y=2.4, z=1.85)),
    )  # fmt: skip


def _clouds(cloud: pd.DataFrame, n_items: int) -> list[go.Scatter3d]:
    """Points coloured by list index, with the key to its colours, and by answer, which are too many for a key."""
    bar = dict(title=dict(text="list index", side="top"), orientation="h", thickness=12, y=0, yanchor="top", dtick=1)
    looks: list[dict[str, Any]] = [
        dict(color=cloud["list_index"].tolist(), colorscale=_steps(n_items), cmin=-0.5, cmax=n_items - 0.5,
             showscale=True, colorbar=bar),
        dict(color=cloud["word"].rank(method="dense").tolist(), colorscale=_SCALE),
    ]  # fmt: skip
    return [
        go.Scatter3d(
            **{axis: cloud[axis].round(3).tolist() for axis in "xyz"}, mode="markers", text=cloud["word"].tolist(),
            customdata=cloud["list_index"].tolist(), marker=dict(size=4, **look),
            hovertemplate="%{text}, list index %{customdata}<extra></extra>",
        )
        for look in looks
    ]  # fmt: skip


def decoding_figure(table: pd.DataFrame) -> go.Figure:
    """Share of prompts whose answer is decoded, by subspace and feature; a menu chooses model and split. table:
    :class:`DecodingRow`."""
    figure = new_figure(380, barmode="group")

    def traces(part: pd.DataFrame) -> list[go.Bar]:
        of = {
            feature: part[part["feature"] == feature].set_index("subspace").loc[list(SUBSPACES)] for feature in COLOURS
        }
        return [
            go.Bar(x=list(SUBSPACES.values()), y=rows["right"].round(3).tolist(), error_y=error_bars(rows, "right"),
                   name=FEATURES[feature], marker_color=COLOURS[feature], customdata=rows["shuffled"].round(3).tolist(),
                   hovertemplate=f"{FEATURES[feature]}: %{{y:.2f}}; shuffled %{{customdata:.2f}}<extra></extra>")
            for feature, rows in of.items()
        ]  # fmt: skip

    by_menu(figure, table.assign(split=table["split"].map(SPLITS)), ["model", "split"], traces, legend_y=-0.3)
    figure.add_hline(y=table["chance"].iloc[0], line=NULL_LINE)
    return figure.update_yaxes(title_text="answers decoded", range=[0, 1.04])


def dimension_figure(table: pd.DataFrame) -> go.Figure:
    """What is decoded from the first k components by weights, and from k random directions; a menu for the model.
    table: :class:`DimensionRow`."""
    looks = {Subspace.COMPONENTS: ("", "solid"), Subspace.RANDOM: (", random directions", "dot")}

    def traces(part: pd.DataFrame) -> list[go.Scatter]:
        return [
            go.Scatter(x=rows["k"].tolist(), y=rows["right"].round(3).tolist(), name=FEATURES[feature] + suffix,
                       mode="lines+markers", line=dict(color=colour, dash=dash))
            for feature, colour in COLOURS.items() for subspace, (suffix, dash) in looks.items()
            for rows in [part[(part["feature"] == feature) & (part["subspace"] == subspace)]]
        ]  # fmt: skip

    figure = by_menu(new_figure(380), table, ["model"], traces, legend_y=-0.34)
    figure.update_xaxes(title_text="k, components in the order of the weights", dtick=2)
    return figure.update_yaxes(title_text="answers decoded", range=[0, 1.04])


def crowding_figure(table: pd.DataFrame, by_index: pd.DataFrame) -> go.Figure:
    """Above: accuracy, and what is decoded from the three coordinates, by list length. Below: accuracy by list length
    and list index. A menu chooses the model. table: :class:`CrowdingRow`. by_index: :class:`IndexRow`."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.16, figure=new_figure(640))
    lines = {"accuracy": ("accuracy", ACCENT)} | {
        feature: (f"{FEATURES[feature]} decoded", COLOURS[feature])
        for feature in (Feature.LIST_INDEX, Feature.IDENTITY)
    }

    def traces(part: pd.DataFrame) -> list:
        own = by_index[by_index["model"] == part["model"].iloc[0]]
        wide = own.pivot(index="list_index", columns="n_items", values="accuracy")
        cells = [[None if np.isnan(v) else round(v, 3) for v in row] for row in wide.to_numpy(float)]
        return [
            go.Scatter(x=part["n_items"].tolist(), y=part[column].round(3).tolist(), name=name, mode="lines+markers",
                       line_color=colour, error_y=error_bars(part, column) if column == "accuracy" else None)
            for column, (name, colour) in lines.items()
        ] + [
            go.Heatmap(x=[str(n) for n in wide.columns], y=wide.index.tolist(), z=cells, zmin=0, zmax=1, xaxis="x2",
                       yaxis="y2", colorscale="Blues", colorbar=dict(thickness=12, len=0.42, y=0.2),
                       hovertemplate="%{x} items, list index %{y}: %{z:.2f}<extra></extra>")
        ]  # fmt: skip

    by_menu(figure, table, ["model"], traces, legend_y=-0.12)
    figure.update_yaxes(range=[0, 1.04], row=1, col=1)
    figure.update_yaxes(title_text="list index of the answer", row=2, col=1)
    return figure.update_xaxes(title_text="items in the list", row=2, col=1)


def traversal_figure(grids: Mapping[str, Mapping[int, Traversal]], axes: Mapping[str, Sequence[str]]) -> go.Figure:
    """Which item has half of the mover's attention or more over two axes of the grid, a panel each, one below the
    other, so that they are wide enough on a phone; one slider moves along the third axis, one changes the list length,
    and neither resets the other. It opens at the middle one of the lengths, so that either way shows a change.

    grids: panel -> list length -> what was measured; every panel has the same lengths and as many values. axes: panel
    -> names of the components. Raises :class:`ValueError` for panels that do not go together.
    """
    shapes = {(n, len(t.values)) for by_length in grids.values() for n, t in by_length.items()}
    lengths, steps = sorted({n for n, _ in shapes}), {n_steps for _, n_steps in shapes}
    if len(steps) != 1 or any(sorted(by_length) != lengths for by_length in grids.values()):
        raise ValueError("All panels must have the same list lengths and as many values: sliders move them all.")
    (n_steps,), rows, start = steps, len(grids), lengths[(len(lengths) - 1) // 2]
    middle = n_steps // 2
    figure = make_subplots(
        rows=rows, cols=1, subplot_titles=list(grids), vertical_spacing=0.3 / rows, figure=new_figure(300 * rows + 190)
    )
    drawn = [(n, by_length[n]) for by_length in grids.values() for n in lengths]
    for i, panel in enumerate(grids):
        at = dict(row=i + 1, col=1)
        for n in lengths:
            figure.add_trace(_slice(grids[panel][n], middle, n == start, scale=i == 0), **at)
        figure.update_yaxes(title_text=f"alpha {axes[panel][0]}", **at)
        figure.update_xaxes(title_text=f"alpha {axes[panel][1]}", **at)
    along = {}
    for k in range(n_steps):
        cells = [_cells(t.attention, k) for _, t in drawn]
        along[f"{k - middle:+d}" if k != middle else "0"] = {name: [c[name] for c in cells] for name in cells[0]}
    chosen = {str(n): {"visible": [n == m for m, _ in drawn]} for n in lengths}
    return figure.update_layout(
        sliders=[
            restyle_slider(chosen, "items in the list: ", pad=60, active=lengths.index(start)),
            restyle_slider(along, "step along the third component: ", pad=145, active=middle),
        ]
    )


def sweep_panels(sweep: Result) -> tuple[dict[str, dict[int, Traversal]], dict[str, Sequence[str]]]:
    """A finished sweep as :func:`traversal_figure` wants it: a panel per mover."""
    plan = sweep.plan
    panels = {f"{plan.model}, {m}": {n: sweep.traversal(m, n) for n in plan.n_items} for m in plan.movers}
    return panels, dict.fromkeys(panels, plan.writers)


def _cells(attention: np.ndarray, k: int) -> dict:
    """The item that has half of the attention or more in each cell of a plane, and what pointing at the cell tells."""
    plane = np.asarray(attention)[:, :, k]
    rows = [list(zip(*row)) for row in zip(plane.argmax(-1).tolist(), plane.max(-1).tolist())]
    return dict(
        z=[[index if most >= HALF else NOBODY for index, most in row] for row in rows],
        text=[[str(index) if most >= HALF else "" for index, most in row] for row in rows],
        customdata=[[f"most attention to list index {index}: {most:.2f}" for index, most in row] for row in rows],
    )


def _slice(traversal: Traversal, k: int, visible: bool, scale: bool) -> go.Heatmap:
    ticks = [round(float(v), 3) for v in traversal.values]
    n_items = np.asarray(traversal.attention).shape[-1]
    shown = list(range(0, n_items, 1 + n_items // 13))
    bar = dict(title="list<br>index", thickness=12, tickvals=[NOBODY, *shown], ticktext=["none", *map(str, shown)])
    return go.Heatmap(
        **_cells(traversal.attention, k), x=ticks, y=ticks, zmin=NOBODY - 0.5, zmax=n_items - 0.5,
        colorscale=_steps(n_items, none=True), visible=visible, showscale=scale, colorbar=bar,
        texttemplate="%{text}" if len(ticks) < 10 else None, hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _steps(n: int, none: bool = False) -> list[list]:
    """A colour scale without transitions: a colour for each of n list indices, before them a clear one for none."""
    colours = ["rgba(0,0,0,0)"] * none + sample_colorscale(_SCALE, [(index + 0.5) / n for index in range(n)])
    return [[(i + end) / len(colours), colour] for i, colour in enumerate(colours) for end in (0, 1)]


def gains_figure(table: pd.DataFrame) -> go.Figure:
    """Held-out accuracy by strategy, along the three components and along random directions; a menu chooses model and
    list length. table: :class:`GainRow`."""

    def traces(part: pd.DataFrame) -> list[go.Bar]:
        own, random = part[part["draw"].isna()], part[part["draw"].notna()]
        means = random.groupby("strategy", sort=False)["accuracy"].mean()
        kinds = (("the three components", ACCENT, own["strategy"], own["accuracy"]),
                 (f"random directions, mean of {random['draw'].nunique()}", CONTROL, means.index, means))  # fmt: skip
        bars = [
            go.Bar(x=[STRATEGIES[s] for s in names], y=values.round(3).tolist(), marker_color=colour, name=name,
                   hovertemplate="%{x}: %{y:.2f}<extra></extra>")
            for name, colour, names, values in kinds
        ]  # fmt: skip
        bars[0].error_y = error_bars(own, "accuracy", ends="accuracy_")
        return bars

    labels = table["n_items"].astype(str) + " items"
    figure = by_menu(new_figure(400, barmode="group"), table.assign(items=labels), ["model", "items"], traces)
    return figure.update_yaxes(title_text="held-out accuracy", range=[0, 1.04])
