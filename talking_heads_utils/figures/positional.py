"""Figures of chapter 2: where prompts sit, what that place says, how it is moved, and what moving it buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.positional.coordinates import IDENTITY, PLACE, POSITION
from talking_heads_utils.experiments.positional.gains import PER_PLACE, STRATEGIES
from talking_heads_utils.experiments.positional.study import BEST, COMPONENTS, RANDOM
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    KIND_COLOURS,
    NULL_LINE,
    dropdown,
    error_bars,
    menu_of_views,
    new_figure,
    restyle_slider,
    stacked,
)
from talking_heads_utils.figures.style import slider as plain_slider

if TYPE_CHECKING:
    import pandas as pd

    from talking_heads_utils.experiments.positional.gains import Gain
    from talking_heads_utils.experiments.positional.sweep_results import Result

CARRY_COLOURS = {PLACE: KIND_COLOURS["V"], POSITION: KIND_COLOURS["K"], IDENTITY: KIND_COLOURS["Q"]}
SHORT = {COMPONENTS: "three<br>components", BEST: "triple fitted<br>to place", RANDOM: "random<br>triples"}
HALF = 0.5  # of the mover's attention: with less on every place, none is said to have won
NONE = -1  # such a cell's place
_SCALE = "Turbo"


def finding_figure(
    decoded: pd.DataFrame, steered: Mapping[str, tuple[Mapping[str, Gain], Sequence[Mapping[str, Gain]]]]
) -> go.Figure:
    """Above: place and identity decoded from the three components and from random triples, model by model. Below: what
    one setting per place gains, with the components and with random directions.

    decoded: rows of :func:`~experiments.positional.study.decoding_table` for one split. steered: what
    :func:`talking_heads_utils.experiments.positional.study.steering_gains` gives, by a label each.
    """
    import pandas as pd

    titles = ["answers decoded from three directions", "gain of one setting per place, points"]
    figure = stacked(2, titles, 700, 0.17)
    for subspace, opacity in ((COMPONENTS, 1), (RANDOM, 0.4)):
        for carries in (PLACE, IDENTITY):
            part = decoded[(decoded["subspace"] == subspace) & (decoded["carries"] == carries)]
            name = f"{carries}, {SHORT[subspace].replace('<br>', ' ')}"
            names = [model.replace("/", "/<br>") for model in part["model"]]
            figure.add_bar(x=names, y=part["right"].round(3).tolist(), name=name, opacity=opacity,
                           error_y=error_bars(part, "right"), marker_color=CARRY_COLOURS[carries],
                           hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>", row=1, col=1)  # fmt: skip
    ours = pd.DataFrame([100 * np.array(own[PER_PLACE].gain[:3]) for own, _ in steered.values()],
                        columns=["gain", "low", "high"])  # fmt: skip
    random = [100 * float(np.mean([draw[PER_PLACE].gain.mean for draw in draws])) for _, draws in steered.values()]
    hover = "%{x}: %{y:+.0f} points<extra></extra>"
    labels = [_broken(label) for label in steered]
    figure.add_bar(x=labels, y=ours["gain"].round(2).tolist(), error_y=error_bars(ours, "gain"), marker_color=ACCENT,
                   name="gain", hovertemplate=hover, row=2, col=1)  # fmt: skip
    figure.add_bar(x=labels, y=np.round(random, 2).tolist(), marker_color=CONTROL, name="gain, random directions",
                   hovertemplate=hover, row=2, col=1)  # fmt: skip
    figure.add_hline(y=decoded["chance"].iloc[0], line=NULL_LINE, row=1, col=1)
    figure.update_yaxes(range=[0, 1.04], row=1, col=1)
    figure.update_layout(barmode="group", legend_y=-0.2)
    return figure


def _broken(label: str) -> str:
    """A model's name, and a list length, in lines short enough for a phone."""
    return label.replace(", ", "<br>").replace("/", "/<br>").replace("-", "-<br>")


