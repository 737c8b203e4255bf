"""Edits of chapter 3: the engine that runs many at once against whole runs of the edited model, and what the search
finds in planted models whose gain is known."""

import pytest
import torch
from conftest import run_with

from talking_heads_utils.components import direction_of
from talking_heads_utils.editing import edit, weights_to_edit
from talking_heads_utils.errors import EditError, LabelError, NotApplicable, TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import gains, moves, upper
from talking_heads_utils.experiments.editing.moves import Extent, Family, Move, Parts
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import accuracy
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import ROLES, plant
from talking_heads_utils.weights.heads import Processing

EDITS = (
    {},
    {Component(0, 1, 0): -1.0, Component(0, 1, 2): 2.5, Component(2, 3, 0): 0.0},
    {Component(1, 2, 1): 3.0, Component(1, 1, 0): 0.0},
    {Component(1, 2, i): 0.0 for i in range(3)},
    {Component(2, 2, 0): -2.0},
)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=1e-4)


def test_many_edits_at_once_equal_whole_runs_of_each(case):
    bridge, prompts = case
    rows_, end = torch.arange(len(prompts)), prompts.positions["end"]
    found = upper.prepare(bridge, prompts, 0).logits(EDITS)
    expected = []
    for changes in EDITS:
        with edit(bridge, changes), torch.no_grad():
            expected.append(bridge(prompts.tokens)[rows_, end].gather(1, prompts.candidates))
    close(found, torch.stack(expected, 1))
    assert (found[:, 2] - found[:, 0]).abs().max() > 1e-2, "edits without effect would prove nothing"
    high = upper.prepare(bridge, prompts, 1)
    close(high.logits(EDITS[2:], n=4), found[:4, 2:])


def test_edits_at_the_last_token_equal_hooked_runs(case):
    bridge, prompts = case
    weights, end, rows_ = weights_to_edit(bridge), prompts.positions["end"], torch.arange(len(prompts))
    found, z = upper.prepare(bridge, prompts, 0).logits(EDITS, at_end=True), {}
    for i, changes in enumerate(EDITS):

        def add(value, layer, changes=changes):
            for c, factor in changes.items():
                if c.layer == layer:
                    attn, kv = bridge.blocks[layer].attn, int(weights.kv_index[c.head])
                    D = direction_of(weights, c)[0].to(value)
                    own = z[layer][rows_, end, c.head] - (0 if attn.b_V is None else attn.b_V[kv])
                    value[rows_, end] += (factor - 1) * (own @ attn.W_O[c.head] @ D)[:, None] * D

        hooks = []
        for layer in range(3):
            hooks.append((f"blocks.{layer}.attn.hook_z", lambda value, at=layer: z.update({at: value})))
            hooks.append((f"blocks.{layer}.hook_attn_out", lambda value, at=layer, add=add: add(value, at)))
        close(found[:, i], run_with(bridge, prompts, hooks)[0].gather(1, prompts.candidates))


def test_what_cannot_be_scaled_is_one_clear_error(case, checkpoints):
    bridge, prompts = case
    made = upper.prepare(bridge, prompts, 1)
    raw = load_model(checkpoints["gpt2"], processing=Processing(False, False))
    half = Move(Head(1, 2), None, 0.5)
    for error, message, ask in (
        (LabelError, "is not in", lambda: made.logits([{Component(1, 40, 0): 0.0}])),
        (LabelError, "is not in|is zero", lambda: made.logits([{Component(1, 2, 9999): 0.0}])),
        (LabelError, "below the layers that were kept", lambda: made.logits([{Component(0, 1, 0): 0.0}])),
        (EditError, "processed weights", lambda: Parts.of_model(raw)),
        (EditError, "moved twice", lambda: made.parts.factors((half, half))),
        (LabelError, "is no move", lambda: Move.parse("L1H2 by 0")),
    ):
        with pytest.raises(error, match=message):
            ask()


def test_moves_of_a_head_are_its_leading_components_and_all_of_it(case):
    every = moves.moves_of(Head(1, 2), (3, 0, 1, 2))
    assert [str(move) for move in every if move.factor == 2] == [
        "L1H2.3 x 2", "L1H2.0 x 2", "L1H2.1 x 2", "L1H2.2 x 2", "L1H2.0+3 x 2", "L1H2 x 2",
    ]  # fmt: skip
    assert moves.parse(moves.label(tuple(every))) == tuple(every)
    assert [move.extent for move in every[::6]] == [Extent.SINGLE] * 4 + [Extent.LEADING, Extent.HEAD]
    parts, move = Parts.of_model(case[0]), Move(Head(1, 2), None, -1.0)
    with torch.no_grad():
        before = case[0].blocks[1].attn.W_O[2].clone()
        with edit(case[0], parts.factors((move,))):
            after = case[0].blocks[1].attn.W_O[2].clone()
        kv = int(parts.weights.kv_index[2])
        change = parts.weights.W_V[1, kv].double() @ (after - before).double()
    assert parts.size((move,)) == pytest.approx(change.norm().item(), rel=1e-3), "of the matrices themselves"


# --- the search ---


