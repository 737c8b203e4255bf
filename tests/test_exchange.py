"""The exchange of components with a prompt's twin: what was planted carries all, and hooked runs say the same."""

from dataclasses import replace

import pytest
import torch
from conftest import random_prompts, run_with

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import exchange, slider
from talking_heads_utils.experiments.inhibition.exchange_study import (
    BEST_MEASURED,
    LARGEST_SINGULAR_VALUE,
    LARGEST_VARIANCE,
    PREDICTED,
    fresh_prompts,
    make_study,
)
from talking_heads_utils.experiments.inhibition.shifts import KEY, QUERY, VALUE, Exchange, Twins, exchanged_answers
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.engine import Z, prepare
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast, logit_difference
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts.ioi import draw_ioi


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def planted_study(**options):
    truth = plant(**options)
    prompts = fresh_prompts(truth.tokenizer, (20, 40), 0)
    return make_study(truth.bridge, truth.tokenizer, truth.roles[MOVER], truth.roles[INHIBITION], *prompts)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(exchange, "N_DRAWS", 19)


def test_fresh_prompts_are_about_nobody_that_roles_were_found_on():
    tokenizer = plant().tokenizer
    choice, scored = fresh_prompts(tokenizer, (30, 60), 3)
    about = [{(p.template, *sorted((p.io, p.s)), p.place, p.thing) for p in some}
             for some in (choice, scored, draw_ioi(tokenizer, 400, 3))]  # fmt: skip
    assert len(choice) == 30 and len(scored) == 60 and not (about[0] & about[1] or (about[0] | about[1]) & about[2])
    assert {p.io_first for p in choice} == {True, False}


def test_the_planted_components_carry_the_exchange():
    study = planted_study(strength=20.0)
    for target in ([study.heads[0]], study.heads):
        table = frame(exchange.exchange_rows(study, exchange.ALL, target)).set_index(["measure", "set", "into", "k"])
        odds, answer = (table.loc[measure] for measure in (exchange.LOG_ODDS, exchange.LOGIT_DIFFERENCE))
        assert odds.loc[(PREDICTED, QUERY, 3), "share"] == pytest.approx(1, abs=1e-3), "the rank of the channel"
        assert odds.loc[(LARGEST_VARIANCE, QUERY, 1), "share"] > 0.5
        assert odds.loc[(PREDICTED, QUERY, 3), "p"] == 1 / 20
        assert odds.loc[(BEST_MEASURED, QUERY, 1), "share"] >= odds.loc[(PREDICTED, QUERY, 1), "share"] - 1e-3
        assert odds.loc[(PREDICTED, VALUE, 2), "effect"] == pytest.approx(0, abs=1e-4), "values move no attention"
        whole = odds.loc[(exchange.WHOLE_HEAD, QUERY, study.d_head)]
        assert whole["effect"] < -0.5 and whole["share"] == 1 == whole["share_low"] == whole["energy"]
        random = odds.loc[(exchange.RANDOM_DIRECTIONS, QUERY, 1)]
        assert random["share_high"] < 0.9 and random["n_draws"] == 19
        assert answer.loc[(PREDICTED, QUERY, 3), "share"] == pytest.approx(1, abs=1e-3)
        assert answer.loc[(exchange.WHOLE_HEAD, QUERY, study.d_head), "effect"] < -1
        assert [(exchange.MATCHED_SETS, QUERY, k) in answer.index for k in (2, 3)] == [True, False]
    rows = exchange.hit_rows(study, study.heads[0])
    assert {r.predictor for r in rows} > {exchange.WEIGHTS, LARGEST_SINGULAR_VALUE}
    assert all(r.rank <= 3 and r.p == r.rank / r.n_components and r.certain > 0.5 for r in rows)


def test_without_a_channel_nothing_is_exchanged():
    control = planted_study(channel=False)
    table = frame(exchange.exchange_rows(control, exchange.ALL, control.heads))
    assert table["effect"].abs().max() < 1e-3 and table["share"].isna().all() and (table["p"].dropna() == 1).all()
    hits = exchange.hit_rows(control, control.heads[0])
    assert all(r.rank == r.n_components and not r.hit_at_3 and not r.strongest for r in hits)


def hooked(bridge, twins, movers, shift_of, into):
    """Attention of the movers and logits at ``end``, their inputs moved in one run with hooks."""
    prompts, resid, changes = twins.own.prompts, {}, []

    def put(head):
        def change(tensor):
            attn, ln = bridge.blocks[head.layer].attn, bridge.blocks[head.layer].ln1
            W, b = ((getattr(attn, f"{kind}_{into[0].upper()}")) for kind in "Wb")
            of = head.head if into == QUERY else head.head * tensor.shape[2] // bridge.cfg.n_heads
            x = ln(resid[head.layer] + shift_of(head.layer))
            tensor[:, :, of] = x @ W[of] + (0 if b is None else b[of])

        return change

    for head in movers:
        keep = lambda tensor, layer=head.layer: resid.update({layer: tensor})  # noqa: E731
        changes.append((f"blocks.{head.layer}.hook_resid_pre", keep))
        changes.append((f"blocks.{head.layer}.attn.hook_{into[0]}", put(head)))
    patterns = [f"blocks.{head.layer}.attn.hook_pattern" for head in movers]
    logits, seen = run_with(bridge, prompts, changes, patterns)
    rows = torch.arange(len(prompts))
    return {h: seen[name][rows, h.head, twins.own.end] for h, name in zip(movers, patterns)}, logits


