"""One call for any frame of ``ablate``, ``patch`` or ``steer``: a map of heads, of layers and positions, or bars."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.errors import OptionError
from talking_heads_utils.figures.style import ACCENT, error_bars, new_figure, with_views, words

BARS = 32  # rows of one view that are drawn as bars, each with its interval
_COLUMNS = ("metric", "unit", "value", "change", "low", "high", "n")


def heads(frame: pd.DataFrame) -> go.Figure:
    """The change of a metric, row by row, from a frame that :func:`~talking_heads_utils.ablation.ablate`,
    :func:`~talking_heads_utils.patching.patch` or :func:`~talking_heads_utils.steering.steer` gave.

    Up to 32 rows of a kind are bars with their intervals. More are a map whose colours are symmetric about 0: layer by
    head, head by component, or layer by position for the stream, attention and MLPs; hovering shows interval and n. A
    menu chooses among sites, and among positions where a map has heads. Unit: that of the metric.

    Raises :class:`OptionError` for a frame of another kind, of more than one metric or with a row twice, and
    for more than 32 named sets.

    >>> import pandas as pd
    >>> rows = [dict(what="L0H1", metric="accuracy", unit="share", value=0.5, change=-0.2, low=-0.3, high=0, n=9)]
    >>> heads(pd.DataFrame(rows)).data[0].x
    ('L0H1',)
    """
    if (lacking := [name for name in _COLUMNS if name not in frame]) or not len(frame):
        raise OptionError(f"This is no frame of an ablation, a patch or steering: it lacks {lacking or 'rows'}.")
    if frame["metric"].nunique() > 1:
        raise OptionError("The frame holds several metrics, whose units differ: draw one at a time.")
    frame = frame.assign(kind=_kinds(frame))
    frame = frame.assign(label=_labels(frame), menu=frame["kind"])
    frame["told"] = [_told(row) for row in frame.to_dict("records")]
    if "position" in frame and frame["position"].nunique() > 1:
        by_head = frame["kind"].isin(("heads", "components", "bars"))
        frame["menu"] = frame["menu"].where(~by_head, frame["menu"] + ", " + frame["position"].astype(str))
    if (twice := frame.duplicated(["menu", "label"])).any():
        raise OptionError(f"Several rows are of {frame['label'][twice].iloc[0]}: draw those of one call at a time.")
    most = float(frame["change"].abs().max()) or 1.0
    bars = frame["menu"].value_counts().max() <= BARS
    title = f"change of {frame['metric'].iloc[0]}" + (f" ({unit})" if (unit := frame["unit"].iloc[0]) else "")
    parts = frame.groupby("menu", sort=False)
    views = {str(name): [_bars(part) if bars else _map(part, most, title)] for name, part in parts}
    figure = with_views(new_figure(height=420), views)
    if bars:
        return figure.update_layout(yaxis_title=title, xaxis_type="category")
    return figure.update_layout(yaxis_type="category", xaxis_type="category", yaxis_autorange="reversed")


def by_position(frame: pd.DataFrame, tokens: Sequence[str]) -> go.Figure:
    """Heads by tokens: the change of the metric when one head is patched at one position. frame: of
    :func:`~talking_heads_utils.patching.patch` with ``sites="z"`` and ``positions="all"``. tokens: what each position
    holds. Unit: that of the metric."""
    wide = frame.assign(at=frame["position"].astype(int)).pivot(index=["layer", "head"], columns="at", values="change")
    change = wide.to_numpy(float)
    names = [f"L{layer}H{head}" for layer, head in wide.index]
    firsts = [i for i, (_, head) in enumerate(wide.index) if head == wide.index[0][1]]
    places = [f"{at} {tokens[at]}" for at in wide.columns]
    title = f"change of {words(frame['metric'].iloc[0])}"
    figure = new_figure(height=max(320, min(900, 150 + 6 * len(wide))), margin_t=16)
    figure.add_heatmap(
        z=change.round(4).tolist(), x=places, y=names, zmid=0, colorscale="RdBu_r",
        colorbar=dict(title=dict(text=title, side="right"), thickness=12),
        hovertemplate="%{y} at token %{x}: %{z:+.2f}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(type="category", autorange="reversed", tickvals=[names[i] for i in firsts], title_text="head")
    return figure.update_xaxes(type="category", tickangle=-60, title_text="token")


def _kinds(frame: pd.DataFrame) -> pd.Series:
    """What each row is about: ``components``, ``heads``, a site of a layer, or anything else."""
    found = pd.Series("bars", frame.index)
    for name, kind in (("layer", frame.get("site", "mlp_out")), ("head", "heads"), ("component", "components")):
        found = found.where(frame[name].isna(), kind) if name in frame else found
    return found


def _labels(frame: pd.DataFrame) -> list[str]:
    """What each row is called: by name, by layer, head and component, or by its amounts of steering."""
    if "what" in frame:
        return frame["what"].astype(str).tolist()
    if "layer" not in frame:
        names = [name for name in frame if name not in (*_COLUMNS, "position", "seed", "kind")]
        return [", ".join(f"{row[name]:+g} {name}" for name in names) for row in frame[names].to_dict("records")]
    forms = {"components": "L{layer}H{head}.{component}", "heads": "L{layer}H{head}"}
    records = frame.to_dict("records")
    return [forms.get(row["kind"], "L{layer} {kind} at {position}").format(**row) for row in records]


def _bars(part: pd.DataFrame) -> go.Bar:
    return go.Bar(
        x=part["label"].tolist(), y=part["change"].round(4).tolist(), error_y=error_bars(part, "change", 4),
        customdata=part["told"].tolist(), hovertemplate="%{customdata}<extra></extra>", marker_color=ACCENT,
        showlegend=False,
    )  # fmt: skip


def _map(part: pd.DataFrame, most: float, title: str) -> go.Heatmap:
    kind = part["kind"].iloc[0]
    rows, columns = {"heads": ("layer", "head"), "components": ("owner", "component")}.get(kind, ("layer", "position"))
    if kind == "components":
        part = part.assign(owner=[f"L{a}H{b}" for a, b in zip(part["layer"], part["head"])])
    if kind == "bars" or rows not in part or columns not in part:
        raise OptionError(f"More than {BARS} sets have no map: draw fewer at a time.")
    ys, xs = part[rows].unique().tolist(), part[columns].unique().tolist()
    ys, xs = ys if rows == "owner" else sorted(ys), xs if columns == "position" else sorted(xs)
    wide = part.pivot(index=rows, columns=columns, values=["change", "told"]).reindex(ys)
    change, told = (wide[name].reindex(columns=xs).astype(object) for name in ("change", "told"))
    names = {"layer": "L", "head": "H", "component": ".", "owner": "", "position": ""}
    return go.Heatmap(
        z=[[None if value != value else round(value, 5) for value in line] for line in change.to_numpy().tolist()],
        x=[f"{names[columns]}{x}" for x in xs], y=[f"{names[rows]}{y}" for y in ys],
        customdata=told.fillna("").to_numpy().tolist(),
        hovertemplate="%{customdata}<extra></extra>", zmid=0, zmin=-most, zmax=most, colorscale="RdBu_r",
        colorbar=dict(title=dict(text=title, side="right"), thickness=12),
    )  # fmt: skip


def _told(row: dict) -> str:
    interval = f"{row['change']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['label']}<br>change {interval}<br>value {row['value']:.3f}, n = {row['n']}"
