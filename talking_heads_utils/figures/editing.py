"""Figures of chapter 3: what removing a component, and what edits of the weights do. They take tables of rows, never a
model."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.experiments.editing.moves import Extent, Family
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.rules import QUARTER
from talking_heads_utils.figures import style
from talking_heads_utils.prompts import ioi

FAMILIES = {Family.INTO_QUERIES: style.ACCENT, Family.MOVERS: style.KIND_COLOURS["Q"],
            Family.DIRECT: style.KIND_COLOURS["V"],
            Family.ANY: style.KIND_COLOURS["K"], Family.RANDOM: style.CONTROL}  # fmt: skip
EXTENTS = {Extent.SINGLE: "circle", Extent.LEADING: "diamond", Extent.HEAD: "square", Extent.COMBINED: "star"}
CHOICES = {"selection": ("strongest on other prompts", style.ACCENT),
           "weights": ("named by the weights", style.EXPECTED),
           "whole_head": ("the whole head", style.FAINT)}  # fmt: skip


# --- one component removed ---


def removal_figure(table: pd.DataFrame) -> go.Figure:
    """Share of I(m) that is gone without one component, or without the whole head, beside components matched on layer
    and energy; a menu chooses the prompts. table: of
    :class:`~talking_heads_utils.experiments.editing.removal.RemovalRow`."""
    heads, views = list(dict.fromkeys(table["head"])), {}
    figure = style.new_figure(330, y="share of I(m) that is gone", yaxis_tickformat=".0%", xaxis=style.named(heads))
    for (task, n_items), part in table.groupby(["task", "n_items"], sort=False):
        traces: list[go.Scatter] = []
        for i, (choice, (name, colour)) in enumerate(CHOICES.items()):
            rows = part[part["chosen_by"] == choice]
            x = [heads.index(head) + 0.2 * (i - 1) for head in rows["head"]]
            traces.append(go.Scatter(
                x=x, y=style.short(rows["share"]), error_y=style.error_bars(rows, "share", ends="share_"), name=name,
                mode="markers", marker=dict(color=colour, size=11), customdata=rows["component"].tolist(),
                hovertemplate="%{customdata}: %{y:.0%}<extra></extra>",
            ))  # fmt: skip
        traces.append(_matched(part, heads))
        prompts = task if task == ioi.TASK else f"{task} of {n_items}"
        views[f"{prompts}, {part['n'].iloc[0]} prompts"] = traces
    figure.add_hline(y=0, line=style.NULL_LINE)
    figure.add_hline(y=QUARTER, line=style.NULL_LINE, annotation_text="a quarter", annotation_position="top right")
    return style.with_views(figure, views)


def _matched(part: pd.DataFrame, heads: list[str]) -> go.Scatter:
    """What 95% of the matched components stay below, as a share of I(m)."""
    rows = part[part["matched"].notna() & (part["chosen_by"] == "selection")]
    shares = -rows["matched"].astype(float) / rows["inhibition"]
    return go.Scatter(
        x=[heads.index(head) - 0.2 for head in rows["head"]], y=style.short(shares), mode="markers",
        name="95% of matched components lie below", marker=dict(color=style.CONTROL, size=16, symbol="line-ew-open"),
        hovertemplate="95% of matched components: below %{y:.0%}<extra></extra>",
    )  # fmt: skip


# --- what edits gain ---


def gains_figure(table: pd.DataFrame) -> go.Figure:
    """Gain of the best edit by the length of the lists, beside the best of every random draw; a menu chooses points or
    percent of the accuracy before. table: of :class:`~talking_heads_utils.experiments.editing.gains.EditRow`."""
    held = table[table["part"] == Part.HELD_OUT]
    own, draws = held[held["best"] & held["draw"].isna()], held[held["draw"].notna()]
    own = own.sort_values("n_items")
    views = {
        f"gain in {unit}": [_draws(draws, value), _best(own, value, ends)]
        for unit, value, ends in (("points", "gain", ""), ("percent of the accuracy before", "relative", "relative_"))
    }
    figure = style.new_figure(360, "items in the list", "gain of accuracy on held-out lists")
    figure.add_hline(y=0, line=style.NULL_LINE)
    figure.add_hline(y=20, line=style.NULL_LINE, annotation_text="20", annotation_position="top right")
    figure.update_xaxes(tickvals=own["n_items"].unique().tolist())
    return style.with_views(figure, views)


def _best(rows: pd.DataFrame, value: str, ends: str) -> go.Scatter:
    return go.Scatter(
        x=rows["n_items"].tolist(), y=style.short(rows[value], 2), error_y=style.error_bars(rows, value, 2, ends),
        name="best edit", mode="lines+markers", line=dict(color=style.ACCENT, width=3), marker_size=9,
        customdata=rows[["before", "after"]].round(4).to_numpy().tolist(),
        hovertemplate="%{x} items: %{customdata[0]:.0%} to %{customdata[1]:.0%}<extra></extra>",
    )  # fmt: skip


def _draws(rows: pd.DataFrame, value: str) -> go.Scatter:
    """The best edit of every random draw of heads, side by side at each length."""
    n = max(1, rows["draw"].nunique())
    return go.Scatter(
        x=[x + 0.3 * (draw / n - 0.5) for x, draw in zip(rows["n_items"], rows["draw"].astype(float))],
        y=style.short(rows[value], 2), mode="markers", name="best edits of random heads",
        marker=dict(color=style.CONTROL, size=6, opacity=0.7), customdata=rows["edit"].tolist(),
        hovertemplate="%{customdata}: %{y:+.1f}<extra></extra>",
    )  # fmt: skip


def families_figure(table: pd.DataFrame) -> go.Figure:
    """The best edit of each family of heads, by how much of a head it may change, beside the best of random heads; a
    menu chooses the lists. table: of :class:`~talking_heads_utils.experiments.editing.gains.EditRow`."""
    held = table[table["part"] == Part.HELD_OUT]
    own = held[held["draw"].isna()]
    lengths = sorted(own.loc[~own["best"], "n_items"].unique().tolist(), reverse=True)
    extents = [e for e in EXTENTS if (own["extent"] == e).any()]
    views = {}
    for n in lengths:
        traces = [_band(held[held["draw"].notna() & (held["n_items"] == n)]["gain"], len(extents))]
        for i, (family, colour) in enumerate(list(FAMILIES.items())[:-1]):
            rows = own[(own["n_items"] == n) & (own["family"] == family)].drop_duplicates("extent")
            x = [extents.index(e) + 0.22 * (i - 1) for e in rows["extent"]]
            traces.append(go.Scatter(
                x=x, y=style.short(rows["gain"], 2), error_y=style.error_bars(rows, "gain", 2), mode="markers",
                name=style.words(family), marker=dict(color=colour, size=10), customdata=rows["edit"].tolist(),
                hovertemplate="%{customdata}: %{y:+.1f} points<extra></extra>",
            ))  # fmt: skip
        views[style.lists_of(n)] = traces
    ticks = style.named([style.words(e).replace(" ", "<br>") for e in extents])
    figure = style.new_figure(360, y="gain of accuracy, points", xaxis=ticks)
    figure.add_hline(y=0, line=style.NULL_LINE)
    return style.with_views(figure, views)


def _band(gains: pd.Series, n: int) -> go.Scatter:
    """From the least to the largest gain of the random draws, across the figure."""
    low, high = (round(float(v), 2) for v in (gains.min(), gains.max())) if len(gains) else (0.0, 0.0)
    return style.band([-0.5, n - 0.5], [low, low], [high, high], f"{len(gains)} draws of random heads")


# --- what they cost ---


def tried_figure(table: pd.DataFrame) -> go.Figure:
    """Gain on held-out lists against the loss of running text, a mark for every edit that was measured whole; those
    that no other beats in both are joined. table: of
    :class:`~talking_heads_utils.experiments.editing.costs.TriedRow`."""
    x, y = "change of the loss on running text, nats a token", "gain of accuracy on lists, points"
    figure = style.new_figure(400, x, y, margin_t=12)
    for family, colour in sorted(FAMILIES.items(), key=lambda item: item[0] != Family.RANDOM):
        rows = table[table["family"] == family]
        figure.add_scatter(
            x=style.short(rows["text_loss"]), y=style.short(rows["gain"], 2), mode="markers", name=style.words(family),
            marker=dict(color=colour, size=9, opacity=0.8, symbol=[EXTENTS.get(e, "x") for e in rows["extent"]]),
            customdata=rows[["edit", "low", "high"]].to_numpy().tolist(),
            hovertemplate="%{customdata[0]}<br>gain %{y:+.1f} points (%{customdata[1]:+.1f} to %{customdata[2]:+.1f})"
            "<br>text %{x:+.4f} nats a token<extra></extra>",
        )  # fmt: skip
    front = pareto(table)
    figure.add_scatter(
        x=style.short(front["text_loss"]), y=style.short(front["gain"], 2), mode="lines", name="beaten by none in both",
        line=dict(color=style.EXPECTED, width=1.5, dash="dot"), hoverinfo="skip",
    )  # fmt: skip
    figure.add_hline(y=0, line=style.NULL_LINE)
    return figure.add_vline(x=0, line=style.NULL_LINE)


def pareto(table: pd.DataFrame) -> pd.DataFrame:
    """The edits that no other beats in both gain and loss, the cheapest first."""
    ordered = table.sort_values(["text_loss", "gain"], ascending=[True, False])
    return ordered[ordered["gain"] > ordered["gain"].cummax().shift(fill_value=float("-inf"))]
