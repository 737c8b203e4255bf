"""Figures of chapter 4: tasks in context and the post's patching, and what all figures of the chapter share. They take
tables of rows, never a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.experiments.icl.patching import Run
from talking_heads_utils.experiments.icl.redundancy import OVER_TASKS
from talking_heads_utils.experiments.icl.tasks import Examples
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    FAINT,
    KIND_COLOURS,
    NULL_LINE,
    error_bars,
    new_figure,
    short,
    with_views,
    words,
)
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.relations import ANOTHER, ITS_OWN, SHUFFLED

EXAMPLES = {Examples.OWN: ("its own", ACCENT), Examples.NONE: ("none", FAINT),
            Examples.SHUFFLED: ("labels shuffled", CONTROL),
            Examples.ANOTHER: ("another task's", EXPECTED)}  # fmt: skip
ASKED = {ITS_OWN: EXAMPLES[Examples.OWN], SHUFFLED: EXAMPLES[Examples.SHUFFLED], ANOTHER: EXAMPLES[Examples.ANOTHER]}
COLOURS = (ACCENT, KIND_COLOURS["V"], KIND_COLOURS["K"], EXPECTED, KIND_COLOURS["Q"])
HOWS = {"zero": ("zeros", "dot"), "exchange": ("the twin's values", "solid")}


def task_name(task: str) -> str:
    """A task in words; of rows over all of them ``mean over tasks``."""
    return "mean over tasks" if task == OVER_TASKS else words(task)


def in_order(tasks: Sequence[str]) -> list[str]:
    """The tasks of a column, once each, the mean over them first."""
    return sorted(dict.fromkeys(tasks), key=lambda task: task != OVER_TASKS)


def views_of(table: pd.DataFrame, traces: Callable[[pd.DataFrame], list], **names: Callable[[Any], str]) -> dict:
    """Label -> traces of the rows with the same values in the columns ``names``, each value in words."""
    if "task" in names:  # the mean over tasks first
        table = table.sort_values("task", key=lambda task: task != OVER_TASKS, kind="stable")
    return {", ".join(say(value) for say, value in zip(names.values(), key)): traces(part)
            for key, part in table.groupby(list(names), sort=False)}  # fmt: skip


def told_of(rows: pd.DataFrame, value: str, ends: str = "", form: str = ".3f") -> list[str]:
    """``0.412 [0.301, 0.523], n = 200`` of every row."""
    return [f"{v:{form}} [{low:{form}}, {high:{form}}], n = {n}"
            for v, low, high, n in zip(rows[value], rows[f"{ends}low"], rows[f"{ends}high"], rows["n"])]  # fmt: skip


def marks(rows: pd.DataFrame, x: Sequence, value: str, name: str, colour: str, *, ends: str = "",
           before: Sequence[str] = (), **look: Any) -> go.Scatter:  # fmt: skip
    """Points with their intervals, which hover tells after what stands before them."""
    told = told_of(rows, value, ends)
    told = [f"{b}<br>{t}" for b, t in zip(before, told)] if len(before) else told
    return go.Scatter(
        x=list(x), y=short(rows[value]), error_y=error_bars(rows, value, ends=ends), name=name, customdata=told,
        **(dict(mode="markers", marker=dict(color=colour, size=10)) | look),
        hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
    )  # fmt: skip


def line(rows: pd.DataFrame, x: str, value: str, name: str, colour: str, dash: str = "solid", *, ends: str = "",
          bars: bool = False) -> go.Scatter:  # fmt: skip
    rows = rows.sort_values(x)
    return go.Scatter(
        x=rows[x].tolist(), y=short(rows[value]), name=name, mode="lines+markers" if bars else "lines",
        error_y=error_bars(rows, value, ends=ends) if bars and len(rows) else None, showlegend=len(rows) > 0,
        line=dict(color=colour, dash=dash, width=2), customdata=told_of(rows, value, ends) if len(rows) else [],
        hovertemplate=f"{name}, %{{x}}: %{{customdata}}<extra></extra>",
    )  # fmt: skip


def _level(value: float, ends: Sequence[float], name: str, colour: str) -> go.Scatter:
    """A level from end to end."""
    return go.Scatter(x=list(ends), y=[round(float(value), 4)] * 2, name=name, mode="lines",
                      line=dict(color=colour, dash="dash", width=1.4),
                      hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>")  # fmt: skip


# --- every task ---


def most_examples(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the held-out half with as many examples as each task was shown at most."""
    held_out = table[table["half"] == HELD_OUT]
    return held_out[held_out["n_examples"] == held_out.groupby(["task", "examples"])["n_examples"].transform("max")]


