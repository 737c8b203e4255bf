"""Figures of chapter 2: where lists sit, what is decoded there, how many dimensions behaviour needs, crowding and
order. They take tables of rows, never a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.experiments.positional import interchange
from talking_heads_utils.experiments.positional.decoding import Feature, Split
from talking_heads_utils.experiments.positional.subspace import K, Subspace
from talking_heads_utils.figures import style
from talking_heads_utils.stats import Z

FEATURES = {Feature.LIST_INDEX: "list index", Feature.IDENTITY: "item"}
COLOURS = {Feature.LIST_INDEX: style.KIND_COLOURS["V"], Feature.IDENTITY: style.KIND_COLOURS["Q"]}
SPLITS = {Split.LISTS: "other lists", Split.WORDINGS: "other wordings", Split.OBJECTS: "other objects"}
MEASURES = {
    interchange.LOGIT_DIFFERENCE: "logit difference",
    interchange.LOG_ODDS: "movers' attention",
    interchange.MOVED: "answers moved",
}
UNITS = {
    interchange.LOGIT_DIFFERENCE: "logits, donor's item less own",
    interchange.LOG_ODDS: "log-odds of attention, nats",
    interchange.MOVED: "lists moved to the donor's item",
}
CURVES = {
    Subspace.CHOSEN: ("components of inhibition heads", style.ACCENT, "solid"),
    Subspace.ANYWHERE: ("components of any head", style.FIRST_NAME, "solid"),
    Subspace.LEARNED: ("learned", style.EXPECTED, "solid"),
    Subspace.LEARNED_ARBITRARY: ("learned, arbitrary labels", style.EXPECTED, "dot"),
    Subspace.LEARNED_UNTRAINED: ("learned, untrained model", style.FAINT, "dot"),
}
WHOLE = {Subspace.WHOLE_HEADS: ("inhibition heads, whole", "dot"), Subspace.WHOLE_STREAM: ("the whole stream", "dash")}


def index_colours(indices: Sequence[int]) -> list[str]:
    """The colour of each list index, alike in all figures."""
    return [style.INDEX_COLOURS[i % len(style.INDEX_COLOURS)] for i in indices]


def lengths_of(table: pd.DataFrame) -> list[int]:
    """The lengths of lists in a table, the shortest first, which a menu opens on."""
    return sorted(table["n_items"].unique().tolist())


# --- where lists sit ---


def points_figure(table: pd.DataFrame, axes: Sequence[str], start: int | None = None) -> go.Figure:
    """Lists in three coordinates, above, and the mean of each coordinate by the answer's list index with its 95%
    interval, below; the slider sets the length of the lists. Open marks: lists that are answered wrongly. axes: names
    of the components. start: the length at first. table: of
    :class:`~talking_heads_utils.experiments.positional.decoding.PointRow`."""
    figure, clouds = style.new_figure(540, margin_t=16, showlegend=False), dict(tuple(table.groupby("n_items")))
    names = [str(n) for n in clouds]
    frames = [go.Frame(name=str(n), data=_cloud(part), traces=[0, 1, 2, 3]) for n, part in clouds.items()]
    active = names.index(str(start)) if str(start) in names else 0
    figure.add_traces(frames[active].data)
    figure.frames = frames
    ends = [mean.y[i] + sign * mean.error_y.array[i] for f in frames for mean in f.data[1:] for i in range(len(mean.y))
            for sign in (-1, 1)]  # fmt: skip
    reach, widest = 1.1 * max(map(abs, ends)), int(table["list_index"].max())
    for i, name in enumerate(axes):
        at, left = str(i + 1).replace("1", ""), i * 0.36
        figure.update_layout({
            f"xaxis{at}": dict(domain=[left, left + 0.28], anchor=f"y{at}", range=[-0.5, widest + 0.5], dtick=1,
                               title="list index" if i == 1 else None, tickangle=0),
            f"yaxis{at}": dict(domain=[0, 0.18], anchor=f"x{at}", range=[-reach, reach], nticks=4,
                               title="mean, s.d." if i == 0 else None),
        })  # fmt: skip
        figure.add_annotation(text=f"mean {name}", x=left, xref="paper", y=0.19, yref="paper", xanchor="left",
                              yanchor="bottom", showarrow=False, font_size=12)  # fmt: skip
    walls = dict(showbackground=False, showline=True, nticks=5, showspikes=False, gridwidth=2, linewidth=3,
                 **dict.fromkeys(("gridcolor", "zerolinecolor", "linecolor"), style.CONTROL))  # fmt: skip
    titles = [walls | {"title": {"text": name, "font": {"size": 13}}, "tickfont": {"size": 11}} for name in axes]
    return figure.update_layout(
        scene=dict(zip(("xaxis", "yaxis", "zaxis"), titles), aspectmode="cube", domain_y=[0.27, 1],
                   camera=dict(eye=dict(x=1.62, y=1.62, z=0.8), center=dict(x=0, y=0, z=-0.1))),
        sliders=[style.slider(names, "items in the list: ", pad=44, active=active)],
    )  # fmt: skip


def _cloud(part: pd.DataFrame) -> list:
    """The points of one length, then the means of the three coordinates by list index."""
    words = [f"{w}, list index {i}, answered {'rightly' if right else 'wrongly'}"
             for w, i, right in zip(part["word"], part["list_index"], part["right"])]  # fmt: skip
    colours = index_colours(part["list_index"].tolist())
    marker = dict(size=4.5, color=colours, line=dict(color=colours, width=2),
                  symbol=["circle" if right else "circle-open" for right in part["right"]])  # fmt: skip
    cloud = go.Scatter3d(**{axis: style.short(part[axis], 2) for axis in "xyz"}, mode="markers", marker=marker,
                         text=words, hovertemplate="%{text}<extra></extra>")  # fmt: skip
    return [cloud, *(_means(part, axis, i) for i, axis in enumerate("xyz"))]


def _means(part: pd.DataFrame, axis: str, i: int) -> go.Scatter:
    of = part.groupby("list_index")[axis].agg(["mean", "sem"]).fillna(0)
    at = str(i + 1).replace("1", "")
    return go.Scatter(
        x=of.index.tolist(), y=style.short(of["mean"], 3), mode="markers", xaxis=f"x{at}", yaxis=f"y{at}",
        marker=dict(size=9, color=index_colours(of.index.tolist())), hovertemplate="%{y:.2f}<extra></extra>",
        error_y=dict(array=style.short(Z * of["sem"], 3), color=style.CONTROL, thickness=1.2),
    )  # fmt: skip


# --- what is decoded there ---


def decoding_figure(table: pd.DataFrame) -> go.Figure:
    """Lists whose answer's index, or whose answer, is decoded from the first k coordinates; the menu chooses the length
    and what was left out of the fit. table: of
    :class:`~talking_heads_utils.experiments.positional.decoding.DecodingRow`."""
    look = dict(margin_t=16, xaxis_dtick=1, yaxis_rangemode="tozero", yaxis_tickformat=".0%", legend_y=-0.24)
    figure, views = style.new_figure(350, "components whose coordinates are read, k", "answers decoded", **look), {}
    for n in lengths_of(table):
        for split, words in SPLITS.items():
            part = table[(table["n_items"] == n) & (table["split"] == split)]
            if len(part):
                views[f"lists of {n}: {words}"] = _decoded(part)
    return style.with_views(figure, views)


def _decoded(part: pd.DataFrame) -> list:
    chosen = part[part["subspace"] == Subspace.CHOSEN]
    traces: list[Any] = []
    for feature, name in FEATURES.items():
        colour, shift = COLOURS[feature], 0.06 if feature == Feature.IDENTITY else -0.06
        for subspace, suffix, dash in ((Subspace.CHOSEN, "", "solid"), (Subspace.ANYWHERE, ", any head", "dot")):
            rows = part[(part["subspace"] == subspace) & (part["feature"] == feature)].sort_values("k")
            traces.append(_by_k(rows, "right", name + suffix, colour, dash, shift, bars=dash == "solid", form=".0%"))
        rows = chosen[chosen["feature"] == feature].sort_values("k")
        matched = part[(part["subspace"] == Subspace.MATCHED) & (part["feature"] == feature)]
        first = feature == Feature.LIST_INDEX
        traces.append(go.Scatter(
            x=rows["k"].tolist(), y=style.short(rows["shuffled"]), name="answers shuffled before the fit",
            mode="markers", marker=dict(symbol="x-thin-open", color=colour, size=7), showlegend=first,
            hovertemplate=f"{name}, shuffled: %{{y:.0%}}<extra></extra>",
        ))  # fmt: skip
        drawn = "95% of matched triples" if first else f"95% of matched triples, {name}"
        traces.insert(0, _drawn(matched, "right", drawn, 3 * shift).update(showlegend=first))
    ks, chance = sorted(part["k"].unique().tolist()), float(part["chance"].iloc[0])
    return [*traces, style.level([ks[0], ks[-1]], chance, "chance", style.NULL_LINE, hoverinfo="skip")]


def _by_k(
    rows: pd.DataFrame, value: str, name: str, colour: str, dash: str, shift: float, *, bars: bool, form: str
) -> go.Scatter:
    """A curve over k, moved aside by a little, so that intervals do not hide one another."""
    look, moved = dict(color=colour, dash=dash, width=2), rows.assign(at=rows["k"].astype(float) + shift)
    return style.curve(
        moved, "at", value, name, look, f", k = %{{customdata}}: %{{y:{form}}}", marker_size=6,
        bars=dict(color=colour, width=0) if bars else None, customdata=rows["k"].tolist(),
    )  # fmt: skip


def _drawn(rows: pd.DataFrame, value: str, name: str, shift: float = 0) -> go.Scatter:
    """The range of draws at one k: a broad grey bar."""
    across = [k + shift for k in rows["k"].tolist()]
    x, y = spans(across, rows["low"], rows["high"])
    means = [mean for mean in style.short(rows[value]) for _ in range(3)]
    return go.Scatter(
        x=x, y=y, mode="lines", name=name, line=dict(color=style.CONTROL, width=8), customdata=means,
        hovertemplate=f"{name}: mean %{{customdata:.3f}}<extra></extra>",
    )  # fmt: skip


def spans(at: Sequence[float], low: pd.Series, high: pd.Series) -> tuple[list[float | None], list[float | None]]:
    """Where on one axis, and from where to where on the other, pieces of a line run."""
    across = [x for place in at for x in (place, place, None)]
    return across, [y for ends in zip(style.short(low), style.short(high)) for y in (*ends, None)]


# --- how many dimensions behaviour needs ---


def dimensions_figure(table: pd.DataFrame) -> go.Figure:
    """What a donor's first k coordinates do to the recipient, of components and of learned subspaces; grey: 95% of
    matched triples; lines: whole heads and the whole stream. The menu chooses measure and length. table: of
    :class:`~talking_heads_utils.experiments.positional.interchange.InterchangeRow`."""
    figure, views, layouts = style.new_figure(380, "dimensions interchanged, k", margin_t=16, legend_y=-0.22), {}, []
    donors = table[table["donor"] == interchange.Donor.OTHER_ITEMS]
    for measure in MEASURES:
        for n in lengths_of(donors):
            part = donors[(donors["n_items"] == n) & (donors["measure"] == measure)]
            if len(part):
                views[f"{MEASURES[measure]}, lists of {n}"] = _interchanged(part)
                layouts.append({"yaxis.title.text": UNITS[measure]})
    figure.add_hline(y=0, line=dict(color=style.CONTROL, width=1))
    figure.update_layout({"xaxis.dtick": 1} | (layouts[0] if layouts else {}))
    return style.with_views(figure, views, layouts=layouts)


def _interchanged(part: pd.DataFrame) -> list:
    ks = part.loc[part["k"] > 0, "k"].astype(int)
    ends = [int(ks.min()), int(ks.max())] if len(ks) else [1, K]
    traces: list[Any] = [_drawn(part[part["subspace"] == Subspace.MATCHED], "effect", "95% of matched triples")]
    for i, (subspace, (name, colour, dash)) in enumerate(CURVES.items()):
        rows = part[part["subspace"] == subspace].sort_values("k")
        traces.append(_by_k(rows, "effect", name, colour, dash, 0.08 * (i - 2), bars=True, form=".2f"))
    for subspace, (name, dash) in WHOLE.items():
        rows = part[part["subspace"] == subspace]
        value, look = style.short(rows["effect"]), dict(color=style.INK, dash=dash, width=1.4)
        told = f"{name}: %{{y:.2f}}<extra></extra>"
        traces.append(style.level(ends if value else [], value[0] if value else 0, name, look, hovertemplate=told))
    return traces


# --- crowding and order ---


def crowding_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy of the quarters of lists by margin, of each length. table: of
    :class:`~talking_heads_utils.experiments.positional.crowding.CrowdingRow`."""
    look = dict[str, Any](margin_t=16, barmode="group", yaxis_tickformat=".0%", yaxis_rangemode="tozero", legend_y=-0.3)
    figure = style.new_figure(265, y="lists answered", **look)
    rows = table[table["statistic"] == "accuracy"]
    colours = (style.FIRST_NAME, style.ACCENT, style.EXPECTED, style.CONTROL)
    for n, colour in zip(lengths_of(rows), colours):
        own = rows[rows["n_items"] == n].sort_values("quarter")
        figure.add_bar(
            x=own["quarter"].astype(int).tolist(), y=style.short(own["value"]), error_y=style.error_bars(own, "value"),
            name=f"lists of {n}", marker_color=colour, hovertemplate=f"lists of {n}: %{{y:.0%}}<extra></extra>",
        )  # fmt: skip
    quarters = ["most crowded<br>quarter", "second", "third", "least crowded<br>quarter"]
    return figure.update_xaxes(tickvals=[1, 2, 3, 4], ticktext=quarters)


