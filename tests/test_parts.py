"""Parts of answers, and where heads look, against what is known by hand."""

import pytest
import torch

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import parts, swaps
from talking_heads_utils.experiments.icl.asked import Asked, WordTask
from talking_heads_utils.experiments.icl.choice import picks
from talking_heads_utils.experiments.icl.parts import Attribute
from talking_heads_utils.experiments.icl.swaps import Said
from talking_heads_utils.experiments.icl.tasks import next_number, tasks
from talking_heads_utils.labels import heads_in
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.prompts.relations import Relation

WORDS = "cat dog bus mouse geese cats dogs buses mice THE CAT seven nine ten eleven the x".split()


class Words:
    """A tokenizer of these words alone."""

    def decode(self, ids):
        return " " + WORDS[ids[0]]


def asked_for(relation: Relation, right: list[str]) -> Asked:
    unused = len(WORDS)
    ids = torch.tensor([WORDS.index(word) if word in WORDS else unused for word in relation.answers])
    task = WordTask(relation.name, Numbers(torch.arange(len(ids)), ids), 1, relation)
    at = torch.tensor([WORDS.index(word) for word in right])
    return Asked(task, None, None, at, at)


def has(relation: Relation, right: list[str], said: list[list[str]]) -> dict:
    top = torch.tensor([[WORDS.index(word) for word in row] for row in said])
    return {kind: hits.tolist() for kind, hits in parts.attributes(asked_for(relation, right), top, Words()).items()}


PLURALS = Relation("plural", (("cat", "cats"), ("dog", "dogs"), ("mouse", "mice"), ("goose", "geese")), 0)


def test_a_word_and_its_form_are_told_apart():
    found = has(PLURALS, ["cats", "mice"], [["cats", "CAT", "dogs", "geese"], ["mice", "mouse", "buses", "dog"]])
    assert found[Attribute.EXACT] == [[True, False, False, False], [True, False, False, False]]
    assert found[Attribute.WORD] == [[True, True, False, False], [True, False, False, False]]
    assert found[Attribute.FORM] == [[True, False, True, True], [True, False, True, False]]
    upper = Relation("upper_case", (("the", "THE"), ("cat", "CAT")), 0)
    assert has(upper, ["THE"], [["the", "CAT"]]) == {
        Attribute.EXACT: [[False, False]], Attribute.WORD: [[True, False]], Attribute.FORM: [[False, True]]
    }  # fmt: skip


def test_numbers_have_parity_and_size_and_words_without_a_form_have_none():
    found = has(next_number(), ["ten", "nine"], [["nine", "seven", "cat"], ["eleven", "seven", "ten"]])
    assert found == {
        Attribute.EXACT: [[False] * 3] * 2,
        Attribute.PARITY: [[False, False, False], [True, True, False]],
        Attribute.SIZE: [[True, True, False], [True, True, True]],
    }
    words = "hot cold big small up down".split()
    assert parts.form_of([*zip(words, reversed(words))]) is None
    letter = parts.form_of([("apple", "a"), ("bear", "b")])
    assert letter("c") and not letter("cat")


@pytest.fixture(scope="module")
def one():
    """A model of the book's own and its task."""
    c = Context("mini-icl", quick=True)
    return c, tasks(c)[0]


def test_attention_to_earlier_answers_is_what_the_patterns_say(one):
    c, task = one
    prompts = task.ask(c, 3, HELD_OUT).prompts
    found = parts.looks(c.bridge, prompts, batch=2)
    _, cache = c.bridge.run_with_cache(prompts.tokens)
    n_examples = sum(name.startswith("ask_") for name in prompts.positions)
    asked = [*(f"ask_{k}" for k in range(1, n_examples)), "end"]
    for kind, got in (("y", found.to_y), ("x", found.to_x)):
        pattern, total = cache["blocks.1.attn.hook_pattern"], torch.zeros(c.bridge.cfg.n_heads)
        for row in range(len(prompts)):
            for j, name in enumerate(asked, 1):
                keys = [prompts.positions[f"{kind}_{i}"][row] for i in range(j)]
                total += sum(pattern[row, :, prompts.positions[name][row], key] for key in keys)
        torch.testing.assert_close(got[1], total / len(prompts) / len(asked))
    first = prompts.positions["ask_1"][0] + 1
    assert 1 / first < found.even < n_examples / first and (found.to_y <= 1).all()
    rows, picked = parts.run_looks_back(c), c.kept(picks)[task.name]
    assert len(rows) == found.to_y.numel()
    assert {row.head for row in rows if row.important} == set(map(str, picked.chosen))
    told = {row.head: row.effect for row in rows if row.effect is not None}
    assert told == {str(head): gain for head, gain in picked.denoised.items()}


def test_rows_say_what_is_left_without_each_part(one, monkeypatch):
    """What is said is made up: with layer 1's MLP out the answer is two off."""
    c, task = one
    r = swaps.ready(c, task.ask(c, 12, HELD_OUT))
    values = parts.values_of(r.asked)
    token = {value: key for key, value in values.items()}
    right = [values[at] for at in r.asked.right.tolist()]
    off = torch.tensor([token.get(value + 2, token[value - 2 if value > 1 else value]) for value in right])

    def said(r, sets, into=swaps.Into.CLEAN):
        top = [off if swaps.Mlp(1) in parts_ else r.asked.right for parts_ in sets]
        return Said(torch.zeros(len(right), len(sets)), torch.stack(top if into == swaps.Into.CLEAN else [off], 1))

    monkeypatch.setattr(parts, "exchanged", said)
    shares = {(row.part, row.layer, row.attribute): row for row in parts.part_rows("m", r, c.tokenizer)}
    lost = shares[parts.MLPS, 1, Attribute.EXACT]
    assert (lost.share, lost.change, lost.high) == pytest.approx((0, -1, -1))
    assert shares[parts.TWIN, None, Attribute.EXACT].share == 0
    for attribute in (Attribute.PARITY, Attribute.SIZE):
        assert shares[parts.MLPS, 1, attribute].share == 1
    others = [row for (part, layer, _), row in shares.items() if (part, layer) not in ((parts.MLPS, 1), ("twin", None))]
    assert all((row.share, row.change) == (1, 0) for row in others)
    assert len(shares) == 3 * (2 + 2 * c.bridge.cfg.n_layers)


def test_parts_of_a_whole_model(one):
    c, task = one
    r = swaps.ready(c, task.ask(c, 12, HELD_OUT))
    rows = {(row.part, row.layer, row.attribute): row for row in parts.part_rows("m", r, c.tokenizer)}
    by_hand = swaps.exchanged(r, [[], heads_in([1], c.bridge.cfg.n_heads)]).right(r.asked).double().mean(0)
    assert rows["", None, Attribute.EXACT].share == pytest.approx(by_hand[0].item())
    assert rows[parts.HEADS, 1, Attribute.EXACT].share == pytest.approx(by_hand[1].item())
    with pytest.raises(NotApplicable):
        parts.run_parts(Context("planted", quick=True))
