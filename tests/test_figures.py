"""Figures hold the data they were given, and what travels to the page survives the journey."""

from itertools import product

import pandas as pd
import plotly.graph_objects as go
import pytest

from talking_heads_utils import roles
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.planted_pair import planted_pair
from talking_heads_utils.figures import composition, heads, inhibition, models, page, style
from talking_heads_utils.labels import Head
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.site import landing


@pytest.fixture(scope="module")
def scores(small):
    return compute_scores(small)


def test_the_known_answer_figure_moves_with_its_slider():
    by_cosine = {c: compute_scores(planted_pair(c), "Q") for c in (1.0, 0.5)}
    figure = composition.known_answer_figure(by_cosine)
    assert [frame.name for frame in figure.frames] == ["1.00", "0.50"]
    tall = [float(frame.data[0].y[2]) for frame in figure.frames]
    assert tall[1] == pytest.approx(tall[0] / 2, rel=1e-5)
    assert [list(step.args[0]) for step in figure.layout.sliders[0].steps] == [["1.00"], ["0.50"]]


def test_a_figure_for_the_page_carries_caption_and_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv(page.BUILD_VARIABLE, "1")
    page.show(go.Figure(), name="fig-x", caption="what", alt="seen")
    assert shown[0].layout.meta["book"] == dict(name="fig-x", caption="what", alt="seen", lead=False)
    monkeypatch.delenv(page.BUILD_VARIABLE)
    page.show(go.Figure, name="fig-x", caption="what", alt="seen")
    assert isinstance(shown[1], go.Figure) and "what" in shown[2].data


def test_every_role_has_its_own_colour():
    colours = style.ROLE_COLOURS
    assert set(colours) == set(roles.ALL) - {roles.VALUE_SOURCE} > set(roles.gpt2_small_roles())
    assert len({*colours.values(), style.CONTROL}) == len(colours) + 1
    assert style.role_colour(None) == style.role_colour(roles.VALUE_SOURCE) == style.CONTROL


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
    figure = inhibition.one_number_figure(table)
    assert list(figure.data[0].y) == ["second0", "first0"]
    step = figure.layout.sliders[0].steps[0].args[0]
    assert [list(x) for x in step["x"]] == [[0.11, 0.1], [0.21, 0.2], [0.22, 0.2], [0.42, 0.4]]
    assert list(figure.data[2].x) == [0.26, 0.24] and list(figure.data[2].text) == ["26%", "24%"]


def test_the_landing_page_says_what_its_tables_hold():
    opening, gone = landing.opening(), landing._removed()
    assert f"{gone['component']}: {gone['share']:.0%}" in opening and opening.count('class="finding"') == 3
    assert landing.how_sure().count("\n| ") == 9 and landing.hidden().count("* **") == 4


def test_components_stand_beside_the_others_of_their_layer_and_say_their_z_and_rank(scores):
    readers = [Head(2, 0), Head(2, 3)]
    figure = composition.components_figure(scores, [Head(0, 1), Head(1, 2)], readers, "Q")
    update, which = figure.layout.updatemenus[0].buttons[1].args
    for place, trace in enumerate(which):
        figure.data[trace].update({key: values[place] for key, values in update.items()})
    table = scores.table("L2H3", "Q").set_index("writer")
    for writer, axis in ((Head(0, 1), "x"), (Head(1, 2), "x2")):
        bars, highest, median = (figure.data[i] for i in which if (figure.data[i].xaxis or "x") == axis)
        of_layer = scores.blocks["Q", 2].score[writer.layer, ..., 3]
        others = of_layer[[head for head in range(4) if head != writer.head]]
        assert list(bars.y) == pytest.approx(of_layer[writer.head].tolist())
        assert list(highest.y) == pytest.approx(others.amax(0).tolist()) and bars.meta == "L2H3"
        assert list(median.y) == pytest.approx(others.sort(0).values[1].tolist())
        for i in range(6):
            own = table.loc[f"{writer}.{i}"]
            assert list(bars.customdata[i])[:2] == pytest.approx([own["z"], own["rank"]], rel=1e-3), bars.hovertemplate
    alone = composition.components_figure(scores, [Head(0, 1)], readers[:1], "Q")
    assert not alone.layout.updatemenus, "a menu of one entry would do nothing"