def tasks_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy on every task beside both controls. table: of
    :class:`~talking_heads_utils.experiments.icl.words.WordsRow`."""
    figure, rows = new_figure(300, margin_t=12), most_examples(table)
    tasks = rows[rows["examples"] == ITS_OWN].sort_values("accuracy", ascending=False)["task"].tolist()
    for i, (kind, (name, colour)) in enumerate(ASKED.items()):
        own = rows[(rows["examples"] == kind) & rows["task"].isin(tasks)]
        x = [tasks.index(task) + 0.16 * (i - 1) for task in own["task"]]
        figure.add_trace(marks(own, x, "accuracy", f"examples: {name}", colour, before=own["task"].map(words)))
    figure.update_yaxes(title_text="right answers", tickformat=".0%", range=[-0.02, 1.04])
    return over_tasks(figure, tasks)


def over_tasks(figure: go.Figure, tasks: Sequence[str]) -> go.Figure:
    """Tasks on the x axis, slanted where they would overlap, as on a phone, with the legend below."""
    ticks = [task_name(task) for task in tasks]
    figure.update_xaxes(tickvals=list(range(len(tasks))), ticktext=ticks, range=[-0.5, len(tasks) - 0.5])
    return figure.update_xaxes(tickangle=None, autotickangles=[0, -50]).update_layout(legend_y=-0.42)


# --- the post's experiment ---


def patches_figure(table: pd.DataFrame) -> go.Figure:
    """B's right answers by the layer whose stream at the last token comes from A, with layers out of A and without; the
    menu chooses the task, what B sees and, of numbers, what counts as right. table: of
    :class:`~talking_heads_utils.experiments.icl.patching.PatchRow`."""
    patched = table[table["run"] == Run.PATCHED]
    ways = list(dict.fromkeys(zip(patched["out"], patched["how"].where(patched["out"] != "", ""))))
    ends = (int(patched["layer"].min()), int(patched["layer"].max()))
    outs = [out for out in dict.fromkeys(out for out, _ in ways) if out]

    def traces(part: pd.DataFrame, value: str = "accuracy", begin: str = "") -> list:
        made = []
        for out, how in ways:
            rows = part[(part["run"] == Run.PATCHED) & (part["out"] == out) & ((part["how"] == how) | (out == ""))]
            name = f"layers {out.replace(',', ', ')}: {HOWS[how][0]}" if out else "nothing out of A"
            colour = COLOURS[1 + outs.index(out)] if out else ACCENT
            made.append(line(rows, "layer", value, name, colour, HOWS[how][1] if out else "solid", ends=begin))
        plain = part[(part["out"] == "") & (part["run"] == Run.PATCHED)]
        made.append(_copied(plain))
        for run, name, colour in ((Run.A, "A itself", EXPECTED), (Run.B, "B, nothing patched", CONTROL)):
            rows = part[(part["run"] == run) & (part["out"] == "")]
            made.append(_level(rows[value].iloc[0] if len(rows) else float("nan"), ends, name, colour))
        return made

    views = views_of(table, traces, task=task_name, b_sees=seen)
    if len(numbers := table[table["about"].notna()]):
        about = views_of(numbers, lambda part: traces(part, "about", "about_"), task=task_name, b_sees=seen)
        views |= {f"{name}: about a x": made for name, made in about.items()}
    figure = new_figure(330, legend_y=-0.3)
    figure.update_xaxes(title_text="layer whose resid_pre comes from A")
    figure.update_yaxes(title_text="right answers of B", tickformat=".0%", range=[-0.02, 1.04])
    return with_views(figure, views)


def _copied(rows: pd.DataFrame) -> go.Scatter:
    rows = rows.sort_values("layer")
    return go.Scatter(
        x=rows["layer"].tolist(), y=short(rows["copied"]), name="A's own answer copied", mode="lines",
        line=dict(color=FAINT, dash="dot"), hovertemplate="copied, %{x}: %{y:.2f}<extra></extra>",
    )  # fmt: skip


def seen(b_sees: str) -> str:
    """What B sees, in words."""
    return f"B sees {EXAMPLES[Examples(b_sees)][0] if b_sees in EXAMPLES else words(b_sees)}"


def layers_out_figure(table: pd.DataFrame) -> go.Figure:
    """Change of accuracy with all heads of two layers out at the last token, a cell for each pair; the post's pair in
    a frame. The menu chooses the task and what stands in their place. table: of
    :class:`~talking_heads_utils.experiments.icl.patching.OutRow`."""
    layers = sorted({*table["a"], *table["b"]})
    most = max(float(table["change"].abs().max()), 1e-6)

    def traces(part: pd.DataFrame) -> list:
        known = {(a, b): (change, told) for a, b, change, told in
                 zip(part["a"], part["b"], short(part["change"], 3), told_of(part, "change", form="+.2f"))}  # fmt: skip
        grid = [[known.get((a, b)) for b in layers] for a in layers]
        post = part[part["posts"].astype(bool)]
        return [
            cells(grid, layers, layers, most, "change of accuracy", "layers %{y} and %{x}: %{customdata}"),
            go.Scatter(
                x=post["b"].tolist(), y=post["a"].tolist(), mode="markers", name="the post's layers", showlegend=True,
                hoverinfo="skip", marker=dict(symbol="square-open", size=11, color=EXPECTED, line_width=2),
            ),
        ]  # fmt: skip

    views = views_of(table, traces, task=task_name, how=lambda how: HOWS[how][0])
    figure = new_figure(430, xaxis_title="layer", yaxis_title="layer")
    return with_views(figure, views).update_yaxes(autorange="reversed")


def cells(grid: list, x: Sequence, y: Sequence, most: float, title: str, hover: str) -> go.Heatmap:
    """Cells of value and words, or None, in colours that are symmetric about 0."""
    return go.Heatmap(
        z=[[None if cell is None else cell[0] for cell in row] for row in grid], x=list(x), y=list(y), zmid=0,
        customdata=[["" if cell is None else cell[1] for cell in row] for row in grid], zmin=-most, zmax=most,
        colorscale="RdBu_r", hoverongaps=False,
        colorbar=dict(title=dict(text=title, side="top", font_size=13), orientation="h", thickness=12, len=0.55,
                      x=1, xanchor="right", y=-0.16, yanchor="top", nticks=5),
        hovertemplate=f"{hover}<extra></extra>",
    )  # fmt: skip


def first_figure(table: pd.DataFrame) -> go.Figure:
    """By how many layers the first one that works moves up with two neighbouring layers out of A, over tasks, faint
    where a layer out is not below it; the menu chooses what B sees and what stands in their place. table: of
    :class:`~talking_heads_utils.experiments.icl.patching.FirstRow`."""

    def traces(part: pd.DataFrame) -> list:
        found = part[part["moved"].notna()]
        made = []
        for posts, name, colour in ((False, "other neighbouring layers", CONTROL), (True, "the post's", ACCENT)):
            rows = found[found["posts"].astype(bool) == posts]
            before = [f"layers {a} and {b}" for a, b in zip(rows["a"], rows["b"])]
            drawn = marks(rows, rows["a"].tolist(), "moved", name, colour, before=before)
            below = rows["below"].astype(object).where(rows["below"].notna(), True)
            made.append(drawn.update(marker=dict(size=10, color=colour, opacity=[1.0 if b else 0.35 for b in below])))
        return made

    table = table[table["task"] == OVER_TASKS] if (table["task"] == OVER_TASKS).any() else table
    views = views_of(table, traces, task=task_name, b_sees=seen, how=lambda how: HOWS[how][0])
    figure = new_figure(310)
    figure.add_hline(y=0, line=NULL_LINE)
    figure.update_xaxes(title_text="lower of the two layers out of A")
    figure.update_yaxes(title_text="layers that it moves up")
    return with_views(figure, views)
