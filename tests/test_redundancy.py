"""What heads do alone and together, what others recover, and how few suffice: planted transformers whose answer is a
formula, through the functions that judge real models."""

import math
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from conftest import run_with

from talking_heads_utils.experiments.icl import choice, known, redundancy, sufficient
from talking_heads_utils.experiments.icl.asked import Asked
from talking_heads_utils.experiments.icl.backups import Measured, Out, Who, changes, kinds_of, rows_of
from talking_heads_utils.experiments.icl.choice import Picked, matched, pick
from talking_heads_utils.experiments.icl.clusters import drawn_means
from talking_heads_utils.experiments.icl.known import FILLERS, N_HEADS, N_WORDS, Kind, Plan, planted
from talking_heads_utils.experiments.icl.redundancy import HeadRow, SetRow, lost, ratio
from talking_heads_utils.experiments.icl.sufficient import disjoint, grow, kept, random_sets
from talking_heads_utils.experiments.icl.swaps import Ready, Where
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in

A, B, LATER, D = Head(0, 3), Head(0, 7), Head(1, 2), Head(1, 7)
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
WHO = list(Who)


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


# --- alone and together ---


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


@pytest.mark.parametrize("name", [*PLANS, "nothing"])
def test_joint_over_summed_of_the_planted(name, bridge):
    plan = PLANS.get(name, PLANS["one alone"])
    _, held = planted(plan, noise=0.1, seed=2, bridge=bridge)
    two = [Head(1, 0), Head(1, 1)] if name == "nothing" else two_of(plan)
    found = lost(held, [*([head] for head in two), two])
    of = ratio(drawn_means(torch.stack([found.log_odds[:, 2], found.summed(two)], 1), held.asked.clusters))
    if name == "nothing":
        assert of == (None, None, None)
    elif name == "perfect copies":  # each costs next to nothing, so there is no ratio: but a bound
        assert of.value is None and of.high is None and of.low > 5
    else:
        wanted = known_loss(plan, two) / sum(known_loss(plan, [head]) for head in two)
        assert of.low - 0.02 < wanted < of.high + 0.02 and of.low <= of.value <= of.high
        side = {"copies": 1, "backup": 1, "chain": -1}.get(name, 0)
        assert (of.low > 1.01) == (side > 0 or name == "rivals") and (of.high < 0.99) == (side < 0)


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
    by_hand = lost(held, [[a, b], [a], [b]]).log_odds[:30].mean(0)
    assert pairs[0].joint == pytest.approx(by_hand[0].item(), abs=1e-5)
    assert pairs[0].interaction == pytest.approx((by_hand[0] - by_hand[1:].sum()).item(), abs=1e-5) and pairs[0].n == 30
    sets = frame(redundancy.set_rows("m", [found]), SetRow)
    assert not sets.task.eq("all").any(), "one task is no mean over tasks"
    assert sets.groupby(["heads_are", "where"]).n.first().to_dict() == {
        ("chosen", "all"): 10, ("chosen", "end"): 60, ("layer", "end"): 20, ("matched", "end"): 60,
    }  # fmt: skip
    layer = sets[sets.heads_are == "layer"].iloc[1]
    whole = lost(held, [heads_in([1], 12)]).log_odds[:20].mean().item()
    assert layer.heads == "L1" and layer.joint == pytest.approx(whole)
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


# --- what others recover ---


@pytest.mark.parametrize("plan, out, by_whom", [
    (Plan(Kind.BACKUP, {A: 1.5, LATER: 1.0, D: 0.5}, [A, LATER], steep=1.0), (A,),
     {Who.MOVERS: (2 / (1 + math.exp(-1.5)) - 1) / 1.5}),  # it writes so much more, where it wrote 1
    (Plan(Kind.COPIES, {A: 1.0, B: 1.0}, [A, B], room=0.5), (A,), {Who.MLPS: 0.5}),  # of 2, 1.5 are let through
    (Plan(Kind.PARTS, {A: 1.0, B: 1.0, D: 0.5}, [A, B]), (A, D), {}),
])  # fmt: skip
def test_what_is_recovered_is_what_is_planted(plan, out, by_whom):
    """Shares of what is lost, by who recovers, with all heads of the plan as movers."""
    _, held = planted(plan, 30)
    effect = torch.zeros(known.N_LAYERS, known.N_HEADS)
    for head, s in plan.written.items():
        effect[head.layer, head.head] = s
    found = changes(held, [out], kinds_of(Picked(effect, {}, [])))[:, 0].mean(0)
    assert found[WHO.index(Who.ALL), 0] == pytest.approx(sum(plan.written[head] for head in out), abs=1e-4)
    wanted = by_whom | {Who.ALL: sum(by_whom.values())}
    assert (found[:6, 1] / found[:6, 0]).tolist() == pytest.approx([wanted.get(who, 0) for who in WHO[:6]], abs=1e-4)


