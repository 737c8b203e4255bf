"""Figures of chapter 4: what is learned in context, which heads do it, how belief grows, and in which parts.

``tables``: by model, the rows of one experiment as :func:`talking_heads_utils.experiments.rows.frame` makes a table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils.experiments.icl.curves import BAYES, LINE, POWER, SATURATING
from talking_heads_utils.experiments.icl.patching import PATCHED, A
from talking_heads_utils.experiments.icl.redundancy import BY_EFFECT
from talking_heads_utils.figures.style import (
    ACCENT,
    CONTROL,
    EXPECTED,
    KIND_COLOURS,
    NULL_LINE,
    error_bars,
    menu_of_views,
    new_figure,
    slider,
    stacked,
    with_views,
)

if TYPE_CHECKING:
    import pandas as pd
    from plotly.basedatatypes import BaseTraceType

    Tables = Mapping[str, pd.DataFrame]

MEASURES = {"exact": "exact", "about": "about a x", "parity": "right parity", "copied": "A's own answer copied"}
LAWS = {LINE: "a line (the post)", SATURATING: "saturating", POWER: "power law", BAYES: "Bayes-optimal predictor"}
LAW_COLOURS = {LINE: ACCENT, SATURATING: KIND_COLOURS["K"], POWER: KIND_COLOURS["V"], BAYES: EXPECTED}
SCORE_COLOURS = {"exact": ACCENT, "near": KIND_COLOURS["K"], "parity": KIND_COLOURS["V"]}
LABEL_COLOURS = dict(zip(("a", "b", "parity", "size"), (*KIND_COLOURS.values(), ACCENT)))
MODEL_COLOURS = (ACCENT, *KIND_COLOURS.values())
_BLUES = [[0, "#eaf3f9"], [1, "#0072B2"]]  # opaque, so that the numbers can be read on a dark page too


def _menu(
    tables: Tables, height: int, traces: Callable[[pd.DataFrame], list[BaseTraceType]], **layout: object
) -> go.Figure:
    """One view a model, chosen by a menu."""
    views = {name: traces(table) for name, table in tables.items()}
    return with_views(new_figure(height), views).update_layout(**layout)


def _values(table: pd.DataFrame, column: str, digits: int = 3) -> list:
    """A column as numbers, None where there is none."""
    return [None if value != value else value for value in table[column].astype(float).round(digits).tolist()]


def finding_figure(removed: Tables, fits: Tables, added: Tables, *, most: int = 8) -> go.Figure:
    """The chapter's findings, model by model in one colour: answers as heads go, by how much each law misses later
    log-odds, and what examples do alone over what they do together.

    removed: of heads-out. fits: of log-odds. added: of additivity.
    """
    titles = ["answers right as heads go", "error of each law on later examples, nats", "alone, summed / together"]
    figure = stacked(3, titles, 720, 0.15)
    for name, colour in zip(removed, MODEL_COLOURS):
        out = removed[name].query("order == @BY_EFFECT and out <= @most").sort_values("out")
        look = dict(name=name, legendgroup=name, hovertemplate="%{x}: %{y:.2f}<extra></extra>")
        lines = dict(mode="lines+markers", line_color=colour, **look)
        figure.add_scatter(x=out["out"].tolist(), y=_values(out, "exact"), error_y=error_bars(out, "exact"), row=1,
                           col=1, **lines)  # fmt: skip
        laws, alone = fits[name], added[name]
        figure.add_bar(x=["<br>".join(textwrap.wrap(LAWS[law], 10)) for law in laws["law"]], y=_values(laws, "error"),
                       error_y=error_bars(laws, "error"), row=2, col=1, marker_color=colour, showlegend=False,
                       **look)  # fmt: skip
        figure.add_scatter(x=alone["n_examples"].tolist(), y=_values(alone, "ratio"), showlegend=False,
                           error_y=error_bars(alone, "ratio"), row=3, col=1, **lines)  # fmt: skip
    figure.add_hline(y=1, line=NULL_LINE, row=3, col=1)
    figure.update_xaxes(title_text="heads out, the most needed first", dtick=1, row=1, col=1)
    figure.update_xaxes(title_text="examples", row=3, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(barmode="group", legend_y=-0.12)
    return figure


def accuracy_figure(tables: Tables) -> go.Figure:
    """Accuracy by the number of examples seen: the model and, of numbers, the Bayes-optimal predictor, by group."""

    def traces(table: pd.DataFrame) -> list[BaseTraceType]:
        made = []
        for (group, part), colour in zip(table.groupby("group", sort=False), (ACCENT, KIND_COLOURS["V"])):
            x = part["n_examples"].tolist()
            made += [
                go.Scatter(x=x, y=_values(part, "accuracy"), error_y=error_bars(part, "accuracy"), line_color=colour,
                           name=f"model, {group}", mode="lines+markers"),
                go.Scatter(x=x, y=_values(part, "bayes"), name=f"Bayes-optimal, {group}", mode="lines",
                           line=dict(color=colour, dash="dot")),
            ]  # fmt: skip
        return made + [go.Scatter(x=[None], y=[None], showlegend=False)] * (4 - len(made))

    figure = _menu(tables, 400, traces, legend_y=-0.28)
    figure.update_xaxes(title_text="examples seen", dtick=2)
    figure.update_yaxes(title_text="accuracy", range=[0, 1.05])
    return figure


def patch_figure(table: pd.DataFrame) -> go.Figure:
    """Patched answers of one model: ablation of A by layer of the patch; the menu chooses what B sees and the score."""
    column = table["layer"].astype(str).where(table["run"] == PATCHED, table["run"].map(
        lambda run: "A itself" if run == A else "B plain"))  # fmt: skip
    layers = [str(layer) for layer in sorted(table["layer"].dropna().unique())]
    names = ["B plain", *layers, "A itself"]
    sets, views = list(dict.fromkeys(table["out"])), {}
    for b, part in table.assign(column=column).groupby("b_sees", sort=False):
        for measure, label in MEASURES.items():
            if part[measure].notna().any():
                grid = part.pivot(index="out", columns="column", values=measure).loc[sets, names]
                views[f"B sees {b}: {label}"] = grid.astype(float).round(3).to_numpy().tolist()
    figure = new_figure(420)
    for i, z in enumerate(views.values()):
        figure.add_heatmap(z=z, x=names, y=sets, text=[[f"{v:.2f}" for v in row] for row in z], texttemplate="%{text}",
                           zmin=0, zmax=1, colorscale=_BLUES, showscale=False, visible=i == 0,
                           hovertemplate="out of A: %{y}<br>%{x}: %{z:.2f}<extra></extra>")  # fmt: skip
    figure.update_yaxes(autorange="reversed", title_text="out of A at the last token")
    figure.update_xaxes(title_text="layer patched from A into B", tickangle=0, type="category", tickvals=names,
                        ticktext=[name.replace(" ", "<br>") for name in names])  # fmt: skip
    figure.update_layout(updatemenus=[menu_of_views(list(views), 1)], margin_t=70)
    return figure


def removal_figure(tables: Tables) -> go.Figure:
    """Accuracy as heads go, by effect and at random; the slider takes them out one by one and names them."""
    figure, most = new_figure(470), 0
    for (name, table), colour in zip(tables.items(), MODEL_COLOURS):
        part = table[table["order"] == BY_EFFECT].sort_values("out")
        rest = table[table["order"] != BY_EFFECT].groupby("out", as_index=False)["exact"].mean()
        most = max(most, int(part["out"].max()))
        look = dict(x=part["out"].tolist(), mode="lines", hovertemplate="%{x} out: %{y:.2f}<extra></extra>")
        figure.add_scatter(**look, y=_values(part, "exact"), name=f"{name}, by effect",
                           error_y=error_bars(part, "exact"), line_color=colour)  # fmt: skip
        figure.add_scatter(**look, y=_values(rest, "exact"), name=f"{name}, at random",
                           line=dict(color=colour, dash="dot"))  # fmt: skip
    figure.frames = [_removal_frame(tables, out, len(figure.data)) for out in range(most + 1)]
    (start,) = figure.frames[0].data
    figure.add_scatter(x=start.x, y=start.y, mode="markers", marker=dict(size=12, color=CONTROL), showlegend=False)
    figure.update_xaxes(title_text="heads out at the last token")
    figure.update_yaxes(title_text="exact answers", range=[0, 1.05])
    figure.update_layout(
        sliders=[slider([str(out) for out in range(most + 1)], "heads out: ", pad=60)],
        legend_y=-0.62, margin_t=84, title=figure.frames[0].layout.title,
    )  # fmt: skip
    return figure


def _removal_frame(tables: Tables, out: int, marker: int) -> go.Frame:
    """The mark on each curve by effect, and the names of the heads that are out, last one first."""
    marks, lines = [], []
    for name, table in tables.items():
        part = table[table["order"] == BY_EFFECT].set_index("out")
        if out in part.index:
            gone = part.loc[1:out, "head"].tolist()[::-1]
            marks.append(round(float(part.loc[out, "exact"]), 3))
            shown = " ".join(gone[:5]) + (" ..." if len(gone) > 5 else "")
            lines.append(f"{name}: {marks[-1]:.2f}" + (f" without {shown}" if gone else ""))
    title = dict(text="<br>".join(lines), font=dict(size=12), x=0, xanchor="left", y=0.98, yanchor="top")
    return go.Frame(name=str(out), data=[go.Scatter(x=[out] * len(marks), y=marks)], traces=[marker],
                    layout=dict(title=title))  # fmt: skip


def interaction_figure(tables: Tables) -> go.Figure:
    """What each pair is worth together beyond what its heads are worth alone. Hover tells the same in
    log-probability."""

    def traces(table: pd.DataFrame) -> list[BaseTraceType]:
        heads = list(dict.fromkeys([*table["a"], *table["b"]]))
        pair = {key: row for _, row in table.iterrows() for key in ((row["a"], row["b"]), (row["b"], row["a"]))}
        cells = [[pair.get((one, other)) for other in heads] for one in heads]
        most = max(abs(table["interaction"]).max(), 1e-6)
        return [
            go.Heatmap(
                z=[[None if cell is None else round(cell["interaction"], 3) for cell in row] for row in cells],
                customdata=[["" if cell is None else _both_scales(cell) for cell in row] for row in cells],
                x=heads, y=heads, zmid=0, zmin=-most, zmax=most, colorscale="RdBu_r", hoverongaps=False,
                colorbar=dict(title="nats of<br>log-odds", thickness=12),
                hovertemplate="%{y} and %{x}: %{customdata}<extra></extra>",
            )
        ]  # fmt: skip

    figure = _menu(tables, 440, traces)
    figure.update_yaxes(autorange="reversed")
    return figure


def _both_scales(pair: pd.Series) -> str:
    return (
        f"{pair['interaction']:.2f} nats of log-odds [{pair['low']:.2f}, {pair['high']:.2f}]<br>"
        f"{pair['log_prob']:.2f} of log-probability [{pair['log_prob_low']:.2f}, {pair['log_prob_high']:.2f}]"
    )


def backups_figure(tables: Tables) -> go.Figure:
    """Change of each head's direct effect, held fixed and left free; a menu for model and ablation."""
    views, ranges = {}, []
    for model, table in tables.items():
        reach = 1.05 * table[["low", "high", "free_low", "free_high"]].abs().to_numpy().max()
        for out, part in table.groupby("out", sort=False):
            views[f"{model}: without {out.replace('_', ' ')}"] = part
            ranges.append(dict.fromkeys(("xaxis.range", "yaxis.range"), [-reach, reach]))
    brightest = float(max(table["attention"].max() for table in tables.values()))

    def traces(part: pd.DataFrame) -> list[BaseTraceType]:
        marker = dict(color=_values(part, "attention"), colorscale="Viridis", cmin=0, cmax=brightest, size=9,
                      colorbar=dict(title="pattern<br>moves", thickness=12))  # fmt: skip
        return [
            go.Scatter(x=_values(part, "fixed", 4), y=_values(part, "free", 4), mode="markers+text", marker=marker,
                       text=_named(part), textposition=_beside(part), showlegend=False,
                       customdata=part["head"].tolist(), error_x=error_bars(part, "fixed"),
                       error_y=error_bars(part, "free", ends="free_"),
                       hovertemplate="%{customdata}<br>held fixed %{x:.3f}<br>left free %{y:.3f}<extra></extra>")
        ]  # fmt: skip

    figure, most = _menu(views, 460, traces), max(r["xaxis.range"][1] for r in ranges)
    figure.add_shape(type="line", x0=-most, y0=-most, x1=most, y1=most, line=NULL_LINE)
    figure.update_xaxes(title_text="change, held fixed (RMS of the stream)", range=ranges[0]["xaxis.range"])
    figure.update_yaxes(title_text="change, left free (RMS of the stream)", range=ranges[0]["yaxis.range"])
    figure.update_layout(updatemenus=[menu_of_views(list(views), 1, ranges)])
    return figure


