"""Figures hold the data they were given, and what travels to the page survives the journey."""

import json

import numpy as np
import pytest

from talking_heads_utils import roles
from talking_heads_utils.experiments.inhibition import published
from talking_heads_utils.figures import circuit, composition, explorer, page
from talking_heads_utils.labels import Head
from talking_heads_utils.planted.pair import planted_pair
from talking_heads_utils.scores.scores import compute_scores

ROLES = {"a": [Head(0, 1), Head(0, 2)], "b": [Head(2, 0), Head(2, 3)]}
LINKS = [("a", "b", "Q")]


@pytest.fixture(scope="module")
def scores(small):
    return compute_scores(small)


def array(values):
    return np.asarray(values, dtype=float)


def test_quantised_values_come_back_within_their_error():
    values = np.random.default_rng(0).gamma(1, 0.03, (7, 5))
    values[2, 3] = np.nan
    back = page.dequantise(json.loads(json.dumps(page.quantise(values, rows=9))))
    assert back.shape == (9, 5) and np.isnan(back[7:]).all() and np.isnan(back[2, 3])
    assert np.nanmax(np.abs(back[:7] - values)) <= np.nanmax(values) / 254
    assert (page.dequantise(page.quantise(np.zeros((2, 2)), rows=2)) == 0).all()


def test_the_explorer_holds_every_reader_and_kind(scores):
    figure = explorer.static_explorer(scores, Head(2, 1))
    meta = figure.layout.meta
    assert [c["name"] for c in meta["controls"]] == ["Reader layer", "Reader head", "Input"]
    assert set(meta["frames"]) == {"1", "2"} and [c["start"] for c in meta["controls"]] == [2, 1, "Q"]
    frames = json.loads(meta["frames"]["2"])
    assert set(frames) == {f"{head}|{kind}" for head in range(4) for kind in "QKV"}
    bars, cells = frames["3|K"]["data"]
    table = scores.table("L2H3", "K")
    assert bars["x"] == list(table["writer"][:12]) and bars["y"] == pytest.approx(table["score"][:12], abs=1e-4)
    expected = scores.blocks["K", 2].score[..., 3].flatten(0, 1).numpy()
    assert page.dequantise(cells["z"]) == pytest.approx(expected, abs=expected.max() / 254)
    assert array(figure.data[1].z).shape == (8, 6)


def test_the_widget_draws_what_its_menus_say(scores, monkeypatch):
    drawn = []
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: drawn.append(self))
    widget = explorer.live_explorer(scores, Head(1, 2))
    menus = {child.description: child for child in widget.children[:3]}
    menus["Reader layer"].value = 2
    menus["Input"].value = "V"
    widget.update()
    assert list(drawn[-1].data[0].x) == list(scores.table("L2H2", "V")["writer"][:12])
    static = json.loads(explorer.static_explorer(scores, Head(1, 2)).layout.meta["frames"]["2"])["2|V"]
    assert static["data"][0]["x"] == list(drawn[-1].data[0].x)


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


def test_the_landing_figure_counts_what_its_slider_leaves(scores):
    figure = circuit.link_figure(scores, ROLES, LINKS[0], thresholds=[0, 1, 2], start=1)
    for frame, step in zip(figure.frames, figure.layout.sliders[0].steps, strict=True):
        edges = published.edges_above(scores, ROLES, LINKS[0], float(frame.name))
        known = sum(edge[3] for edge in edges)
        assert step.args[0] == (frame.name,)
        assert (len(frame.data[3].x), len(frame.data[1].x)) == (known, len(edges) - known)
        of_layer = [sum(writer.layer == layer for writer, *_ in edges) for layer in range(scores.n_layers)]
        even = sum(of_layer[writer.layer] / scores.n_heads for writer in ROLES[LINKS[0][0]])
        title = f"{len(edges)} edges with z of {frame.name} or more: {known} of the 4<br>"
        assert frame.layout.title.text == f"{title}published ones; evenly within layers it would be {even:.1f}"
    assert figure.layout.title.text == figure.frames[1].layout.title.text
    assert list(figure.data[3].text) == list(figure.frames[1].data[3].text)


def test_a_figure_for_the_page_carries_caption_and_alternative_text(scores, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv(page.BUILD_VARIABLE, "1")
    page.show(explorer.static_explorer(scores, Head(2, 0)), name="fig-x", caption="what", alt="seen")
    assert shown[0].layout.meta["book"] == dict(name="fig-x", caption="what", alt="seen", lead=False)
    assert "frames" in shown[0].layout.meta
    monkeypatch.delenv(page.BUILD_VARIABLE)
    page.show(lambda: pytest.fail("not needed"), name="fig-x", caption="what", alt="seen", live=lambda: "widget")
    assert shown[1] == "widget" and "what" in shown[2].data


def test_every_role_has_its_own_colour():
    from talking_heads_utils.figures.style import CONTROL, ROLE_COLOURS, role_colour

    assert set(ROLE_COLOURS) == set(roles.ALL) - {roles.VALUE_SOURCE} > set(roles.gpt2_small_roles())
    assert len({*ROLE_COLOURS.values(), CONTROL}) == len(ROLE_COLOURS) + 1
    assert role_colour(None) == role_colour(roles.VALUE_SOURCE) == CONTROL


def test_a_takeaway_begins_with_its_answer_and_gives_numbers_a_line_each():
    text = page.takeaway("It does.", {"a": "1 of 2", "b": "2 of 2"}, "Few prompts.").data
    assert text == "**Takeaway.** It does.\n\n- a: 1 of 2\n- b: 2 of 2\n\nFew prompts."
    assert page.takeaway("It does.").data == "**Takeaway.** It does."
