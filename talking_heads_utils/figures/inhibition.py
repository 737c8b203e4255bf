"""Figures of chapter 1: what components of inhibition heads do to the movers. They take tables of rows, never a
model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.inhibition import exchange, exchange_study, slider
from talking_heads_utils.figures import style

NAMES = {slider.FIRST: style.FIRST_NAME, slider.SECOND: style.SECOND_NAME}
MEAN = "mean"  # in place of a prompt's index
TARGETS = {
    "seen": "named<br>twice or<br>listed",
    "named_twice": "words<br>named<br>twice",
    "same_list": "words of<br>the same<br>list",
    "in_list": "stands in<br>a list<br>itself",
}

# --- one prompt ---


def attention_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Attention by token, mean over heads, in several states of a model. tables: state -> column ``token`` and one per
    head."""
    look = dict[str, Any](margin_t=12, barmode="group", legend_y=-0.46, yaxis_tickformat=".0%")
    figure = style.new_figure(270, y="attention from the last token", **look)
    for (name, table), colour in zip(tables.items(), (style.FIRST_NAME, style.SECOND_NAME, style.CONTROL)):
        mean = table.drop(columns="token").mean(axis=1)
        figure.add_bar(
            x=table.index.tolist(), y=style.short(mean), name=name, marker_color=colour,
            customdata=table["token"].tolist(), hovertemplate=f"%{{customdata}}, {name}: %{{y:.0%}}<extra></extra>",
        )  # fmt: skip
    tokens = next(iter(tables.values()))["token"].tolist()
    return figure.update_xaxes(tickvals=list(range(len(tokens))), ticktext=tokens, tickangle=-50)


# --- one coefficient moved by hand ---


def slider_figure(table: pd.DataFrame, *, start: float = -1.0) -> go.Figure:
    """What the movers look at, above, and the answer's probability, below, as one coefficient is set; grey: a random
    direction moved as far. The slider sets the coefficient, the menu chooses a prompt or the mean. table: of
    :class:`~talking_heads_utils.experiments.inhibition.slider.SliderRow`."""
    titles = ("the name movers' attention to each name", "probability that the model says it")
    figure = style.stacked(2, titles, 490, 0.1)
    keyed = table.assign(key=table["prompt"].astype(object).where(table["prompt"].notna(), MEAN))
    settings = sorted(table["setting"].unique())
    at = min(range(len(settings)), key=lambda i: abs(settings[i] - start))
    views, parts = {}, sorted(keyed.groupby("key", sort=False), key=lambda item: item[0] != MEAN)
    for key, part in parts:
        label = f"mean over {part['n'].iloc[0]} prompts" if key == MEAN else f"{part['text'].iloc[0]} …"
        views[label] = [trace for what in ("attention", "probability") for trace in _moved(part, what, at)]
    style.with_views(figure, views, panels=(1,) * 4 + (2,) * 4)
    steps = {f"{value:+.1f}": {"selectedpoints": [[i]]} for i, value in enumerate(settings)}
    figure.update_xaxes(range=[settings[0] - 0.5, settings[-1] + 0.5], tickvals=[-1, 0, 1], tickangle=0)
    figure.update_xaxes(ticktext=["first name<br>is meant", "", "second name<br>is meant"], row=2, col=1)
    figure.update_xaxes(title_text=f"coefficient of {table['component'].iloc[0]}, set by hand", row=2, col=1)
    figure.update_xaxes(showticklabels=False, row=1, col=1)
    figure.update_yaxes(tickformat=".0%", autorangeoptions_include=-0.06)  # room for names
    figure.update_layout(dragmode=False, modebar_remove=style.NO_BUTTONS, legend_y=-0.34)
    return figure.update_layout(sliders=[style.restyle_slider(steps, "coefficient: ", pad=76, active=at)])


def _moved(part: pd.DataFrame, what: str, at: int) -> list[go.Scatter]:
    """Both names along the component, and both along the random direction, in grey."""
    lines = part.sort_values("setting").pivot_table(index="setting", columns=["direction", "name"], values=what)
    words = part.drop_duplicates("name").set_index("name")["word"]
    traces = []
    for direction in (slider.COMPONENT, slider.RANDOM):
        own, both = direction == slider.COMPONENT, lines[direction]
        for name, colour in NAMES.items():
            word, other = words[name] or f"{name} name", next(n for n in NAMES if n != name)
            places = ["top center" if own > than else "bottom center" for own, than in zip(both[name], both[other])]
            look = dict(color=colour if own else style.CONTROL, width=3 if own else 1.5)
            look["dash"] = "solid" if own or name == slider.FIRST else "dot"
            traces.append(go.Scatter(
                x=list(both.index), y=both[name].round(3).tolist(), textposition=places,
                name=word if own else f"{word}, random direction", mode="lines+markers" + "+text" * own,
                text=[f"{word} {y:.0%}" for y in both[name]] if own else None, line=look, cliponaxis=False,
                selectedpoints=[at], marker=dict(size=13 if own else 9, color=look["color"]),
                unselected=dict(marker_opacity=0, textfont_color="rgba(0,0,0,0)"), showlegend=what == "attention",
                error_y=_ends(part, direction, name, what) if own else None, hoverinfo="skip",
            ))  # fmt: skip
    return traces


