"""Roles on IOI against what was planted, and every effect against runs with hooks."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from conftest import run_with

from talking_heads_utils import roles
from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.inhibition import circuit
from talking_heads_utils.experiments.inhibition.circuit import RoleRow
from talking_heads_utils.experiments.rows import frame, rows
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import DUPLICATE, INHIBITION, MOVER, plant
from talking_heads_utils.roles import Role, Roles
from talking_heads_utils.roles import ioi as find_roles
from talking_heads_utils.roles.ioi import Pair, direct_effects, query_effects, value_effects
from talking_heads_utils.stats import Interval, holm, sign_flip_p
from talking_heads_utils.weights.heads import Processing

N = 80


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def found(planted):
    return find_roles.find_roles(planted.bridge, planted.tokenizer, n_prompts=N)


@pytest.fixture(scope="module")
def held_out(planted):
    return Pair.of(planted.bridge, *find_roles.pairs_of_prompts(planted.tokenizer, N)[1])


@pytest.fixture(scope="module")
def trained():
    """A small trained model with norms, MLPs and biases, and a pair of prompt sets for it."""
    bridge = load_model("mini-token")
    return bridge, Pair.of(bridge, *find_roles.pairs_of_prompts(bridge.tokenizer, 40)[1])


def test_exactly_what_was_planted_is_found(planted, found):
    assert set(found.heads(roles.NAME_MOVER)) == set(planted.roles[MOVER])
    assert set(found.heads(roles.S_INHIBITION)) == set(planted.roles[INHIBITION]), "no list head, no noise head"
    assert found.heads(roles.DUPLICATE_TOKEN) == planted.roles[DUPLICATE]
    assert {role.role for role in found.entries} == {roles.NAME_MOVER, roles.S_INHIBITION, roles.DUPLICATE_TOKEN}
    readers = {role.reader for role in found.entries if role.role == roles.S_INHIBITION}
    assert readers == set(planted.roles[MOVER]), "mover by mover"
    assert all(role.confirmed and role.p < 0.01 and role.effect.n == N // 2 for role in found.entries)
    assert found.mover in planted.roles[MOVER]


def test_without_a_channel_nothing_is_found():
    control = plant(channel=False)
    found = find_roles.find_roles(control.bridge, control.tokenizer, n_prompts=N)
    assert found.entries == ()
    with pytest.raises(TaskError, match="no name mover"):
        _ = found.mover


def test_a_random_model_has_no_roles_that_the_other_half_confirms(tmp_path):
    """Heads of random weights: none may pass for an inhibition head."""
    bridge = load_model("mini-token")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in bridge.original_model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    found = find_roles.find_roles(bridge, bridge.tokenizer, n_prompts=N)
    assert found.heads(roles.S_INHIBITION) == []


def test_raw_weights_have_the_roles_of_processed_ones():
    """A bridge that nobody processed, as TransformerLens gives it."""
    found = [
        find_roles.find_roles(bridge, bridge.tokenizer, n_prompts=40).frame()
        for bridge in (load_model("mini-token", processing=how) for how in (None, Processing(False, False)))
    ]
    pd.testing.assert_frame_equal(*found, atol=1e-2, rtol=1e-3)


def test_direct_effects_are_those_of_the_logits(trained):
    """Heads, MLPs and what lies below add up to the logit difference; one head's effect by a second route."""
    bridge, pair = trained
    recording = pair.clean
    layers = circuit.layer_effects(recording)
    whole = find_roles.logit_difference(recording)
    b_U = bridge.unembed.b_U
    candidates = recording.prompts.candidates
    logits = recording.logits.gather(1, candidates) - b_U[candidates]
    torch.testing.assert_close(logits[:, 0] - logits[:, 1], whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layers.sum(1), whole, atol=1e-4, rtol=1e-4)
    effects = direct_effects(recording)
    tokens, rows, end = recording.prompts.tokens, recording.rows, recording.end
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    z = cache["blocks.3.attn.hook_z"][rows, end, 0] - bridge.blocks[3].attn.b_V[0]
    final = cache["blocks.3.hook_resid_post"][rows, end]
    center = lambda x: x - x.mean(-1, keepdim=True)  # noqa: E731
    divisor = (center(final).square().mean(-1) + bridge.cfg.eps).sqrt()
    W_U = bridge.W_U * getattr(bridge.ln_final, "weight", torch.ones(()))[..., None]
    wanted = W_U.T[candidates[:, 0]] - W_U.T[candidates[:, 1]]
    second = (center(z @ bridge.blocks[3].attn.W_O[0]) * wanted).sum(-1) / divisor
    torch.testing.assert_close(effects[:, 3, 0].sum(-1), second, atol=1e-4, rtol=1e-4)


