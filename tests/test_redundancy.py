"""What heads do alone and together: planted transformers whose answer is a formula, through the functions that judge
real models."""

import math
from itertools import combinations

import pytest
import torch

from talking_heads_utils.experiments.icl import choice, known, redundancy
from talking_heads_utils.experiments.icl.choice import matched, pick
from talking_heads_utils.experiments.icl.known import N_WORDS, Kind, Plan, planted
from talking_heads_utils.experiments.icl.redundancy import HeadRow, SetRow, lost, ratio
from talking_heads_utils.experiments.icl.swaps import Where
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.labels import Head, heads_in

A, B, LATER = Head(0, 3), Head(0, 7), Head(1, 2)
TWO = {A: 2.0, B: 1.5}
ABOVE = {A: 2.0, LATER: 1.5}
PLANS = {
    "parts": Plan(Kind.PARTS, TWO),
    "one alone": Plan(Kind.ALONE, {A: 2.0}),
    "copies": Plan(Kind.COPIES, TWO, (A, B), room=1.0),
    "perfect copies": Plan(Kind.COPIES, {A: 2.0, B: 2.0}, (A, B), room=2.4),
    "backup": Plan(Kind.BACKUP, ABOVE, (A, LATER), steep=1.0),
    "chain": Plan(Kind.CHAIN, ABOVE, (A, LATER), steep=1.0),
    "rivals": Plan(Kind.RIVALS, TWO),
}


def two_of(plan: Plan) -> list[Head]:
    """The heads that write, and where there is one alone another."""
    return [*plan.written, B][:2]


@pytest.fixture(scope="module")
def bridge():
    return known.empty()


@pytest.fixture(scope="module")
def drawn():
    """A plan of five copies among 24 heads that write, and its two halves, with noise."""
    plan = known.drawn_plan(Kind.COPIES, 3)
    return plan, *planted(plan, 60, noise=0.1, seed=3)


def known_loss(plan, out):
    """What is lost with these heads at the twin's values at the last token: log-odds, nats, with no noise."""
    return _log_odds(plan, ()) - _log_odds(plan, out)


def _log_odds(plan, out):
    left = {head: s for head, s in plan.written.items() if head not in out}
    lacking = sum(s for head, s in plan.told.items() if head in out)
    gate = 2 / (1 + math.exp(plan.slope * lacking))
    logit = sum(s * (gate if head in plan.key and head not in plan.told else 1) for head, s in left.items())
    if plan.kind in (Kind.COPIES, Kind.ALIKE):
        logit -= max(0.0, plan.room - lacking)
    rival = sum(s for head, s in plan.written.items() if head in out) if plan.kind is Kind.RIVALS else 0.0
    return logit - math.log(N_WORDS - 2 + math.exp(rival))


@pytest.mark.parametrize("name", PLANS)
def test_what_is_lost_is_what_the_formula_says(name, bridge):
    plan = PLANS[name]
    select, held = planted(plan, bridge=bridge)
    sets = [[], *([head] for head in two_of(plan)), two_of(plan), [Head(1, 9)]]
    wanted = torch.tensor([known_loss(plan, heads) for heads in sets])
    for where in Where:
        found = lost(held, sets, where)
        torch.testing.assert_close(found.log_odds, wanted.expand(60, -1), atol=1e-4, rtol=1e-4)
    if plan.kind is not Kind.RIVALS:
        picked = pick(select)
        for head, written in plan.written.items():
            assert picked.direct[head.layer, head.head].item() == pytest.approx(written, abs=1e-4)
            lets = sum(plan.told.values()) - plan.room if plan.kind is Kind.COPIES else written
            assert picked.denoised[head] == pytest.approx(min(written, lets), abs=1e-4)
        assert picked.chosen == sorted(plan.written, key=lambda head: -plan.written[head])


@pytest.mark.parametrize("name", PLANS)
def test_joint_over_summed_of_the_planted(name, bridge):
    plan = PLANS[name]
    _, held = planted(plan, noise=0.1, seed=2, bridge=bridge)
    two = two_of(plan)
    found = lost(held, [*([head] for head in two), two])
    of = ratio(found.log_odds[:, 2], found.summed(two), held.asked.clusters)
    if name == "perfect copies":  # each costs next to nothing, so there is no ratio: but a bound
        assert of.value is None and of.high is None and of.low > 5
    else:
        wanted = known_loss(plan, two) / sum(known_loss(plan, [head]) for head in two)
        assert of.low - 0.02 < wanted < of.high + 0.02 and of.low <= of.value <= of.high
        side = {"copies": 1, "backup": 1, "chain": -1}.get(name, 0)
        assert (of.low > 1.01) == (side > 0 or name == "rivals") and (of.high < 0.99) == (side < 0)