def quick(monkeypatch, n_draws: int = 1, damage=None, **how) -> Context:
    """A planted model, damaged in its weights, whose search is small."""
    monkeypatch.setattr(moves, "N_DRAWS", n_draws)
    planted = plant(**how)
    blocks = planted.bridge.blocks
    with torch.no_grad(), edit(planted.bridge, damage or {}):
        damaged = [block.attn.W_O.clone() for block in blocks]
    with torch.no_grad():
        for block, W_O in zip(blocks, damaged):
            block.attn.W_O.copy_(W_O)
    return Context("planted", quick=True, loaded=(planted.bridge, planted.tokenizer))


@pytest.fixture(scope="module")
def noisy():
    """The planted model as it is, with a noise head, and what two searches among random heads found beside."""
    with pytest.MonkeyPatch.context() as patch:
        yield quick(patch, n_draws=2)


LISTS = Lists(Part.HELD_OUT, 8, 120)
NOISE_OUT = {Component(1, 3, i): 0.0 for i in range(3)}


@pytest.mark.parametrize(("damage", "noise"), [({}, 0.15), ({Component(1, 0, 0): -1.0}, 0.0), ({}, 0.0)],
                         ids=["a noise head", "a component flipped", "nothing"])  # fmt: skip
def test_a_known_gain_is_recovered_and_where_there_is_none_nothing_is_claimed(monkeypatch, noisy, damage, noise):
    c = noisy if noise else quick(monkeypatch, damage=damage, noise=noise)
    lists, sound = LISTS if noise or damage else Lists(Part.HELD_OUT, 4, 200), plant(noise=noise)
    with edit(sound.bridge, NOISE_OUT if noise else {}):
        known = 100 * (accuracy(sound.bridge, c.kept(lists)).mean - accuracy(c.bridge, c.kept(lists)).mean)
    winners = c.kept(gains.found)
    (row,) = gains.edit_rows(c, winners, lists, [winners.best])
    if not (noise or damage):
        assert known == 0 and row.before == 1 and row.gain <= 0 and row.low < 0 < row.high
        return
    assert known > 20 and row.gain >= 0.8 * known and row.low > 0
    with edit(c.bridge, winners.best.edit(c)):
        again = accuracy(c.bridge, c.kept(lists)).mean
    assert again == row.after, "the edit as data, in the whole model"


def test_the_table_of_gains_says_what_was_searched(noisy):
    c, table = noisy, gains.run(noisy)
    winners = c.kept(gains.found)
    held = [row for row in table if row.part == Part.HELD_OUT]
    best = [row for row in held if row.best and row.draw is None]
    assert {row.edit for row in best} == {winners.best.name} and [row.n_items for row in best] == [4, 8]
    assert {row.n for row in best} == {100} and winners.best.family == Family.INTO_QUERIES
    named = {Family(row.family) for row in held} - {Family.RANDOM, Family.ANY}
    assert named == {Family.INTO_QUERIES, Family.MOVERS, Family.DIRECT}
    draws = [row for row in held if row.draw is not None]
    assert {row.draw for row in draws} == {0, 1} and all(row.beyond is None for row in draws)
    assert max(abs(row.gain) for row in draws) < 5, "nobody reads what random heads write"
    assert {row.part for row in table} == {Part.HELD_OUT, Part.NEW_WORDING, Part.NEW_OBJECTS}
    row = best[-1]
    assert row.relative == pytest.approx(row.gain / row.before) and row.n_tried > 20
    again = gains.found(Context("planted", finished={gains.GAINS: frame(table)}.get))
    assert again.best == winners.best and again.draws == winners.draws, "what a finished table gives back"
    assert set(again.of_families) == set(winners.of_families)


def test_heads_are_chosen_by_what_they_do(monkeypatch):
    c = quick(monkeypatch, n_draws=20)
    heads = moves.heads_of(c, (4, 8))
    assert set(heads.families[Family.INTO_QUERIES]) == {Head(1, i) for i in range(4)}, "the noise head among them"
    assert heads.families[Family.MOVERS] == heads.families[Family.DIRECT] == ROLES["mover"]
    assert all(not set(draw) & set(heads.named) for draw in heads.draws) and len(set(heads.draws)) > 1
    assert [head.layer for head in heads.draws[0]] == [1, 1, 2, 2], "as many in each layer, or as are left"
    assert heads.orders[Head(1, 0)] == (0, 1, 2)


def test_bad_input_is_one_clear_error(monkeypatch):
    c = quick(monkeypatch)
    winner = gains.Winner(Family.MOVERS, Extent.HEAD, None, (Move(Head(2, 0), None, 2.0),), 0.0, 0.0, 1)
    few = Lists(Part.HELD_OUT, 8, 20)
    with pytest.raises(TaskError, match="answer at index 0"):
        gains.edit_rows(c, gains.Winners((winner,), ()), few, [winner])
    other = plant(seed=1)
    with pytest.raises(EditError, match="whose weights differ"), edit(other.bridge, winner.edit(c)):
        pass
    unasked = Context("planted", loaded=c.loaded, own=False)
    unasked.__dict__.update(gate=[], asked_lengths=[])
    with pytest.raises(NotApplicable, match="lists of one length at most"):
        gains.run(unasked)
