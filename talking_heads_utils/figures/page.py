"""Showing a figure: with its caption in a kernel, and ready for the static page when the book is built.

The page draws figures with its own copy of plotly.js. Two things travel in ``layout.meta``, which plotly ignores:

``book``      name, caption, alternative text, whether it leads; the page makes a numbered figure of them
``controls``  menus beside the figure, for what plotly's own sliders (one dimension) cannot do
``frames``    what each setting of the controls draws, in chunks that the page stores as files of their own and
              fetches when they are first asked for, also from ``file://``
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pandas.io.formats.style import Styler

from talking_heads_utils.experiments.rows import Row, frame

BUILD_VARIABLE = "BOOK_BUILD"  # set by the book's Sphinx extension while pages are built
MISSING = "missing"  # in the attrs of an empty table: why it is empty
UNDEFINED = 255
_STEPS = 254


def building_book() -> bool:
    """True while the static book is being built, where no kernel will answer the reader."""
    return bool(os.environ.get(BUILD_VARIABLE))


def show(
    figure: go.Figure | Callable[[], go.Figure],
    *,
    name: str,
    caption: str,
    alt: str,
    live: Callable[[], Any] | None = None,
    lead: bool = False,
    of: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Display a figure, or what a function makes of it when it is needed, with its caption.

    name: what the page's references call it. alt: what it shows, for readers who cannot see it. live: draws the
    same with ipywidgets instead, where a kernel runs. lead: this is the chapter's one figure, which the book's page
    shows at its top; a chapter has one. of: the table or tables that it draws; where there is nothing,
    the page says why instead.
    """
    from IPython.display import Markdown, display

    if of is not None and not len(of):
        display(Markdown(f"*{getattr(of, 'attrs', {}).get(MISSING, 'Nothing to draw.')}*"))
        return
    drawn: Any = figure
    if callable(figure) and (live is None or building_book()):
        drawn = figure()
    if building_book():
        about = dict(name=name, caption=caption, alt=alt, lead=lead)
        drawn.update_layout(meta=dict(drawn.layout.meta or {}, book=about))
        display(drawn)
        return
    display(live() if live else drawn)
    display(Markdown(f"*{caption}*"))


def table(found: Sequence[Row] | pd.DataFrame, *left_out: str, precision: int = 2) -> Styler:
    """Rows as a page shows them: columns named in words, short numbers, no index. left_out: columns not shown."""
    shown = found if isinstance(found, pd.DataFrame) else frame(found)
    named = shown.drop(columns=list(left_out)).rename(columns=lambda name: name.replace("_", " "))
    return named.style.format(precision=precision, na_rep="–").hide(axis="index")


def counted(values: pd.Series) -> str:
    """The different numbers of a column, such as those of prompts: ``200``, ``50 to 99``, or ``no`` of none."""
    there = values.dropna().astype(int)
    if there.empty:
        return "no"
    low, high = int(there.min()), int(there.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def kinds(shown: Iterable[str]) -> str:
    """What a caption begins with: each kind of model that a figure shows, once, as results call themselves."""
    return f"**{'; '.join(dict.fromkeys(shown))}.** "


def takeaway(answer: str, numbers: Mapping[str, str] | None = None, then: str = "") -> Any:
    """What a section found, as Markdown: the answer in words, its numbers in a line per model (or whatever they are
    of), then what limits it."""
    from IPython.display import Markdown

    lines = "\n".join(f"- {name}: {said}" for name, said in (numbers or {}).items())
    return Markdown("\n\n".join(part for part in (f"**Takeaway.** {answer}", lines, then) if part))


def with_controls(
    figure: go.Figure, controls: Sequence[Mapping[str, Any]], frames: Mapping[tuple, Mapping[str, Any]]
) -> go.Figure:
    """Attach menus and what each setting draws.

    controls: ``{"name": ..., "values": [...], "start": ...}`` each. frames: setting -> ``{"data": [...], "layout":
    {...}}`` as plotly frames have them, where a 2-D array may be what :func:`quantise` returns. The first control
    is what the chunks are split by.
    """
    chunks: dict[str, dict[str, Any]] = {}
    for setting, drawn in frames.items():
        first, *rest = map(str, setting)
        chunks.setdefault(first, {})["|".join(rest)] = drawn
    packed = {first: json.dumps(frames, separators=(",", ":")) for first, frames in chunks.items()}
    figure.update_layout(meta=dict(figure.layout.meta or {}, controls=[dict(c) for c in controls], frames=packed))
    return figure


def file_key(text: str) -> str:
    """A text as the first value of :func:`with_controls`, which names a file of the page."""
    return re.sub(r"[^\w.-]+", "-", text)


def quantise(values: np.ndarray, rows: int) -> dict[str, Any]:
    """Values >= 0 as one byte each, finer where they are small: value = max * (byte / 254)^2, NaN is 255.

    The error is at most max / 254. The page's loader undoes it, and adds undefined rows until there are ``rows``.
    """
    largest = float(np.nanmax(values))
    steps = np.round(_STEPS * np.sqrt(np.nan_to_num(values) / largest)) if largest > 0 else np.zeros(values.shape)
    steps = np.where(np.isnan(values), UNDEFINED, steps).astype(np.uint8)
    return {
        "q8": base64.b64encode(steps.tobytes()).decode(),
        "max": round(largest, 6),
        "shape": list(values.shape),
        "rows": rows,
    }


def dequantise(packed: Mapping[str, Any]) -> np.ndarray:
    """What the page draws from :func:`quantise`'s answer; the loader does the same in the browser."""
    steps = np.frombuffer(base64.b64decode(packed["q8"]), np.uint8).reshape(packed["shape"])
    values = np.where(steps == UNDEFINED, np.nan, packed["max"] * (steps / _STEPS) ** 2)
    return np.pad(values, ((0, packed["rows"] - len(values)), (0, 0)), constant_values=np.nan)