def points_figure(clouds: Mapping[int, pd.DataFrame], axes: Sequence[str]) -> go.Figure:
    """Prompts in three coordinates: a slider for the list length, a menu for colour by place or by answer.

    clouds: list length -> columns ``x, y, z, place, word, code`` (a number per word).
    """
    figure = new_figure(560)
    figure.frames = [go.Frame(name=str(n), data=_clouds(cloud, n), traces=[0, 1]) for n, cloud in clouds.items()]
    n, cloud = next(iter(clouds.items()))
    for i, trace in enumerate(_clouds(cloud, n)):
        trace.visible = i == 0
        figure.add_trace(trace)
    buttons = [
        dict(label=f"colour: {what}", method="restyle", args=[{"visible": [i == j for j in range(2)]}])
        for i, what in enumerate(("place of the answer", "the answer itself"))
    ]
    titles = [{"title": {"text": name, "font": {"size": 12}}, "tickfont": {"size": 10}, "nticks": 6} for name in axes]
    names = dict(zip(("xaxis", "yaxis", "zaxis"), titles))
    figure.update_layout(
        updatemenus=[dropdown(buttons)], margin_t=70, showlegend=False,
        sliders=[plain_slider([str(n) for n in clouds], "items in the list: ", pad=20)],
        scene=dict(**names, aspectmode="cube", camera_eye=dict(x=2.4, y=2.4, z=1.85)),
    )  # fmt: skip
    return figure


def _clouds(cloud: pd.DataFrame, n_items: int) -> list[go.Scatter3d]:
    """Points coloured by place, with the key to its colours, and by answer, which are too many for a key."""
    hover = "%{text}, place %{customdata}<extra></extra>"
    bar = dict(title=dict(text="place, from 0", side="top"), orientation="h", thickness=12, y=0, yanchor="top", dtick=1)
    looks: dict[str, dict[str, Any]] = dict(
        place=dict(colorscale=_steps(n_items), cmin=-0.5, cmax=n_items - 0.5, showscale=True, colorbar=bar),
        code=dict(colorscale=_SCALE),
    )
    return [
        go.Scatter3d(
            x=cloud["x"].round(3).tolist(), y=cloud["y"].round(3).tolist(), z=cloud["z"].round(3).tolist(),
            mode="markers", text=cloud["word"].tolist(), customdata=cloud["place"].tolist(), hovertemplate=hover,
            marker=dict(size=4, color=cloud[colour].tolist(), **look),
        )
        for colour, look in looks.items()
    ]  # fmt: skip


def decoding_figure(table: pd.DataFrame) -> go.Figure:
    """Share of prompts whose answer is decoded, by subspace, place and identity; a menu chooses model and split."""
    figure = new_figure(380, barmode="group")
    views = list(dict.fromkeys(zip(table["model"], table["split"])))
    subspaces = list(SHORT)
    for i, (model, split) in enumerate(views):
        part = table[(table["model"] == model) & (table["split"] == split)]
        for carries, colour in CARRY_COLOURS.items():
            rows = part[part["carries"] == carries].set_index("subspace").loc[subspaces]
            figure.add_trace(
                go.Bar(x=list(SHORT.values()), y=rows["right"].round(3).tolist(), error_y=error_bars(rows, "right"),
                       name=carries, marker_color=colour, visible=i == 0,
                       hovertemplate=f"{carries}: %{{y:.2f}}<extra></extra>")
            )  # fmt: skip
    figure.add_hline(y=table["chance"].iloc[0], line=NULL_LINE)
    figure.update_yaxes(title_text="answers decoded", range=[0, 1.04])
    menu = menu_of_views([f"{model}, {split}" for model, split in views], len(CARRY_COLOURS))
    figure.update_layout(updatemenus=[menu], margin_t=70, legend_y=-0.3)
    return figure


def dimension_figure(table: pd.DataFrame) -> go.Figure:
    """What is decoded from the first k components by weights, and from k random directions; a menu for the model."""
    figure = new_figure(380)
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        for carries, colour in CARRY_COLOURS.items():
            for suffix, dash in (("", "solid"), (" by random directions", "dot")):
                figure.add_trace(
                    go.Scatter(x=part["k"].tolist(), y=part[carries + suffix].round(3).tolist(), name=carries + suffix,
                               mode="lines+markers", line=dict(color=colour, dash=dash), visible=i == 0)
                )  # fmt: skip
    figure.update_xaxes(title_text="k, components in the order of the weights", dtick=2)
    figure.update_yaxes(title_text="answers decoded", range=[0, 1.04])
    figure.update_layout(updatemenus=[menu_of_views(models, 2 * len(CARRY_COLOURS))], margin_t=70, legend_y=-0.34)
    return figure