def _odds(bridge, pair, mover, hooks):
    """Log-odds of a mover's attention, IO to S1, in a hooked run of the clean prompts."""
    prompts, name, rows = pair.clean.prompts, f"blocks.{mover.layer}.attn.hook_attn_scores", pair.clean.rows
    scores = run_with(bridge, prompts, hooks, [name])[1][name][rows, mover.head, pair.clean.end]
    return scores[rows, prompts.positions["IO"]] - scores[rows, prompts.positions["S1"]]


def _query_with(bridge, pair, mover, shift):
    """A hook that gives one mover the query that a shifted stream would give it at ``end``."""
    rows, end = pair.clean.rows, pair.clean.end
    at = pair.clean.reader(mover.layer).weights
    query = at.norm(pair.clean.reader(mover.layer).resid[rows, end] + shift) @ at.W_Q[mover.head] + at.b_Q[mover.head]

    def replace(tensor):
        tensor[rows, end, mover.head] = query

    return (f"blocks.{mover.layer}.attn.hook_q", replace)


def test_an_exchange_in_the_query_equals_a_hooked_run(trained):
    bridge, pair = trained
    mover, head = Head(3, 0), Head(1, 3)
    shift = (pair.third.write(1) - pair.clean.write(1))[:, head.head]
    change = _odds(bridge, pair, mover, [_query_with(bridge, pair, mover, shift)]) - _odds(bridge, pair, mover, [])
    effects = query_effects(pair, mover).by_head
    torch.testing.assert_close(effects[:, 1, 3], change, atol=2e-3, rtol=1e-3)
    assert change.abs().mean() > 0.1, "it does something"
    assert effects[:, 3].isnan().all(), "a mover reads no head of its own layer"


def test_an_exchange_in_the_values_equals_a_hooked_run(trained):
    """The writer's exchange at every position, in one inhibition head's values alone, then into the mover's query."""
    bridge, pair = trained
    mover, inhibition, head = Head(3, 0), Head(1, 3), Head(0, 1)
    at = pair.clean.reader(1).weights
    shift = (pair.third.write(0, at_end=False) - pair.clean.write(0, at_end=False))[:, :, head.head]
    old, new = (at.norm(pair.clean.reader(1).resid + s) @ at.W_V[3] for s in (torch.zeros_like(shift), shift))
    written = (pair.clean.reader(1).pattern[:, 3, None] @ (new - old))[:, 0] @ at.W_O[inhibition.head]
    change = _odds(bridge, pair, mover, [_query_with(bridge, pair, mover, written)]) - _odds(bridge, pair, mover, [])
    effects = value_effects(pair, inhibition, [mover]).by_head
    torch.testing.assert_close(effects[:, 0, 1], change, atol=2e-3, rtol=1e-3)


