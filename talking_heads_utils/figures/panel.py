"""The panel of chapter 1: one prompt, one component out of a mover's query, where the mover then looks.

In a kernel its controls choose model, head, component and prompt, and recompute; the static page has a twin of it with
some heads, components and prompts computed beforehand.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import plotly.graph_objects as go

from talking_heads_utils.experiments.inhibition.study import one_prompt
from talking_heads_utils.figures.page import file_key, with_controls
from talking_heads_utils.figures.style import ACCENT, CONTROL, NO_BUTTONS, new_figure
from talking_heads_utils.labels import Component, Head, heads_in

if TYPE_CHECKING:
    from talking_heads_utils.experiments.inhibition.study import Study

N_COMPONENTS, N_PROMPTS = 8, 4  # on the static page
N_OFFERED = 24  # prompts in a kernel


def panel_figure(s: Study, component: Component, row: int) -> go.Figure:
    """The mover's attention to each item of a held-out list, untouched and without the component."""
    frame = _view(s, component, row)
    looks = (("untouched", CONTROL), ("without the component", ACCENT))
    figure = new_figure(400, barmode="group", margin_t=120, dragmode=False, modebar_remove=NO_BUTTONS)
    for bars, (name, colour) in zip(frame["data"], looks):
        figure.add_bar(**bars, name=name, marker_color=colour, hovertemplate="%{x}: %{y:.2f}<extra></extra>")
    figure.update_xaxes(tickangle=-35)
    figure.update_yaxes(title_text="attention of the mover", rangemode="tozero")
    figure.update_layout(**frame["layout"], legend_y=-0.3)
    return figure


def static_panel(studies: Sequence[Study]) -> go.Figure:
    """:func:`panel_figure` with menus that work without a kernel: of each model its two strongest inhibition heads and,
    as a control, the first other head of their layer."""
    heads = [(s, head) for s in studies for head in [*_leading(s)[:2], _other(s)]]
    rows = {s.name: spread_prompts(s, N_PROMPTS) for s in studies}
    first = [file_key(f"{s.name}-{head}") for s, head in heads]
    labels = [f"{s.name}: {head}{'' if head in s.inhibition else ' (control)'}" for s, head in heads]
    frames = {
        (name, c, i): _view(s, Component(head.layer, head.head, c), row)
        for name, (s, head) in zip(first, heads)
        for c in range(N_COMPONENTS)
        for i, row in enumerate(rows[s.name])
    }
    s, head = heads[0]
    strongest = s.strongest(1)[0].component
    start = strongest if strongest < N_COMPONENTS else 0
    controls: list[dict[str, Any]] = [
        dict(name="Model and head", values=first, labels=labels, start=first[0]),
        dict(name="Component", values=list(range(N_COMPONENTS)), start=start),
        dict(name="Prompt", values=list(range(N_PROMPTS)), start=0),
    ]
    return with_controls(panel_figure(s, Component(head.layer, head.head, start), rows[s.name][0]), controls, frames)


def live_panel(studies: Sequence[Study]) -> ipywidgets.Widget:
    """:func:`panel_figure` behind menus for model, head, component and prompt, every earlier head among them."""
    by_name = {s.name: s for s in studies}

    def menu(name: str, options: Sequence) -> ipywidgets.Dropdown:
        return ipywidgets.Dropdown(options=options, description=name)

    def offered(s: Study) -> dict[str, Sequence]:
        earlier = heads_in(range(s.mover.layer), s.held_out.weights.n_heads)
        heads = [*_leading(s), *(head for head in earlier if head not in s.inhibition)]
        texts = s.held_out.prompts.texts
        prompts = [(f"{row}: {textwrap.shorten(texts[row], 60)}", row) for row in spread_prompts(s, N_OFFERED)]
        return dict(head=list(map(str, heads)), component=list(range(s.held_out.weights.d_head)), prompt=prompts)

    def draw(model: str, head: str, component: int, prompt: int) -> None:
        at = Head.parse(head)
        if at.layer < by_name[model].mover.layer:  # while the menus of another model take their place
            panel_figure(by_name[model], Component(at.layer, at.head, component), prompt).show()

    start = offered(studies[0])
    model = menu("Model", list(by_name))
    menus = {name: menu(name.capitalize(), options) for name, options in start.items()}

    def change(event: dict) -> None:
        for name, options in offered(by_name[event["new"]]).items():
            menus[name].options = options

    model.observe(change, "value")
    return ipywidgets.interactive(draw, model=model, **menus)


def spread_prompts(s: Study, n: int) -> list[int]:
    """Held-out prompts, ordered by what the strongest component's removal does to I(m), at even steps from the largest
    loss on."""
    order = s.effects.of(s.strongest(1)[0]).argsort().tolist()
    return [order[i * len(order) // n] for i in range(n)]


def _leading(s: Study) -> list[Head]:
    """The inhibition heads, that of the strongest component first."""
    return list(dict.fromkeys([s.strongest(1)[0].of_head, *s.inhibition]))


def _other(s: Study) -> Head:
    """The first head of that layer which inhibits no mover."""
    of_layer = heads_in([s.inhibition[0].layer], s.held_out.weights.n_heads)
    return next(head for head in of_layer if head not in s.found.inhibition)


def _view(s: Study, component: Component, row: int) -> dict:
    """What changes with the choice: both bars, and the title with the prompt and I(m) before and after."""
    table = one_prompt(s, component, row)
    values, answer = table[["before", "after"]], table["answer"]
    before, after = values[answer].iloc[0] - values[~answer].mean()
    names = [f"<b>{item}</b>" if right else item for item, right in zip(table["item"], answer)]
    text = "<br>".join(textwrap.wrap(s.held_out.prompts.texts[row], 52))
    title = f"{component} out of the query of {s.mover}: I(m) {before:.2f} → {after:.2f}<br><i>{text}</i>"
    return {
        "data": [dict(x=names, y=values[column].round(4).tolist()) for column in values],
        "layout": dict(title=dict(text=title, font=dict(size=13), x=0.01, xanchor="left", y=0.95, yanchor="top")),
    }
