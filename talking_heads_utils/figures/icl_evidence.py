"""Figures of chapter 4 on belief by evidence, and on parts of a task. They take tables of rows, never a model."""

from __future__ import annotations

from math import log

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.figures import style
from talking_heads_utils.figures.icl import COLOURS, line, marks, mean_first, task_name

ADDS = (0.8, 1.25)  # joint over summed of contributions that add
ATTRIBUTES = {"exact": ("exact", style.ACCENT), "word": ("the word, whatever its case", style.KIND_COLOURS["V"]),
              "form": ("the form", style.KIND_COLOURS["K"]), "parity": ("parity", style.KIND_COLOURS["V"]),
              "size": ("size", style.KIND_COLOURS["K"])}  # fmt: skip


def flipped(flip: float) -> str:
    """A rate of flips in words; 0 stands for all rates together."""
    return f"{flip:.0%} flipped" if flip else "all rates"


def evidence_figure(table: pd.DataFrame, slopes: pd.DataFrame) -> go.Figure:
    """Mean log-odds by signed evidence, a colour for every rate of flips, and what an exact reader of the same strength
    says, dotted; the menu chooses labels and number of examples. tables: of
    :class:`~talking_heads_utils.experiments.icl.evidence.EvidenceRow` and
    :class:`~talking_heads_utils.experiments.icl.evidence.SlopeRow`."""
    flips = sorted(table["flip"].unique())
    most = int(table["n_examples"].max())

    def traces(part: pd.DataFrame) -> list:
        labels, made = part["labels"].iloc[0], []
        for flip, colour in zip(flips, COLOURS):
            rows = part[part["flip"] == flip].sort_values("signed")
            name, x = flipped(flip), rows["signed"].tolist()
            made.append(marks(rows, x, "log_odds", name, colour, marker=dict(color=colour, size=8)))
            slope = _exact_slope(slopes, labels, flip) if int(part["n_examples"].iloc[0]) == most else None
            ends = [min(x), max(x)] if x and slope is not None else []
            made.append(go.Scatter(
                x=ends, y=[round(slope * end, 4) for end in ends if slope is not None], mode="lines",
                line=dict(color=colour, dash="dot"), name=f"{name}, exact reader", showlegend=False, hoverinfo="skip",
            ))  # fmt: skip
        return made

    table = table.sort_values("n_examples", ascending=False, kind="stable")
    figure = style.new_figure(330, "signed evidence: labels for less against", "log-odds of the<br>rule's label, nats")
    figure.add_hline(y=0, line=style.NULL_LINE)
    return style.with_views(figure, style.views_of(table, traces, labels=str, n_examples=lambda n: f"{n} examples"))


def _exact_slope(slopes: pd.DataFrame, labels: str, flip: float) -> float | None:
    """Slope of the reader whose slopes go with log((1 - flip) / flip), at the one scale that fits the model best."""
    whole = slopes[(slopes["labels"] == labels) & (slopes["flip"] == 0)]
    return float(whole["of_exact"].iloc[0]) * log((1 - flip) / flip) if len(whole) else None


def sums_figure(table: pd.DataFrame) -> go.Figure:
    """What examples contribute together over what each contributes alone, by how many there are; the menu chooses the
    labels. table: of :class:`~talking_heads_utils.experiments.icl.additivity.SumRow`."""
    flips = sorted(table["flip"].unique())

    def traces(part: pd.DataFrame) -> list:
        made = []
        for i, (flip, colour) in enumerate(zip(flips, (style.ACCENT, *COLOURS[1:]))):
            rows = part[(part["flip"] == flip) & part["ratio"].notna()].sort_values("n_changed")
            x = [n * 2 ** (0.12 * (i - (len(flips) - 1) / 2)) for n in rows["n_changed"]]
            look = dict(marker=dict(color=colour, size=6 if flip else 11, opacity=0.6 if flip else 1))
            made.append(marks(rows, x, "ratio", flipped(flip), colour, **look))  # type: ignore[arg-type]
        return made

    groups = sorted(table["n_changed"].unique().tolist())
    ticks = dict(type="log", tickvals=groups, ticktext=list(map(str, groups)))
    figure = style.new_figure(310, "examples that are changed together", "together over summed", xaxis=ticks)
    figure.add_hrect(y0=ADDS[0], y1=ADDS[1], fillcolor="rgba(138,143,152,0.18)", line_width=0)
    figure.add_hline(y=1, line=style.NULL_LINE)
    return style.with_views(figure, style.views_of(table, traces, labels=str))


# --- parts ---


def looks_back_figure(table: pd.DataFrame) -> go.Figure:
    """Attention to earlier answers from the tokens before answers, less what even attention gives, by what a head does;
    the menu chooses the task. table: of :class:`~talking_heads_utils.experiments.icl.parts.LooksBackRow`."""
    table = table.assign(beyond=table["to_y"] - table["even"])

    def traces(part: pd.DataFrame) -> list:
        made = []
        for important, name, colour, size in (
            (False, "other heads", style.CONTROL, 6),
            (True, "heads that matter", style.ACCENT, 10),
        ):
            rows = part[part["important"].astype(bool) == important]
            made.append(go.Scatter(
                x=style.short(rows["effect"], 3), y=style.short(rows["beyond"], 3), mode="markers", name=name,
                marker=dict(color=colour, size=size, opacity=0.8),
                customdata=[list(t) for t in zip(rows["head"], style.short(rows["to_y"], 3),
                style.short(rows["to_x"], 3))],
                hovertemplate="%{customdata[0]}: %{customdata[1]:.2f} to earlier answers, %{customdata[2]:.2f} to "
                "earlier x<extra></extra>",
            ))  # fmt: skip
        return made

    figure = style.new_figure(310, "effect of the head, nats of log-odds", "attention to earlier<br>answers, less even")
    figure.add_hline(y=0, line=style.NULL_LINE)
    return style.with_views(figure, style.views_of(mean_first(table), traces, task=task_name))


def parts_figure(table: pd.DataFrame) -> go.Figure:
    """Change of each attribute with one layer's MLP, or all its heads, at the twin's values at the last token; dashed:
    the twin. The menu chooses task and part. table: of
    :class:`~talking_heads_utils.experiments.icl.parts.PartRow`."""
    views: dict[str, list] = {}
    for task, part in table.groupby("task", sort=False):
        for kind, name in (("mlp", "MLPs"), ("heads", "heads of a layer")):
            if (part["part"] == kind).any():
                views[f"{task_name(task)}, {name}"] = _attributes(part, kind)
    figure = style.new_figure(310, "layer whose part is exchanged", "change of right answers", yaxis_tickformat="+.0%")
    figure.add_hline(y=0, line=style.NULL_LINE)
    return style.with_views(figure, views)


def _attributes(part: pd.DataFrame, kind: str) -> list:
    """A line for each of three attributes, and the twin's level of each."""
    made, layers = [], part["layer"].dropna()
    there = list(dict.fromkeys(part["attribute"]))
    for attribute in [*there, *[""] * (3 - len(there))]:
        name, colour = ATTRIBUTES.get(attribute, (style.words(attribute), style.CONTROL))
        own = part[part["attribute"] == attribute]
        made.append(line(own[own["part"] == kind], "layer", "change", name, colour, bars=True))
        twin = own[own["part"] == "twin"]
        ends = [int(layers.min()), int(layers.max())] if len(twin) else []
        at, look = (style.short(twin["change"]) or [0])[0], dict(color=colour, dash="dash", width=1)
        made.append(style.level(ends, at, f"{name}, twin", look, showlegend=False, hoverinfo="skip"))
    return made