def scales_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy over the scale of all lists' deviations from their mean: the chosen three, and 95% of matched triples as
    an area; the menu chooses the length. table: of
    :class:`~talking_heads_utils.experiments.positional.crowding.ScaleRow`."""
    look = dict(margin_t=16, yaxis_tickformat=".0%", legend_y=-0.24)
    figure = style.new_figure(290, "scale of the deviations from the mean", "lists answered", **look)

    def traces(part: pd.DataFrame) -> list:
        own, drawn = (part[part["subspace"] == s] for s in (Subspace.CHOSEN, Subspace.MATCHED))
        low, high, told = style.short(drawn["low"]), style.short(drawn["high"]), ", scale %{x}: %{y:.1%}"
        return [
            style.band(drawn["scale"].tolist(), low, high, "95% of matched triples"),
            style.curve(drawn, "scale", "accuracy", "matched triples, mean", dict(color=style.CONTROL, width=2), told),
            style.curve(own, "scale", "accuracy", "the chosen three", dict(color=style.ACCENT, width=2), told,
                        bars=dict(color=style.ACCENT)),
        ]  # fmt: skip

    figure.add_vline(x=1, line=style.NULL_LINE, annotation_text="unchanged", annotation_position="bottom right")
    ordered = table.sort_values(["n_items", "scale"], kind="stable")
    return style.with_views(figure, style.views_of(ordered, traces, n_items=style.lists_of))


ORDERS = {"kept": "the others named again in the same order", "shuffled": "the others named again in shuffled order"}
STRATEGIES = {"accuracy": ("the model", style.ACCENT, "solid", 3),
              "removed": ("all coordinates at one point", style.EXPECTED, "solid", 2),
              "matched_removed": ("the same, matched triples", style.CONTROL, "solid", 2),
              "last_named": ("always the last item", style.FIRST_NAME, "dot", 1.6),
              "next_in_order": ("item after the one named last", "#009E73", "dot", 1.6)}  # fmt: skip


def order_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy by the answer's list index in each order, beside plain strategies and with the subspace removed; the
    menu chooses the length. table: of :class:`~talking_heads_utils.experiments.positional.order.OrderRow`."""

    def traces(part: pd.DataFrame) -> list:
        return [
            style.curve(part[part["order"] == order], "list_index", column, name,
                        dict(color=colour, dash=dash, width=width), ", index %{x}: %{y:.0%}", legendgroup=column,
                        bars=dict(color=colour) if column == "accuracy" else None, showlegend=order == "kept")
            for order in ORDERS for column, (name, colour, dash, width) in STRATEGIES.items()
        ]  # fmt: skip

    figure = style.stacked(len(ORDERS), list(ORDERS.values()), 410, 0.2)
    ordered = table.sort_values(["n_items", "list_index"], kind="stable")
    panels = [row for row in (1, 2) for _ in STRATEGIES]
    style.with_views(figure, style.views_of(ordered, traces, n_items=style.lists_of), panels=panels)
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="list index of the answer", row=2, col=1)
    figure.update_yaxes(title_text="lists answered", tickformat=".0%", range=[-0.03, 1.05])
    return figure.update_layout(legend_tracegroupgap=0)
