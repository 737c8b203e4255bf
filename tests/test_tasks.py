"""The two tasks: named positions hold the named words, places are balanced, halves are apart."""

import copy
import dataclasses
from collections import Counter

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.encoding import PromptText, encode, render
from talking_heads_utils.prompts.prefix import add_prefix, begin_ids, prefix_of
from talking_heads_utils.prompts.sets import ABSENT, Recipe
from talking_heads_utils.prompts.words import WORD_LISTS, check_one_token, load_words, tokenizer_hash


@pytest.fixture(params=["word_tokenizer", "gpt2_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def word_at(prompts, tokenizer, name, row):
    return tokenizer.decode([prompts.tokens[row, prompts.positions[name][row]].item()]).strip()


def test_ioi_positions_hold_the_words_they_are_named_for(tokenizer):
    drawn = ioi.draw_ioi(tokenizer, 40, seed=1)
    prompts = ioi.build_ioi(tokenizer, prompts=drawn, seed=1)
    for row, prompt in enumerate(drawn):
        assert word_at(prompts, tokenizer, "IO", row) == prompt.io
        assert word_at(prompts, tokenizer, "S1", row) == word_at(prompts, tokenizer, "S2", row) == prompt.s
        assert word_at(prompts, tokenizer, "end", row) == "to"
        assert tokenizer.decode([prompts.answers[row].item()]).strip() == prompt.io
        assert tokenizer.decode([prompts.distractors[row, 0].item()]).strip() == prompt.s
    first = prompts.positions["IO"] < prompts.positions["S1"]
    assert first.tolist() == [order == ioi.IO_FIRST for order in prompts.info["order"]]
    assert torch.equal(prompts.mask.sum(1) - 1, prompts.positions["end"])


def test_a_seed_gives_the_same_prompts_and_templates_take_turns(tokenizer):
    a, b, c = (ioi.build_ioi(tokenizer, seed=seed) for seed in (0, 0, 1))
    assert len(set(Counter(zip(a.info["template"], a.info["order"])).values())) == 1
    assert torch.equal(a.tokens, b.tokens) and a.texts != c.texts


def test_counterfactuals_change_what_they_are_named_for(tokenizer):
    drawn = ioi.draw_ioi(tokenizer, 20, seed=2)
    plain = ioi.build_ioi(tokenizer, prompts=drawn)
    order = ioi.build_ioi(tokenizer, prompts=drawn, counterfactual="swap order")
    assert torch.equal(order.answers, plain.answers) and torch.equal(order.positions["IO"], plain.positions["S1"])
    names = ioi.build_ioi(tokenizer, prompts=drawn, counterfactual="swap names")
    assert torch.equal(names.answers, plain.distractors[:, 0])
    assert torch.equal(names.positions["IO"], plain.positions["IO"])
    assert names.info["order"] == plain.info["order"]
    third = ioi.build_ioi(tokenizer, prompts=drawn, counterfactual="third name")
    for row, prompt in enumerate(drawn):
        assert word_at(names, tokenizer, "S2", row) == prompt.io
        assert word_at(third, tokenizer, "S2", row) == prompt.third not in (prompt.io, prompt.s)
    assert [ioi.swap_names(ioi.swap_names(p)) for p in drawn] == drawn
    with pytest.raises(TaskError, match="swap"):
        ioi.build_ioi(tokenizer, counterfactual="swap")


def test_laundry_positions_hold_the_items(tokenizer):
    prompts = laundry.build_laundry(tokenizer, 7, n_prompts=28, seed=3)
    for row, index in enumerate(prompts.info["index"]):
        items = [word_at(prompts, tokenizer, f"item_{k} first", row) for k in range(7)]
        candidates = [tokenizer.decode([token]).strip() for token in prompts.candidates[row].tolist()]
        assert candidates == [items[index], *items[:index], *items[index + 1 :]]
        seconds = [prompts.positions[f"item_{k} second"][row].item() for k in range(7)]
        assert [k for k in range(7) if seconds[k] == ABSENT] == [index]
        assert all(word_at(prompts, tokenizer, f"item_{k} second", row) == items[k] for k in range(7) if k != index)
        kept = [second for second in seconds if second != ABSENT]
        assert (kept == sorted(kept)) == (prompts.info["order"][row] == laundry.KEPT)


@pytest.mark.parametrize("n_items", [3, 11, 20])
def test_choices_never_see_a_held_out_wording_and_each_wording_comes_in_both_orders(word_tokenizer, n_items):
    prompts = laundry.build_laundry(word_tokenizer, n_items)
    for half, names in ((laundry.SELECTION, laundry.wordings(False)), (laundry.HELD_OUT, laundry.wordings())):
        own = prompts.where(half=half)
        pairs = Counter(zip(own.info["wording"], own.info["order"]))
        assert len(own) == 125 and set(own.info["wording"]) == set(names)
        assert len(pairs) == 2 * len(names) and min(pairs.values()) > 5


def test_words_that_are_not_one_token_are_left_out(word_tokenizer, gpt2_tokenizer):
    assert len(load_words("objects", word_tokenizer, at_least=20)) == 60
    assert [len(load_words(kind, gpt2_tokenizer, 20)) for kind in WORD_LISTS[1:]] == [31, 180]
    with pytest.raises(TaskError):
        load_words("objects", word_tokenizer, at_least=61)
    with pytest.raises(TaskError, match="Hermenegildo"):
        check_one_token("Hermenegildo", gpt2_tokenizer)


def test_a_prompt_tokenizes_as_a_whole_as_gpt2_does(gpt2_tokenizer):
    """The ids that the weights' own README gives for a sentence of this kind."""
    text, spans = render("When {A} and {B} went to the store, {S} gave a drink to", {
        "A": [("IO", "Mary")], "B": [("S1", "John")], "S": [("S2", "John")]})  # fmt: skip
    prompt = PromptText(text, spans, "Mary", ("John",), {})
    prompts = encode([prompt], gpt2_tokenizer, Recipe("ioi", 1, 0, tokenizer_hash(gpt2_tokenizer), prefix=""))
    assert prompts.tokens[0].tolist() == [2215, 5335, 290, 1757, 1816, 284, 262, 3650, 11, 1757, 2921, 257, 4144, 284]
    assert [prompts.positions[name].item() for name in ("IO", "S1", "S2", "end")] == [1, 3, 9, 13]


def test_a_prefix_is_what_the_tokenizer_adds_in_front_or_what_is_asked_for(tokenizer):
    """bos or eos is never put there in silence; what is at the end is no prefix."""
    tokenizer = copy.deepcopy(tokenizer)
    bare = ioi.build_ioi(tokenizer, 4)
    assert tokenizer.bos_token and prefix_of(tokenizer) == bare.recipe.prefix == ""
    asked = ioi.build_ioi(tokenizer, 4, prefix=tokenizer.bos_token)
    add_prefix(tokenizer, tokenizer.bos_token)
    assert begin_ids(tokenizer) == [tokenizer.bos_token_id] and begin_ids(tokenizer, "") == []
    own = ioi.build_ioi(tokenizer, 4)
    assert own.recipe == asked.recipe and own.recipe.prefix == tokenizer.bos_token
    assert torch.equal(own.tokens, asked.tokens) and own.tokens[0].tolist() == tokenizer(own.texts[0]).input_ids
    assert torch.equal(own.tokens[:, 0], torch.full((4,), tokenizer.bos_token_id))
    assert own.tokens[0, 1:].tolist() == bare.tokens[0].tolist()
    assert all(torch.equal(own.positions[name], at + 1) for name, at in bare.positions.items())
    lists = laundry.build_laundry(tokenizer, 3, 4, prefix=2 * tokenizer.bos_token)
    assert lists.tokens[:, :2].eq(tokenizer.bos_token_id).all() and lists.positions["item_0 first"].min() > 2
    add_prefix(tokenizer, "")
    assert torch.equal(ioi.build_ioi(tokenizer, 4).tokens, bare.tokens)
    end = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = end
    assert len(tokenizer("Mary").input_ids) > 1 and prefix_of(tokenizer) == ""
    with pytest.raises(TaskError):
        ioi.build_ioi(tokenizer, 4, prefix=True)


def test_a_recipe_says_what_a_set_was_made_from(word_tokenizer):
    whole = laundry.build_laundry(word_tokenizer, 4, n_prompts=30)
    prompts = whole.where(half=laundry.HELD_OUT).select([3, 1])
    assert whole.recipe.rows is None and prompts.recipe.rows == (18, 16), "a choice of rows is part of the recipe"
    changed = ioi.build_ioi(word_tokenizer, 4, counterfactual="swap names").recipe
    assert changed.counterfactual == "swap names" and changed.drawn
    assert not ioi.build_ioi(word_tokenizer, prompts=ioi.draw_ioi(word_tokenizer, 2)).recipe.drawn


def test_a_choice_that_does_not_fit_is_one_clear_error(word_tokenizer):
    prompts = laundry.build_laundry(word_tokenizer, 4, 12)
    for keep in ([True, False], [True] * 13, [12], [-1], [], [0.5], ["a"], [[0, 1]], 3, slice("a", None)):
        with pytest.raises(TaskError):
            prompts.select(keep)


@pytest.mark.parametrize("given", [
    *(dict(n_items=n) for n in (2, 21, 3.0)), *(dict(seed=seed) for seed in (1.5, -1, True)),
    *(dict(n_prompts=n) for n in (6.5, 0)), dict(n_items=12, n_ctx=16), dict(n_prompts=30_000), dict(prefix="zzz"),
], ids=str)  # fmt: skip
def test_each_bad_request_for_lists_is_an_error(word_tokenizer, given):
    with pytest.raises(TaskError):
        laundry.build_laundry(word_tokenizer, **dict(n_items=3) | given)


def test_each_bad_ioi_prompt_is_an_error_that_names_it(word_tokenizer):
    drawn = ioi.draw_ioi(word_tokenizer, 2)[0]
    for changed, named in ((dict(io=drawn.s), "three"), (dict(place="zzzz"), "zzzz"), (dict(io="Hermes"), "Hermes")):
        with pytest.raises(TaskError, match=named):
            ioi.build_ioi(word_tokenizer, prompts=[dataclasses.replace(drawn, **changed)])
