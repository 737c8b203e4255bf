"""Figures of chapter 4: tasks in context, the post's patching, what heads do alone and together, and what the chapter's
figures share. They take tables of rows, never a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.experiments.icl.backups import Who
from talking_heads_utils.experiments.icl.patching import Run
from talking_heads_utils.experiments.icl.redundancy import MATCHED_TO, OVER_TASKS, Set
from talking_heads_utils.experiments.icl.sufficient import ENOUGH
from talking_heads_utils.experiments.icl.swaps import Where
from talking_heads_utils.experiments.icl.tasks import Examples
from talking_heads_utils.experiments.verdicts import with_interval
from talking_heads_utils.figures import style
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.relations import ANOTHER, ITS_OWN, SHUFFLED

EXAMPLES = {Examples.OWN: ("its own", style.ACCENT), Examples.NONE: ("none", style.FAINT),
            Examples.SHUFFLED: ("labels shuffled", style.CONTROL),
            Examples.ANOTHER: ("another task's", style.EXPECTED)}  # fmt: skip
ASKED = {ITS_OWN: EXAMPLES[Examples.OWN], SHUFFLED: EXAMPLES[Examples.SHUFFLED], ANOTHER: EXAMPLES[Examples.ANOTHER]}
COLOURS = (style.ACCENT, style.KIND_COLOURS["V"], style.KIND_COLOURS["K"], style.EXPECTED, style.KIND_COLOURS["Q"])
HOWS = {"zero": ("zeros", "dot"), "exchange": ("the twin's values", "solid")}


def task_name(task: str) -> str:
    """A task in words; of rows over all of them ``mean over tasks``."""
    return "mean over tasks" if task == OVER_TASKS else style.words(task)


def mean_first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all tasks before those of each."""
    return table.sort_values("task", key=lambda task: task != OVER_TASKS, kind="stable")


def told_of(rows: pd.DataFrame, value: str, ends: str = "", form: str = ".3f") -> list[str]:
    """``0.412 [0.301, 0.523], n = 200`` of every row."""
    return [f"{with_interval(row, value, ends, form)}, n = {row['n']}" for row in rows.to_dict("records")]


def marks(rows: pd.DataFrame, x: Sequence, value: str, name: str, colour: str, *, ends: str = "",
           before: Sequence[str] = (), **look: Any) -> go.Scatter:  # fmt: skip
    """Points with their intervals, which hover tells after what stands before them."""
    told = told_of(rows, value, ends)
    told = [f"{b}<br>{t}" for b, t in zip(before, told)] if len(before) else told
    return go.Scatter(
        x=list(x), y=style.short(rows[value]), error_y=style.error_bars(rows, value, ends=ends), name=name,
        customdata=told, **(dict(mode="markers", marker=dict(color=colour, size=10)) | look),
        hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
    )  # fmt: skip


def line(rows: pd.DataFrame, x: str, value: str, name: str, colour: str, dash: str = "solid", *, ends: str = "",
          bars: bool = False) -> go.Scatter:  # fmt: skip
    rows, look = rows.sort_values(x), dict(color=colour, dash=dash, width=2)
    return style.curve(
        rows, x, value, name, look, ", %{x}: %{customdata}", ends=ends, bars={} if bars and len(rows) else None,
        mode="lines+markers" if bars else "lines", showlegend=len(rows) > 0, customdata=told_of(rows, value, ends),
    )  # fmt: skip


# --- every task ---


