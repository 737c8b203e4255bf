"""The panel of chapter 1: one prompt, one component out of a mover's query, where the mover then looks.

In a kernel its controls choose model, head, component and prompt, and ask for the items anew; the static page has a
twin of it with some heads, components and prompts asked beforehand.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from talking_heads_utils.experiments.inhibition.toys import OnePrompt
from talking_heads_utils.figures.page import file_key, with_controls
from talking_heads_utils.figures.style import ACCENT, CONTROL, NO_BUTTONS, new_figure
from talking_heads_utils.labels import Component, Head

N_COMPONENTS, N_PROMPTS = 8, 4  # on the static page
N_OFFERED = 24  # prompts in a kernel


def panel_figure(s: OnePrompt, component: Component, row: int) -> go.Figure:
    """The mover's attention to each item of a held-out list, untouched and without the component."""
    frame = _view(s, component, row)
    looks = (("untouched", CONTROL), ("without the component", ACCENT))
    figure = new_figure(400, barmode="group", margin_t=120, dragmode=False, modebar_remove=NO_BUTTONS)
    for bars, (name, colour) in zip(frame["data"], looks):
        figure.add_bar(**bars, name=name, marker_color=colour, hovertemplate="%{x}: %{y:.2f}<extra></extra>")
    figure.update_xaxes(tickangle=-35)
    figure.update_yaxes(title_text="attention of the mover", rangemode="tozero")
    return figure.update_layout(**frame["layout"], legend_y=-0.3)


def static_panel(models: Sequence[OnePrompt]) -> go.Figure:
    """:func:`panel_figure` with menus that work without a kernel: of each model its two strongest inhibition heads and,
    as a control, the first other head of their layer."""
    heads = [(s, head) for s in models for head in [*s.heads[:2], _other(s)]]
    keys = [file_key(f"{s.model}-{head}") for s, head in heads]
    labels = [f"{s.model}: {head}{'' if head in s.heads else ' (control)'}" for s, head in heads]
    frames = {
        (key, c, i): _view(s, Component(head.layer, head.head, c), row)
        for key, (s, head) in zip(keys, heads)
        for c in range(N_COMPONENTS)
        for i, row in enumerate(s.spread(N_PROMPTS))
    }
    s, head = heads[0]
    start = s.strongest.component if s.strongest.component < N_COMPONENTS else 0
    controls: list[dict[str, Any]] = [
        dict(name="Model and head", values=keys, labels=labels, start=keys[0]),
        dict(name="Component", values=list(range(N_COMPONENTS)), start=start),
        dict(name="Prompt", values=list(range(N_PROMPTS)), start=0),
    ]
    first = panel_figure(s, Component(head.layer, head.head, start), s.spread(N_PROMPTS)[0])
    return with_controls(first, controls, frames)


def live_panel(models: Sequence[OnePrompt]) -> ipywidgets.Widget:
    """:func:`panel_figure` behind menus for model, head, component and prompt, every earlier head among them."""
    by_name = {s.model: s for s in models}

    def menu(name: str, options: Sequence) -> ipywidgets.Dropdown:
        return ipywidgets.Dropdown(options=options, description=name)

    def offered(s: OnePrompt) -> dict[str, Sequence]:
        prompts = [(f"{row}: {textwrap.shorten(s.texts[row], 60)}", row) for row in s.spread(N_OFFERED)]
        return dict(head=list(map(str, [*s.heads, *s.others])), component=list(range(s.d_head)), prompt=prompts)

    def draw(model: str, head: str, component: int, prompt: int) -> None:
        at = Head.parse(head)
        if at.layer < by_name[model].mover.layer:  # while the menus of another model take their place
            panel_figure(by_name[model], Component(at.layer, at.head, component), prompt).show()

    model = menu("Model", list(by_name))
    menus = {name: menu(name.capitalize(), options) for name, options in offered(models[0]).items()}

    def change(event: dict) -> None:
        for name, options in offered(by_name[event["new"]]).items():
            menus[name].options = options

    model.observe(change, "value")
    return ipywidgets.interactive(draw, model=model, **menus)


def _other(s: OnePrompt) -> Head:
    """The first head of the strongest inhibition head's layer that inhibits nothing."""
    return next(head for head in s.others if head.layer == s.heads[0].layer)


def _view(s: OnePrompt, component: Component, row: int) -> dict:
    """What changes with the choice: both bars, and the title with the prompt and I(m) before and after."""
    items = s.items(component, row)
    (answer,), others = [i for i in items if i.answer], [i for i in items if not i.answer]
    before, after = answer.before - fmean(i.before for i in others), answer.after - fmean(i.after for i in others)
    names = [f"<b>{i.item}</b>" if i.answer else i.item for i in items]
    text = "<br>".join(textwrap.wrap(s.texts[row], 52))
    title = f"{component} out of the query of {s.mover}: I(m) {before:.2f} → {after:.2f}<br><i>{text}</i>"
    return {
        "data": [dict(x=names, y=[round(y, 4) for y in ys]) for ys in ([i.before for i in items],
                                                                       [i.after for i in items])],
        "layout": dict(title=dict(text=title, font=dict(size=13), x=0.01, xanchor="left", y=0.95, yanchor="top")),
    }  # fmt: skip