def test_rescaling_shows_as_the_norms_part_and_in_the_posts_yardstick_alone():
    """A transformer with LayerNorm whose head L0H0 writes the answer and much else besides, about the answer alone; a
    head of layer 1 writes the answer whatever L0H0 does. With the norm's scale held nobody recovers anything; a smaller
    stream makes the other head's write count more."""
    from transformer_lens.model_bridge import TransformerBridge

    n, d = 6, 32
    given = dict(n_layers=4, n_heads=2, d_head=16, d_model=d, n_ctx=3, d_vocab=n, d_mlp=4, act_fn="relu")
    bridge = TransformerBridge.boot_native(dict(given, attn_only=False, normalization_type="LN", seed=0))
    with torch.no_grad():
        for name, p in bridge.original_model.named_parameters():
            p.fill_(1.0 if p.ndim == 1 and "weight" in name else 0.0)
        bridge.embed.original_component.weight[:, :n] = torch.eye(n) - 1 / n
        bridge.unembed.original_component.weight[:, n : 2 * n] = torch.eye(n) - 1 / n
        for layer, much in ((0, 3.0), (1, 0.0)):
            attn = bridge.blocks[layer].attn
            attn.v.original_component.weight[1:n, 1:n] = torch.eye(n - 1)
            attn.o.original_component.weight[n + 1 : 2 * n, 1:n] = torch.eye(n - 1)
            attn.o.original_component.weight[20, 1:n] = much
            attn.o.original_component.weight[21, 1:n] = -much
    words = torch.tensor([1, 2, 3] * 4)
    tokens = torch.stack([torch.full((12,), 5), words, torch.zeros(12, dtype=torch.long)], 1)
    twin = torch.where(tokens == words[:, None], 4, tokens)
    prompts, twins = (known.prompts_of(some, words) for some in (tokens, twin))
    asked = Asked(SimpleNamespace(name="normed"), prompts, twins, words, torch.arange(12))
    r = Ready(asked, prepare(bridge, prompts), prepare(bridge, twins))
    found = dict(zip(WHO, changes(r, [(Head(0, 0),)], kinds_of(pick(r)))[:, 0].mean(0).tolist()))
    (lost, recovered), (_, norm) = found[Who.ALL], found[Who.NORM]
    assert recovered == pytest.approx(0, abs=1e-4 * lost) and abs(norm) > 0.01 * lost
    for free_who, held_who in ((Who.POST, Who.POST_HELD), (Who.FINAL, Who.FINAL_HELD)):
        (yardstick, free), (_, held) = found[free_who], found[held_who]
        assert held == pytest.approx(0, abs=1e-4 * yardstick) and abs(free) > 0.1 * yardstick > 0


def told(name, lost, recovered, outs, seed=0):
    """A task of 40 prompts in which each out loses and others recover so much, by prompt, whoever recovers."""
    noise = torch.randn(40, 1, 1, 2, generator=torch.Generator().manual_seed(seed)).double()
    values = torch.tensor([lost, recovered]).T.view(1, -1, 1, 2) + 0.1 * noise
    means = drawn_means(values.expand(-1, -1, len(WHO), -1), torch.arange(40), seed=seed)
    return Measured(name, outs, means, 40)


def test_shares_are_ratios_of_means_over_tasks_too():
    """Over tasks: 3 of 10 recovered in sum (the mean of the shares would be 0.35); one by one the mean over heads."""
    outs = [Out((A,), None, True), Out((B,), None, True), Out((A, B)), Out((B,), 1, True), Out((B, D), 1)]
    one = told("one", [1.0, 3.0, 2.0, 1.0, 0.0], [0.5, 0.5, 1.0, 0.0, 0.0], outs)
    two = told("two", [1.0, 3.0, 8.0, 1.0, 0.0], [0.5, 0.5, 2.0, 0.0, 0.0], outs, seed=1)
    rows = [row for row in rows_of("m", [one, two]) if row.who == Who.ALL]
    found = {(row.task, row.draw, row.alone): row for row in rows if row.task == "all" or not row.alone}
    together, apart = found["all", None, False], found["all", None, True]
    assert together.share == pytest.approx(0.3, abs=0.02) and together.low < 0.3 < together.high
    assert apart.share == pytest.approx(0.25, abs=0.02) and (apart.lost, apart.n) == (pytest.approx(4, abs=0.1), 2)
    assert together.high - together.low > 3 * (apart.high - apart.low)  # tasks differ in the one alone
    assert found["all", 1, True].share == pytest.approx(0, abs=0.05)
    nothing = found["one", 1, False]
    assert (nothing.share, nothing.low, nothing.high) == (None, None, None)  # nothing is lost
    assert len(rows) == 2 * len(outs) + 4 and found["one", None, False].out == "L0H3 L0H7"


