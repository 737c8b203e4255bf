"""Chapter 1's tables and figures on planted models: what they say is what was planted."""

import pytest
import torch

from talking_heads_utils.figures import inhibition as figures
from talking_heads_utils.inhibition import corpus, signal, study
from talking_heads_utils.inhibition.effects import FLIP, KEY, QUERY, REMOVE
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
    assert row["Spearman"] > row["shuffled within heads, largest"] + 0.1 and row["prompts"] == 40
    ninety = study.ninety_table([planted])
    assert (ninety["components for 90%"] <= 3).all() and (ninety["whole head: change of I(m)"] < -0.2).all()
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