def _named(part: pd.DataFrame, most: int = 4) -> list[str]:
    """Names of the heads that seem to change most; hover tells the rest."""
    top = part["free"].abs().nlargest(most).index
    return [head if row in top else "" for row, head in part["head"].items()]


def _beside(part: pd.DataFrame) -> list[str]:
    """Names right and left of their points by turns, from the top down: neighbours do not overprint each other."""
    turn = part["free"].rank(ascending=False, method="first") % 2
    return ["middle right" if odd else "middle left" for odd in turn]


def belief_figure(tables: Tables, n_seen: int) -> go.Figure:
    """Log-odds of the right answer by examples seen, and every law, fitted left of the line.

    tables: of :func:`talking_heads_utils.experiments.icl.curves.curve_rows`.
    """

    def traces(table: pd.DataFrame) -> list[BaseTraceType]:
        of = {law: part for law, part in table.groupby("law")}
        n = of["model"]["n_examples"].tolist()
        made = [go.Scatter(x=n, y=_values(of["model"], "log_odds"), error_y=error_bars(of["model"], "log_odds"),
                           mode="markers", name="the model", marker=dict(color=CONTROL, size=9))]  # fmt: skip
        return made + [
            go.Scatter(x=n, y=_values(of[law], "log_odds") if law in of else [None] * len(n), mode="lines", name=name,
                       line_color=LAW_COLOURS[law])
            for law, name in LAWS.items()
        ]  # fmt: skip

    figure = _menu(tables, 440, traces, legend_y=-0.26)
    figure.add_vline(x=n_seen - 0.5, line=NULL_LINE)
    figure.update_xaxes(title_text="examples seen", dtick=2)
    figure.update_yaxes(title_text="log-odds of the right answer, nats")
    return figure