def _ends(part: pd.DataFrame, direction: str, name: str, what: str) -> dict | None:
    """Error bars of the mean; None of a single prompt, which has none."""
    rows = part[(part["direction"] == direction) & (part["name"] == name)].sort_values("setting")
    if rows[f"{what}_low"].isna().any():
        return None
    return style.error_bars(rows, what, ends=f"{what}_") | dict(width=0, color=NAMES[name])


# --- the same on the landing page ---

PANELS = {"attention": "name movers look at", "probability": "model says next"}


def one_number_figure(table: pd.DataFrame) -> go.Figure:
    """Bars of both names in the first prompt: the name movers' attention, and the answer's probability. The slider sets
    one coefficient, at first as it is by itself; grey marks: a random direction moved as far. table: of
    :class:`~talking_heads_utils.experiments.inhibition.slider.SliderRow`."""
    part = table[table["prompt"].eq(0).fillna(False)].sort_values("setting")
    settings = sorted(part["setting"].unique())
    at = min(range(len(settings)), key=lambda i: abs(settings[i] - part["plain"].iloc[0]))
    figure = make_subplots(1, 2, subplot_titles=list(PANELS.values()), shared_yaxes=True, horizontal_spacing=0.06,
                           figure=style.new_figure(170, showlegend=False))  # fmt: skip
    words = part.drop_duplicates("name").set_index("name")["word"]
    names = [words[name] for name in (slider.SECOND, slider.FIRST)]  # the first name on top
    moved = {}
    for column, what in enumerate(PANELS, 1):
        for direction in (slider.COMPONENT, slider.RANDOM):
            lines = part[part["direction"] == direction].pivot_table(index="setting", columns="name", values=what)
            moved[what, direction] = lines[[slider.SECOND, slider.FIRST]].round(3).to_numpy().tolist()
        own, control = (moved[what, direction][at] for direction in (slider.COMPONENT, slider.RANDOM))
        figure.add_bar(y=names, x=own, orientation="h", marker_color=[style.SECOND_NAME, style.FIRST_NAME],
                       text=_percent(own), textposition="outside", cliponaxis=False, hoverinfo="skip", row=1,
                       col=column)  # fmt: skip
        look = dict(symbol="line-ns", size=22, line=dict(width=3, color=style.CONTROL))
        figure.add_scatter(y=names, x=control, mode="markers", marker=look, cliponaxis=False, row=1, col=column,
                           hovertemplate="random direction: %{x:.0%}<extra></extra>")  # fmt: skip
        most = max(max(x) for each in (slider.COMPONENT, slider.RANDOM) for x in moved[what, each])
        figure.update_xaxes(range=[0, 1.3 * most], showticklabels=False, fixedrange=True, row=1, col=column)
    steps = {}
    for i, value in enumerate(settings):
        x = [moved[what, direction][i] for what in PANELS for direction in (slider.COMPONENT, slider.RANDOM)]
        steps[f"{value:+.1f}"] = {"x": x, "text": [_percent(x[0]), None, _percent(x[2]), None]}
    figure.update_yaxes(fixedrange=True)
    figure.update_layout(dragmode=False, modebar_remove=style.NO_BUTTONS, bargap=0.35, margin_t=28)
    prefix = f"coefficient of {part['component'].iloc[0]} "
    return figure.update_layout(sliders=[style.restyle_slider(steps, prefix, pad=20, active=at)])


def _percent(values: list[float]) -> list[str]:
    return [f"{value:.0%}" for value in values]


# --- the paper's Figure 2 ---


