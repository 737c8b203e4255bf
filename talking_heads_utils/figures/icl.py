"""Figures of chapter 4: what is learned in context, which heads do it, how belief grows, and in which parts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from talking_heads_utils.experiments.icl.curves import LAWS, LINE, POWER, READER, SATURATING
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
)

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

MEASURES = {"exact": "exact", "about": "about a x", "parity": "right parity", "copied": "A's own answer copied"}
LAW_COLOURS = {LINE: ACCENT, SATURATING: KIND_COLOURS["K"], POWER: KIND_COLOURS["V"], READER: EXPECTED}
SCORE_COLOURS = {"exact": ACCENT, "near": KIND_COLOURS["K"], "parity": KIND_COLOURS["V"]}
LABEL_COLOURS = dict(zip(("a", "b", "parity", "size"), (*KIND_COLOURS.values(), ACCENT)))
_BLUES = [[0, "#eaf3f9"], [1, "#0072B2"]]  # opaque, so that the numbers can be read on a dark page too


def finding_figure(
    removed: Mapping[str, pd.DataFrame], fits: Mapping[str, pd.DataFrame], added: pd.DataFrame, *, most: int = 8
) -> go.Figure:
    """The chapter's three findings, model by model in one colour: answers as heads go, by how much each law misses
    later log-odds, and what examples do alone over what they do together.

    removed, fits: model -> what :func:`talking_heads_utils.experiments.icl.study.removal_table` and
    :func:`talking_heads_utils.experiments.icl.curves.fit_laws` give.
    """
    titles = ["answers right as heads go", "error of each law on later examples, nats", "alone, summed / together"]
    figure = stacked(3, titles, 720, 0.15)
    for (name, table), colour in zip(removed.items(), (ACCENT, *KIND_COLOURS.values())):
        out = table[(table["order"] == "by effect") & (table["out"] <= most)].sort_values("out")
        alone, laws = added[added["model"] == name], fits[name]
        look = dict(name=name, legendgroup=name)
        lines = dict(mode="lines+markers", line_color=colour, hovertemplate="%{x}: %{y:.2f}<extra></extra>", **look)
        figure.add_scatter(x=out["out"].tolist(), y=out["exact"].round(3).tolist(), error_y=error_bars(out, "exact"),
                           row=1, col=1, **lines)  # fmt: skip
        names = ["<br>".join(textwrap.wrap(law, 10)) for law in laws["law"]]
        figure.add_bar(x=names, y=laws["error"].round(3).tolist(), error_y=error_bars(laws, "error"), row=2, col=1,
                       marker_color=colour, showlegend=False, hovertemplate="%{x}: %{y:.2f}<extra></extra>",
                       **look)  # fmt: skip
        figure.add_scatter(x=alone["n_examples"].tolist(), y=alone["ratio"].round(3).tolist(), showlegend=False,
                           error_y=error_bars(alone, "ratio"), row=3, col=1, **lines)  # fmt: skip
    figure.add_hline(y=1, line=NULL_LINE, row=3, col=1)
    figure.update_xaxes(title_text="heads out, the most needed first", dtick=1, row=1, col=1)
    figure.update_xaxes(title_text="examples", row=3, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(barmode="group", legend_y=-0.12)
    return figure


def accuracy_figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy by the number of examples seen: the model and the exact reader, trained and held-out functions; of a
    task of words the pairs of both halves, and no reader."""
    figure = new_figure(400)
    models = list(dict.fromkeys(table["model"]))
    colours = (ACCENT, KIND_COLOURS["V"])
    for i, model in enumerate(models):
        there = list(dict.fromkeys(table[table["model"] == model]["functions"]))
        kinds = ("trained", "held out") if "trained" in there else there
        for functions, colour in zip(kinds, colours):
            part = table[(table["model"] == model) & (table["functions"] == functions)]
            shared = dict(x=part["k"].tolist(), visible=i == 0)
            figure.add_trace(
                go.Scatter(**shared, y=part["model_accuracy"].round(3).tolist(), name=f"model, {functions}",
                           error_y=error_bars(part, "model_accuracy"), mode="lines+markers", line_color=colour)
            )  # fmt: skip
            figure.add_trace(
                go.Scatter(**shared, y=part["reader"].round(3).tolist(), name=f"exact reader, {functions}",
                           mode="lines", line=dict(color=colour, dash="dot"))
            )  # fmt: skip
    figure.update_xaxes(title_text="examples seen", dtick=2)
    figure.update_yaxes(title_text="accuracy", range=[0, 1.05])
    figure.update_layout(updatemenus=[menu_of_views(models, 4)], margin_t=70, legend_y=-0.28)
    return figure