def additivity_figure(tables: Tables) -> go.Figure:
    """By the number of examples: above, the sum of what they do alone over what they do together, 1 if contributions
    add; below, the cosine of the two whole differences."""
    figure = stacked(2, ["alone, summed / together", "cosine of the two"], 560, 0.14)
    for (model, part), colour in zip(tables.items(), MODEL_COLOURS):
        look = dict(x=part["n_examples"].tolist(), name=model, legendgroup=model, mode="lines+markers",
                    line_color=colour, hovertemplate=f"{model}, %{{x}}: %{{y:.2f}}<extra></extra>")  # fmt: skip
        figure.add_scatter(y=_values(part, "ratio"), error_y=error_bars(part, "ratio"), row=1, col=1, **look)
        figure.add_scatter(y=_values(part, "cosine"), showlegend=False, row=2, col=1, **look)
    figure.add_hline(y=1, line=NULL_LINE, row=1, col=1)
    figure.update_xaxes(title_text="examples", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[0, 1.04], row=2, col=1)
    figure.update_layout(legend_y=-0.16)
    return figure


def parts_figure(tables: Tables) -> go.Figure:
    """What each score is with one layer's attention or MLP out."""

    def traces(table: pd.DataFrame) -> list[BaseTraceType]:
        shown = {"attention": "attention", "mlp": "MLP"}
        names = [f"{shown[p]} {layer}" if p in shown else p for p, layer in zip(table["part"], table["layer"])]
        made = [
            go.Bar(x=names, y=_values(table, score), name=score, marker_color=colour,
                   error_y=error_bars(table, score, ends="" if score == "exact" else f"{score}_"),
                   customdata=_values(table, "distance", 1),
                   hovertemplate="without %{x}: %{y:.2f}<br>off by %{customdata} on average<extra></extra>")
            for score, colour in SCORE_COLOURS.items()
        ]  # fmt: skip
        return [*made, go.Scatter(x=names, y=_values(table, "parity_copied"), mode="lines", line=NULL_LINE,
                                  name="parity of copied answers", hoverinfo="skip")]  # fmt: skip

    figure = _menu(tables, 420, traces, barmode="group", legend_y=-0.42)
    figure.update_yaxes(title_text="share of answers", range=[0, 1.05])
    figure.update_xaxes(title_text="out at the last token")
    return figure


