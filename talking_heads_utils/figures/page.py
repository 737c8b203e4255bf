"""Showing a figure: with its caption in a kernel, and ready for the static page when the book is built.

The page draws figures with its own copy of plotly.js. ``layout.meta["book"]``, which plotly ignores, holds name,
caption, alternative text and whether a figure leads; the page makes a numbered figure of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from pandas.io.formats.style import Styler

from talking_heads_utils.experiments.rows import Row, frame
from talking_heads_utils.figures.style import words

BUILD_VARIABLE = "BOOK_BUILD"  # set by the book's Sphinx extension while pages are built
MISSING = "missing"  # in the attrs of an empty table: why it is empty


def building_book() -> bool:
    """True while the static book is being built, where no kernel will answer the reader."""
    return bool(os.environ.get(BUILD_VARIABLE))


def show(
    figure: go.Figure | Callable[[], go.Figure],
    *,
    name: str,
    caption: str,
    alt: str,
    lead: bool = False,
    of: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Display a figure, or what a function makes of it when it is needed, with its caption.

    name: what the page's references call it. alt: what it shows, for readers who cannot see it. lead: this is
    the chapter's one figure, which the book's page shows at its top; a chapter has one. of: the table or tables that it
    draws; where there is nothing, the page says why instead.
    """
    from IPython.display import Markdown, display

    if of is not None and not len(of):
        display(Markdown(f"*{getattr(of, 'attrs', {}).get(MISSING, 'Nothing to draw.')}*"))
        return
    drawn = figure() if callable(figure) else figure
    if building_book():
        about = dict(name=name, caption=caption, alt=alt, lead=lead)
        display(drawn.update_layout(meta=dict(drawn.layout.meta or {}, book=about)))
        return
    display(drawn)
    display(Markdown(f"*{caption}*"))


def table(found: Sequence[Row] | pd.DataFrame, *left_out: str, precision: int = 2) -> Styler:
    """Rows as a page shows them: columns named in words, short numbers, no index. left_out: columns not shown."""
    shown = found if isinstance(found, pd.DataFrame) else frame(found)
    named = shown.drop(columns=list(left_out)).rename(columns=words)
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