def patch_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Explorer of patched answers: ablation of A by layer of the patch; the menu chooses what B sees and the score.

    tables: what B sees -> :func:`talking_heads_utils.experiments.icl.study.patch_table`.
    """
    figure = new_figure(420)
    labels: list[str] = []
    for b, table in tables.items():
        sets, last = list(dict.fromkeys(table["set"])), table["layer"].max()
        columns = {-2: "B plain", **{layer: str(layer) for layer in range(last + 1)}, -1: "A itself"}
        for measure, label in MEASURES.items():
            grid = table.pivot(index="set", columns="layer", values=measure).loc[sets, list(columns)]
            values, names = grid.round(3).to_numpy().tolist(), list(columns.values())
            figure.add_trace(
                go.Heatmap(z=values, x=names, y=sets, text=[[f"{v:.2f}" for v in row] for row in values],
                           texttemplate="%{text}", zmin=0, zmax=1, colorscale=_BLUES, showscale=False,
                           visible=not labels, hovertemplate="out of A: %{y}<br>%{x}: %{z:.2f}<extra></extra>")
            )  # fmt: skip
            labels.append(f"B sees {b}: {label}")
    figure.update_yaxes(autorange="reversed", title_text="out of A at the last token")
    broken = [name.replace(" ", "<br>") for name in names]
    figure.update_xaxes(title_text="layer patched from A into B", tickangle=0, type="category", tickvals=names)
    figure.update_xaxes(ticktext=broken)
    figure.update_layout(updatemenus=[menu_of_views(labels, 1)], margin_t=70)
    return figure


def removal_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Accuracy as heads go, by effect and at random; the slider takes them out one by one and names them."""
    figure = new_figure(470)
    colours = dict(zip(tables, (ACCENT, *KIND_COLOURS.values())))
    most = 0
    for name, table in tables.items():
        part = table[table["order"] == "by effect"].sort_values("out")
        rest = table[table["order"] != "by effect"].groupby("out")["exact"].mean()
        most = max(most, int(part["out"].max()))
        shared = dict(x=part["out"].tolist(), mode="lines", hovertemplate="%{x} out: %{y:.2f}<extra></extra>")
        figure.add_trace(
            go.Scatter(**shared, y=part["exact"].round(3).tolist(), name=f"{name}, by effect",
                       error_y=error_bars(part, "exact"), line_color=colours[name])
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(**shared, y=rest.round(3).tolist(), name=f"{name}, at random",
                       line=dict(color=colours[name], dash="dot"))
        )  # fmt: skip
    figure.frames = [_removal_frame(tables, out, len(figure.data)) for out in range(most + 1)]
    (start,) = figure.frames[0].data
    figure.add_trace(
        go.Scatter(x=start.x, y=start.y, mode="markers", marker=dict(size=12, color=CONTROL), showlegend=False)
    )
    figure.update_xaxes(title_text="heads out at the last token")
    figure.update_yaxes(title_text="exact answers", range=[0, 1.05])
    figure.update_layout(
        sliders=[slider([str(out) for out in range(most + 1)], "heads out: ", pad=60)],
        legend_y=-0.62, margin_t=84, title=figure.frames[0].layout.title,
    )  # fmt: skip
    return figure


def _removal_frame(tables: Mapping[str, pd.DataFrame], out: int, marker: int) -> go.Frame:
    """The mark on each curve by effect, and the names of the heads that are out, last one first."""
    marks, lines = [], []
    for name, table in tables.items():
        part = table[table["order"] == "by effect"].set_index("out")
        gone = [str(head) for head in part.loc[1:out, "head"]][::-1] if out else []
        shown = " ".join(gone[:5]) + (" ..." if len(gone) > 5 else "")
        if out in part.index:
            marks.append(round(float(part.loc[out, "exact"]), 3))
            lines.append(f"{name}: {marks[-1]:.2f}" + (f" without {shown}" if gone else ""))
    title = dict(text="<br>".join(lines), font=dict(size=12), x=0, xanchor="left", y=0.98, yanchor="top")
    data = [go.Scatter(x=[out] * len(marks), y=marks)]
    return go.Frame(name=str(out), data=data, traces=[marker], layout=dict(title=title))