def probe_figure(tables: Tables) -> go.Figure:
    """What a linear probe reads at the last token by layer, beside shuffled labels."""

    def traces(table: pd.DataFrame) -> list[BaseTraceType]:
        made = []
        for label, colour in LABEL_COLOURS.items():
            part = table[table["label"] == label]
            x = part["layer"].tolist()
            made += [
                go.Scatter(x=x, y=_values(part, "right"), error_y=error_bars(part, "right"), name=label,
                           mode="lines+markers", line_color=colour),
                go.Scatter(x=x, y=_values(part, "shuffled"), name=f"{label}, shuffled", mode="lines",
                           line=dict(color=colour, dash="dot")),
            ]  # fmt: skip
        return made

    figure = _menu(tables, 420, traces, legend_y=-0.3)
    figure.update_xaxes(title_text="resid_pre of layer (the last: final)", dtick=1)
    figure.update_yaxes(title_text="labels told on other functions", range=[0, 1.05])
    return figure


def attention_figure(tables: Tables) -> go.Figure:
    """Attention from the tokens before answers to earlier y and x, by head."""

    def traces(table: pd.DataFrame) -> list[BaseTraceType]:
        heads: Sequence[str] = table["head"].tolist()
        look = {"to_y": ("to earlier y", ACCENT, error_bars(table, "to_y")),
                "to_x": ("to earlier x", KIND_COLOURS["V"], None)}  # fmt: skip
        made = [
            go.Bar(x=heads, y=_values(table, column), name=name, marker_color=colour, error_y=error,
                   hovertemplate=f"%{{x}} {name}: %{{y:.2f}}<extra></extra>")
            for column, (name, colour, error) in look.items()
        ]  # fmt: skip
        ends = table.iloc[[0, -1]]
        return [*made, go.Scatter(x=ends["head"].tolist(), y=_values(ends, "even"), mode="lines", line=NULL_LINE,
                                  name="spread evenly, to y", hoverinfo="skip")]  # fmt: skip

    figure = _menu(tables, 400, traces, barmode="group", legend_y=-0.3)
    figure.update_yaxes(title_text="attention", range=[0, 1.05])
    return figure
