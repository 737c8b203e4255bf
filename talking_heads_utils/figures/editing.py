"""Figures of chapter 3: what removing, scaling and the best edits do, and what they break."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils.experiments.editing.components import Prompts
from talking_heads_utils.experiments.editing.removal import Kind
from talking_heads_utils.experiments.editing.search import Search
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    KIND_COLOURS,
    NULL_LINE,
    by_menu,
    error_bars,
    menu_of_views,
    new_figure,
    slider,
)

if TYPE_CHECKING:
    import pandas as pd

SEARCHES = {Search.GRADIENT: (ACCENT, CONTROL), Search.GRID: (KIND_COLOURS["V"], "#C3C8D0")}  # own, random
REMOVED = {Kind.CHOSEN: ("channel", ACCENT), Kind.RANDOM: ("random", CONTROL), Kind.HEAD: ("whole head", EXPECTED)}
SETS = {Prompts.KNOWN: "known wordings", Prompts.NEW: "new wording", Prompts.LISTS: "lists"}


def removal_figure(table: pd.DataFrame) -> go.Figure:
    """Change of I(m) against change of accuracy when a component, a random one or a whole head is removed; a menu
    chooses the model. table: :class:`RemovalRow`."""

    def traces(part: pd.DataFrame) -> list[go.Scatter]:
        return [
            go.Scatter(x=rows["inhibition_change"].round(4).tolist(), y=rows["accuracy_change"].round(2).tolist(),
                       error_y=error_bars(rows, "accuracy_change", 2, "accuracy_"), name=name, mode="markers",
                       marker=dict(color=colour, size=9), text=rows["removed"].tolist(),
                       hovertemplate="%{text}: I(m) %{x:+.2f}, accuracy %{y:+.0f} points<extra></extra>")
            for kind, (name, colour) in REMOVED.items() for rows in [part[part["kind"] == kind]]
        ]  # fmt: skip

    figure = by_menu(new_figure(430), table, ["model"], traces)
    figure.update_xaxes(title_text="change of the mover's I(m)")
    return figure.update_yaxes(title_text="change of accuracy, points")


def lines_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy as one component is scaled, a line per component; a slider for the list length, a menu for the model.
    table: :class:`ScaleRow`. Raises :class:`ValueError` where models have not as many components."""
    if table.groupby("model")["component"].nunique().nunique() != 1:
        raise ValueError("All models must have as many components, so that one menu shows them.")
    figure = new_figure(430)

    def lines(part: pd.DataFrame) -> list[go.Scatter]:
        return [
            go.Scatter(x=rows["scale"].tolist(), y=rows["accuracy"].round(3).tolist(), name=name, mode="lines+markers",
                       line_color=figure.layout.colorway[i % len(figure.layout.colorway)])
            for i, (name, rows) in enumerate(part.groupby("component", sort=False))
        ]  # fmt: skip

    return _by_length(figure, table, lines).update_layout(legend_y=-0.75).update_xaxes(
        title_text="scale of the component"
    ).update_yaxes(title_text="accuracy", range=[0, 1.04])  # fmt: skip