def test_kinds_of_heads():
    kinds = kinds_of(Picked(torch.tensor([[5.0, -4.0, 0.05], [0.1, -0.05, 0.0]]), {}, []))
    assert kinds.tolist() == [[[1, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]


# --- how few suffice ---


def sure_of(written: dict[Head, float], kind: Kind = Kind.PARTS, key=()):
    """A planted transformer that says a filler unless the answer is written more than 1.5: its halves."""
    bridge = known.empty()
    halves = planted(Plan(kind, written, key, room=1.0), 40, bridge=bridge)
    with torch.no_grad():
        bridge.embed.original_component.weight[0, N_WORDS + FILLERS.start] = 1.5
    return [Ready(r.asked, *(prepare(bridge, p) for p in (r.asked.prompts, r.asked.twins))) for r in halves]


def suffices(select, held):
    return list(sufficient.rows_of(select, held, model="m", n_everywhere=20))


def test_of_two_copies_each_suffices_by_itself():
    """Each writes 2; together no more than 3 is let through."""
    select, held = sure_of({A: 2.0, LATER: 2.0}, Kind.COPIES, [A, LATER])
    found = disjoint(select)
    assert [grown.heads for grown in found[:2]] in ([[A], [LATER]], [[LATER], [A]])
    assert [grown.suffices for grown in found] == [True, True, False] and found[0].selected == [0.0, 1.0]
    first = next(row for row in suffices(select, held) if row.suffices)
    assert (first.which, first.n_heads, first.kept, first.everywhere, first.without) == (1, 1, 1.0, 1.0, 1.0)


def test_of_two_parts_only_both_suffice():
    rows = suffices(*sure_of({A: 1.0, LATER: 1.0}))
    first = [row for row in rows if row.which == 1]
    assert [(row.n_heads, row.suffices, row.kept) for row in first] == [(0, False, 0), (1, False, 0), (2, True, 1)]
    assert {row.head for row in first} == {"", str(A), str(LATER)}
    assert first[-1].without == 0 and first[-1].everywhere == 1  # nothing is left without them
    assert (first[0].everywhere, first[1].without) == (None, None)
    second = [row for row in rows if row.which == 2]
    assert len(second) == 1 + sufficient.MOST_HEADS and not any(row.suffices for row in second)
    drawn = [row for row in rows if row.which == 0]
    assert [row.draw for row in drawn] == list(range(1, 11)) and {row.n_heads for row in drawn} == {2}
    assert all(row.kept == row.selected == 0 and not row.suffices for row in drawn)


def test_four_parts_of_which_two_suffice_make_two_sets():
    select, _ = sure_of({A: 1.1, B: 1.0, LATER: 0.9, D: 0.8})
    assert [grown.heads for grown in disjoint(select)][:2] == [[A, B], [LATER, D]]


def test_a_task_that_many_heads_are_needed_for_says_so():
    rows = suffices(*sure_of({head: 0.1 for head in heads_in(range(2), N_HEADS)}))
    assert not any(row.suffices for row in rows) and {row.which for row in rows} == {0, 1}
    assert max(row.n_heads for row in rows) == sufficient.MOST_HEADS
    assert all(row.everywhere is None and row.without is None for row in rows)


def test_only_heads_that_were_tried_are_added_and_random_ones_are_others(monkeypatch):
    monkeypatch.setattr(sufficient, "N_TRIED", 2)
    select, _ = sure_of({A: 1.0, B: 1.0, LATER: 1.0})
    assert set(grow(select, [D, A, B, LATER]).heads) == {D, A}
    sets = random_sets(select, 3, [A, B], seed=1)
    assert len(sets) == 10 and all(len(set(heads)) == 3 and not {A, B} & set(heads) for heads in sets)
    assert sets == random_sets(select, 3, [A, B], seed=1) != random_sets(select, 3, [A, B], seed=2)


@pytest.mark.parametrize("where", Where)
def test_all_others_are_at_the_twins_values(where, bridge):
    """Against whole runs with hooks, of heads of random strength."""
    drawn = torch.Generator().manual_seed(0)
    written = {h: s for h, s in zip(heads_in(range(2), N_HEADS), torch.rand(24, generator=drawn).tolist())}
    _, held = planted(Plan(Kind.BACKUP, written, [A, LATER], steep=1.0), 40, noise=0.5, bridge=bridge)
    heads, at = [A, LATER, D], slice(None) if where == Where.ALL else slice(-1, None)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(2)]
    _, twin = run_with(bridge, held.asked.twins, keep=names)

    def put(layer):
        name, out = names[layer], [h for h in range(N_HEADS) if Head(layer, h) not in heads]

        def change(z):
            z[:, at, out] = twin[name][:, at, out]

        return name, change

    plain, right = (float((run_with(bridge, held.asked.prompts, put)[0].argmax(-1) == held.asked.right).double().mean())
                    for put in ([], [put(0), put(1)]))  # fmt: skip
    found = kept(held, [heads], where=where)
    assert 0 < right < 1 and found.accuracy.item() == pytest.approx(right)
    assert found.share.item() == pytest.approx(right / plain) and found.low <= found.share <= found.high