def test_models_are_introduced_by_what_was_measured_and_what_was_predicted():
    rows = pd.DataFrame(dict(n_items=[3, 6], accuracy=[0.9, 0.5], low=[0.8, 0.4], high=[1.0, 0.6]))
    measured, predicted = models.accuracy_figure({"planted": rows}, {"planted": [0.88, 0.52]}).data
    assert list(measured.y) == [0.9, 0.5] and list(measured.error_y.array) == pytest.approx([0.1, 0.1])
    assert list(predicted.x) == [3, 6] and list(predicted.y) == [0.88, 0.52] and predicted.mode == "markers"
    log = [dict(step=s, accuracy={"IOI": s / 400, "lists of 2": s / 200}) for s in (200, 400)]
    figure = models.training_figure(log, ["lists of 2"])
    assert [(t.name, list(t.x), list(t.y)) for t in figure.data] == [("lists of 2", [200, 400], [1.0, 2.0])]


# --- one figure for any frame ---

COMMON = dict(metric="accuracy", unit="share", value=0.5, low=-0.5, high=0.2, n=9)


def frame(rows):
    found = pd.DataFrame([COMMON | row for row in rows])
    return found.astype({name: "Int64" for name in ("layer", "head", "component") if name in found})


def test_many_heads_are_a_map_with_a_menu_of_positions():
    rows = [
        dict(site="z", layer=layer, head=head, component=None, position=at, change=layer - head / 10 - 2 * (at == "S2"))
        for at in ("S2", "end") for layer in range(5) for head in range(8)
    ]  # fmt: skip
    figure = heads(frame(rows))
    first, second = figure.data
    assert first.z[3][4] == pytest.approx(0.6) and second.z[3][4] == pytest.approx(2.6)
    assert first.x[4] == "H4" and first.y[3] == "L3" and first.zmax == -first.zmin == pytest.approx(4.0)
    assert "n = 9" in first.customdata[0][0] and "[-0.500, +0.200]" in first.customdata[0][0]
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == ["heads, S2", "heads, end"]


def test_a_site_of_layers_is_a_map_of_positions_and_holes_stay_holes():
    rows = [dict(site="resid_pre", layer=k, position=str(p), change=k * p) for k in range(6) for p in range(9)][:-1]
    (found,) = heads(frame(rows)).data
    assert found.x == tuple("012345678") and found.z[5][7] == 35 and found.z[5][8] is None


def test_few_rows_are_bars_with_intervals():
    sets = [dict(what=name, layer=None, head=None, component=None, change=c) for name, c in (("a", -0.1), ("b", 0.1))]
    (bars,) = heads(frame(sets)).data
    assert bars.x == ("a", "b") and bars.y == (-0.1, 0.1)
    assert bars.error_y.array == pytest.approx((0.3, 0.1)) and bars.error_y.arrayminus == pytest.approx((0.4, 0.6))
    (settings,) = heads(frame([{"L1H0.0": 2.0, "change": 0.0}])).data
    assert settings.x == ("+2 L1H0.0",)
    components = [dict(layer=1, head=h, component=k, change=h - k) for h in range(3) for k in range(20)]
    (found,) = heads(frame(components)).data
    assert found.y == ("L1H0", "L1H1", "L1H2") and found.z[2][19] == -17


@pytest.mark.parametrize("rows, said", [
    ([{}], "lacks"),
    ([dict(what="a", change=1), dict(what="b", change=1, metric="loss")], "several metrics"),
    ([dict(what=f"set {i}", layer=None, head=None, component=None, change=i) for i in range(33)], "More than 32 sets"),
    ([dict(layer=0, head=h % 33, position="all", change=h) for h in range(34)], "Several rows are of L0H0"),
])  # fmt: skip
def test_other_frames_are_refused(rows, said):
    with pytest.raises(OptionError, match=said):
        heads(frame(rows))
