"""Figures of chapter 4 show what the tables hold, one view at a time."""

import pandas as pd
import torch

from talking_heads_utils.experiments.icl import curves
from talking_heads_utils.figures import icl as figures


def shown(figure):
    return [i for i, trace in enumerate(figure.data) if trace.visible is not False]


def patches():
    rows = [
        dict(set=name, layer=layer, exact=0.1 * (layer + 2), about=0.2, parity=0.5, copied=0.3)
        for name in ("nothing", "a layer")
        for layer in (-2, -1, 0, 1)
    ]
    return pd.DataFrame(rows)


def test_patches_in_the_order_of_layers_on_an_axis_of_names():
    figure = figures.patch_figure({"nothing": patches(), "random pairs": patches()})
    assert figure.layout.xaxis.type == "category" and shown(figure) == [0]
    assert list(figure.data[0].x) == ["B plain", "0", "1", "A itself"] and list(figure.data[0].y) == [
        "nothing",
        "a layer",
    ]
    assert list(figure.data[0].z[0]) == [0.0, 0.2, 0.3, 0.1]
    buttons = figure.layout.updatemenus[0].buttons
    assert len(buttons) == len(figure.data) == 8
    assert [b.args[0]["visible"].index(True) for b in buttons] == list(range(8))
    assert buttons[4].label == "B sees random pairs: exact"


def test_the_slider_of_removals_marks_every_curve_and_names_the_heads():
    table = pd.DataFrame(
        [dict(order=order, out=k, head=f"L0H{k}" if k else "nothing", exact=1 - 0.3 * k, low=0.0, high=1.0)
         for order in ("by effect", "random 1") for k in range(3)]
    )  # fmt: skip
    figure = figures.removal_figure({"one": table, "other": table})
    assert [frame.name for frame in figure.frames] == ["0", "1", "2"]
    last = figure.frames[2]
    assert list(last.data[0].y) == [0.4, 0.4] and last.traces == (len(figure.data) - 1,)
    assert last.layout.title.text.split("<br>")[0] == "one: 0.40 without L0H2 L0H1"


def test_pairs_are_symmetric_and_only_the_heads_that_seem_to_change_most_are_named():
    capped = dict(log_prob=0.25, log_prob_low=0.2, log_prob_high=0.3)
    pairs = pd.DataFrame([dict(a="L0H0", b="L0H1", interaction=0.5, low=0.4, high=0.6),
                          dict(a="L0H0", b="L0H2", interaction=-0.1, low=-0.2, high=0.0),
                          dict(a="L0H1", b="L0H2", interaction=0.0, low=-0.1, high=0.1)]).assign(**capped)  # fmt: skip
    (shown_pairs,) = figures.interaction_figure({"m": pairs}).data
    z = shown_pairs.z
    assert z[0][1] == z[1][0] == 0.5 and z[2][0] == -0.1 and z[0][0] is None
    told = "0.50 nats of log-odds [0.40, 0.60]<br>0.25 of log-probability [0.20, 0.30]"
    assert shown_pairs.customdata[1][0] == told and "log-odds" in shown_pairs.colorbar.title.text
    same = dict(model="m", set="s", fixed=0.0, low=0.0, high=0.0, free_low=-0.1, free_high=0.7, attention=0.1)
    heads = pd.DataFrame([same | dict(head=f"L1H{i}", free=0.1 * i) for i in range(6)])
    (points,) = figures.compensation_figure(heads).data
    assert list(points.text) == ["", "", "L1H2", "L1H3", "L1H4", "L1H5"]
    assert list(points.error_y.array) == [0.7, 0.6, 0.5, 0.4, 0.3, 0.2] and points.error_y.arrayminus[5] == 0.6


def test_belief_shows_the_model_and_every_law():
    laws = {law: torch.arange(4.0) for law in curves.LAWS}
    figure = figures.belief_figure({"m": torch.randn(9, 4), "n": torch.randn(9, 4)}, {"m": laws, "n": laws}, 2)
    assert shown(figure) == list(range(5)) and [t.name for t in figure.data[1:5]] == list(curves.LAWS)


def test_the_finding_of_chapter_four_shows_each_model_in_one_colour():
    out = pd.DataFrame([dict(order=order, out=k, head="L0H0", exact=1 - 0.1 * k, low=0.0, high=1.0)
                        for order in ("by effect", "random 1") for k in range(4)])  # fmt: skip
    laws = pd.DataFrame([dict(law=law, error=0.2, low=0.1, high=0.4) for law in curves.LAWS])
    added = pd.DataFrame([dict(model=m, n_examples=k, ratio=k / 2, low=0.0, high=9.0) for m in "ab" for k in (1, 2)])
    figure = figures.finding_figure({"a": out, "b": out}, {"a": laws, "b": laws}, added, most=2)
    assert [trace.name for trace in figure.data] == ["a"] * 3 + ["b"] * 3
    removed, error, alone = figure.data[:3]
    assert list(removed.x) == [0, 1, 2] and list(removed.y) == [1, 0.9, 0.8]
    assert list(error.y) == [0.2] * len(curves.LAWS) and error.marker.color == removed.line.color == alone.line.color
    assert list(alone.y) == [0.5, 1.0] and figure.data[3].line.color != removed.line.color
