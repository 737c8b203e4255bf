"""Chapter 1's experiments, tables and figures on planted models: what they say is what was planted."""

import json

import pytest
import torch

from talking_heads_utils.effects import FLIP, KEY, QUERY, REMOVE
from talking_heads_utils.errors import LabelError, NotApplicable, OptionError
from talking_heads_utils.experiments.context import CONTROL, Context
from talking_heads_utils.experiments.inhibition import agreement, concentration, signal, toys, where_active
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import inhibition as figures
from talking_heads_utils.figures import panel
from talking_heads_utils.labels import Component
from talking_heads_utils.models import PLANTED, minis


@pytest.fixture(scope="module")
def planted():
    return Context(PLANTED, quick=True)


@pytest.fixture(scope="module")
def runs(planted):
    return planted.kept(mover_runs)


def test_a_context_makes_what_is_shared_once(planted, runs):
    assert planted.bridge is planted.bridge and planted.kept(mover_runs) is runs
    assert planted.record(runs.held_out.prompts, [runs.mover.layer]) is runs.held_out
    assert planted.lists(4, 20) is planted.lists(4, 20)
    given = Context("a name", loaded=(planted.bridge, planted.tokenizer), own=True, quick=True)
    assert given.bridge is planted.bridge and given.mover == planted.mover and given.is_own
    given.kept(mover_runs)
    given.forget()
    assert not given._kept and given.bridge is planted.bridge


def test_the_circuit_is_the_planted_one(planted):
    row, without = toys.found(planted), toys.found(Context(CONTROL, quick=True))
    assert row.inhibition == "L1H0, L1H1" and row.movers == "L2H0, L2H1" and row.share == pytest.approx(1, abs=0.05)
    assert without.inhibition in ("", "none") and row.low < row.score < row.high
    with pytest.raises(NotApplicable):
        concentration.run(Context(CONTROL, quick=True))


def test_weights_and_effects_agree_and_few_components_carry_them(planted):
    (row,) = agreement.run(planted)
    assert row.spearman > 0.5 and row.low < row.spearman <= row.high and row.n_prompts == 20
    assert all(r.n_for_90 <= 3 and r.whole < -0.2 for r in concentration.run(planted))
    together = toys.directions(planted)
    assert together.n_for_90 in (2, 3) and together.whole < -0.3 and together.at_random < 0.1
    recovered = toys.recovery(planted)
    assert {r.head for r in recovered[:4]} == {"L1H0", "L1H1", "L1H2", "L1H3"}, "whoever writes into the channel"


def test_places_travel_and_end_in_the_query(planted, runs):
    shares = {(r.carries, r.split): r.share for r in signal.run(planted)}
    assert shares[signal.PLACE, signal.ACROSS] > 0.9 > shares[signal.IDENTITY, signal.ACROSS]
    assert shares[signal.ORDER, signal.VERSIONS] > 0.99
    change = {(r.side, r.intervention): r.change for r in toys.interventions(planted, runs.strongest(1)[0])}
    assert change[QUERY, FLIP] < change[QUERY, REMOVE] < -0.05 and abs(change[KEY, REMOVE]) < 1e-3
    rank, direct, total = toys.total_against_direct(planted, n=8)
    torch.testing.assert_close(direct, total.cpu(), atol=1e-2, rtol=1e-3)
    assert len(direct) == 16 and -1 <= rank <= 1.0001


def test_one_step_further_back_is_the_duplicate_token_head(planted):
    rows = toys.second_step(planted)
    assert {r.by_removal for r in rows} == {r.by_weights for r in rows} == {"L0H0"}
    assert all(r.same and r.change < -0.1 and r.n_heads == 6 for r in rows) and len(rows) == 2


def test_activity_names_controls(planted):
    rows = where_active.run(planted)
    assert len({r.component for r in rows if r.inhibition}) == 2
    assert len({r.component for r in rows if not r.inhibition}) == where_active.N_CONTROL


