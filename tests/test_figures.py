"""Figures hold the data they were given, and what travels to the page survives the journey."""

from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from talking_heads_utils import roles
from talking_heads_utils.experiments import power
from talking_heads_utils.experiments.planted_pair import planted_pair
from talking_heads_utils.figures import composition, page
from talking_heads_utils.figures.landing import one_number_figure
from talking_heads_utils.figures.power import power_figure
from talking_heads_utils.labels import Head
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.site import landing


@pytest.fixture(scope="module")
def scores(small):
    return compute_scores(small)


def array(values):
    return np.asarray(values, dtype=float)


def test_the_known_answer_figure_moves_with_its_slider():
    by_cosine = {c: compute_scores(planted_pair(c), "Q") for c in (1.0, 0.5)}
    figure = composition.known_answer_figure(by_cosine)
    assert [frame.name for frame in figure.frames] == ["1.00", "0.50"]
    tall = [array(frame.data[0].y)[2] for frame in figure.frames]
    assert tall[1] == pytest.approx(tall[0] / 2, rel=1e-5)
    assert [list(step.args[0]) for step in figure.layout.sliders[0].steps] == [["1.00"], ["0.50"]]


def test_menus_replace_every_trace_with_that_of_the_reader(scores):
    readers = [Head(2, 0), Head(2, 3)]
    figure = composition.components_figure(scores, [Head(0, 1), Head(1, 2)], readers, "Q")
    button = figure.layout.updatemenus[0].buttons[1]
    update, traces = button.args
    assert list(traces) == list(range(6)) and len(update["y"]) == 6
    assert array(update["y"][3]) == pytest.approx(scores.pair("L1H2", "L2H3", "Q").numpy())
    alone = composition.components_figure(scores, [Head(0, 1)], readers[:1], "Q")
    assert not alone.layout.updatemenus, "a menu of one entry would do nothing"
    assert figure.data[0].meta == "L2H0" and update["meta"][0] == "L2H3"


def test_a_figure_for_the_page_carries_caption_and_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv(page.BUILD_VARIABLE, "1")
    page.show(go.Figure(), name="fig-x", caption="what", alt="seen")
    assert shown[0].layout.meta["book"] == dict(name="fig-x", caption="what", alt="seen", lead=False)
    monkeypatch.delenv(page.BUILD_VARIABLE)
    page.show(go.Figure, name="fig-x", caption="what", alt="seen")
    assert isinstance(shown[1], go.Figure) and "what" in shown[2].data


def test_every_claim_that_a_rule_judges_has_its_power_in_the_menu():
    table = power.stored()
    (menu,) = power_figure(table, {claim: claim for claim in table["claim"].unique()}).layout.updatemenus
    titles = [button.args[1]["xaxis.title.text"] for button in menu.buttons]
    assert [button.label for button in menu.buttons] == table["claim"].unique().tolist() and len(set(titles)) > 15


def test_every_role_has_its_own_colour():
    from talking_heads_utils.figures.style import CONTROL, ROLE_COLOURS, role_colour

    assert set(ROLE_COLOURS) == set(roles.ALL) - {roles.VALUE_SOURCE} > set(roles.gpt2_small_roles())
    assert len({*ROLE_COLOURS.values(), CONTROL}) == len(ROLE_COLOURS) + 1
    assert role_colour(None) == role_colour(roles.VALUE_SOURCE) == CONTROL


def test_the_landing_sliders_steps_show_what_its_rows_hold():
    """Names on top as the prompt has them; the step of a setting moves bars and control marks to that setting's."""
    rows = [
        dict(prompt=prompt, component="L1H0.0", plain=0.9, direction=direction, setting=setting, name=name,
             word=f"{name}{prompt}", attention=0.1 * (k + 1) + 0.01 * i, probability=0.2 * (k + 1) + 0.02 * i)
        for prompt in (0, 1)
        for k, direction in enumerate(("component", "random"))
        for i, (setting, name) in enumerate(product((-1.0, 1.0), ("first", "second")))
    ]  # fmt: skip
    table = pd.DataFrame([*rows, rows[0] | dict(prompt=None)]).astype({"prompt": "Int64"})
    figure = one_number_figure(table)
    assert list(figure.data[0].y) == ["second0", "first0"]
    step = figure.layout.sliders[0].steps[0].args[0]
    assert [list(x) for x in step["x"]] == [[0.11, 0.1], [0.21, 0.2], [0.22, 0.2], [0.42, 0.4]]
    assert list(figure.data[2].x) == [0.26, 0.24] and list(figure.data[2].text) == ["26%", "24%"]


def test_the_landing_page_says_what_its_tables_hold():
    opening, gone = landing.opening(), landing._removed()
    assert f"{gone['component']}: {gone['share']:.0%}" in opening and opening.count('class="finding"') == 3
    assert landing.how_sure().count("\n| ") == 9 and landing.hidden().count("* **") == 4
