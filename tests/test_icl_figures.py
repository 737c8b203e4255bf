"""Figures of chapter 4 show what the tables hold, one view at a time."""

import pandas as pd

from talking_heads_utils.figures import icl as figures


def test_patches_in_the_order_of_layers_on_an_axis_of_names():
    runs = [("a", None), ("b", None), ("patched", 1), ("patched", 0)]
    rows = [
        dict(b_sees=b, out=out, run=run, layer=layer, exact=0.1 * (i + 1) + 0.01 * j, about=0.2, parity=0.5, copied=0.3)
        for j, b in enumerate(("no examples", "random pairs"))
        for out in ("nothing", "a layer")
        for i, (run, layer) in enumerate(runs)
    ]
    figure = figures.patch_figure(pd.DataFrame(rows).astype({"layer": "Int64"}))
    assert figure.layout.xaxis.type == "category" and [t.visible for t in figure.data] == [True] + [False] * 7
    assert list(figure.data[0].x) == ["B plain", "0", "1", "A itself"]
    assert list(figure.data[0].y) == ["nothing", "a layer"]
    assert list(figure.data[0].z[0]) == [0.2, 0.4, 0.3, 0.1] and list(figure.data[4].z[1]) == [0.21, 0.41, 0.31, 0.11]
    buttons = figure.layout.updatemenus[0].buttons
    assert [b.args[0]["visible"].index(True) for b in buttons] == list(range(8))
    assert buttons[4].label == "B sees random pairs: exact"


def test_of_words_only_what_is_scored_is_shown():
    row = dict(b_sees="no examples", out="nothing", exact=0.5, about=None, parity=None, copied=0.3)
    rows = pd.DataFrame([row | dict(run=run, layer=layer) for run, layer in (("a", None), ("b", None), ("patched", 0))])
    labels = [b.label for b in figures.patch_figure(rows.astype({"layer": "Int64"})).layout.updatemenus[0].buttons]
    assert labels == ["B sees no examples: exact", "B sees no examples: A's own answer copied"]
    words = pd.DataFrame([dict(group="held-out", n_examples=0, accuracy=0.5, low=0.4, high=0.6, bayes=None)])
    numbers = pd.DataFrame([dict(words.iloc[0], group=group, bayes=0.9) for group in ("trained", "held-out")])
    figure = figures.accuracy_figure({"a": words, "b": numbers})
    assert [trace.name for trace in figure.data if trace.visible][:2] == ["model, held-out", "Bayes-optimal, held-out"]
    assert len(figure.data) == 8 and list(figure.data[1].y) == [None]


def test_the_slider_of_removals_marks_every_curve_and_names_the_heads():
    table = pd.DataFrame(
        [dict(order=order, out=k, head=f"L0H{k}" if k else None, exact=1 - 0.3 * k, low=0.0, high=1.0)
         for order in ("by_effect", "random") for k in range(3)]
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
    assert shown_pairs.customdata[1][0] == told
    same = dict(out="strongest", fixed=0.0, low=0.0, high=0.0, free_low=-0.1, free_high=0.7, attention=0.1)
    heads = pd.DataFrame([same | dict(head=f"L1H{i}", free=0.1 * i) for i in range(6)])
    (points,) = figures.backups_figure({"m": heads}).data
    assert list(points.text) == ["", "", "L1H2", "L1H3", "L1H4", "L1H5"]
    assert list(points.error_y.array) == [0.7, 0.6, 0.5, 0.4, 0.3, 0.2] and points.error_y.arrayminus[5] == 0.6


def test_the_finding_of_chapter_four_shows_each_model_in_one_colour():
    out = pd.DataFrame([dict(order=order, out=k, exact=1 - 0.1 * k, low=0.0, high=1.0)
                        for order in ("by_effect", "random") for k in range(4)])  # fmt: skip
    laws = pd.DataFrame([dict(law=law, error=0.2, low=0.1, high=0.4) for law in figures.LAWS])
    added = pd.DataFrame([dict(n_examples=k, ratio=k / 2, low=0.0, high=9.0) for k in (1, 2)])
    figure = figures.finding_figure({"a": out, "b": out}, {"a": laws, "b": laws}, {"a": added, "b": added}, most=2)
    assert [trace.name for trace in figure.data] == ["a"] * 3 + ["b"] * 3
    removed, error, alone = figure.data[:3]
    assert list(removed.x) == [0, 1, 2] and list(removed.y) == [1, 0.9, 0.8]
    assert list(error.y) == [0.2] * len(figures.LAWS) and error.marker.color == removed.line.color == alone.line.color
    assert list(alone.y) == [0.5, 1.0] and figure.data[3].line.color != removed.line.color