def test_exchanges_at_the_end_equal_hooked_runs(trained):
    bridge, pair = trained
    prompts, rows, end = pair.clean.prompts, pair.clean.rows, pair.clean.end
    some = [Head(1, 3), Head(3, 0)]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(pair.third.prompts.tokens)

    def swap(head):
        name = f"blocks.{head.layer}.attn.hook_z"

        def replace(tensor):
            tensor[rows, end, head.head] = cache[name][rows, end, head.head]

        return name, replace

    logits = run_with(bridge, prompts, map(swap, some))[0].gather(1, prompts.candidates)
    values = circuit.exchanged(bridge, pair, [[], some])
    torch.testing.assert_close(values[:, 1], logits[:, 0] - logits[:, 1], atol=1e-3, rtol=1e-3)
    assert (values[:, 0] - values[:, 1]).mean() > 1, "without them the answer is lost"


def test_prompts_exchanged_with_themselves_change_nothing():
    """On raw weights, whose value biases are in z: heads of the first layer too."""
    bridge = load_model("mini-token", processing=Processing(False, False))
    clean = find_roles.pairs_of_prompts(bridge.tokenizer, 40)[1][0]
    pair = Pair.of(bridge, clean, clean)
    some = [[], [Head(0, 0)], [Head(0, 2), Head(3, 0)]]
    values = circuit.exchanged(bridge, pair, some)
    torch.testing.assert_close(values[:, 1:], values[:, :1].expand(-1, 2), atol=1e-3, rtol=1e-3)


def test_the_planted_circuit_is_all_there_is(planted, held_out, found):
    sources = frame(circuit.source_rows(held_out.clean, found)).set_index("part")
    assert sources.loc[roles.NAME_MOVER, "share"] == pytest.approx(1, abs=1e-3)
    assert sources["share"].sum() == pytest.approx(1, abs=1e-4)
    exchanged = frame(circuit.exchange_rows(planted.bridge, held_out, found)).set_index("part")
    assert exchanged.loc[roles.NAME_MOVER, "share"] == pytest.approx(1, abs=0.02)
    assert exchanged.loc[roles.S_INHIBITION, "share"] > 0.9 and (exchanged["p"] == 1 / (1 + exchanged["n_sets"])).all()


def test_matched_sets_keep_layers_and_leave_out_the_heads_with_a_role():
    taken = {Head(1, 0), Head(1, 1)}
    drawn = circuit.matched_sets([Head(1, 0), Head(2, 3)], taken, 4, n=200)
    assert all([head.layer for head in some] == [1, 2] and not taken & set(some) for some in drawn)
    assert len(drawn) == 2 * 4 == len(set(map(tuple, drawn))), "two others of layer 1, four of layer 2, each pair once"


def test_roles_survive_a_table():
    whole, part = Interval(-0.4, -0.6, -0.2, 40), Interval(0.1, -0.1, 0.3, 40)
    entry = Role(roles.S_INHIBITION, Head(2, 1), roles.QUERY, Head(4, 0), -0.5, 0.01, whole, (0.1, 0.2, 0.3))
    doubtful = Role(roles.NAME_MOVER, Head(4, 0), roles.DIRECT, None, 0.5, 0.01, part, (0.5, 0, 0))
    both = Roles((entry, doubtful))
    assert Roles.of_frame(both.frame()) == both
    assert both.heads(roles.NAME_MOVER) == [] and both.heads(roles.S_INHIBITION) == [Head(2, 1)]
    assert Roles.of_frame(frame(rows(both.frame(), RoleRow))) == both
    assert list(Roles(()).frame().columns) == list(both.frame().columns) == [c.name for c in RoleRow.columns()]


def test_sign_flips_and_holm_by_hand():
    values = torch.tensor([[1.0, 1.0], [2.0, -1.0], [3.0, 1.0], [4.0, -1.0]])
    p = sign_flip_p(values, n_draws=20_000)
    assert p[0].item() == pytest.approx(2 / 16, abs=0.01), "all signs alike: 2 of 16 assignments"
    assert p[1].item() == 1, "a mean of zero is always reached"
    corrected = holm(torch.tensor([0.04, 0.01, 0.03]))
    assert corrected.tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm(torch.tensor([0.01]), n=10).item() == pytest.approx(0.1)
    assert not math.isnan(sign_flip_p(torch.zeros(3, 1), n_draws=10)[0].item())
