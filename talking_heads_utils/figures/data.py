"""What a figure draws, as a table: one row a point, for readers who want its numbers.

The table is taken from the figure itself, so that it cannot differ from what is seen: every trace, in every state that
the figure's menu and slider can bring about.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LARGEST = 1_000_000  # bytes of a CSV file; what is larger is written as parquet
PLACES = ("x", "y", "z", "text", "customdata")
BARS = {f"error_{axis}.{key}": axis for axis in "xyz" for key in ("array", "arrayminus")}
MARKS = {"marker.color": "colour", "marker.size": "size"}  # where they are numbers, they are data
State = tuple[dict[str, str], dict, dict]  # which menu entry and slider setting; trace and layout as they are then


def tidy(spec: Mapping[str, Any]) -> pd.DataFrame:
    """The points of a figure.

    spec: a figure as JSON: ``data``, ``layout``, ``frames``. Columns, those without any value left out: ``menu`` and
    ``slider``, the entry and the setting at which a point is shown (empty: at all); ``panel``; ``trace``, as the legend
    calls it; ``x``, ``y``, ``z`` with ``_label`` where ticks are named, ``_low`` and ``_high`` where error bars are
    drawn and ``_axis``, the axis' title; ``text``, ``customdata``, ``colour``, ``size``: what else a point carries.
    """
    layout, parts = spec.get("layout", {}), []
    for i, trace in enumerate(spec.get("data", [])):
        states: list[State] = [({}, trace, layout)]
        controls = [("menu", menu["buttons"]) for menu in layout.get("updatemenus", [])]
        controls += [("slider", bar["steps"]) for bar in layout.get("sliders", [])]
        for control, steps in controls:
            states = [state for before in states for state in _states(before, control, steps, i, spec)]
        parts += [_points(now, then).assign(**at) for at, now, then in states if now.get("visible") is not False]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    table = table.replace("", None).dropna(axis=1, how="all")
    for name in table:
        if all(isinstance(value, float | int) for value in table[name]):  # what is missing is a float
            table[name] = table[name].astype(float)
    first = [name for name in ("menu", "slider", "panel", "trace") if name in table]
    return table[[*first, *(name for name in table if name not in first)]]


def write(spec: Mapping[str, Any], folder: Path, name: str) -> Path:
    """The points of a figure as ``name.csv`` in a folder, or as ``name.parquet`` where that would be over 1 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    table = tidy(spec)
    text = table.to_csv(index=False, float_format="%.6g")
    path = folder / f"{name}.csv"
    if len(text.encode()) <= LARGEST:
        path.write_text(text, encoding="utf-8")
        return path
    mixed = {c: table[c].astype("string") for c in table.select_dtypes(include=["object"])}
    path = path.with_suffix(".parquet")
    table.assign(**mixed).to_parquet(path, index=False)
    return path


# --- states ---


def _states(before: State, control: str, steps: Sequence[dict], i: int, spec: Mapping) -> Iterator[State]:
    """A trace at every step of a menu or slider; once, without a label, where no step changes what it draws."""
    at, trace, layout = before
    after = [(_step(trace, step, i, spec), step) for step in steps]
    drawn = [_drawn(now) for now, _ in after]
    if all(one == drawn[0] for one in drawn):
        yield at, after[0][0] if after else trace, layout
        return
    for now, step in after:
        then = dict(layout)
        for key, value in (step["args"][1] if step["method"] == "update" and len(step["args"]) > 1 else {}).items():
            _set(then, key, value)
        yield at | {control: _plain(step["label"])}, now, then


def _step(trace: Mapping, step: Mapping, i: int, spec: Mapping) -> dict[str, Any]:
    args = step.get("args", [])
    if step.get("method") == "animate":
        (frame,) = [f for f in spec.get("frames", []) if f["name"] == args[0][0]]
        own = frame.get("traces") or range(len(frame["data"]))
        return dict(trace, **dict(zip(own, frame["data"])).get(i, {}))
    own = args[1] if step.get("method") == "restyle" and len(args) > 1 else range(len(spec["data"]))
    now = dict(trace)
    if i in own:
        place = list(own).index(i)
        for key, value in args[0].items():
            _set(now, key, value[place % len(value)] if isinstance(value, list) else value)
    return now


def _set(trace: dict, key: str, value: Any) -> None:
    """Set ``marker.color`` and the like, leaving the dictionaries that other states share alone."""
    name, _, rest = key.partition(".")
    if rest:
        inner = dict(trace.get(name) or {})
        _set(inner, rest, value)
        value = inner
    trace[name] = value


def _get(trace: Mapping, key: str) -> Any:
    found: Any = trace
    for name in key.split("."):
        found = (found or {}).get(name)
    return found


def _drawn(trace: Mapping) -> str:
    """What tells two states of a trace apart, as far as data goes."""
    return repr(
        [trace.get("visible", True), trace.get("name"), *(_get(trace, key) for key in (*PLACES, *BARS, *MARKS))]
    )


