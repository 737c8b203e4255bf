"""Figures of chapter 4 on what heads do alone and together. They take tables of rows, never a model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from talking_heads_utils.experiments.icl.backups import Who
from talking_heads_utils.experiments.icl.redundancy import MATCHED_TO, Set
from talking_heads_utils.experiments.icl.sufficient import ENOUGH
from talking_heads_utils.experiments.icl.swaps import Where
from talking_heads_utils.figures.icl import COLOURS, in_order, line, marks, mean_first, over_tasks, task_name
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    NULL_LINE,
    error_bars,
    named,
    new_figure,
    views_of,
    with_views,
)

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
    tasks = in_order(table["task"])
    views = {}
    for where in dict.fromkeys(table["where"]):
        own = table[table["where"] == where]
        chosen, matched = (own[own["heads_are"] == kind] for kind in (Set.CHOSEN, Set.MATCHED))
        for n in sorted(chosen["n_heads"].unique(), key=lambda n: (n != MATCHED_TO, n)):
            entry = f"{n:.0f} heads, at {'the last token' if where == Where.END else 'all tokens'}"
            views[entry] = [_sets(matched[: len(matched) if n == MATCHED_TO else 0], tasks, "matched sets", CONTROL, 6),
                            _sets(chosen[chosen["n_heads"] == n], tasks, "chosen heads", ACCENT, 11)]  # fmt: skip
    figure = new_figure(320, y="lost together over lost alone")
    figure.add_hline(y=1, line=NULL_LINE, annotation_text="effects add", annotation_position="bottom right")
    return over_tasks(with_views(figure, views), tasks)


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
        for kind, colour, size in ((Set.MATCHED, CONTROL, 5), (Set.CHOSEN, ACCENT, 10)):
            rows = part[(part["heads_are"] == kind) & part["share"].notna() & part["who"].isin(whos)]
            i, of = rows.groupby("who").cumcount(), rows.groupby("who")["who"].transform("size")
            y = [whos.index(Who(who)) + 0.6 * ((j + 0.5) / k - 0.5) for who, j, k in zip(rows["who"], i, of)]
            mark = marks(rows, y, "share", f"{kind} heads", colour, before=[f"without {out}" for out in rows["out"]])
            mark.update(marker=dict(color=colour, size=size, opacity=0.8), x=mark.y, y=mark.x, error_y=None)
            made.append(mark.update(error_x=error_bars(rows, "share")) if kind == Set.CHOSEN else mark)
        return made

    figure, singly = new_figure(370, "share recovered"), "one by one"
    figure.add_vline(x=0, line=NULL_LINE)
    figure.update_yaxes(named([WHO[who] for who in whos]) | dict(range=[len(whos) - 0.5, -0.5]))
    figure.update_xaxes(tickformat=".0%", tickangle=0, nticks=6)
    table = table.assign(how=["together" if n > 1 else singly for n in table["n_heads"]])
    table = mean_first(table.sort_values("how", key=lambda how: how == singly, kind="stable"))
    return with_views(figure, views_of(table, traces, task=task_name, how=str))


def sufficient_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy kept with few heads left as they are, the first set and those without its heads, beside random heads;
    the menu chooses the task. table: of
    :class:`~talking_heads_utils.experiments.icl.sufficient.SufficientRow`."""
    figure = new_figure(310, "heads left as they are", "accuracy kept", yaxis_tickformat=".0%")
    sets = sorted(int(which) for which in set(table["which"]) if which)

    def traces(part: pd.DataFrame) -> list:
        random = part[part["which"] == 0].groupby("n_heads", as_index=False)[["kept", "low", "high", "n"]].mean()
        made = [line(random, "n_heads", "kept", "random heads, mean", CONTROL, "dash")]
        for which, colour in zip(sets, COLOURS):
            rows = part[part["which"] == which].sort_values("n_heads")
            curve = line(rows, "n_heads", "kept", f"set {which}", colour)
            size = [14 if enough else 0 for enough in rows["suffices"].astype(bool)]
            made.append(curve.update(mode="lines+markers", marker=dict(size=size, color=colour, symbol="star")))
        return made

    figure.add_hline(y=ENOUGH, line=NULL_LINE, annotation_text=f"{ENOUGH:.0%}", annotation_position="top left")
    figure.add_vline(x=THREE, line=NULL_LINE, annotation_text="three heads", annotation_position="top right")
    return with_views(figure, views_of(mean_first(table), traces, task=task_name))
