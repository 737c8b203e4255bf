"""How often a verdict rule says "supported", where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.experiments.rules import ALPHA, POWER
from talking_heads_utils.figures.style import ACCENT, CONTROL, NULL_LINE, new_figure, with_views


def power_figure(table: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """Share of worlds in which each rule says "supported", against the effect size: worlds in which the claim is true,
    and grey ones in which it is false. A menu chooses the claim. names: claim -> what the menu calls it."""
    views = {names[str(claim)]: _marks(part) for claim, part in table.groupby("claim", sort=False)}
    titles = [{"xaxis.title.text": _UNITS[str(claim)]} for claim in table["claim"].unique()]
    figure = with_views(new_figure(420), views, layouts=titles)
    for level in (ALPHA, POWER):
        figure.add_hline(level, line=NULL_LINE)
    figure.update_xaxes(title_text=titles[0]["xaxis.title.text"])
    return figure.update_yaxes(title_text="share of worlds: supported", range=[-0.02, 1.04])


_UNITS = {
    "stand-out": "score of a link, in standard deviations (circuits: cosine)",
    "listeners": "how much more a listener reads, in standard deviations (circuits: cosine)",
    "privileged": "cosine between what is written and what is read",
    "predicted": "how much more the component is read, in standard deviations",
    "concentrated": "share of the effect that two components have",
    "indexes": "share of lists whose index is decoded, above chance",
    "three-dimensions": "what three dimensions do, of what ten do",
    "traversed": "how much attention, and the answers, rise at the item aimed at",
    "errors-near": "slope of the log-odds on the margin",
    "crowds": "points that long lists gain from a wider cloud",
    "order": "range of accuracy over indices",
    "steering-gains": "points beyond a correction by index",
    "lowers": "share of the inhibition score that goes",
    "edit-gains": "points that the edit gains",
    "in-lists": "distance from matched components, in their standard deviations",
    "redundant": "loss together over the sum of the losses alone",
    "survives": "share of the accuracy that goes without the two layers",
    "moves-up": "layers by which the first working patch moves up",
    "backups": "share of the lost direct effect that others recover",
    "evidence": "log-odds of a label, of those that the rate of flips gives it",
    "adds": "what eight examples do together over the sum of what each does alone",
    "looks-back": "more attention to earlier answers, in standard deviations between heads",
    "in-parts": "share of one attribute that is lost without each of two MLPs",
}


def sizes(row: Any) -> str:
    """How many heads, readers and prompts there are, where that is of account."""
    counts = {"heads": row.n_heads, "readers": row.n_readers, "prompts": row.n_prompts, "tasks": row.n_tasks}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def _marks(part: pd.DataFrame) -> list[go.Scatter]:
    marks = []
    for truth, colour in ((True, ACCENT), (False, CONTROL)):
        some = part[part["truth"] == truth]
        told = [
            f"{r.world}, noise {r.noise:g}, {sizes(r)}: supported "
            f"{r.supported:.1%}, not supported {r.not_supported:.1%}, undecided {r.undecided:.1%}"
            for r in some.itertuples()
        ]
        marks.append(go.Scatter(
            x=some["effect_size"], y=some["supported"], mode="markers", marker=dict(color=colour, size=9, opacity=0.75),
            name=f"claim {'true' if truth else 'false'}", text=told, hovertemplate="%{text}<extra></extra>",
        ))  # fmt: skip
    return marks
