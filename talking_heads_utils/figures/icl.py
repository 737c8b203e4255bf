"""Figures of chapter 4: tasks in context, the post's patching, what heads do alone and together. They take tables of
rows, never a model. :mod:`~talking_heads_utils.figures.icl_evidence` has those of belief and of parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from talking_heads_utils.experiments.icl.backups import Who
from talking_heads_utils.experiments.icl.patching import Run
from talking_heads_utils.experiments.icl.redundancy import OVER_TASKS, Set
from talking_heads_utils.experiments.icl.sufficient import ENOUGH
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
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.relations import ANOTHER, ITS_OWN, SHUFFLED

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = {Examples.OWN: ("its own", ACCENT), Examples.NONE: ("none", FAINT),
            Examples.SHUFFLED: ("labels shuffled", CONTROL),
            Examples.ANOTHER: ("another task's", EXPECTED)}  # fmt: skip
ASKED = {ITS_OWN: EXAMPLES[Examples.OWN], SHUFFLED: EXAMPLES[Examples.SHUFFLED], ANOTHER: EXAMPLES[Examples.ANOTHER]}
COLOURS = (ACCENT, KIND_COLOURS["V"], KIND_COLOURS["K"], EXPECTED, KIND_COLOURS["Q"])
HOWS = {"zero": ("zeros", "dot"), "exchange": ("the twin's values", "solid")}
MOVED_BY = {"alone": "lost without it", "denoised": "gained in the twin", "direct": "direct effect"}
WHO = {Who.MOVERS: "heads for<br>the answer", Who.NEGATIVE: "heads<br>against it", Who.OTHERS: "other<br>heads",
       Who.MLPS: "MLPs", Who.ALL: "all, norm<br>frozen", Who.NORM: "the norm",
       Who.POST: "the post's<br>yardstick"}  # fmt: skip
THREE = 3  # heads that suffice for addition in Llama-3-8B, by Hu et al. (2025)


def task_name(task: str) -> str:
    """A task in words; of rows over all of them ``mean over tasks``."""
    return "mean over tasks" if task == OVER_TASKS else words(task)


def in_order(tasks: Sequence[str]) -> list[str]:
    """The tasks of a column, once each, the mean over them first."""
    return sorted(dict.fromkeys(tasks), key=lambda task: task != OVER_TASKS)


def views_of(table: pd.DataFrame, traces: Callable[[pd.DataFrame], list], **names: Callable[[Any], str]) -> dict:
    """Label -> traces of the rows with the same values in the columns ``names``, each value in words."""
    keys = list(names)
    table = table.assign(_first=[task != OVER_TASKS for task in table["task"]]) if "task" in keys else table
    if "task" in keys:
        table = table.sort_values("_first", kind="stable")
    return {", ".join(say(value) for say, value in zip(names.values(), key)): traces(part)
            for key, part in table.groupby(keys, sort=False)}  # fmt: skip


def _told(rows: pd.DataFrame, value: str, ends: str = "", form: str = ".3f") -> list[str]:
    """``0.412 [0.301, 0.523], n = 200`` of every row."""
    return [f"{v:{form}} [{low:{form}}, {high:{form}}], n = {n}"
            for v, low, high, n in zip(rows[value], rows[f"{ends}low"], rows[f"{ends}high"], rows["n"])]  # fmt: skip


def marks(rows: pd.DataFrame, x: Sequence, value: str, name: str, colour: str, *, ends: str = "",
           before: Sequence[str] = (), **look: Any) -> go.Scatter:  # fmt: skip
    """Points with their intervals, which hover tells after what stands before them."""
    told = (
        [f"{b}<br>{t}" for b, t in zip(before, _told(rows, value, ends))] if len(before) else _told(rows, value, ends)
    )
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
        line=dict(color=colour, dash=dash, width=2), customdata=_told(rows, value, ends) if len(rows) else [],
        hovertemplate=f"{name}, %{{x}}: %{{customdata}}<extra></extra>",
    )  # fmt: skip


def _level(value: float, ends: Sequence[float], name: str, colour: str) -> go.Scatter:
    """A level from end to end."""
    return go.Scatter(x=list(ends), y=[round(float(value), 4)] * 2, name=name, mode="lines",
                      line=dict(color=colour, dash="dash", width=1.4),
                      hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>")  # fmt: skip


# --- one prompt, and every task ---


def shown_figure(table: pd.DataFrame) -> go.Figure:
    """The five likeliest tokens after each kind of examples; the menu chooses the task. table: of
    :class:`~talking_heads_utils.experiments.icl.tasks.ShownRow`."""
    figure, kinds = new_figure(430), list(EXAMPLES)

    def traces(part: pd.DataFrame) -> list:
        made = []
        for i, (kind, (name, colour)) in enumerate(EXAMPLES.items()):
            rows = part[part["examples"] == kind].sort_values("rank")
            text = [f"<b>{t.strip() or repr(t)}</b>" if t == r else t.strip() or repr(t)
                    for t, r in zip(rows["token"], rows["right"])]  # fmt: skip
            made.append(go.Bar(
                y=[6 * i + int(rank) - 1 for rank in rows["rank"]], x=short(rows["probability"]), orientation="h",
                name=name, marker_color=colour, text=text, textposition="outside", cliponaxis=False, showlegend=False,
                customdata=[prompt.replace("\n", "<br>") for prompt in rows["prompt"]],
                hovertemplate="%{text}: %{x:.1%}<br><br>after<br>%{customdata}<extra></extra>",
            ))  # fmt: skip
        return made

    figure.update_yaxes(tickvals=[6 * i + 2 for i in range(len(kinds))], autorange="reversed",
                        ticktext=[f"examples:<br>{EXAMPLES[kind][0]}" for kind in kinds])  # fmt: skip
    figure.update_xaxes(title_text="probability of the next token", tickformat=".0%", range=[0, 1.12])
    return with_views(figure, views_of(table, traces, task=task_name))


def most_examples(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the held-out half with as many examples as each task was shown at most."""
    held_out = table[table["half"] == HELD_OUT]
    return held_out[held_out["n_examples"] == held_out.groupby(["task", "examples"])["n_examples"].transform("max")]


