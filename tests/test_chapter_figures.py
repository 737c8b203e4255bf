"""Figures that show a table, model by model: every menu entry shows its own model's numbers and no other's."""

import pandas as pd
import pytest
from counted import MODELS, table

from talking_heads_utils.figures import icl, models


def views(figure) -> dict[str, list]:
    """Menu entry -> the traces it shows; every trace is shown by one entry, the first entry's from the start."""
    buttons = figure.layout.updatemenus[0].buttons
    masks = [button.args[0]["visible"] for button in buttons]
    assert all(len(mask) == len(figure.data) and sum(column) == 1 for mask in masks for column in zip(*masks))
    assert [trace.visible is not False for trace in figure.data] == list(masks[0])
    return {b.label: [t for t, on in zip(figure.data, mask) if on] for b, mask in zip(buttons, masks)}


def by_model(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {model: rows[rows["model"] == model] for model in MODELS}


def test_a_menu_shows_one_model_s_probes_with_their_intervals():
    rows = table(["right", "shuffled"], label=["a", "b", "parity", "size"], layer=[0, 1])
    figure = icl.probe_figure(by_model(rows))
    found = views(figure)
    assert list(found) == MODELS
    for model, traces in found.items():
        own = rows[rows["model"] == model][["right", "shuffled"]]
        drawn = sorted(value for trace in traces for value in trace.y)
        assert drawn == pytest.approx(sorted(own.to_numpy().ravel().round(3)))
    first = figure.data[0]
    assert [y + up for y, up in zip(first.y, first.error_y.array)] == pytest.approx([1, 1])
    assert [y - down for y, down in zip(first.y, first.error_y.arrayminus)] == pytest.approx([0, 0], abs=1e-3)


def test_additivity_draws_ratio_and_cosine_of_every_model():
    rows = table(["ratio", "cosine"], n_examples=[1, 2, 4])
    figure = icl.additivity_figure(by_model(rows))
    assert [(t.name, t.yaxis) for t in figure.data] == [(m, panel) for m in MODELS for panel in ("y", "y2")]
    for own, *traces in zip(by_model(rows).values(), figure.data[::2], figure.data[1::2]):
        assert [list(t.y) for t in traces] == [own[what].round(3).tolist() for what in ("ratio", "cosine")]
    assert figure.layout.shapes[0].y0 == 1, "the line at which contributions add"


def test_models_are_introduced_by_what_was_measured_and_what_was_predicted():
    rows = pd.DataFrame(dict(n_items=[3, 6], accuracy=[0.9, 0.5], low=[0.8, 0.4], high=[1.0, 0.6]))
    measured, predicted = models.accuracy_figure({"planted": rows}, {"planted": [0.88, 0.52]}).data
    assert list(measured.y) == [0.9, 0.5] and list(measured.error_y.array) == pytest.approx([0.1, 0.1])
    assert list(predicted.x) == [3, 6] and list(predicted.y) == [0.88, 0.52] and predicted.mode == "markers"
    log = [dict(step=s, accuracy={"IOI": s / 400, "lists of 2": s / 200}) for s in (200, 400)]
    figure = models.training_figure(log, ["lists of 2"])
    assert [(t.name, list(t.x), list(t.y)) for t in figure.data] == [("lists of 2", [200, 400], [1.0, 2.0])]
