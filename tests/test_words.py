"""In-context tasks of words and answers of several tokens, on tiny random models with tokenizers made here."""

from dataclasses import replace

import pytest
import torch
from conftest import build_model
from talking_heads_utils.experiments.icl.known import ANSWER, BACKUP, two_heads
from talking_heads_utils.experiments.icl.pairing import NO_EXAMPLES, OTHER_FUNCTION, RANDOM_PAIRS
from talking_heads_utils.experiments.icl.task import CHOOSES, N_EXAMPLES, Task

from talking_heads_utils.errors import NotApplicable, TaskError, UnsupportedModelError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.gate import AT_LEAST
from talking_heads_utils.experiments.icl import curves, patching, study, whole, words
from talking_heads_utils.experiments.icl.answers import answer_log_probs
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.models import load_model
from talking_heads_utils.prompts import relations
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.relations import ANOTHER, ITS_OWN, SHUFFLED, Relation, draw_words, encode_words
from talking_heads_utils.prompts.sets import PromptSet, Recipe

LEFT_OUT = "Paris"  # which the tokenizer made here does not know


def tokenizer_of(pieces, splits):
    """A tokenizer of whole words, or of single characters where ``splits``; every token has its place in the text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({p: i for i, p in enumerate(["<s>", *pieces])}, unk_token="<s>"))
    pattern = Regex(r"\n|[(),]| ?\d" if splits else r"\n|[^\s]+")
    made.pre_tokenizer = pre_tokenizers.Split(pattern, "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<s>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def vocabulary():
    pairs = [line.split("\t") for name in relations.relation_names() for line in path(name).splitlines()]
    return sorted({"->", "\n"} | {word for pair in pairs for word in pair} - {LEFT_OUT})


def path(name):
    return (relations.data_dir() / "prompts" / "relations" / f"{name}.tsv").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return tokenizer_of(vocabulary, splits=False)


@pytest.fixture(scope="module")
def bridge(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "llama"
    build_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Models of three families whose tokenizer splits numbers, as SmolLM2's does; the tokenizer."""
    pieces = ["\n", "(", ")", ",", *(f"{space}{d}" for d in range(10) for space in ("", " "))]
    made, found = tokenizer_of(pieces, splits=True), {}
    for family in ("llama", "gpt_neox"):
        folder = tmp_path_factory.mktemp("digits") / family
        build_model(family, len(made)).save_pretrained(folder)
        made.save_pretrained(folder)
        found[family] = load_model(folder)
    return found, made


@pytest.mark.parametrize("name", relations.relation_names())
def test_pairs_are_many_different_and_unambiguous(name, tokenizer):
    pairs = [tuple(line.split("\t")) for line in path(name).splitlines()]
    assert len(pairs) >= 40 and all(len(pair) == 2 and pair[0].strip() == pair[0] != "" for pair in pairs)
    xs, ys = zip(*pairs)
    assert len(set(xs)) == len(xs) and not set(xs) & set(ys)
    by_rule = {"first_letter": lambda x: x[0], "upper_case": str.upper}.get(name)
    assert len(set(ys)) == len(ys) if name != "first_letter" else True
    assert by_rule is None or all(by_rule(x) == y for x, y in pairs)
    kept = relations.load_relation(name, tokenizer)
    assert kept.left_out == (name == "capitals") and len(kept.pairs) + kept.left_out == len(pairs)
    assert LEFT_OUT not in kept.answers


def test_halves_share_no_pair_and_controls_are_what_they_say(tokenizer):
    mine, other = (relations.load_relation(name, tokenizer) for name in ("capitals", "plural"))
    right, seen = dict(mine.pairs), {}
    for half in (SELECTION, HELD_OUT):
        plain = draw_words(mine, 60, 5, half, seed=3)
        shuffled = draw_words(mine, 60, 5, half, examples=SHUFFLED, seed=3)
        another = draw_words(mine, 60, 5, half, examples=ANOTHER, others=[other], seed=3)
        assert all(right[x] == y for q in plain for x, y in (*q.pairs, (q.x, q.answer)))
        assert all(q.x not in dict(q.pairs) for q in plain)
        for q in shuffled:
            assert sorted(right[x] for x, _ in q.pairs) == sorted(y for _, y in q.pairs) and right[q.x] == q.answer
            assert all(right[x] != y for x, y in q.pairs)
        assert all(set(q.pairs) <= set(other.pairs) and right[q.x] == q.answer for q in another)
        seen[half] = {x for q in plain for x in (*dict(q.pairs), q.x)}
        asked = [q.x for q in plain]
        assert max(map(asked.count, asked)) - min(map(asked.count, set(asked))) <= 1
    assert seen[SELECTION] and not seen[SELECTION] & seen[HELD_OUT]
    assert draw_words(mine, 5, 3, HELD_OUT, seed=1) == draw_words(mine, 5, 3, HELD_OUT, seed=1)
    assert draw_words(mine, 5, 3, HELD_OUT, seed=1) != draw_words(mine, 5, 3, HELD_OUT, seed=2)
    for bad in (dict(n_examples=1, examples=SHUFFLED), dict(n_examples=60)):
        with pytest.raises(TaskError):
            draw_words(mine, 2, **{"half": HELD_OUT, **bad})


