"""Prompts of one's own: tokens, positions and answers by hand; one clear error for each bad request."""

import pandas as pd
import pytest
import torch

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts import from_texts
from talking_heads_utils.prompts.sets import ABSENT

MARY, ANN = "When Mary and John met, John gave it to", "Ann met Bob. Bob gave it to "
YEAR = "The war lasted from the year 1732 to the year 17"


def pieces(tokenizer, ids):
    return [tokenizer.decode([token]) for token in ids.tolist() if token != ABSENT]


def test_positions_and_answers_by_hand(gpt2_tokenizer):
    positions = {
        "S2": [("John", 1), ("Bob", -1)],
        "pair": lambda text: "Mary and" if "Mary" in text else None,
    }
    prompts = from_texts(
        [MARY, ANN],
        ["Mary", ["Ann", "Anna"]],
        [["John"], ["Bob", "Paris", "London"]],
        gpt2_tokenizer,
        positions=positions | {"met": [(19, 22), "met"]},
        info={"who": ["a", "b"]},
    )
    rows = [pieces(gpt2_tokenizer, row[mask]) for row, mask in zip(prompts.tokens, prompts.mask)]
    assert rows[0] == ["When", " Mary", " and", " John", " met", ",", " John", " gave", " it", " to"]
    assert rows[1] == ["Ann", " met", " Bob", ".", " Bob", " gave", " it", " to"], "the last space is the answer's"
    at = {name: index.tolist() for name, index in prompts.positions.items()}
    assert at == {"S2": [6, 4], "pair": [2, ABSENT], "met": [4, 1], "end": [9, 7]}
    assert [pieces(gpt2_tokenizer, row) for row in prompts.right] == [[" Mary"], [" Ann", " Anna"]]
    assert [pieces(gpt2_tokenizer, row) for row in prompts.distractors] == [[" John"], [" Bob", " Paris", " London"]]
    assert prompts.texts == [MARY, ANN.rstrip()] and prompts.recipe.task == "texts" and not prompts.recipe.drawn
    second = prompts.where(who="b")
    assert torch.equal(second.right, prompts.right[1:]) and second.positions["S2"].tolist() == [4]


@pytest.mark.parametrize(("text", "answers", "wrong", "last", "right", "others"), [
    (YEAR, ["33", "34"], ["14", "15"], " 17", ["33", "34"], ["14", "15"]),  # no space between digits
    ("It is", "New York", "New Jersey", " New", [" York"], [" Jersey"]),  # what they share is asked for
    ("It is", "New York", None, " is", [" New"], []),  # nothing to part from
    ("It is", ["New York", "Boston"], "Paris", " is", [" New", " Boston"], [" Paris"]),
    ("He said:", " yes", "no", ":", [" yes"], [" no"]),  # a space of one's own is not doubled
    ("f(", "x", "y", "(", ["x"], ["y"]), ("A\n", "B", "C", "\n", ["B"], ["C"]),
])  # fmt: skip
def test_answers_stand_as_they_follow_the_text(gpt2_tokenizer, text, answers, wrong, last, right, others):
    prompts = from_texts([text], [answers], None if wrong is None else [wrong], gpt2_tokenizer)
    found = (pieces(gpt2_tokenizer, ids[0]) for ids in (prompts.tokens, prompts.right, prompts.distractors))
    assert next(found)[-1] == last and list(found) == [right, others]
    assert gpt2_tokenizer.decode(prompts.tokens[0]) == prompts.texts[0]


def test_without_added_space_answers_stand_as_written(gpt2_tokenizer):
    answers = pd.Series(["Paris"], index=["any"])
    prompts = from_texts(("It is",), answers, None, gpt2_tokenizer, add_space=False)
    assert pieces(gpt2_tokenizer, prompts.right[0]) == ["Paris"]
    kana = from_texts(["日本の首都は"], ["東京"], ["京都"], gpt2_tokenizer, positions={"Japan": ["日本"]})
    assert " " not in gpt2_tokenizer.decode(kana.right[0]) and kana.positions["Japan"].tolist() == [3]


def test_a_prefix_moves_positions(word_tokenizer):
    given = (["When Mary and John"], ["Mary"], ["John"], word_tokenizer)
    bare, behind = (from_texts(*given, positions={"IO": ["Mary"]}, prefix=prefix) for prefix in ("", "<bos>"))
    assert torch.equal(behind.tokens[:, 1:], bare.tokens) and behind.tokens[0, 0] == word_tokenizer.bos_token_id
    assert behind.positions["IO"].tolist() == [2] and bare.positions["IO"].tolist() == [1]


ONE = dict(texts=[MARY], answers=["Mary"], wrong=["John"])
BAD = {
    "other number": (dict(answers=["Mary", "Ann"]), "1 texts, but 2 for answers"),
    "one string": (dict(wrong="John"), "one string for wrong answers"),
    "no texts": (dict(texts=[], answers=[]), "one text or more"),
    "empty text": (dict(texts=[""]), "Text 0 is empty"),
    "blank text": (dict(texts=[" "]), "No token stands before the answer in prompt 0"),
    "empty answer": (dict(answers=[[]]), "Prompt 0 needs one answer or more"),
    "equal": (dict(wrong=["Mary"]), "'Mary' is both .* prompt 0"),
    "equal tokens": (dict(wrong=[" Mary"]), "begin those of ' Mary' in prompt 0"),
    "prefix": (dict(answers=["New"], wrong=["New York"]), "'New' begin those of 'New York'"),
    "same first": (dict(answers=["New York"], wrong=[["New Jersey", "Rome"]]), "same token in prompt 0"),
    "joined": (dict(texts=["He is th"], answers=["e"], wrong=["y"], add_space=False), "splits the end of prompt 0"),
    "twice": (dict(positions={"S": ["John"]}), "'S' of prompt 0 .* occurs 2 times"),
    "nowhere": (dict(positions={"S": ["Bob"]}), "'S' of prompt 0 .* occurs 0 times"),
    "too late": (dict(positions={"S": [("John", 2)]}), "so not at 2"),
    "outside": (dict(positions={"S": [(3, 300)]}), r"not \(3, 300\)"),
    "in the answer": (dict(texts=["Ann "], positions={"S": [(3, 4)]}), "No token covers position 'S' in prompt 0"),
    "shared": (dict(positions={"a": ["Mary and"], "b": ["and"]}), "'a' and 'b' share the token ' and' in prompt 0"),
    "end": (dict(positions={"end": ["Mary"]}), "'end' is always there"),
    "few positions": (dict(positions={"S": []}), "'S' needs one entry for each of 1 texts"),
    "few info": (dict(info={"a": []}), "'a' has 0 values for 1 texts"),
    "too long": (dict(n_ctx=3), "Prompt 0, of 10 tokens, does not fit"),
}


@pytest.mark.parametrize(("changed", "message"), BAD.values(), ids=BAD)
def test_each_bad_request_is_one_error_that_names_the_first_offender(gpt2_tokenizer, changed, message):
    with pytest.raises(TaskError, match=message):
        from_texts(**ONE | changed, tokenizer=gpt2_tokenizer)


def test_words_that_the_tokenizer_does_not_know(word_tokenizer):
    with pytest.raises(TaskError, match="does not know 'Zzyx' in prompt 1"):
        from_texts(["When Mary", "When Zzyx"], ["John"] * 2, None, word_tokenizer)
