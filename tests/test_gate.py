"""The gate: which tasks a model can do, beside strategies that need no model; and which prefix it does best behind."""

import dataclasses

import pytest
import torch

from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.experiments import gate, prefixes
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.gate import ALL, ANYWHERE
from talking_heads_utils.experiments.rows import frame, rows
from talking_heads_utils.known import PLANTED
from talking_heads_utils.metrics import accuracy, answer_logits
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import ABSENT


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def cells(planted):
    return gate.run_gate(planted.bridge, planted.tokenizer, (3, 5), 60, 0)


@pytest.fixture(scope="module", params=["ioi", "laundry"])
def prompts(request, planted):
    of = planted.tokenizer
    return ioi.build_ioi(of, 60) if request.param == "ioi" else laundry.build_laundry(of, 4, 120)


def that_answers(tokens, prompts):
    """Logits of a model that answers these tokens; where there is none, it has no opinion."""
    logits = torch.zeros(len(prompts), 164)
    some = (tokens != ABSENT).nonzero().flatten()
    logits[some, tokens[some]] = 1
    return logits


def test_last_logits_are_those_of_the_whole_run(case):
    """Unembedding one position of each prompt changes no logit, whatever the prompts' lengths and order."""
    bridge, prompts = case
    with torch.no_grad():
        whole = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.positions["end"]]
    for batch in (64, 2):
        torch.testing.assert_close(answer_logits(bridge, prompts, batch), whole, atol=2e-4, rtol=1e-4)


def test_a_model_that_solves_the_tasks_is_asked_and_one_at_random_is_not(planted, cells):
    whole = [cell for cell in cells if cell.whole]
    assert [(c.task, c.n_items, c.n) for c in whole] == [("ioi", 2, 60), ("laundry", 3, 60), ("laundry", 5, 60)]
    assert [c.accuracy > 0.95 and c.asked and c.chance == 1 / c.n_items for c in whole] == [True] * 3
    assert whole[0].accuracy == whole[1].accuracy == 1 and gate.asked(cells) == whole
    lists = laundry.build_laundry(planted.tokenizer, 5, 60)
    same = accuracy(planted.bridge, lists)
    assert (whole[2].accuracy, whole[2].low, whole[2].high) == (same.mean, same.low, same.high)
    noise = torch.randn(60, 164, generator=torch.Generator().manual_seed(0))
    dull = gate.gate_cells(lists, noise)[0]
    assert not dull.asked and dull.low < gate.AT_LEAST / 5
    gate.check_asked(cells, "laundry", 5)
    with pytest.raises(NotApplicable):
        gate.check_asked([dull], "laundry", 5)
    with pytest.raises(TaskError):
        gate.check_asked(cells, "laundry", 4)


@pytest.mark.parametrize("strategy", [gate.next_in_order, gate.last_named])
def test_a_model_that_follows_a_strategy_is_as_good_as_it_says(prompts, strategy):
    found = gate.gate_cells(prompts, that_answers(strategy(prompts), prompts))
    assert len(found) > 10 and all(c.accuracy == getattr(c, strategy.__name__) for c in found)
    assert {c.accuracy for c in found} >= {0.0, 1.0}, "there are kinds that it solves and kinds that it never does"


def test_strategies_by_hand(planted):
    def one(items, place, rest):
        text = laundry.laundry_prompt("wash", items, place, "kept", rest, "selection")
        drawn = laundry.build_laundry(planted.tokenizer, 3, 2)
        return laundry.encode([text], planted.tokenizer, dataclasses.replace(drawn.recipe, n_prompts=1))

    word = planted.tokenizer.convert_tokens_to_ids
    assert gate.next_in_order(one(["hat", "coat", "sock"], 2, ["hat", "coat"])).tolist() == [word("sock")]
    assert gate.next_in_order(one(["hat", "coat", "sock"], 1, ["sock", "hat"])).tolist() == [word("coat")]
    assert gate.next_in_order(one(["hat", "coat", "sock"], 0, ["coat", "sock"])).tolist() == [ABSENT]
    assert gate.last_named(one(["hat", "coat", "sock"], 0, ["coat", "sock"])).tolist() == [word("sock")]
    both = ioi.build_ioi(planted.tokenizer, 20)
    s_first = torch.tensor([order == ioi.S_FIRST for order in both.info["order"]])
    assert torch.equal(gate.next_in_order(both), torch.where(s_first, both.answers, ABSENT))
    assert torch.equal(gate.last_named(both), torch.where(s_first, both.answers, both.distractors[:, 0]))
    assert (gate.next_in_order(ioi.build_ioi(planted.tokenizer, 20, counterfactual="third name")) == ABSENT).all()


def test_cells_are_counted_once_and_come_back_from_their_table(cells):
    table = frame(cells)
    parts = table[(table["order"] != ALL) & (table["task"] == "laundry")]
    for kind, all_, other, some in (("wording", ALL, "index", ANYWHERE), ("index", ANYWHERE, "wording", ALL)):
        own = parts[(parts[kind] != all_) & (parts[other] == some)]
        assert (own.groupby("n_items")["n"].sum() >= 55).all()
    assert rows(table, gate.Cell) == cells


def test_the_prefix_is_chosen_on_the_selection_half_alone(planted, monkeypatch):
    """A model that answers behind one prefix alone is found out; the held-out half has no say."""

    def answers(bridge, prompts):
        logits = torch.zeros(len(prompts), 164)
        halves = prompts.info.get("half") or [(laundry.SELECTION, laundry.HELD_OUT)[i // 2 % 2] for i in range(80)]
        good = {"<bos>": laundry.SELECTION, "": laundry.HELD_OUT}[prompts.recipe.prefix]
        rows = torch.tensor([half == good for half in halves])
        logits[torch.arange(len(prompts)), torch.where(rows, prompts.answers, prompts.distractors[:, 0])] = 1
        return logits

    monkeypatch.setattr(prefixes, "answer_logits", answers)
    found = prefixes.prefix_rows(planted.bridge, planted.tokenizer, ("", "<bos>"), 40, 0)
    assert len(found) == 8 and {row.n for row in found} == {40} and prefixes.chosen_prefix(found) == "<bos>"
    selection = [row for row in found if row.half == laundry.SELECTION]
    for row in selection:
        right = row.prefix == "<bos>"
        assert row.accuracy == row.over_vocabulary == right and (row.logit_diff > 0.9) == right
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high and row.logit_diff_low <= row.logit_diff


def test_a_context_makes_what_is_shared_once():
    whole, made = Context(PLANTED, quick=True), []

    def study(c):
        made.append(c)
        return c.lists(4, 20)

    assert whole.bridge is whole.bridge and whole.kept(study) is whole.kept(study) is whole.lists(4, 20)
    assert whole.record(whole.lists(4, 20), [2]) is whole.record(whole.lists(4, 20), [2])
    given = Context("a name", loaded=(whole.bridge, whole.tokenizer), own=True, quick=True)
    assert given.bridge is whole.bridge and given.mover == whole.mover and given.is_own
    given.kept(study)
    given.forget()
    assert not given._kept and given.bridge is whole.bridge and made == [whole, given]