def effects_figure(table: pd.DataFrame) -> go.Figure:
    """Per inhibition head and mover (menu): what the removal of each component does to I(m), above, and how strongly
    the mover's query reads it, below. Both panels answer to one hover. table: of
    :class:`~talking_heads_utils.experiments.inhibition.exchange.ComponentRow`."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, figure=style.new_figure(340, hovermode="x")
    )
    views = {
        f"{head} into {mover}": _effect_traces(part, head)
        for (head, mover), part in table.groupby(["head", "mover"], sort=False)
    }
    figure.update_yaxes(title_text="change of I(m)", row=1, col=1)
    figure.update_yaxes(title_text=style.SCORE_TITLE, rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="component", row=2, col=1)
    figure.update_layout(hoversubplots="axis", bargap=0.15, legend_y=-0.16)
    return style.with_views(figure, views, panels=(1, 2, 2))


def _effect_traces(part: pd.DataFrame, head: str) -> list:
    """Effect with its interval, score, and what a random direction scores."""
    x, name = part["component"].astype(int).tolist(), f"{head}.%{{x}}"
    bars = dict(x=x, marker_color=style.ACCENT, showlegend=False)
    return [
        go.Bar(y=style.short(part["effect"]), error_y=style.error_bars(part, "effect", digits=4),
               hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>", **bars),
        go.Bar(y=style.short(part["score"]), hovertemplate=f"{name}: C = %{{y:.3f}}<extra></extra>", **bars),
        style.level([x[0], x[-1]], round(part["null"].iloc[0], 4), "random direction", style.NULL_LINE,
                    hoverinfo="skip"),
    ]  # fmt: skip


# --- the exchange ---

CONTROLS = {exchange.PREDICTED: style.ACCENT, exchange.MATCHED_SETS: style.CONTROL,
            exchange.RANDOM_DIRECTIONS: style.FAINT, exchange.OTHER_COMPONENT: style.EXPECTED}  # fmt: skip
RIVALS = {exchange.PREDICTED: style.ACCENT, exchange_study.BEST_MEASURED: style.EXPECTED,
          exchange_study.LARGEST_SINGULAR_VALUE: "#0072B2", exchange_study.LARGEST_VARIANCE: "#009E73",
          exchange_study.PREDICTED_BY_USE: "#B8860B"}  # fmt: skip
INPUTS = {exchange.KEY: style.KIND_COLOURS["K"], exchange.VALUE: style.KIND_COLOURS["V"]}


def exchange_figure(table: pd.DataFrame) -> go.Figure:
    """Share of a head's effect that the first k components carry, with controls or beside other ways to choose them; a
    menu chooses the head and what stands beside. table: of
    :class:`~talking_heads_utils.experiments.inhibition.exchange.ExchangeRow`."""
    look = dict(margin_t=16, xaxis_type="log", yaxis_rangemode="tozero", yaxis_tickformat=".0%")
    figure = style.new_figure(320, "components exchanged, of each head", "share of the head's effect", **look)
    rows = table[table["measure"] == exchange.LOG_ODDS]
    query = rows[rows["into"] == exchange.QUERY]
    views: dict[str, Sequence[Any]] = {}
    for head, part in sorted(query.groupby("head", sort=False), key=lambda item: item[0] != exchange.ALL):
        name = "all heads together" if head == exchange.ALL else str(head)
        into = rows[(rows["head"] == head) & (rows["set"] == exchange.PREDICTED)]
        controls, beside = ([_curve(part[part["set"] == s], style.words(s), c) for s, c in sets.items()]
                            for sets in (CONTROLS, RIVALS))  # fmt: skip
        inputs = [
            _curve(into[into["into"] == of], f"the predicted, into the {of}", c, "dot") for of, c in INPUTS.items()
        ]
        views[f"{name}: against controls"] = [*controls, *inputs]
        views[f"{name}: other ways to choose"] = [*beside, go.Scatter(x=[], y=[], showlegend=False)]
    figure.add_hline(y=1, line=style.NULL_LINE, annotation_text="whole head", annotation_position="top left")
    figure.update_xaxes(tickvals=sorted(rows.loc[rows["set"] == exchange.PREDICTED, "k"].unique().tolist()))
    return style.with_views(figure, views)


def _curve(part: pd.DataFrame, name: str, colour: str, dash: str = "solid") -> go.Scatter:
    part, told = part.sort_values("k"), ", k = %{x}: %{y:.0%}<br>%{customdata}"
    return style.curve(part, "k", "share", name, dict(color=colour, width=2, dash=dash), told, ends="share_",
                 bars=dict(color=colour), customdata=part["components"].tolist())  # fmt: skip


# --- where its head looks ---

SHADES = (style.ACCENT, "#8C3B00", "#F0A66B", "#C9A28A")  # components of inhibition heads side by side


def attends_figure(table: pd.DataFrame) -> go.Figure:
    """Where in running text the heads look when their component is large, beyond what even attention would give; grey:
    95% range of matched components. table: of
    :class:`~talking_heads_utils.experiments.inhibition.attends.AttendsRow`."""
    look = dict[str, Any](margin_t=12, legend_y=-0.32, yaxis_tickformat=".0%")
    figure = style.new_figure(310, y="share of attention,<br>less even attention", **look)
    rows = table[(table["role"] != "control") & (table["target"] != "first_token")]
    targets, components = list(dict.fromkeys(rows["target"])), list(dict.fromkeys(rows["component"]))
    for i, component in enumerate(components):
        part, shift = rows[rows["component"] == component], 0.2 * (i - (len(components) - 1) / 2)
        x = [targets.index(target) + shift for target in part["target"]]
        half = (part["control_high"] - part["control_low"]) / 2
        figure.add_scatter(
            x=x, y=style.short(part["control_low"] + half), mode="markers", name="95% of matched components",
            marker=dict(color=style.CONTROL, size=1),
            error_y=dict(array=style.short(half), thickness=8, width=0, color=style.CONTROL),
            showlegend=i == 0, hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=style.short(part["excess"]), name=component, mode="markers",
            marker=dict(color=SHADES[i % len(SHADES)], size=10), error_y=style.error_bars(part, "excess"),
            hovertemplate=f"{component}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=0, line=style.NULL_LINE)
    ticks = [TARGETS.get(target, style.words(target)) for target in targets]
    return figure.update_xaxes(style.named(ticks), tickangle=0, tickfont_size=11)
