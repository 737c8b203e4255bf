"""Chapter 1's experiments, tables and figures on planted models: what they say is what was planted."""

import pytest

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import CONTROL, Context
from talking_heads_utils.experiments.inhibition import agreement, concentration, toys
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import inhibition as figures
from talking_heads_utils.models import PLANTED


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


def test_every_menu_entry_shows_its_own_traces(planted, runs):
    drawn = {
        "effects": (figures.effects_figure(frame(toys.component_rows(planted))), 4),
        "concentration": (figures.concentration_figure(frame(toys.curves(planted))), 3),
    }
    for name, (figure, per_view) in drawn.items():
        buttons = figure.layout.updatemenus[0].buttons
        assert len(figure.data) == per_view * len(buttons), name
        shown = [[i for i, v in enumerate(b.args[0]["visible"]) if v] for b in buttons]
        assert sorted(i for part in shown for i in part) == list(range(len(figure.data))), name
        assert [bool(t.visible) for t in figure.data] == [i < per_view for i in range(len(figure.data))], name
    bars = drawn["effects"][0].data[0]
    effects = runs.effects.inhibition.mean(0)[0, 1, runs.heads[0].head]
    assert list(bars.y)[:3] == pytest.approx(effects[:3].tolist(), abs=1e-4)
    top = [t for t in drawn["concentration"][0].data if t.name == "top k"][0]
    assert top.y[2] == pytest.approx(concentration.run(planted)[0].whole, abs=1e-3)
