"""Chapter 1's tables and figures on planted models: what they say is what was planted."""

import json

import pytest
import torch

from talking_heads_utils.effects import FLIP, KEY, QUERY, REMOVE
from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.experiments import corpus
from talking_heads_utils.experiments.inhibition import signal, study
from talking_heads_utils.figures import inhibition as figures
from talking_heads_utils.figures import panel
from talking_heads_utils.labels import Component
from talking_heads_utils.models import minis, shown_as


@pytest.fixture(scope="module")
def planted():
    return study.study("planted", n_items=5, n_prompts=80)


@pytest.fixture(scope="module")
def control():
    return study.study(study.CONTROL, n_items=5, n_prompts=80)


def test_the_circuit_is_the_planted_one(planted, control):
    table = study.circuit_table([planted, control]).set_index("model")
    assert table.loc["planted", "inhibition heads"] == "L1H0, L1H1" and table.loc["planted", "movers"] == "L2H0, L2H1"
    assert table.loc[study.CONTROL, "inhibition heads"] == "none"
    assert table.loc["planted", "their share of the logit difference"] == pytest.approx(1, abs=0.05)
    assert planted.shows == control.shows == "Planted model, the answer is known"
    assert shown_as("gpt2") == "gpt2, real model" and "toy" in shown_as(minis()[0])


def test_weights_and_effects_agree_and_few_components_carry_them(planted):
    row = study.agreement_table([planted]).iloc[0]
    assert row["Spearman"] > 0.5 and row["low"] < row["Spearman"] <= row["high"] and row["prompts"] == 40
    ninety = study.ninety_table([planted])
    assert (ninety["components for 90%"] <= 3).all() and (ninety["whole head: change of I(m)"] < -0.2).all()
    together = study.channel_table([planted]).iloc[0]
    assert together["directions for 90%"] == 3 and together["all of it: change of I(m)"] < -0.3
    assert together["as many at random"] < 0.1
    tables = study.concentration_tables([planted])
    assert list(tables) == ["planted: L1H0", "planted: L1H1"]
    recovered = study.recovery_tables([planted])["planted"]
    assert set(recovered["head"].head(4)) == {"L1H0", "L1H1", "L1H2", "L1H3"}, "whoever writes into the channel"


def test_places_travel_and_end_in_the_query(planted):
    carried = study.carries_table([planted]).set_index(["carries", "split"])["r2"]
    assert carried[signal.PLACE, "across wordings"] > 0.9 > carried[signal.IDENTITY, "across wordings"]
    factors = study.factors_table([planted], n_prompts=40).groupby("factor")["share"].mean()
    assert factors[signal.ORDER] > 0.99
    ways = study.interventions_table(planted, planted.strongest(1)[0]).set_index(["side", "intervention"])
    change = ways["change of I(m)"]
    assert change[QUERY, FLIP] < change[QUERY, REMOVE] < -0.05 and abs(change[KEY, REMOVE]) < 1e-3
    rank, direct, total = study.total_against_direct(planted, n=8)
    torch.testing.assert_close(direct, total.cpu(), atol=1e-2, rtol=1e-3)
    assert len(direct) == 16 and -1 <= rank <= 1.0001


def test_activity_names_controls(planted):
    table, contexts = study.activity_table(planted, corpus.generated_texts(planted.tokenizer, 80), n_control=3)
    assert table.groupby("inhibition")["component"].nunique().to_dict() == {True: 2, False: 3}
    assert len(contexts) and set(contexts.columns) == {"context", "token", "category", "activation"}


def values(view, item="y"):
    return [list(bars[item]) for bars in view]


def test_one_prompt_is_a_row_of_the_effects(planted):
    component = planted.strongest(1)[0]
    for row in panel.spread_prompts(planted, 3):
        table = study.one_prompt(planted, component, row)
        words = planted.held_out.prompts.texts[row]
        assert table["answer"].sum() == 1 and words.count(table["item"][table["answer"]].iloc[0]) == 1
        assert all(words.count(item) == 2 for item in table["item"][~table["answer"]])
        score = {c: table[c][table["answer"]].iloc[0] - table[c][~table["answer"]].mean() for c in ("before", "after")}
        assert score["before"] == pytest.approx(planted.effects.before[row].item(), abs=1e-4)
        change = planted.effects.of(component)[row].item()
        assert score["after"] - score["before"] == pytest.approx(change, abs=1e-4)
    lost = planted.effects.of(component)[panel.spread_prompts(planted, 8)]
    assert (lost.diff() >= 0).all() and lost[0] == planted.effects.of(component).min() < -0.1


