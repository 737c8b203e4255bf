"""Chapter 1's experiments, tables and figures on planted models: what they say is what was planted."""

import pytest

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import agreement, concentration
from talking_heads_utils.experiments.inhibition.mover import mover_runs
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


def test_weights_and_effects_agree_and_few_components_carry_them(planted):
    (row,) = agreement.run(planted)
    assert row.spearman > 0.5 and row.low < row.spearman <= row.high and row.n_prompts == 20
    assert all(r.n_for_90 <= 3 and r.whole < -0.2 for r in concentration.run(planted))