def interaction_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """What each pair is worth together beyond what its heads are worth alone; a menu for the model.
    Hover tells the same in log-probability."""
    figure = new_figure(440)
    for i, table in enumerate(tables.values()):
        heads = list(dict.fromkeys([*table["a"], *table["b"]]))
        value = {(row["a"], row["b"]): row for _, row in table.iterrows()}
        z, text = [], []
        for one in heads:
            cells = [value.get((one, other), value.get((other, one))) for other in heads]
            z.append([None if cell is None else round(cell["interaction"], 3) for cell in cells])
            text.append(["" if cell is None else _both_scales(cell) for cell in cells])
        most = max(abs(table["interaction"]).max(), 1e-6)
        figure.add_trace(
            go.Heatmap(z=z, x=heads, y=heads, customdata=text, zmid=0, zmin=-most, zmax=most, colorscale="RdBu_r",
                       visible=i == 0, colorbar=dict(title="nats of<br>log-odds", thickness=12), hoverongaps=False,
                       hovertemplate="%{y} and %{x}: %{customdata}<extra></extra>")
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(updatemenus=[menu_of_views(list(tables), 1)], margin_t=70)
    return figure


def _both_scales(pair: pd.Series) -> str:
    return (
        f"{pair['interaction']:.2f} nats of log-odds [{pair['low']:.2f}, {pair['high']:.2f}]<br>"
        f"{pair['log_prob']:.2f} of log-probability [{pair['log_prob_low']:.2f}, {pair['log_prob_high']:.2f}]"
    )


def compensation_figure(table: pd.DataFrame) -> go.Figure:
    """Change of each head's direct effect, held fixed and left free; a menu for model and ablation."""
    figure = new_figure(460)
    views = list(dict.fromkeys(zip(table["model"], table["set"])))
    bar = dict(title="pattern<br>moves", thickness=12)
    ends = ["low", "high", "free_low", "free_high"]
    reach = {model: 1.05 * part[ends].abs().to_numpy().max() for model, part in table.groupby("model")}
    for i, (model, name) in enumerate(views):
        part = table[(table["model"] == model) & (table["set"] == name)]
        figure.add_trace(
            go.Scatter(
                x=part["fixed"].round(4).tolist(), y=part["free"].round(4).tolist(), mode="markers+text",
                text=_named(part), textposition=_beside(part), visible=i == 0, showlegend=False,
                customdata=part["head"].tolist(),
                marker=dict(color=part["attention"].round(3).tolist(), colorscale="Viridis", cmin=0, size=9,
                            cmax=float(table["attention"].max()), colorbar=bar),
                error_x=error_bars(part, "fixed"), error_y=error_bars(part, "free", ends="free_"),
                hovertemplate="%{customdata}<br>held fixed %{x:.3f}<br>left free %{y:.3f}<extra></extra>",
            )
        )  # fmt: skip
    ranges = [dict.fromkeys(("xaxis.range", "yaxis.range"), [-reach[model], reach[model]]) for model, _ in views]
    most = max(reach.values())
    figure.add_shape(type="line", x0=-most, y0=-most, x1=most, y1=most, line=NULL_LINE)
    figure.update_xaxes(title_text="change, held fixed (RMS of the stream)", range=ranges[0]["xaxis.range"])
    figure.update_yaxes(title_text="change, left free (RMS of the stream)", range=ranges[0]["yaxis.range"])
    figure.update_layout(updatemenus=[menu_of_views([f"{m}: without {s}" for m, s in views], 1, ranges)], margin_t=70)
    return figure


def _named(part: pd.DataFrame, most: int = 4) -> list[str]:
    """Names of the heads that seem to change most; hover tells the rest."""
    top = part["free"].abs().nlargest(most).index
    return [head if row in top else "" for row, head in part["head"].items()]


def _beside(part: pd.DataFrame) -> list[str]:
    """Names right and left of their points by turns, from the top down: neighbours do not overprint each other."""
    turn = part["free"].rank(ascending=False, method="first") % 2
    return ["middle right" if odd else "middle left" for odd in turn]


def belief_figure(
    observed: Mapping[str, Float[Tensor, "n n_n"]], laws: Mapping[str, Mapping[str, Float[Tensor, "n_n"]]], seen: int
) -> go.Figure:
    """Log-odds of the right answer by examples seen, and every law, fitted left of the line; a menu for the model."""
    figure = new_figure(440)
    for i, (model, values) in enumerate(observed.items()):
        mean, spread = values.double().mean(0), 1.96 * values.double().std(0) / len(values) ** 0.5
        n = list(range(len(mean)))
        figure.add_trace(
            go.Scatter(x=n, y=mean.numpy().round(3).tolist(), mode="markers", name="the model", visible=i == 0,
                       marker=dict(color=CONTROL, size=9), error_y=dict(array=spread.numpy().round(3).tolist()))
        )  # fmt: skip
        for law in LAWS:
            figure.add_trace(
                go.Scatter(x=n, y=laws[model][law].numpy().round(3).tolist() if law in laws[model] else [None] * len(n),
                           mode="lines", name=law, visible=i == 0, line_color=LAW_COLOURS[law])
            )  # fmt: skip
    figure.add_vline(x=seen - 0.5, line=NULL_LINE)
    figure.update_xaxes(title_text="examples seen", dtick=2)
    figure.update_yaxes(title_text="log-odds of the right answer, nats")
    figure.update_layout(updatemenus=[menu_of_views(list(observed), 1 + len(LAWS))], margin_t=70, legend_y=-0.26)
    return figure


def additivity_figure(table: pd.DataFrame) -> go.Figure:
    """By the number of examples: above, the sum of what they do alone over what they do together, 1 if contributions
    add; below, the cosine of the two whole differences."""
    figure = stacked(2, ["alone, summed / together", "cosine of the two"], 560, 0.14)
    for (model, part), colour in zip(table.groupby("model", sort=False), (ACCENT, *KIND_COLOURS.values())):
        look = dict(x=part["n_examples"].tolist(), name=model, legendgroup=model, mode="lines+markers",
                    line_color=colour, hovertemplate=f"{model}, %{{x}}: %{{y:.2f}}<extra></extra>")  # fmt: skip
        figure.add_scatter(y=part["ratio"].round(3).tolist(), error_y=error_bars(part, "ratio"), row=1, col=1, **look)
        figure.add_scatter(y=part["cosine"].round(3).tolist(), showlegend=False, row=2, col=1, **look)
    figure.add_hline(y=1, line=NULL_LINE, row=1, col=1)
    figure.update_xaxes(title_text="examples", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[0, 1.04], row=2, col=1)
    figure.update_layout(legend_y=-0.16)
    return figure


def parts_figure(table: pd.DataFrame) -> go.Figure:
    """What each score is with one layer's attention or MLP out; a menu for the model."""
    figure = new_figure(420, barmode="group")
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        names = [p if p == "nothing" else f"{p} {int(layer)}" for p, layer in zip(part["part"], part["layer"])]
        for score, colour in SCORE_COLOURS.items():
            error = error_bars(part, "exact") if score == "exact" else None
            figure.add_trace(
                go.Bar(x=names, y=part[score].round(3).tolist(), name=score, marker_color=colour,
                       error_y=error, visible=i == 0, customdata=part["distance"].round(1).tolist(),
                       hovertemplate="without %{x}: %{y:.2f}<br>off by %{customdata} on average<extra></extra>")
            )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=names, y=part["parity_copied"].round(3).tolist(), mode="lines", line=NULL_LINE,
                       name="parity of copied answers", visible=i == 0, hoverinfo="skip")
        )  # fmt: skip
    figure.update_yaxes(title_text="share of answers", range=[0, 1.05])
    figure.update_xaxes(title_text="out at the last token")
    figure.update_layout(updatemenus=[menu_of_views(models, len(SCORE_COLOURS) + 1)], margin_t=70, legend_y=-0.42)
    return figure