# --- points ---


def _array(value: Any) -> np.ndarray | None:
    """A list or plotly's packed array as an array; None for anything else."""
    if isinstance(value, Mapping) and "bdata" in value:
        flat = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        return flat.reshape([int(n) for n in str(value.get("shape", flat.size)).split(",")])
    if not isinstance(value, list | tuple):
        return None
    rows = [_array(item) for item in value]
    if rows and all(row is not None for row in rows):
        return np.array([row.tolist() for row in rows if row is not None], dtype=object)
    found = np.empty(len(value), dtype=object)
    found[:] = value
    return found


def _points(trace: Mapping, layout: Mapping) -> pd.DataFrame:
    """The points of one trace as it is in one state; a matrix gives a point a cell."""
    arrays = {key: _array(trace.get(key)) for key in PLACES}
    z, of_one = arrays["z"], 1  # dimensions of what holds one value a point
    if z is not None and z.ndim == 2:
        y = np.arange(z.shape[0]) if arrays["y"] is None else arrays["y"]
        x = np.arange(z.shape[1]) if arrays["x"] is None else arrays["x"]
        arrays |= {"y": np.broadcast_to(y[:, None], z.shape), "x": np.broadcast_to(x, z.shape)}
        of_one = 2
    columns: dict[str, Any] = {}
    for key, values in arrays.items():
        if values is None:
            continue
        if values.ndim > of_one:
            columns |= {f"{key}_{k}": values[..., k].ravel() for k in range(values.shape[-1])}
        else:
            columns[key] = values.ravel()
    columns |= {name: value for key, name in MARKS.items() if (value := _numbers(_get(trace, key))) is not None}
    n = max((len(value) for value in columns.values()), default=0)
    table = pd.DataFrame({key: value for key, value in columns.items() if len(value) == n})
    table = _with_axes(_with_bars(table.infer_objects(), trace), trace, layout)
    if isinstance(trace.get("text"), str):
        table["text"] = trace["text"]
    table.insert(0, "trace", trace.get("name") or "")
    return table.dropna(subset=[key for key in "xyz" if key in table]).map(_plain)


def _numbers(value: Any) -> np.ndarray | None:
    found = _array(value)
    whole = found is not None and found.ndim == 1 and all(isinstance(v, int | float | np.number) for v in found)
    return found if whole else None


def _with_bars(table: pd.DataFrame, trace: Mapping) -> pd.DataFrame:
    for axis in "xyz":
        above = _array(_get(trace, f"error_{axis}.array"))
        below = _array(_get(trace, f"error_{axis}.arrayminus"))
        if above is None or len(above) != len(table):
            continue
        value = table[axis].astype(float)
        table[f"{axis}_low"] = value - (above if below is None else below).astype(float)
        table[f"{axis}_high"] = value + above.astype(float)
    return table


def _with_axes(table: pd.DataFrame, trace: Mapping, layout: Mapping) -> pd.DataFrame:
    """Titles of axes, names of ticks and, of several panels, which."""
    scene = layout.get(trace.get("scene") or "scene", {}) if "z" in table and "scene" in layout else None
    axes = {}
    for key in ("x", "y", "z") if scene else ("x", "y"):
        name = trace.get(f"{key}axis") or key
        axes[key] = (scene or layout).get(f"{key}axis{'' if scene else name[1:]}", {})
        if title := _plain(_get(axes[key], "title.text") or ""):
            table[f"{key}_axis"] = title
        ticks, names = _array(axes[key].get("tickvals")), _array(axes[key].get("ticktext"))
        if key in table and ticks is not None and names is not None and ticks.tolist() == list(range(len(ticks))) != []:
            near = pd.to_numeric(table[key], errors="coerce").round()
            table[f"{key}_label"] = near.map(dict(enumerate(map(_plain, names.tolist()))))
    panel = "" if scene else _panel(axes["x"].get("domain", [0, 1]), axes["y"].get("domain", [0, 1]), layout)
    return table.assign(panel=panel) if panel else table


def _panel(across: Sequence[float], up: Sequence[float], layout: Mapping) -> str:
    """The title right above a panel."""
    for note in layout.get("annotations", []):
        on_paper = note.get("yref") == "paper" and note.get("xref") == "paper" and note.get("showarrow") is False
        if on_paper and abs(note["y"] - up[1]) < 0.02 and across[0] <= note["x"] <= across[1]:
            return _plain(note["text"])
    return ""


def _plain(value: Any) -> Any:
    """A text without plotly's markup; anything else as it is."""
    if not isinstance(value, str):
        return value
    return unescape(re.sub(r"\s*<br ?/?>\s*", " ", re.sub(r"</?(b|i|sub|sup|span)\b[^>]*>", "", value))).strip()