def test_one_prompt_is_a_row_of_the_effects(planted, runs):
    s = toys.one_prompt(planted)
    lost = runs.effects.of(s.strongest)
    for row in s.spread(3):
        items = s.items(s.strongest, row)
        assert sum(i.answer for i in items) == 1
        assert all(s.texts[row].count(i.item) == (1 if i.answer else 2) for i in items)
        table = frame(items)
        own = table["answer"].astype(bool)
        score = {c: table[c][own].iloc[0] - table[c][~own].mean() for c in ("before", "after")}
        assert score["before"] == pytest.approx(runs.effects.before[row].item(), abs=1e-4)
        assert score["after"] - score["before"] == pytest.approx(lost[row].item(), abs=1e-4)
    steps = lost[s.spread(8)]
    assert (steps.diff() >= 0).all() and steps[0] == lost.min() < -0.1


@pytest.mark.parametrize("component, row, error", [
    (Component(2, 0, 0), 0, LabelError), (Component(1, 0, 999), 0, LabelError), (Component(1, 99, 0), 0, LabelError),
    (Component(1, 0, 0), 4000, OptionError),
])  # fmt: skip
def test_what_no_panel_can_show_is_one_clear_error(planted, component, row, error):
    with pytest.raises(error):
        toys.one_prompt(planted).items(component, row)


def values(view, item="y"):
    return [list(bars[item]) for bars in view]


def test_the_panel_of_a_kernel_and_its_static_twin_draw_the_same(planted, monkeypatch):
    """Every menu acts without a browser; what the page stores for a choice is what a kernel computes for it."""
    drawn, s = [], toys.one_prompt(planted)
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: drawn.append(self))
    widget = panel.live_panel([s])
    menus = {child.description: child for child in widget.children[:4]}
    assert list(menus) == ["Model", "Head", "Component", "Prompt"]
    assert menus["Head"].options[0] == str(s.strongest.of_head) and len(menus["Head"].options) > 8
    row = s.spread(panel.N_PROMPTS)[1]
    menus["Prompt"].options = [*menus["Prompt"].options, ("one more", row)]
    for name, value in (("Head", "L1H1"), ("Component", 2), ("Prompt", row)):
        menus[name].value = value
    widget.update()
    assert "L1H1.2 out of the query of L2H0" in drawn[-1].layout.title.text
    meta = panel.static_panel([s]).layout.meta
    assert meta["controls"][0]["labels"][2].endswith("(control)")
    frame = json.loads(meta["frames"]["planted-L1H1"])["2|1"]
    assert values(frame["data"]) == values(drawn[-1].data)
    assert frame["layout"]["title"]["text"] == drawn[-1].layout.title.text
    assert [control["start"] for control in meta["controls"]][1:] == [s.strongest.component, 0]


def test_the_panel_of_several_models_offers_each_ones_own_heads(planted, monkeypatch):
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: None)
    both = [toys.one_prompt(c) for c in (planted, Context(minis()[0], quick=True))]
    widget = panel.live_panel(both)
    model, head, component, _ = widget.children[:4]
    for s in reversed(both):
        model.value = s.model
        assert head.options[0] == str(s.strongest.of_head) and len(component.options) == s.d_head


def test_every_menu_entry_shows_its_own_traces(planted, runs):
    drawn = {
        "effects": (figures.effects_figure(frame(toys.component_rows(planted))), 4),
        "concentration": (figures.concentration_figure(frame(toys.curves(planted))), 3),
        "carries": (figures.carries_figure(frame(signal.run(planted))), 2),
        "recovery": (figures.recovery_figure(frame(toys.recovery(planted))), 3),
    }
    for name, (figure, per_view) in drawn.items():
        buttons = figure.layout.updatemenus[0].buttons
        assert len(figure.data) == per_view * len(buttons), name
        shown = [[i for i, v in enumerate(b.args[0]["visible"]) if v] for b in buttons]
        assert sorted(i for part in shown for i in part) == list(range(len(figure.data))), name
        assert [bool(t.visible) for t in figure.data] == [i < per_view for i in range(len(figure.data))], name
    bars = drawn["effects"][0].data[0]
    effects = runs.effects.inhibition.mean(0)[1, runs.heads[0].head]
    assert list(bars.y)[:3] == pytest.approx(effects[:3].tolist(), abs=1e-4)
    top = [t for t in drawn["concentration"][0].data if t.name == "top k"][0]
    assert top.y[2] == pytest.approx(concentration.run(planted)[0].whole, abs=1e-3)