def crowding_figure(table: pd.DataFrame, by_place: pd.DataFrame) -> go.Figure:
    """Above: accuracy, and what is decoded from the three coordinates, by list length. Below: accuracy by list length
    and by the answer's place. A menu chooses the model."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.16, row_heights=[0.5, 0.5], figure=new_figure(640))
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        for column, name, colour in (("accuracy", "accuracy", ACCENT), (PLACE, "place decoded", CARRY_COLOURS[PLACE]),
                                     (IDENTITY, "identity decoded", CARRY_COLOURS[IDENTITY])):  # fmt: skip
            figure.add_trace(
                go.Scatter(x=part["n_items"].tolist(), y=part[column].round(3).tolist(), name=name, visible=i == 0,
                           mode="lines+markers", line_color=colour,
                           error_y=error_bars(part, column) if column == "accuracy" else None),
                row=1, col=1,
            )  # fmt: skip
        wide = by_place[by_place["model"] == model].pivot(index="place", columns="n_items", values="accuracy")
        cells = [[None if np.isnan(v) else round(v, 3) for v in row] for row in wide.to_numpy()]
        figure.add_trace(
            go.Heatmap(x=[str(n) for n in wide.columns], y=wide.index.tolist(), z=cells, zmin=0, zmax=1,
                       colorscale="Blues", visible=i == 0, colorbar=dict(thickness=12, len=0.42, y=0.2),
                       hovertemplate="%{x} items, place %{y}: %{z:.2f}<extra></extra>"),
            row=2, col=1,
        )  # fmt: skip
    figure.update_yaxes(range=[0, 1.04], row=1, col=1)
    figure.update_yaxes(title_text="place of the answer", row=2, col=1)
    figure.update_xaxes(title_text="items in the list", row=2, col=1)
    figure.update_layout(updatemenus=[menu_of_views(models, 4)], margin_t=70, legend_y=-0.12)
    return figure


class Traversal(NamedTuple):
    """Mean attention of a mover over a grid, ``[v, v, v, n_items]``, and the values of each axis."""

    attention: np.ndarray
    values: Sequence[float]


def traversal_figure(grids: Mapping[str, Mapping[int, Traversal]], axes: Mapping[str, Sequence[str]]) -> go.Figure:
    """Which item has half of the mover's attention or more over two axes of the grid, a panel each, one below the
    other, so that they are wide enough on a phone; one slider moves along the third axis, one changes the list length,
    and neither resets the other. It opens at the middle one of the lengths, so that either way shows a change.

    grids: panel -> list length -> what was measured; every panel has the same lengths and as many values. axes: panel
    -> names of the components. Raises :class:`ValueError` for panels that do not go together.
    """
    lengths, n_steps = _shared(grids)
    middle, rows = n_steps // 2, len(grids)
    start = lengths[(len(lengths) - 1) // 2]
    figure = make_subplots(
        rows=rows, cols=1, subplot_titles=list(grids), vertical_spacing=0.3 / rows, figure=new_figure(300 * rows + 190)
    )
    drawn: list[tuple[int, Traversal]] = []
    for i, (panel, by_length) in enumerate(grids.items()):
        at = dict(row=i + 1, col=1)
        for n_items in lengths:
            drawn.append((n_items, by_length[n_items]))
            figure.add_trace(_slice(by_length[n_items], middle, n_items == start, scale=i == 0), **at)
        figure.update_yaxes(title_text=f"alpha {axes[panel][0]}", **at)
        figure.update_xaxes(title_text=f"alpha {axes[panel][1]}", **at)
    along = {
        f"{k - middle:+d}" if k != middle else "0": _columns([_cells(t.attention, k) for _, t in drawn])
        for k in range(n_steps)
    }
    chosen = {str(n): {"visible": [n == m for m, _ in drawn]} for n in lengths}
    figure.update_layout(
        sliders=[
            restyle_slider(chosen, "items in the list: ", pad=60, active=lengths.index(start)),
            restyle_slider(along, "step along the third component: ", pad=145, active=middle),
        ]
    )
    return figure


def sweep_panels(sweep: Result) -> tuple[dict[str, dict[int, Traversal]], dict[str, Sequence[str]]]:
    """A finished sweep as :func:`traversal_figure` wants it: a panel per mover."""
    plan = sweep.plan
    panels = {
        f"{plan.model}, {mover}": {n: Traversal(sweep.attention(mover, n), plan.values) for n in plan.n_items}
        for mover in plan.movers
    }
    return panels, dict.fromkeys(panels, plan.writers)


def _shared(grids: Mapping[str, Mapping[int, Traversal]]) -> tuple[list[int], int]:
    """List lengths and number of values that all panels share."""
    lengths = {tuple(sorted(by_length)) for by_length in grids.values()}
    n_steps = {len(t.values) for by_length in grids.values() for t in by_length.values()}
    if len(lengths) != 1 or len(n_steps) != 1:
        raise ValueError("All panels must have the same list lengths and as many values: sliders move them all.")
    return list(lengths.pop()), n_steps.pop()


def _columns(cells: Sequence[dict]) -> dict[str, list]:
    """One value per trace, as a restyle wants them."""
    return {name: [cell[name] for cell in cells] for name in cells[0]}


def _cells(attention: np.ndarray, k: int) -> dict:
    """The place that has half of the attention or more in each cell of a plane, and what pointing at the cell tells."""
    plane = np.asarray(attention)[:, :, k]
    rows = [list(zip(*row)) for row in zip(plane.argmax(-1).tolist(), plane.max(-1).tolist())]
    return dict(
        z=[[place if most >= HALF else NONE for place, most in row] for row in rows],
        text=[[str(place) if most >= HALF else "" for place, most in row] for row in rows],
        customdata=[[f"most attention to place {place}: {most:.2f}" for place, most in row] for row in rows],
    )


def _slice(traversal: Traversal, k: int, visible: bool, scale: bool) -> go.Heatmap:
    ticks = [round(float(v), 3) for v in traversal.values]
    n_items = np.asarray(traversal.attention).shape[-1]
    places = list(range(0, n_items, 1 + n_items // 13))
    bar = dict(title="place,<br>from 0", thickness=12, tickvals=[NONE, *places], ticktext=["none", *map(str, places)])
    return go.Heatmap(
        **_cells(traversal.attention, k), x=ticks, y=ticks, zmin=NONE - 0.5, zmax=n_items - 0.5,
        colorscale=_steps(n_items, none=True), visible=visible, showscale=scale, colorbar=bar,
        texttemplate="%{text}" if len(ticks) < 10 else None,
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _steps(n: int, none: bool = False) -> list[list]:
    """A colour scale without transitions: a colour for each of n places, before them a clear one for none."""
    colours = ["rgba(0,0,0,0)"] * none + sample_colorscale(_SCALE, [(place + 0.5) / n for place in range(n)])
    return [[(i + end) / len(colours), colour] for i, colour in enumerate(colours) for end in (0, 1)]


def gains_figure(results: Mapping[str, tuple[Mapping[str, Gain], Sequence[Mapping[str, Gain]]]]) -> go.Figure:
    """Held-out accuracy by strategy, along the three components and along random directions; a menu chooses model and
    list length."""
    figure = new_figure(400, barmode="group")
    for i, (ours, random) in enumerate(results.values()):
        found = [ours[name].accuracy for name in STRATEGIES]
        error = dict(array=[round(f.high - f.mean, 3) for f in found],
                     arrayminus=[round(f.mean - f.low, 3) for f in found], thickness=1.2)  # fmt: skip
        figure.add_trace(
            go.Bar(x=list(STRATEGIES), y=[round(f.mean, 3) for f in found], error_y=error, marker_color=ACCENT,
                   name="the three components", visible=i == 0, hovertemplate="%{x}: %{y:.2f}<extra></extra>")
        )  # fmt: skip
        means = [float(np.mean([r[name].accuracy.mean for r in random])) for name in STRATEGIES]
        figure.add_trace(
            go.Bar(x=list(STRATEGIES), y=[round(m, 3) for m in means], marker_color=CONTROL, visible=i == 0,
                   name=f"random directions, mean of {len(random)}", hovertemplate="%{x}: %{y:.2f}<extra></extra>")
        )  # fmt: skip
    figure.update_yaxes(title_text="held-out accuracy", range=[0, 1.04])
    figure.update_layout(updatemenus=[menu_of_views(list(results), 2)], margin_t=70)
    return figure