def tasks_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy on every task beside both controls. table: of
    :class:`~talking_heads_utils.experiments.icl.words.WordsRow`."""
    figure, rows = new_figure(360, margin_t=12), most_examples(table)
    tasks = rows[rows["examples"] == ITS_OWN].sort_values("accuracy", ascending=False)["task"].tolist()
    for i, (kind, (name, colour)) in enumerate(ASKED.items()):
        own = rows[(rows["examples"] == kind) & rows["task"].isin(tasks)]
        x = [tasks.index(task) + 0.16 * (i - 1) for task in own["task"]]
        figure.add_trace(marks(own, x, "accuracy", f"examples: {name}", colour, before=own["task"].map(words)))
    figure.update_yaxes(title_text="right answers", tickformat=".0%", range=[-0.02, 1.04])
    return _over_tasks(figure, tasks)


def _over_tasks(figure: go.Figure, tasks: Sequence[str]) -> go.Figure:
    ticks = [task_name(task).replace(" ", "<br>") for task in tasks]
    return figure.update_xaxes(tickvals=list(range(len(tasks))), ticktext=ticks, range=[-0.5, len(tasks) - 0.5],
                               tickangle=0)  # fmt: skip


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
    figure = new_figure(400, legend_y=-0.24)
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
        cells = {(a, b): (change, told) for a, b, change, told in
                 zip(part["a"], part["b"], short(part["change"], 3), _told(part, "change", form="+.2f"))}  # fmt: skip
        grid = [[cells.get((a, b)) for b in layers] for a in layers]
        post = part[part["posts"].astype(bool)]
        return [
            _map(grid, layers, layers, most, "change of<br>accuracy", "layers %{y} and %{x}: %{customdata}"),
            _frames(post["b"].tolist(), post["a"].tolist(), "the post's layers"),
        ]

    views = views_of(table, traces, task=task_name, how=lambda how: HOWS[how][0])
    figure = new_figure(470, xaxis_title="layer", yaxis_title="layer")
    return with_views(figure, views).update_yaxes(autorange="reversed")


def _map(grid: list, x: Sequence, y: Sequence, most: float, title: str, hover: str) -> go.Heatmap:
    """Cells of value and words, or None, in colours that are symmetric about 0."""
    return go.Heatmap(
        z=[[None if cell is None else cell[0] for cell in row] for row in grid], x=list(x), y=list(y), zmid=0,
        customdata=[["" if cell is None else cell[1] for cell in row] for row in grid], zmin=-most, zmax=most,
        colorscale="RdBu_r", hoverongaps=False, colorbar=dict(title=title, thickness=12, len=0.9),
        hovertemplate=f"{hover}<extra></extra>",
    )  # fmt: skip


def _frames(x: Sequence, y: Sequence, name: str) -> go.Scatter:
    return go.Scatter(x=list(x), y=list(y), mode="markers", name=name, showlegend=True, hoverinfo="skip",
                      marker=dict(symbol="square-open", size=11, color=EXPECTED, line_width=2))  # fmt: skip


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

    over_tasks = table[table["task"] == OVER_TASKS] if (table["task"] == OVER_TASKS).any() else table
    views = views_of(over_tasks, traces, task=task_name, b_sees=seen, how=lambda how: HOWS[how][0])
    figure = new_figure(360)
    figure.add_hline(y=0, line=NULL_LINE)
    figure.update_xaxes(title_text="lower of the two layers out of A")
    figure.update_yaxes(title_text="layers that it moves up")
    return with_views(figure, views)


# --- redundancy ---


def heads_figure(table: pd.DataFrame) -> go.Figure:
    """What every head does, layer by head, the chosen in frames; the menu chooses what is measured and the task. table:
    of :class:`~talking_heads_utils.experiments.icl.redundancy.HeadRow`."""
    mean = table.groupby(["head", "layer"], as_index=False, sort=False)[list(MOVED_BY)].mean()
    mean = mean.assign(task=OVER_TASKS, chosen=False)
    n_heads = 1 + max(Head.parse(head).head for head in table["head"])
    layers = sorted(table["layer"].unique().tolist())
    views = {f"{task_name(OVER_TASKS)}: {name}": _heads(mean, value, layers, n_heads)
             for value, name in MOVED_BY.items()}  # fmt: skip
    for task, part in table.groupby("task", sort=False):
        views[f"{task_name(task)}: {MOVED_BY['alone']}"] = _heads(part, "alone", layers, n_heads)
    figure = with_views(new_figure(470, xaxis_title="head", yaxis_title="layer"), views)
    return figure.update_xaxes(tickvals=list(range(n_heads)))


def _heads(part: pd.DataFrame, value: str, layers: Sequence[int], n_heads: int) -> list:
    at = {(h.layer, h.head): (round(float(v), 4), f"{h}: {v:.3f}")
          for h, v in zip(map(Head.parse, part["head"]), part[value])}  # fmt: skip
    grid = [[at.get((layer, head)) for head in range(n_heads)] for layer in layers]
    chosen = [Head.parse(head) for head in part.loc[part["chosen"].astype(bool), "head"]]
    most = max(float(part[value].abs().quantile(0.99)), 1e-6)
    unit = "logits" if value == "direct" else "nats of<br>log-odds"
    return [_map(grid, range(n_heads), layers, most, unit, "%{customdata}"),
            _frames([h.head for h in chosen], [h.layer for h in chosen], "chosen")]  # fmt: skip


def redundancy_figure(table: pd.DataFrame, n_first: int = 5) -> go.Figure:
    """What heads do together over what they do alone, task by task, beside sets matched on direct effect; the menu
    chooses how many heads, and where. n_first: heads of the first entry. table: of
    :class:`~talking_heads_utils.experiments.icl.redundancy.SetRow`."""
    table = table[table["ratio"].notna()]
    tasks = in_order(table["task"])
    sets = table[table["heads_are"].isin([Set.CHOSEN, Set.MATCHED])]
    views = {}
    for where in dict.fromkeys(sets["where"]):
        at = f"at {'the last token' if where == 'end' else 'all tokens'}"
        own = sets[sets["where"] == where]
        for n in sorted(own["n_heads"].unique(), key=lambda n: (n != n_first, n)):
            part = own[own["n_heads"] == n]
            chosen, matched = (part[part["heads_are"] == kind] for kind in (Set.CHOSEN, Set.MATCHED))
            views[f"{n} heads, {at}"] = [_sets(matched, tasks, "matched sets", CONTROL, 6),
                                         _sets(chosen, tasks, "chosen heads", ACCENT, 11)]  # fmt: skip
        whole = table[(table["where"] == where) & table["heads_are"].isin([Set.LAYER, Set.LAYERS])]
        if len(whole):
            single, two = (whole[whole["heads_are"] == kind] for kind in (Set.LAYER, Set.LAYERS))
            views[f"whole layers, {at}"] = [_sets(single, tasks, "all heads of a layer", CONTROL, 6),
                                            _sets(two, tasks, "of two layers", ACCENT, 8)]  # fmt: skip
    figure = new_figure(400)
    figure.add_hline(y=1, line=NULL_LINE, annotation_text="effects add", annotation_position="top left")
    figure.update_yaxes(title_text="lost together over lost alone")
    return _over_tasks(with_views(figure, views), tasks)


def _sets(rows: pd.DataFrame, tasks: Sequence[str], name: str, colour: str, size: int) -> go.Scatter:
    """Sets of one kind side by side over their tasks; single ones with their intervals."""
    n = rows.groupby("task").cumcount()
    of = rows.groupby("task")["task"].transform("size")
    single = bool(len(rows)) and int(of.max()) == 1
    x = [tasks.index(task) + 0.5 * ((i + 0.5) / k - 0.5) + (0.12 if single else 0)
         for task, i, k in zip(rows["task"], n, of)]  # fmt: skip
    drawn = marks(rows, x, "ratio", name, colour, before=rows["heads"].tolist())
    drawn.update(marker=dict(color=colour, size=size, opacity=1 if single else 0.6))
    return drawn if single else drawn.update(error_y=None)


def pairs_figure(table: pd.DataFrame) -> go.Figure:
    """What each pair of chosen heads does beyond its heads alone; the menu chooses the task. table: of
    :class:`~talking_heads_utils.experiments.icl.redundancy.PairRow`."""

    def traces(part: pd.DataFrame) -> list:
        heads = sorted({*part["a"], *part["b"]}, key=lambda head: (Head.parse(head).layer, Head.parse(head).head))
        cells = {(a, b): (v, told) for a, b, v, told in
                 zip(part["a"], part["b"], short(part["interaction"], 3), _told(part, "interaction"))}  # fmt: skip
        grid = [[cells.get((a, b)) or cells.get((b, a)) for b in heads] for a in heads]
        most = max(float(part["interaction"].abs().quantile(0.98)), 1e-6)
        return [_map(grid, heads, heads, most, "nats of<br>log-odds", "%{y} and %{x}: %{customdata}")]

    figure = with_views(new_figure(470), views_of(table, traces, task=task_name))
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category", tickangle=-60)


def backups_figure(table: pd.DataFrame) -> go.Figure:
    """Share of a lost direct effect that others recover, by who they are, beside what they recover of matched heads'
    and beside the post's yardstick; the menu chooses the task. table: of
    :class:`~talking_heads_utils.experiments.icl.backups.BackupRow`."""
    whos = list(WHO)

    def traces(part: pd.DataFrame) -> list:
        made = []
        for kind, colour, size in (("matched", CONTROL, 6), ("chosen", ACCENT, 10)):
            rows = part[(part["heads_are"] == kind) & part["who"].isin(whos) & part["share"].notna()]
            i, of = rows.groupby("who").cumcount(), rows.groupby("who")["who"].transform("size")
            x = [whos.index(Who(who)) + 0.5 * ((j + 0.5) / k - 0.5) for who, j, k in zip(rows["who"], i, of)]
            mark = marks(rows, x, "share", f"{kind} heads", colour, before=[f"without {out}" for out in rows["out"]])
            mark.update(marker=dict(color=colour, size=size, opacity=0.8))
            made.append(mark.update(error_y=None) if kind == "matched" else mark)
        return made

    figure = new_figure(400, legend_y=-0.26)
    figure.add_hline(y=0, line=NULL_LINE)
    figure.update_xaxes(tickvals=list(range(len(whos))), ticktext=list(WHO.values()), range=[-0.5, len(whos) - 0.5],
                        tickangle=0)  # fmt: skip
    figure.update_yaxes(title_text="share recovered", tickformat=".0%")
    return with_views(figure, views_of(table, traces, task=task_name))


def sufficient_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy kept with few heads left as they are, the first set and those without its heads, beside random heads;
    the menu chooses the task. table: of
    :class:`~talking_heads_utils.experiments.icl.sufficient.SufficientRow`."""
    figure, sets = new_figure(380), sorted(int(which) for which in set(table["which"]) if which)

    def traces(part: pd.DataFrame) -> list:
        random = part[part["which"] == 0].groupby("n_heads", as_index=False)[["kept", "low", "high", "n"]].mean()
        made = [line(random, "n_heads", "kept", "random heads, mean", CONTROL, "dash")]
        for which, colour in zip(sets, COLOURS):
            rows = part[part["which"] == which].sort_values("n_heads")
            curve = line(rows, "n_heads", "kept", f"set {which}", colour)
            size = [14 if enough else 0 for enough in rows["suffices"].astype(bool)]
            made.append(curve.update(mode="lines+markers", marker=dict(size=size, color=colour, symbol="star")))
        return made

    figure.add_hline(y=ENOUGH, line=NULL_LINE)
    figure.add_vline(x=THREE, line=NULL_LINE, annotation_text="three heads", annotation_position="bottom right")
    figure.update_xaxes(title_text="heads left as they are")
    figure.update_yaxes(title_text="accuracy kept", tickformat=".0%")
    return with_views(figure, views_of(table, traces, task=task_name))