def test_nothing_lost_has_no_ratio(bridge):
    _, held = planted(PLANS["one alone"], noise=0.1, seed=2, bridge=bridge)
    none = [Head(1, 0), Head(1, 1)]
    found = lost(held, [*([head] for head in none), none])
    assert ratio(found.log_odds[:, 2], found.summed(none), held.asked.clusters) == (None, None, None)


def test_heads_that_cost_nothing_alone_are_chosen(bridge):
    plan = PLANS["perfect copies"]
    select, _ = planted(plan, noise=0.05, seed=1, bridge=bridge)
    assert lost(select, [[A], [B]]).log_odds.mean(0).abs().max() < 0.3
    assert set(pick(select).chosen[:2]) == {A, B}


def test_chosen_are_the_key_heads_and_matched_ones_are_others_with_as_much(drawn):
    plan, select, _ = drawn
    picked = pick(select)
    assert set(picked.chosen[:5]) == set(plan.key) and len(picked.chosen) <= 12
    five = picked.chosen[:5]
    sets = matched(picked, five, seed=4)
    assert len(sets) == choice.N_MATCHED and sets == matched(picked, five, seed=4) != matched(picked, five, seed=5)
    for heads in sets:
        assert not set(heads) & set(five) and len(set(heads)) == len(heads)
        assert picked.summed(heads) == pytest.approx(picked.summed(five), rel=choice.NEAR)
    beyond = matched(picked, picked.chosen[:10], 3)
    assert all(picked.summed(heads) < picked.summed(picked.chosen[:10]) for heads in beyond), "no more is to be had"


def test_rows_of_a_task(drawn):
    _, select, held = drawn
    picked = pick(select)
    found = redundancy.of_task(picked, held, n_pairs=30, n_layers=20, n_everywhere=10)
    heads = frame(redundancy.head_rows("m", found), HeadRow).set_index("head")
    assert len(heads) == 24 and heads.chosen.notna().sum() == len(picked.chosen)
    first = str(picked.chosen[0])
    one = lost(held, [[picked.chosen[0]]]).log_odds.mean().item()
    assert heads.chosen[first] == 1 and heads.alone[first] == pytest.approx(one)
    assert heads.low[first] < one < heads.high[first]
    pairs = redundancy.pair_rows("m", found)
    assert [(row.a, row.b) for row in pairs] == [tuple(map(str, two)) for two in combinations(picked.chosen, 2)]
    a, b = picked.chosen[:2]
    by_hand = lost(redundancy.first(held, 30), [[a, b], [a], [b]]).log_odds.mean(0)
    assert pairs[0].joint == pytest.approx(by_hand[0].item(), abs=1e-5)
    assert pairs[0].interaction == pytest.approx((by_hand[0] - by_hand[1:].sum()).item(), abs=1e-5) and pairs[0].n == 30
    sets = frame(redundancy.set_rows("m", [found]), SetRow)
    assert not sets.task.eq("all").any(), "one task is no mean over tasks"
    assert sets.groupby(["heads_are", "where"]).n.first().to_dict() == {
        ("chosen", "all"): 10, ("chosen", "end"): 60, ("layer", "end"): 20, ("matched", "end"): 60,
    }  # fmt: skip
    layer = sets[sets.heads_are == "layer"].iloc[1]
    whole = lost(redundancy.first(held, 20), [heads_in([1], 12)])
    assert layer.heads == "L1" and layer.joint == pytest.approx(whole.log_odds.mean().item()) and layer.ratio != 1
    assert sets.ratio[sets.heads_are == "layer"].isna().all()


@pytest.mark.parametrize("kind, above", [(Kind.COPIES, True), (Kind.BACKUP, True), (Kind.PARTS, False),
                                         (Kind.ALONE, False), (Kind.RIVALS, False), (Kind.ALIKE, False)])  # fmt: skip
def test_over_tasks_copies_and_backups_alone_stand_out(kind, above):
    table = frame(known.world_rows(kind, 1, 0.1, 3, 40))
    over = table[table.task == "all"]
    chosen = over[(over.heads_are == "chosen") & (over.n_heads == 5)].iloc[0]
    others = over[over.heads_are == "matched"]
    each = table[(table.task != "all") & (table.heads_are == "chosen") & (table.n_heads == 5)]
    assert chosen.n == 3 and len(others) == choice.N_MATCHED and others.draw.tolist() == list(range(1, 21))
    assert chosen.joint == pytest.approx(each.joint.mean()) and chosen.summed == pytest.approx(each.summed.mean())
    assert chosen.ratio == pytest.approx(each.joint.sum() / each.summed.sum())
    assert (chosen.low > max(1.0, others.ratio.quantile(0.95))) == above