def most_examples(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the held-out half with as many examples as each task was shown at most."""
    held_out = table[table["half"] == HELD_OUT]
    return held_out[held_out["n_examples"] == held_out.groupby(["task", "examples"])["n_examples"].transform("max")]


def tasks_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy on every task beside both controls. table: of
    :class:`~talking_heads_utils.experiments.icl.words.WordsRow`."""
    figure = style.new_figure(300, y="right answers", margin_t=12, yaxis_tickformat=".0%", yaxis_range=[-0.02, 1.04])
    rows = most_examples(table)
    tasks = rows[rows["examples"] == ITS_OWN].sort_values("accuracy", ascending=False)["task"].tolist()
    for i, (kind, (name, colour)) in enumerate(ASKED.items()):
        own = rows[(rows["examples"] == kind) & rows["task"].isin(tasks)]
        x = [tasks.index(task) + 0.16 * (i - 1) for task in own["task"]]
        figure.add_trace(marks(own, x, "accuracy", f"examples: {name}", colour, before=own["task"].map(style.words)))
    return over_tasks(figure, tasks)


def over_tasks(figure: go.Figure, tasks: Sequence[str]) -> go.Figure:
    """Tasks on the x axis, slanted where they would overlap, as on a phone, with the legend below."""
    ticks = style.named(list(map(task_name, tasks)), tickangle=None, autotickangles=[0, -50])
    return figure.update_layout(xaxis=ticks, legend_y=-0.42)


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
            colour = COLOURS[1 + outs.index(out)] if out else style.ACCENT
            made.append(line(rows, "layer", value, name, colour, HOWS[how][1] if out else "solid", ends=begin))
        plain = part[part["out"] == ""].sort_values("layer")
        dots, told = dict(color=style.FAINT, dash="dot"), "copied, %{x}: %{y:.2f}<extra></extra>"
        copied = style.curve(plain[plain["run"] == Run.PATCHED], "layer", "copied", "A's own answer copied", dots)
        made.append(copied.update(mode="lines", hovertemplate=told))
        for run, name, colour in ((Run.A, "A itself", style.EXPECTED), (Run.B, "B, nothing patched", style.CONTROL)):
            at = plain.loc[plain["run"] == run, value].astype(float).round(4)
            look, told = dict(color=colour, dash="dash", width=1.4), f"{name}: %{{y:.2f}}<extra></extra>"
            made.append(style.level(ends, at.iloc[0] if len(at) else float("nan"), name, look, hovertemplate=told))
        return made

    table = mean_first(table)
    views = style.views_of(table, traces, task=task_name, b_sees=seen)
    if len(numbers := table[table["about"].notna()]):
        about = style.views_of(numbers, lambda part: traces(part, "about", "about_"), task=task_name, b_sees=seen)
        views |= {f"{name}: about a x": made for name, made in about.items()}
    look = dict(legend_y=-0.3, yaxis_tickformat=".0%", yaxis_range=[-0.02, 1.04])
    figure = style.new_figure(330, "layer whose resid_pre comes from A", "right answers of B", **look)
    return style.with_views(figure, views)


def seen(b_sees: str) -> str:
    """What B sees, in words."""
    return f"B sees {EXAMPLES[Examples(b_sees)][0] if b_sees in EXAMPLES else style.words(b_sees)}"


def layers_out_figure(table: pd.DataFrame) -> go.Figure:
    """Change of accuracy with all heads of two layers out at the last token, a cell for each pair; the post's pair in
    a frame. The menu chooses the task and what stands in their place. table: of
    :class:`~talking_heads_utils.experiments.icl.patching.OutRow`."""
    layers = sorted({*table["a"], *table["b"]})
    most = max(float(table["change"].abs().max()), 1e-6)

    def traces(part: pd.DataFrame) -> list:
        known = {(a, b): (change, told) for a, b, change, told in
                 zip(part["a"], part["b"], style.short(part["change"], 3),
                 told_of(part, "change", form="+.2f"))}  # fmt: skip
        grid = [[known.get((a, b)) for b in layers] for a in layers]
        post = part[part["posts"].astype(bool)]
        return [
            cells(grid, layers, layers, most, "change of accuracy", "layers %{y} and %{x}: %{customdata}"),
            go.Scatter(
                x=post["b"].tolist(), y=post["a"].tolist(), mode="markers", name="the post's layers", showlegend=True,
                hoverinfo="skip", marker=dict(symbol="square-open", size=11, color=style.EXPECTED, line_width=2),
            ),
        ]  # fmt: skip

    views = style.views_of(mean_first(table), traces, task=task_name, how=lambda how: HOWS[how][0])
    return style.with_views(style.new_figure(430, "layer", "layer", yaxis_autorange="reversed"), views)


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
        for posts, name, colour in (
            (False, "other neighbouring layers", style.CONTROL),
            (True, "the post's", style.ACCENT),
        ):
            rows = found[found["posts"].astype(bool) == posts]
            before = [f"layers {a} and {b}" for a, b in zip(rows["a"], rows["b"])]
            drawn = marks(rows, rows["a"].tolist(), "moved", name, colour, before=before)
            below = rows["below"].astype(object).where(rows["below"].notna(), True)
            made.append(drawn.update(marker=dict(size=10, color=colour, opacity=[1.0 if b else 0.35 for b in below])))
        return made

    table = table[table["task"] == OVER_TASKS] if (table["task"] == OVER_TASKS).any() else table
    views = style.views_of(mean_first(table), traces, task=task_name, b_sees=seen, how=lambda how: HOWS[how][0])
    figure = style.new_figure(310, "lower of the two layers out of A", "layers that it moves up")
    figure.add_hline(y=0, line=style.NULL_LINE)
    return style.with_views(figure, views)


# --- what heads do alone and together ---

WHO = {Who.MOVERS: "heads for the answer", Who.NEGATIVE: "heads against it", Who.OTHERS: "other heads",
       Who.MLPS: "MLPs", Who.ALL: "all, norm frozen", Who.NORM: "the norm", Who.POST: "the post's<br>yardstick",
       Who.POST_HELD: "the same, frozen", Who.FINAL: "the post's, moved<br>to the last layer",
       Who.FINAL_HELD: "that one, frozen"}  # fmt: skip
THREE = 3  # heads that suffice for addition in Llama-3-8B, by Hu et al. (2025)


def redundancy_figure(table: pd.DataFrame) -> go.Figure:
    """What heads do together over what they do alone, task by task, beside sets matched on direct effect; the menu
    chooses how many heads, and where. table: of
    :class:`~talking_heads_utils.experiments.icl.redundancy.SetRow`."""
    table = table[table["ratio"].notna()]
    tasks = list(dict.fromkeys(mean_first(table)["task"]))
    views = {}
    for where in dict.fromkeys(table["where"]):
        own = table[table["where"] == where]
        chosen, matched = (own[own["heads_are"] == kind] for kind in (Set.CHOSEN, Set.MATCHED))
        for n in sorted(chosen["n_heads"].unique(), key=lambda n: (n != MATCHED_TO, n)):
            entry = f"{n:.0f} heads, at {'the last token' if where == Where.END else 'all tokens'}"
            beside = matched[: len(matched) if n == MATCHED_TO else 0]
            views[entry] = [_sets(beside, tasks, "matched sets", style.CONTROL, 6),
                            _sets(chosen[chosen["n_heads"] == n], tasks, "chosen heads", style.ACCENT, 11)]  # fmt: skip
    figure = style.new_figure(320, y="lost together over lost alone")
    figure.add_hline(y=1, line=style.NULL_LINE, annotation_text="effects add", annotation_position="bottom right")
    return over_tasks(style.with_views(figure, views), tasks)


def _sets(rows: pd.DataFrame, tasks: Sequence[str], name: str, colour: str, size: int) -> go.Scatter:
    """Sets of one kind side by side over their tasks; single ones with their intervals."""
    i, of = rows.groupby("task").cumcount(), rows.groupby("task")["task"].transform("size")
    single = bool(len(rows)) and int(of.max()) == 1
    x = [tasks.index(task) + 0.5 * ((j + 0.5) / k - 0.5) + (0.12 if single else 0)
         for task, j, k in zip(rows["task"], i, of)]  # fmt: skip
    drawn = marks(rows, x, "ratio", name, colour, before=rows["heads"].fillna("").tolist())
    drawn.update(marker=dict(color=colour, size=size, opacity=1 if single else 0.6), showlegend=len(rows) > 0)
    return drawn if single else drawn.update(error_y=None)


def backups_figure(table: pd.DataFrame) -> go.Figure:
    """Share of a lost direct effect that others recover, by who they are, beside what they recover of matched heads'
    and beside the post's yardstick; the menu chooses the task, and whether heads go together or one by one. table: of
    :class:`~talking_heads_utils.experiments.icl.backups.BackupRow`."""
    shown = set(table.loc[table["share"].notna() & (table["heads_are"] == Set.CHOSEN), "who"])
    whos = [who for who in WHO if who in shown]

    def traces(part: pd.DataFrame) -> list:
        made = []
        for kind, colour, size in ((Set.MATCHED, style.CONTROL, 5), (Set.CHOSEN, style.ACCENT, 10)):
            rows = part[(part["heads_are"] == kind) & part["share"].notna() & part["who"].isin(whos)]
            i, of = rows.groupby("who").cumcount(), rows.groupby("who")["who"].transform("size")
            y = [whos.index(Who(who)) + 0.6 * ((j + 0.5) / k - 0.5) for who, j, k in zip(rows["who"], i, of)]
            mark = marks(rows, y, "share", f"{kind} heads", colour, before=[f"without {out}" for out in rows["out"]])
            mark.update(marker=dict(color=colour, size=size, opacity=0.8), x=mark.y, y=mark.x, error_y=None)
            made.append(mark.update(error_x=style.error_bars(rows, "share")) if kind == Set.CHOSEN else mark)
        return made

    figure, singly = style.new_figure(370, "share recovered"), "one by one"
    figure.add_vline(x=0, line=style.NULL_LINE)
    figure.update_yaxes(style.named([WHO[who] for who in whos]) | dict(range=[len(whos) - 0.5, -0.5]))
    figure.update_xaxes(tickformat=".0%", tickangle=0, nticks=6)
    table = table.assign(how=["together" if n > 1 else singly for n in table["n_heads"]])
    table = mean_first(table.sort_values("how", key=lambda how: how == singly, kind="stable"))
    return style.with_views(figure, style.views_of(table, traces, task=task_name, how=str))


def sufficient_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy kept with few heads left as they are, the first set and those without its heads, beside random heads;
    the menu chooses the task. table: of
    :class:`~talking_heads_utils.experiments.icl.sufficient.SufficientRow`."""
    figure = style.new_figure(310, "heads left as they are", "accuracy kept", yaxis_tickformat=".0%")
    sets = sorted(int(which) for which in set(table["which"]) if which)

    def traces(part: pd.DataFrame) -> list:
        random = part[part["which"] == 0].groupby("n_heads", as_index=False)[["kept", "low", "high", "n"]].mean()
        made = [line(random, "n_heads", "kept", "random heads, mean", style.CONTROL, "dash")]
        for which, colour in zip(sets, COLOURS):
            rows = part[part["which"] == which].sort_values("n_heads")
            curve = line(rows, "n_heads", "kept", f"set {which}", colour)
            size = [14 if enough else 0 for enough in rows["suffices"].astype(bool)]
            made.append(curve.update(mode="lines+markers", marker=dict(size=size, color=colour, symbol="star")))
        return made

    figure.add_hline(y=ENOUGH, line=style.NULL_LINE, annotation_text=f"{ENOUGH:.0%}", annotation_position="top left")
    figure.add_vline(x=THREE, line=style.NULL_LINE, annotation_text="three heads", annotation_position="top right")
    return style.with_views(figure, style.views_of(mean_first(table), traces, task=task_name))