def test_positions_are_named_for_words_of_any_length(tokenizer):
    relation = Relation("two words", (("dog cat", "dogs"), ("bird", "birds"), ("book", "books"), ("car", "cars")), 0)
    prompts = encode_words(draw_words(relation, 4, 1, SELECTION), relation, tokenizer, half=SELECTION)
    for i, text in enumerate(prompts.texts):
        at = {name: tokenizer.decode(prompts.tokens[i, places[i]]) for name, places in prompts.positions.items()}
        (x, y), asked = text.split("\n")[0].split(" -> "), text.split("\n")[1].removesuffix(" ->")
        assert at == dict(x_0=x.split()[-1], ask_0="->", y_0=y, x=asked.split()[-1], end="->")
        assert tokenizer.decode(prompts.answers[i]) == dict(relation.pairs)[asked]
    assert prompts.candidates.shape == (4, 4) and len(set(prompts.candidates[0].tolist())) == 4


@pytest.fixture(scope="module")
def run(bridge, tokenizer):
    return Context("random", loaded=(bridge, tokenizer))


def test_one_pass_over_long_prompts_scores_short_ones(run, bridge, tokenizer):
    """The table against plain runs of prompts of each length, which the table never makes."""
    some = [relations.load_relation(name, tokenizer) for name in ("plural", "comparative")]
    table = frame(words.words(replace(run, seed=1), 20, (0, 2, 4), relations=some))
    assert table.groupby("examples").size().to_dict() == {ITS_OWN: 6, SHUFFLED: 4, ANOTHER: 4}
    for k in (2, 4):
        shuffled = draw_words(some[0], 20, k, HELD_OUT, examples=SHUFFLED, seed=1)
        assert not any(q.answer in dict(q.pairs).values() for q in shuffled), "nothing above a question answers it"
        prompts = encode_words(shuffled, some[0], tokenizer)
        with torch.no_grad():
            logits = bridge(prompts.tokens)[torch.arange(20), prompts.positions["end"]].gather(1, prompts.candidates)
        row = table.query("task == 'plural' and examples == @SHUFFLED and n_examples == @k").iloc[0]
        assert row["among"] == pytest.approx((logits[:, :1] > logits[:, 1:]).all(1).double().mean().item())
    drawn = draw_words(some[0], 20, 4, HELD_OUT, seed=1)
    for k in (0, 2, 4):
        hits = []
        for q in drawn:
            x = (*q.pairs, (q.x, q.answer))[k][0]
            short = relations.WordQuestion(q.pairs[:k], x, dict(some[0].pairs)[x])
            prompts = relations.encode_words([short], some[0], tokenizer)
            with torch.no_grad():
                logits = bridge(prompts.tokens)[0, -1]
            hits.append(bool((logits[prompts.answers[0]] > logits[prompts.distractors[0]]).all()))
        row = table.query("task == 'plural' and examples == @ITS_OWN and n_examples == @k").iloc[0]
        assert row["among"] == pytest.approx(sum(hits) / 20) and row["chance"] == 1 / len(some[0].answers)
        assert row["low"] <= row["accuracy"] <= row["high"]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_whole_answers_equal_a_loop_over_tokens(family, digits):
    bridge, tokenizer = digits[0][family], digits[1]
    drawn = [q for k in (1, 2, 3) for q in whole.draw_questions((2, 3), 3, k, seed=k)]
    candidates = [[*whole.candidates_for(q)[:-2], 7, int(f"{q.answer}0")] for q in drawn]
    prompts, tokens = whole.encode_whole(drawn, candidates, tokenizer)
    assert {len(c) for row in tokens for c in row} >= {2, 3, 4} and len(prompts.mask.sum(1).unique()) > 2
    assert [tokenizer.decode(c).replace(" ", "") for c in tokens[0]] == [f"{c})" for c in candidates[0]]
    found = answer_log_probs(bridge, prompts, tokens, batch=2)
    best = []
    for i, row in enumerate(tokens):
        for j, candidate in enumerate(row):
            ids, total, greedy = prompts.tokens[i, prompts.mask[i]].tolist(), 0.0, True
            for token in candidate:
                with torch.no_grad():
                    logits = bridge(torch.tensor([ids]))[0, -1]
                total += logits.log_softmax(0)[token].item()
                greedy &= int(logits.argmax()) == token
                ids.append(token)
            assert found.log_prob[i, j].item() == pytest.approx(total, abs=2e-4)
            best.append(greedy == bool(found.greedy[i, j]))
    assert all(best)
    with pytest.raises(TaskError):
        answer_log_probs(bridge, prompts, [*tokens[:-1], tokens[-1][:1]])


