"""One component removed from the movers' queries: by hooks, on models whose answer is known, controls by hand."""

import pytest
import torch
from test_effects import change_of, plain_run

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import removal
from talking_heads_utils.experiments.editing.removal import ChosenBy, Measured
from talking_heads_utils.experiments.inhibition.list_roles import heads_with_a_role, roles_on_lists
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.recording import record
from talking_heads_utils.known import CONTROL
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.halves import half_rows, halves

MOVERS, HEADS = (Head(2, 1), Head(2, 0), Head(1, 2)), (Head(1, 0), Head(0, 1))


def test_removal_from_the_queries_equals_hooked_runs(case):
    bridge, prompts = case
    found = removal.measure(bridge, prompts, MOVERS, HEADS)
    recording, weights = record(bridge, prompts, [1, 2]), contrast(prompts)

    def by_hooks(head, change):
        """I(m) and what the change does to it, mean over the movers above the head."""
        above = [m for m in MOVERS if m.layer > head.layer]
        runs = [[(plain_run(bridge, prompts, m, d)[0] * weights).sum(-1) for d in (0.0, change)] for m in above]
        before, after = torch.stack([torch.stack(run) for run in runs]).mean(0)
        return before, after - before

    for i, head in enumerate(HEADS):
        for component in (Component(head.layer, head.head, k) for k in (0, 2)):
            before, change = by_hooks(head, change_of(recording, component))
            own = found.changes[:, head.layer, head.head, component.component]
            torch.testing.assert_close(own, change, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.inhibition[:, i], before, atol=1e-4, rtol=0)
        at_end = torch.arange(prompts.tokens.shape[1]) == recording.end[:, None]
        write = recording.write(head.layer)[:, head.head]
        _, change = by_hooks(head, -write[:, None] * at_end[..., None])
        torch.testing.assert_close(found.whole[:, i], change, atol=1e-4, rtol=0)
    assert found.changes.abs().nan_to_num().max() > 1e-3, "a removal without effect would prove nothing"


def made(n=50, seed=0):
    """Three heads in each of two layers below a mover, of four components each."""
    noise = 0.001 * torch.randn(n, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    squares = torch.arange(1.0, 25.0).view(1, 2, 3, 4).expand(n, -1, -1, -1).clone()
    return Measured(noise, squares, torch.full((n, 1), 0.8), torch.full((n, 1), -0.5))


def test_controls_are_the_nearest_in_energy_of_the_layer_then_of_others_and_never_of_the_heads():
    energy = made().squares.mean(0)
    energy[1, 2, 3] = torch.nan  # writes nothing
    near = removal.matched(energy, Component(1, 1, 2), [Head(1, 1)])
    assert [str(c) for c in near[:4]] == ["L1H2.0", "L1H2.1", "L1H0.3", "L1H2.2"]
    assert [c.layer for c in near] == [1] * 7 + [0] * 12 and near[7] == Component(0, 2, 3)
    assert Head(1, 1) not in {c.of_head for c in near}


def test_p_shares_and_the_split_by_hand():
    c, (choice, scored) = Context("planted"), (made(), made(seed=1))
    scored.changes[:, 1, 1, 2] -= 0.4
    scored.changes[:, 1, 0, 3] -= 0.6
    (row,) = removal._component_rows(
        c, ("lists", 4), ChosenBy.WEIGHTS, {Head(1, 1): Component(1, 1, 2)}, (choice, scored), [Head(1, 1)]
    )
    assert row.n_draws == 20 and row.p == row.p_holm == pytest.approx(2 / 21)  # itself and the one that does more
    assert row.share == pytest.approx(0.5, abs=0.002) and row.share_low < row.share < row.share_high
    assert row.change == pytest.approx(-0.4, abs=0.002) and (row.component, row.n) == ("L1H1.2", 50)


@pytest.mark.parametrize("model", ["planted", CONTROL])
def test_the_planted_channel_is_found_and_without_one_nothing_is(model):
    table = frame(removal.run(Context(model, quick=True)))
    assert {("ioi", 2), ("lists", 4)} == set(zip(table["task"], table["n_items"]))
    lists = table[table["task"] == "lists"]
    if model == CONTROL:
        assert table["change"].abs().max() < 1e-4 and table["share"].isna().all() and (table["p"].dropna() > 0.9).all()
        return
    chosen = lists[lists["chosen_by"] == ChosenBy.SELECTION]
    assert (chosen["high"] < 0).all() and (chosen["share_low"] > 0).all() and (chosen["p"] < 0.1).all()
    assert (lists[lists["chosen_by"] == ChosenBy.HEAD]["share"] > chosen["share"].max()).all()
    assert (table[table["task"] == "ioi"]["inhibition"] > 0.9).all()


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def lists(planted):
    return laundry.build_laundry(planted.tokenizer, 5, 80)


def test_roles_are_found_where_they_were_planted_and_without_a_channel_movers_alone(planted, lists):
    found, control = roles_on_lists(planted.bridge, lists), plant(channel=False)
    assert set(found.movers) == set(planted.roles[MOVER]) and found.through_movers and found.share > 0.9
    assert set(found.inhibition) == set(planted.roles[INHIBITION])
    found = roles_on_lists(control.bridge, laundry.build_laundry(control.tokenizer, 5, 80))
    assert set(found.movers) == set(control.roles[MOVER]) and found.inhibition == []


def test_a_role_needs_a_share_of_the_best():
    assert heads_with_a_role(torch.tensor([[1.0, 0.3], [0.2, -5.0]])) == [Head(0, 0), Head(0, 1)]
    assert heads_with_a_role(torch.tensor([[-1.0]])) == []
    assert heads_with_a_role(torch.tensor([[0.019, 0.006], [0.012, 0.004]]), least=0.01) == [Head(0, 0), Head(1, 0)]


def test_halves_share_nothing_and_are_balanced(planted, lists):
    assert [set(half.info["half"]) for half in halves(lists)] == [{laundry.SELECTION}, {laundry.HELD_OUT}]
    names = ioi.build_ioi(planted.tokenizer, 80)
    assert sorted(int(row) for rows in half_rows(names) for row in rows) == list(range(80))
    assert [half.info["order"].count(ioi.IO_FIRST) for half in halves(names)] == [20, 20]
    with pytest.raises(TaskError, match="20 prompts at least, not 10"):
        roles_on_lists(planted.bridge, lists.select(list(range(10))))
