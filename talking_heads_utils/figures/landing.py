"""The figure of the landing page: one number moves, and with it what heads look at and what the model answers."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from talking_heads_utils.experiments.inhibition import slider
from talking_heads_utils.figures.style import CONTROL, FIRST_NAME, NO_BUTTONS, SECOND_NAME, new_figure, restyle_slider

PANELS = {"attention": "name movers look at", "probability": "model says next"}


def one_number_figure(table: pd.DataFrame) -> go.Figure:
    """Bars of both names in the first prompt: the name movers' attention, and the answer's probability. The slider sets
    one coefficient, at first as it is by itself; grey marks: a random direction moved as far. table: of
    :class:`~talking_heads_utils.experiments.inhibition.slider.SliderRow`."""
    part = table[table["prompt"].eq(0).fillna(False)].sort_values("setting")
    settings = sorted(part["setting"].unique())
    at = min(range(len(settings)), key=lambda i: abs(settings[i] - part["plain"].iloc[0]))
    figure = make_subplots(1, 2, subplot_titles=list(PANELS.values()), shared_yaxes=True, horizontal_spacing=0.06,
                           figure=new_figure(170, showlegend=False))  # fmt: skip
    words = part.drop_duplicates("name").set_index("name")["word"]
    names = [words[name] for name in (slider.SECOND, slider.FIRST)]  # the first name on top
    moved = {}
    for column, what in enumerate(PANELS, 1):
        for direction in (slider.COMPONENT, slider.RANDOM):
            lines = part[part["direction"] == direction].pivot_table(index="setting", columns="name", values=what)
            moved[what, direction] = lines[[slider.SECOND, slider.FIRST]].round(3).to_numpy().tolist()
        own, control = (moved[what, direction][at] for direction in (slider.COMPONENT, slider.RANDOM))
        figure.add_bar(y=names, x=own, orientation="h", marker_color=[SECOND_NAME, FIRST_NAME], text=_percent(own),
                       textposition="outside", cliponaxis=False, hoverinfo="skip", row=1, col=column)  # fmt: skip
        look = dict(symbol="line-ns", size=22, line=dict(width=3, color=CONTROL))
        figure.add_scatter(y=names, x=control, mode="markers", marker=look, cliponaxis=False, row=1, col=column,
                           hovertemplate="random direction: %{x:.0%}<extra></extra>")  # fmt: skip
        most = max(max(x) for each in (slider.COMPONENT, slider.RANDOM) for x in moved[what, each])
        figure.update_xaxes(range=[0, 1.3 * most], showticklabels=False, fixedrange=True, row=1, col=column)
    steps = {}
    for i, value in enumerate(settings):
        x = [moved[what, direction][i] for what in PANELS for direction in (slider.COMPONENT, slider.RANDOM)]
        steps[f"{value:+.1f}"] = {"x": x, "text": [_percent(x[0]), None, _percent(x[2]), None]}
    figure.update_yaxes(fixedrange=True)
    figure.update_layout(dragmode=False, modebar_remove=NO_BUTTONS, bargap=0.35, margin_t=28)
    component = part["component"].iloc[0]
    return figure.update_layout(sliders=[restyle_slider(steps, f"coefficient of {component} ", pad=20, active=at)])


def _percent(values: list[float]) -> list[str]:
    return [f"{value:.0%}" for value in values]
