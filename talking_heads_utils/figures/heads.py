"""One call for any frame of ``ablate``, ``patch`` or ``steer``: a map of heads, of layers and positions, or bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils.errors import OptionError
from talking_heads_utils.figures.style import ACCENT, by_menu, error_bars, new_figure

if TYPE_CHECKING:
    import pandas as pd

BARS = 32  # rows of one view that are drawn as bars, each with its interval
_COLUMNS = ("metric", "unit", "value", "change", "low", "high", "n")


def heads(frame: pd.DataFrame) -> go.Figure:
    """The change of a metric, row by row, from a frame that :func:`~talking_heads_utils.ablation.ablate`,
    :func:`~talking_heads_utils.patching.patch` or :func:`~talking_heads_utils.steering.steer` gave.

    Up to 32 rows of a kind are bars with their intervals. More are a map whose colours are symmetric about 0: layer by
    head, head by component, or layer by position for the stream, attention and MLPs; hovering shows interval and n. A
    menu chooses among sites, and among positions where a map has heads. Unit: that of the metric.

    Raises :class:`OptionError` for a frame of another kind, or of more than one metric.

    >>> import pandas as pd
    >>> rows = [dict(what="L0H1", metric="accuracy", unit="share", value=0.5, change=-0.2, low=-0.3, high=0, n=9)]
    >>> heads(pd.DataFrame(rows)).data[0].x
    ('L0H1',)
    """
    if (lacking := [name for name in _COLUMNS if name not in frame]) or not len(frame):
        raise OptionError(f"This is no frame of an ablation, a patch or steering: it lacks {lacking or 'rows'}.")
    if frame["metric"].nunique() > 1:
        raise OptionError("The frame holds several metrics, whose units differ: draw one at a time.")
    frame = frame.assign(kind=[_kind(row) for row in frame.to_dict("records")], label=_labels(frame))
    menu = frame["kind"].astype(str)
    if "position" in frame and frame["position"].nunique() > 1:
        by_head = frame["kind"].isin(("heads", "components", "bars"))
        menu = menu.where(~by_head, menu + ", " + frame["position"].astype(str))
    frame = frame.assign(menu=menu)
    views = {name: part for name, part in frame.groupby("menu", sort=False)}
    most = float(frame["change"].abs().max()) or 1.0
    bars = all(len(part) <= BARS for part in views.values())
    title = f"change of {frame['metric'].iloc[0]}" + (f" ({unit})" if (unit := frame["unit"].iloc[0]) else "")
    figure = new_figure(height=420)
    if len(views) == 1:
        figure.add_trace(_bars(frame) if bars else _map(frame, most, title))
    else:
        figure = by_menu(figure, frame, ["menu"], lambda part: [_bars(part) if bars else _map(part, most, title)])
    if bars:
        return figure.update_layout(yaxis_title=title, xaxis_type="category")
    return figure.update_layout(yaxis_type="category", xaxis_type="category", yaxis_autorange="reversed")


def _kind(row: dict) -> str:
    """What a row is about: ``components``, ``heads``, a site of a layer, or anything else."""
    there = {name: name in row and row[name] == row[name] for name in ("layer", "head", "component")}
    there = {name: found and str(row[name]) not in ("<NA>", "None") for name, found in there.items()}
    if there["component"]:
        return "components"
    if there["head"]:
        return "heads"
    return str(row.get("site", "mlp_out")) if there["layer"] else "bars"


def _labels(frame: pd.DataFrame) -> list[str]:
    """What each row is called: by name, by layer, head and component, or by its amounts of steering."""
    if "what" in frame:
        return frame["what"].astype(str).tolist()
    if "layer" not in frame:
        names = [name for name in frame if name not in (*_COLUMNS, "position", "seed")]
        return [", ".join(f"{row[name]:+g} {name}" for name in names) for row in frame[names].to_dict("records")]
    found = []
    for row in frame.to_dict("records"):
        kind = _kind(row)
        label = f"L{row['layer']}" + (f"H{row['head']}" if kind in ("heads", "components") else f" {kind}")
        label += f".{row['component']}" if kind == "components" else ""
        found.append(label if kind in ("heads", "components") else f"{label} at {row['position']}")
    return found


def _bars(part: pd.DataFrame) -> go.Bar:
    text = [_told(row) for row in part.to_dict("records")]
    return go.Bar(
        x=part["label"].tolist(), y=part["change"].round(4).tolist(), error_y=error_bars(part, "change", 4),
        customdata=text, hovertemplate="%{customdata}<extra></extra>", marker_color=ACCENT, showlegend=False,
    )  # fmt: skip


def _map(part: pd.DataFrame, most: float, title: str) -> go.Heatmap:
    kind = part["kind"].iloc[0]
    rows, columns = {"heads": ("layer", "head"), "components": ("owner", "component")}.get(kind, ("layer", "position"))
    if kind == "components":
        part = part.assign(owner=[f"L{a}H{b}" for a, b in zip(part["layer"], part["head"])])
    if rows not in part or columns not in part:
        raise OptionError(f"More than {BARS} sets have no map: draw fewer at a time.")
    cells = part.assign(told=[_told(row) for row in part.to_dict("records")])
    ys, xs = list(dict.fromkeys(cells[rows])), list(dict.fromkeys(cells[columns]))
    ys = ys if rows == "owner" else sorted(ys)
    xs = sorted(xs) if columns != "position" else xs
    by_cell = {(row[rows], row[columns]): row for row in cells.to_dict("records")}
    found = [[by_cell.get((y, x)) for x in xs] for y in ys]
    names = {"layer": "L", "head": "H", "component": ".", "owner": "", "position": ""}
    return go.Heatmap(
        z=[[None if cell is None else round(cell["change"], 5) for cell in line] for line in found],
        x=[f"{names[columns]}{x}" for x in xs], y=[f"{names[rows]}{y}" for y in ys],
        customdata=[["" if cell is None else cell["told"] for cell in line] for line in found],
        hovertemplate="%{customdata}<extra></extra>", zmid=0, zmin=-most, zmax=most, colorscale="RdBu_r",
        colorbar=dict(title=dict(text=title, side="right"), thickness=12),
    )  # fmt: skip


def _told(row: dict) -> str:
    interval = f"{row['change']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['label']}<br>change {interval}<br>value {row['value']:.3f}, n = {row['n']}"