def planes_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy over the scales of two components; a slider for the list length, a menu for the model. table:
    :class:`ScaleRow` of two."""

    def plane(part: pd.DataFrame) -> list[go.Heatmap]:
        wide = part.pivot(index="scale", columns="other_scale", values="accuracy")
        return [
            go.Heatmap(z=wide.round(3).to_numpy().tolist(), x=[f"{v:g}" for v in wide.columns],
                       y=[f"{v:g}" for v in wide.index], zmin=0, zmax=1, colorscale="Blues",
                       colorbar=dict(title="accuracy", thickness=12), hovertemplate="%{z:.2f}<extra></extra>")
        ]  # fmt: skip

    pairs = table.drop_duplicates("model")[["model", "component", "other"]].itertuples(index=False)
    titles = [{"yaxis.title.text": f"scale of {a}", "xaxis.title.text": f"scale of {b}"} for _, a, b in pairs]
    figure = _by_length(new_figure(480), table, plane, titles)
    return figure.update_layout(titles[0]).update_yaxes(type="category").update_xaxes(type="category")


def _by_length(
    figure: go.Figure,
    table: pd.DataFrame,
    traces: Callable[[pd.DataFrame], list],
    layouts: list[dict] | None = None,
) -> go.Figure:
    """A menu for the model and a slider for the list length; each model has as many traces at every length."""
    lengths, models = table["n_items"].unique().tolist(), table["model"].unique().tolist()
    drawn = {
        n: [t for m in models for t in traces(table[(table["model"] == m) & (table["n_items"] == n)])] for n in lengths
    }
    n_traces = len(drawn[lengths[0]])
    figure.add_traces(drawn[lengths[0]])
    for i, trace in enumerate(figure.data):
        trace.visible = i < n_traces // len(models)
    figure.frames = [go.Frame(name=str(n), data=found, traces=list(range(n_traces))) for n, found in drawn.items()]
    return figure.update_layout(
        updatemenus=[menu_of_views(models, n_traces // len(models), layouts)], margin_t=70,
        sliders=[slider([str(n) for n in lengths], "items in the list: ", pad=50)],
    )  # fmt: skip


def finding_figure(table: pd.DataFrame) -> go.Figure:
    """What the best edits gain in every model at once, beside the same searches with random components. table:
    :class:`EditGainRow`, of one set of prompts."""
    figure = new_figure(400, barmode="group").add_traces(_gain_bars(table, "model"))
    figure.add_hline(y=0, line=NULL_LINE)
    return figure.update_yaxes(title_text="gain in accuracy, points")


def gains_figure(table: pd.DataFrame) -> go.Figure:
    """Gain of the best edits on prompts that no choice saw, beside random edits of the same norm; a menu chooses the
    model. table: :class:`EditGainRow`."""
    labels = [f"{SETS[p]}<br>{n} items" for p, n in zip(table["prompts"], table["n_items"])]
    figure = by_menu(new_figure(420, barmode="group"), table.assign(label=labels), ["model"],
                     lambda part: _gain_bars(part, "label"), legend_y=-0.3)  # fmt: skip
    figure.add_hline(y=0, line=NULL_LINE)
    return figure.update_yaxes(title_text="gain in accuracy, points")


def _gain_bars(table: pd.DataFrame, x: str) -> list[go.Bar]:
    """Each search's gain with its interval, and the mean over the draws of random components."""
    bars = []
    for search, (colour, grey) in SEARCHES.items():
        part = table[table["search"] == search]
        own, draws = part[part["draw"].isna()], part[part["draw"].notna()]
        means = draws.groupby(x, sort=False)["gain"].mean()
        look = dict(hovertemplate=f"{search}: %{{y:+.1f}} points<extra></extra>")
        bars += [
            go.Bar(x=own[x].tolist(), y=own["gain"].round(2).tolist(), error_y=error_bars(own, "gain", 2), name=search,
                   marker_color=colour, **look),
            go.Bar(x=means.index.tolist(), y=means.round(2).tolist(), name=f"random, {search}", marker_color=grey,
                   **look),
        ]  # fmt: skip
    return bars


def tried_figure(table: pd.DataFrame) -> go.Figure:
    """Gain on held-out lists against divergence on other prompts, one point per edit that was tried; a menu for the
    model. table: :class:`TriedRow`."""
    colours = {search: colour for search, (colour, _) in SEARCHES.items()} | {"random": CONTROL}
    named = table.assign(name=table["search"].where(table["draw"].isna(), "random"))

    def traces(part: pd.DataFrame) -> list[go.Scatter]:
        return [
            go.Scatter(x=rows["kl"].clip(lower=1e-6).tolist(), y=rows["gain"].round(2).tolist(), name=name,
                       mode="markers", marker=dict(color=colour, size=8, opacity=0.75),
                       customdata=rows[["size", "lost", "low", "high"]].round(2).to_numpy().tolist(),
                       hovertemplate="gain %{y:+.0f} points (%{customdata[2]:+.0f} to %{customdata[3]:+.0f})<br>"
                       "divergence %{x:.3g} nats, lost elsewhere %{customdata[1]:.0f} points<br>"
                       "Frobenius norm %{customdata[0]:.2f}<extra></extra>")
            for name, colour in colours.items() for rows in [part[part["name"] == name]]
        ]  # fmt: skip

    figure = by_menu(new_figure(440), named, ["model"], traces)
    figure.add_hline(y=0, line=NULL_LINE)
    figure.update_xaxes(
        title_text="divergence on IOI and lists of 4, nats", type="log", exponentformat="power", dtick=1
    )
    return figure.update_yaxes(title_text="gain on held-out lists, points")


def heads_figure(table: pd.DataFrame) -> go.Figure:
    """How far every head's attention pattern moves; a menu chooses model and edit. The edits of one model share their
    colours' range. table: :class:`MovedRow`."""
    most = table.groupby("model")["moved"].max()

    def traces(part: pd.DataFrame) -> list[go.Heatmap]:
        wide = part.pivot(index="layer", columns="head", values="moved")
        return [
            go.Heatmap(z=wide.round(3).to_numpy().tolist(), x=[f"H{h}" for h in wide.columns],
                       y=[f"L{n}" for n in wide.index], zmin=0, zmax=most[part["model"].iloc[0]], colorscale="Oranges",
                       colorbar=dict(title="moved", thickness=12), hovertemplate="%{y}%{x}: %{z:.3f}<extra></extra>")
        ]  # fmt: skip

    edits = table["search"].where(table["draw"].isna(), "random, " + table["search"])
    figure = by_menu(new_figure(360), table.assign(edit=edits), ["model", "edit"], traces)
    return figure.update_yaxes(autorange="reversed")
