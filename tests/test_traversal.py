"""The point moved by hand: in the planted model every item is reached, without its channel none is; all by a second
route of plain hooked runs."""

import numpy as np
import pytest
import torch
from conftest import run_with

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional import traversal
from talking_heads_utils.experiments.positional.grid import answer
from talking_heads_utils.experiments.positional.subspace import chosen
from talking_heads_utils.experiments.positional.traversal import RANDOM, LineRow, MapRow, axes
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import CONTROL, PLANTED
from talking_heads_utils.prompts.sets import item_positions

N = 20  # lists of a quick run
ONE = 1.01 / N  # a list with two equal logits but for rounding
LINES, ON_MAP = 5, 5

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(autouse=True)
def few_amounts(monkeypatch):
    monkeypatch.setattr(traversal, "ON_LINE", LINES)
    monkeypatch.setattr(traversal, "ON_MAP", ON_MAP)


def hooked(c, n_items, alphas):
    """Whole runs with alphas times the triple's directions added to what layer 1 writes at ``end``: of each list, each
    item's share of the movers' attention to items, mean over movers, and whether it is answered."""
    at, prompts = c.kept(chosen), c.kept(Lists(Part.HELD_OUT, n_items, N))
    rows, end, (items, tokens) = torch.arange(N), prompts.positions["end"], item_positions(prompts)
    assert {w.layer for w in at.writers[:3]} == {1} and {m.layer for m in at.movers} == {2}

    def add(value):
        value[rows, end] += torch.as_tensor(alphas, dtype=value.dtype) @ at.directions[:3]

    pattern = "blocks.2.attn.hook_pattern"
    logits, seen = run_with(c.bridge, prompts, [("blocks.1.hook_attn_out", add)], [pattern])
    logits = logits.gather(1, tokens)
    looks = seen[pattern][rows, :, end][:, [m.head for m in at.movers]]
    seen = looks.gather(2, items[:, None].expand(-1, len(at.movers), -1))
    share = (seen / seen.sum(2, keepdim=True)).mean(1)
    said = answer(logits)[:, None] == torch.arange(n_items)
    return share.double().numpy(), said.double().numpy()


def test_axes_are_of_the_coordinates_of_the_lists_that_choose(planted):
    at, prompts = planted.kept(chosen), planted.kept(Lists(Part.SELECTION, 4, N))
    with torch.no_grad():
        stream = planted.bridge.run_with_cache(prompts.tokens)[1]["blocks.2.hook_resid_pre"]
    points = stream[torch.arange(N), prompts.positions["end"]] @ at.directions[:3].T
    found = axes(planted, 4)
    torch.testing.assert_close(found.spread, points.std(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.reach, 2 * (points - points.mean(0)).abs().max(0).values, atol=1e-4, rtol=1e-4)
    assert found.settings(3)[[0, 13, 26]].tolist() == [(-found.reach).tolist(), [0, 0, 0], found.reach.tolist()]


def test_a_line_is_one_component_by_hooked_runs(planted):
    table = frame(traversal.run_line(planted), LineRow)
    names = [*map(str, planted.kept(chosen).writers[:3]), RANDOM]
    assert len(table) == 4 * 4 * LINES and set(table["component"]) == set(names)
    on = axes(planted, 4)
    for k, name in enumerate(names[:3]):
        line = table[table["component"] == name]
        amount = line["amount"].max()
        assert amount * on.spread[k] == pytest.approx(on.reach[k].item())
        some = line[line["amount"] == sorted(line["amount"].unique())[1]]  # at the ends attention may be nowhere
        share, said = hooked(planted, 4, -0.5 * on.reach * torch.eye(3)[k])
        np.testing.assert_allclose(some["attention"], share.mean(0), atol=2e-3)
        np.testing.assert_allclose(some["answered"], said.mean(0), atol=ONE)
        assert (line[line["amount"] == 0]["attention"].sum() == pytest.approx(1, abs=1e-5)) and (line["n"] == N).all()
    moves = table.groupby(["component", "list_index"])["attention"].agg(np.ptp).groupby("component").max()
    assert moves[names[:3]].max() > 0.3 > 10 * moves[RANDOM]


def test_a_map_is_three_components_by_hooked_runs(planted):
    table = frame(traversal.run_map(planted), MapRow)
    on = axes(planted, 4)
    assert len(table) == ON_MAP**3 and table["attended"].nunique() > 1
    index = np.array(planted.kept(Lists(Part.HELD_OUT, 4, N)).info["index"])
    for i in (37, 62, 68):  # halfway: at the ends attention may be nowhere
        row = table.loc[i]
        alphas = torch.tensor([row["first"], row["second"], row["third"]]) * on.spread
        share, said = hooked(planted, 4, alphas)
        assert row["attention"] == pytest.approx(share.mean(0).max(), abs=2e-3)
        assert row["attention"] == pytest.approx(share.mean(0)[row["attended"]], abs=2e-3)
        assert row["answered"] == pytest.approx(said.mean(0)[row["answer"]], abs=ONE)
        assert row["answered"] == pytest.approx(said.mean(0).max(), abs=ONE)
        assert row["right"] == pytest.approx(said[np.arange(N), index].mean(), abs=ONE)
    plain = table.loc[62]
    assert (plain[["first", "second", "third"]] == 0).all() and plain["right"] > 0.9


@pytest.mark.parametrize("model", [PLANTED, CONTROL])
def test_every_item_is_reached_where_a_channel_is_planted_and_none_without(model):
    rows = traversal.run_reach(Context(model, quick=True))
    assert [(r.n_items, r.list_index) for r in rows] == [(4, i) for i in range(4)]
    for r in rows:
        assert r.low <= r.steered <= r.high and (r.n, r.n_draws) == (N, 99)
        if model == PLANTED:
            assert r.steered > 0.85 and r.matched < r.plain + 0.05 and r.p == r.mean_p == 0.01
        else:  # all alike, up to rounding, of which no test may make anything
            assert abs(r.steered - 1 / r.n_items) < 0.01 and r.p > 0.05 and r.mean_p > 0.05
    assert (np.mean([r.answered for r in rows]) > 0.6) == (model == PLANTED)