def test_what_no_panel_can_show_is_one_clear_error(planted):
    for component in (Component(2, 0, 0), Component(1, 0, 999)):
        with pytest.raises(LabelError, match="Choose an earlier head"):
            study.one_prompt(planted, component, 0)
    with pytest.raises(LabelError):
        study.one_prompt(planted, Component(1, 99, 0), 0)
    with pytest.raises(OptionError, match="counted from 0"):
        study.one_prompt(planted, Component(1, 0, 0), 4000)


def test_the_panel_of_a_kernel_and_its_static_twin_draw_the_same(planted, monkeypatch):
    """Every menu acts without a browser; what the page stores for a choice is what a kernel computes for it."""
    drawn = []
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: drawn.append(self))
    widget = panel.live_panel([planted])
    menus = {child.description: child for child in widget.children[:4]}
    assert list(menus) == ["Model", "Head", "Component", "Prompt"]
    strongest = planted.strongest(1)[0]
    assert menus["Head"].options[0] == str(strongest.of_head) and len(menus["Head"].options) > 8
    row = panel.spread_prompts(planted, panel.N_PROMPTS)[1]
    menus["Prompt"].options = [*menus["Prompt"].options, ("one more", row)]
    for name, value in (("Head", "L1H1"), ("Component", 2), ("Prompt", row)):
        menus[name].value = value
    widget.update()
    assert "L1H1.2 out of the query of L2H0" in drawn[-1].layout.title.text
    figure = panel.static_panel([planted])
    names = [control["name"] for control in figure.layout.meta["controls"]]
    assert names == ["Model and head", "Component", "Prompt"]
    assert figure.layout.meta["controls"][0]["labels"][2].endswith("(control)")
    frame = json.loads(figure.layout.meta["frames"]["planted-L1H1"])["2|1"]
    assert values(frame["data"]) == values(drawn[-1].data)
    assert frame["layout"]["title"]["text"] == drawn[-1].layout.title.text
    assert [control["start"] for control in figure.layout.meta["controls"]][1:] == [strongest.component, 0]
    start = json.loads(figure.layout.meta["frames"][f"planted-{strongest.of_head}"])[f"{strongest.component}|0"]
    assert values(start["data"]) == values(figure.data) and values(start["data"], "x") == values(figure.data, "x")


def test_the_panel_of_several_models_offers_each_ones_own_heads(planted, monkeypatch):
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: None)
    toy = study.study(minis()[0], n_items=5, n_prompts=80)
    widget = panel.live_panel([planted, toy])
    model, head, component, _ = widget.children[:4]
    model.value = toy.name
    assert head.options[0] == str(toy.strongest(1)[0].of_head) and len(component.options) == toy.held_out.weights.d_head
    model.value = planted.name
    assert head.options[0] == str(planted.strongest(1)[0].of_head)


def test_every_menu_entry_shows_its_own_traces(planted):
    concentration = figures.concentration_figure(study.concentration_tables([planted]))
    drawn = {
        "effects": (figures.effects_figure([planted]), 4),
        "concentration": (concentration, 3),
        "carries": (figures.carries_figure(study.carries_table([planted])), 2),
        "recovery": (figures.recovery_figure(study.recovery_tables([planted])), 3),
    }
    for name, (figure, per_view) in drawn.items():
        buttons = figure.layout.updatemenus[0].buttons
        assert len(figure.data) == per_view * len(buttons), name
        shown = [[i for i, v in enumerate(b.args[0]["visible"]) if v] for b in buttons]
        assert sorted(i for part in shown for i in part) == list(range(len(figure.data))), name
        assert [bool(t.visible) for t in figure.data] == [i < per_view for i in range(len(figure.data))], name
    bars = drawn["effects"][0].data[0]
    effects = planted.effects.inhibition.mean(0)[1, planted.inhibition[0].head]
    assert list(bars.y)[:3] == pytest.approx(effects[:3].tolist(), abs=1e-4)
    top = [t for t in concentration.data if t.name == "top k"][0]
    assert top.y[2] == pytest.approx(study.ninety_table([planted])["whole head: change of I(m)"].iloc[0], abs=1e-3)