def twins_of(bridge, movers):
    prompts = random_prompts()
    generator = torch.Generator().manual_seed(1)
    other = replace(prompts, tokens=torch.randint(1, 49, prompts.tokens.shape, generator=generator))
    return Twins(*(record(bridge, p, [1, 2]) for p in (prompts, other)), tuple(movers))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen2"])
def test_queries_exchanged_equal_a_hooked_run(checkpoints, family):
    bridge, movers = load_model(checkpoints[family]), (Head(1, 1), Head(2, 1), Head(2, 2))
    twins = twins_of(bridge, movers)
    ends = prepare(bridge, twins.own.prompts, 1)
    some = twins.of_components([Component(0, 1, 0), Component(0, 2, 1), Component(1, 3, 0)])
    tried = [some, Exchange(some.parts, 40.0), twins.of_heads([Head(0, 0), Head(1, 2)])]
    after, prompts = exchanged_answers(twins, ends, tried), twins.own.prompts
    at_end = (torch.arange(prompts.tokens.shape[1]) == twins.own.end[:, None])[..., None]
    for i, e in enumerate(tried):
        seen, logits = hooked(bridge, twins, movers, lambda layer, e=e: at_end * twins.shift(e, layer)[:, None], QUERY)
        close(after.logit_difference[:, i], logit_difference(logits, prompts))
        close(after.probability[:, i], logits.softmax(-1)[torch.arange(len(prompts)), prompts.answers])
    assert after.logit_difference.std(1).max() > 5e-3, "exchanges without effect would prove nothing"
    changes = []
    for mover in movers:  # each by itself: the closed form's streams are the plain run's
        odds = []
        for k in (1, 0):
            seen, _ = hooked(bridge, twins, [mover], lambda at, k=k: k * at_end * twins.shift(some, at)[:, None], QUERY)
            odds.append((contrast(prompts) * seen[mover].log()).nan_to_num(0).sum(-1))
        changes.append(odds[0] - odds[1])
    close(twins.odds([some])[:, 0], torch.stack(changes).mean(0))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("into", [KEY, VALUE])
def test_keys_and_values_exchanged_equal_a_hooked_run(checkpoints, family, into):
    """A mover of the last layer: nothing above sees what its other queries then do."""
    bridge, mover = load_model(checkpoints[family]), Head(2, 1)
    twins = twins_of(bridge, [mover])
    some = twins.of_components([Component(0, 1, 0), Component(1, 3, 1)])

    def everywhere(layer):
        total = 0
        for c in (Component(0, 1, 0), Component(1, 3, 1)):
            v = twins.own.directions[c.layer, c.head, c.component]
            write = (r.write(c.layer, at_end=False)[:, :, c.head] @ v for r in (twins.twin, twins.own))
            total = total + (next(write) - next(write))[..., None] * v
        return total

    seen, logits = hooked(bridge, twins, [mover], everywhere, into)
    plain, _ = hooked(bridge, twins, [mover], lambda layer: 0, into)
    prompts = twins.own.prompts
    found = exchanged_answers(twins, prepare(bridge, prompts, 2), [some], into)
    close(found.logit_difference[:, 0], logit_difference(logits, prompts))
    change = contrast(prompts) * (seen[mover].log() - plain[mover].log()).nan_to_num(0)
    close(twins.odds_by_other_input(some, into), change.sum(-1))
    assert (change.abs().max() > 1e-3) == (into == KEY)


def test_the_slider_moves_what_it_says():
    table = frame(slider.run(Context("planted", quick=True)))
    shown, mean = table[table["prompt"].notna()], table[table["prompt"].isna()]
    assert len(shown) == 20 * len(mean) == 20 * 2 * len(slider.SETTINGS) * 2
    assert set(shown["order"].value_counts()) == {len(shown) / 2} and shown["plain"].between(-3, 3).all()
    assert mean["n"].unique() == [20] and (mean["attention_low"] <= mean["attention_high"]).all()
    first = shown[(shown["prompt"] == 3) & (shown["name"] == slider.FIRST)].iloc[0]
    assert first["text"].index(first["word"].strip()) < len(first["text"]) / 2
    at = table.groupby("setting")["coefficient"].unique().str[0]
    assert at[0.0] == pytest.approx((at[-1.0] + at[1.0]) / 2, abs=1e-6) and abs(at[1.0] - at[-1.0]) > 1e-3


@pytest.mark.parametrize("family", ["gpt_neox", "qwen2"])
def test_a_coefficient_that_is_set_equals_a_hooked_run(checkpoints, family):
    bridge, prompts = load_model(checkpoints[family]), random_prompts()
    head, movers = Head(1, 2), (Head(2, 1), Head(2, 3))
    ends, twins = prepare(bridge, prompts, 1, keep=(Z,)), twins_of(bridge, movers)
    v = twins.directions(head)[1]
    own = slider.along(ends, head, v)
    close(own, twins.own.activations(range(1, 2))[:, 0, 2, 1])
    amounts = torch.tensor([0.0, 4.0]) - own[:, None]
    found = slider.moved(ends, prompts, head, movers, v, amounts)
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    places, tokens = slider.names(prompts)
    for k in range(2):

        def put(tensor, k=k):
            tensor[rows, end] += amounts[:, k, None] * v

        looks = "blocks.2.attn.hook_pattern"
        logits, seen = run_with(bridge, prompts, [("blocks.1.hook_attn_out", put)], [looks])
        pattern = seen[looks][rows, :, end][:, [1, 3]].mean(1)
        expected = pattern.gather(1, places), logits.gather(1, tokens), logits.softmax(-1).gather(1, tokens)
        close(found[:, :, k], torch.stack(expected))
    assert (found[1, :, 0] - found[1, :, 1]).abs().max() > 1e-2, "a setting without effect would prove nothing"