def probe_figure(table: pd.DataFrame) -> go.Figure:
    """What a linear probe reads at the last token by layer, beside shuffled labels; a menu for the model."""
    figure = new_figure(420)
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        for label, colour in LABEL_COLOURS.items():
            part = table[(table["model"] == model) & (table["label"] == label)]
            shared = dict(x=part["layer"].tolist(), visible=i == 0)
            figure.add_trace(
                go.Scatter(**shared, y=part["right"].round(3).tolist(), error_y=error_bars(part, "right"), name=label,
                           mode="lines+markers", line_color=colour)
            )  # fmt: skip
            figure.add_trace(
                go.Scatter(**shared, y=part["shuffled"].round(3).tolist(), name=f"{label}, shuffled", mode="lines",
                           line=dict(color=colour, dash="dot"))
            )  # fmt: skip
    figure.update_xaxes(title_text="resid_pre of layer (the last: final)", dtick=1)
    figure.update_yaxes(title_text="labels told on other functions", range=[0, 1.05])
    figure.update_layout(updatemenus=[menu_of_views(models, 2 * len(LABEL_COLOURS))], margin_t=70, legend_y=-0.3)
    return figure


def attention_figure(table: pd.DataFrame) -> go.Figure:
    """Attention from the tokens before answers to earlier y and x, by head; a menu for the model."""
    figure = new_figure(400, barmode="group")
    models: Sequence[str] = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        for column, name, colour in (("to_y", "to earlier y", ACCENT), ("to_x", "to earlier x", KIND_COLOURS["V"])):
            error = error_bars(part, "to_y") if column == "to_y" else None
            figure.add_trace(
                go.Bar(x=part["head"].tolist(), y=part[column].round(3).tolist(), name=name, marker_color=colour,
                       error_y=error, visible=i == 0, hovertemplate=f"%{{x}} {name}: %{{y:.2f}}<extra></extra>")
            )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=part["head"].iloc[[0, -1]].tolist(), y=part["even"].iloc[[0, -1]].tolist(), mode="lines",
                       line=NULL_LINE, name="spread evenly, to y", visible=i == 0, hoverinfo="skip")
        )  # fmt: skip
    figure.update_yaxes(title_text="attention", range=[0, 1.05])
    figure.update_layout(updatemenus=[menu_of_views(models, 3)], margin_t=70, legend_y=-0.3)
    return figure