def test_a_model_without_kept_keys_scores_single_tokens_alone():
    bridge, recipe = two_heads(BACKUP), Recipe("two heads", 1, 0, "")
    tokens, end, answers = torch.tensor([[1, 0]]), torch.tensor([1]), torch.tensor([ANSWER])
    none = torch.zeros(1, 0, dtype=torch.long)
    prompts = PromptSet(tokens, torch.ones_like(tokens).bool(), {"end": end}, answers, none, [""], {}, recipe)
    found = answer_log_probs(bridge, prompts, [[[ANSWER], [2]]])
    assert found.greedy.tolist() == [[True, False]] and (found.log_prob[0, 0] - found.log_prob[0, 1]).item() > 10
    with pytest.raises(UnsupportedModelError):
        answer_log_probs(bridge, prompts, [[[ANSWER, 2], [2]]])


def test_an_answer_that_greedy_decoding_writes_is_told(digits):
    bridge, tokenizer = digits[0]["llama"], digits[1]
    drawn = whole.draw_questions((1, 3), 2, 2, seed=0)
    prompts, _ = whole.encode_whole(drawn, [[q.answer] for q in drawn], tokenizer)
    written = []
    for row, mask in zip(prompts.tokens, prompts.mask):
        ids = row[mask].tolist()
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(bridge(torch.tensor([ids]))[0, -1].argmax()))
        written.append([ids[-3:], [ids[-3], (ids[-2] + 1) % len(tokenizer), ids[-1]]])
    assert answer_log_probs(bridge, prompts, written).greedy.tolist() == [[True, False]] * 2


def test_the_table_of_functions_has_its_controls(digits):
    run = Context("random", loaded=(digits[0]["llama"], digits[1]))
    table = frame(whole.functions(run, some=((1, 3),), counts=(1, 2), n=4))
    assert list(zip(table["examples"], table["n_examples"])) == [
        (whole.NONE, 0), (ITS_OWN, 1), (ITS_OWN, 2), (SHUFFLED, 2),
    ]  # fmt: skip
    assert set(table["chance"]) == {1 / 8} and set(table["function"]) == {"y = x + 3"}


@pytest.fixture(scope="module")
def asked(run, tokenizer):
    """A context and a task as :func:`task_of` makes it, of a model that is too random to pass the gate."""
    gate = words.gate(run, N_EXAMPLES, n=20)
    assert len(gate) == 9 and not all(row.low >= AT_LEAST * row.chance for row in gate)
    mine, other = (relations.load_relation(name, tokenizer) for name in ("plural", "past_tense"))
    return run, Task(mine.name, words.answers_of(mine, tokenizer), relation=mine, others=(other,))


def test_a_task_is_chosen_by_the_gate(asked):
    row = words.gate(asked[0], N_EXAMPLES, n=20)[0]
    gate = [replace(row, task=task, low=low, chance=0.4) for task, low in (("a", 0.59), ("b", 0.61), ("c", 0.7))]
    assert words.best_of(gate, "m") == "c"
    with pytest.raises(NotApplicable):
        words.best_of(gate[:1], "m")
    selection = set(asked[1].relation.half(SELECTION))
    chosen, scored = (asked[1].draw(9, part=part).questions for part in (CHOOSES, 3))
    assert all({*q.pairs, (q.x, q.answer)} <= selection for q in chosen)
    assert not any({*q.pairs, (q.x, q.answer)} & selection for q in scored)


def test_chapter_4_runs_on_words(asked):
    accuracy = study.accuracy(*asked, 20)
    assert {row.group for row in accuracy} == {SELECTION, HELD_OUT} and {row.task for row in accuracy} == {"plural"}
    strong = study.strongest(*asked, 3, n=6)
    assert len(study.pairs(*asked, strong, n=6)) == 6
    assert max(row.out for row in study.removal(*asked, n=6, n_random=1, most=2)) == 2
    assert len(study.backups(*asked, strong, n=6, n_random=1)) == 18
    parts = study.layers_out(*asked, 20)
    assert len(parts) == 7 and all(row.parity is None for row in parts)
    assert all(row.to_y > 0 for row in study.looks_back(*asked, 6))
    assert study.additivity(*asked, 6, (1, 2))[0].ratio == pytest.approx(1, abs=1e-5)
    laws = curves.fit_laws(study.belief(*asked, 6), 8)
    assert {row.law for row in laws} == set(curves.LAWS) - {curves.BAYES}
    for measure in (patching.post_patches, study.probes):
        with pytest.raises(NotApplicable):
            measure(*asked)


@pytest.mark.parametrize("b", [NO_EXAMPLES, RANDOM_PAIRS, OTHER_FUNCTION])
def test_words_are_patched_into_another_question(asked, b):
    pairing, _ = asked[1].pairing(12, b)
    assert all(mine.answer != its.answer for mine, its in zip(pairing.a, pairing.b))
    right = dict(asked[1].relation.pairs)
    wrong = {NO_EXAMPLES: 0, RANDOM_PAIRS: 12, OTHER_FUNCTION: 12}[b]
    assert all(sum(right.get(x) != y for x, y in q.pairs) == wrong for q in pairing.b)
    rows = patching.patches(*asked, {}, n=12, b=b)
    (of_a,) = (row for row in rows if row.run == patching.A)
    assert of_a.copied == 1 and all(row.about is None for row in rows)
