"""Tasks in context with their twins, and answers of several tokens, on tiny random models with tokenizers made here."""

from dataclasses import replace
from pathlib import Path

import pytest
import rehearsals
import torch
from conftest import build_model

from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import tasks, whole, words
from talking_heads_utils.experiments.icl.asked import DRAWN, Examples, WordTask
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.models import load_model, load_tokenizer
from talking_heads_utils.prompts import relations
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.relations import ANOTHER, ITS_OWN, SHUFFLED, Relation, draw_words, encode_words
from talking_heads_utils.training.functions import number_tokenizer

LEFT_OUT = "Paris"  # which the tokenizer made here does not know
ODD = Relation("two words", (("dog cat", "dogs"), ("bird", "birds"), ("book", "books"), ("car", "cars")), 0)


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


def test_answers_are_right_but_where_labels_are_shuffled_and_pairs_are_asked_for_alike(tokenizer):
    """That halves are apart, and what controls show, is asked of every kind of task below."""
    mine, other = (relations.load_relation(name, tokenizer) for name in ("capitals", "plural"))
    right, given = dict(mine.pairs), dict(n=60, n_examples=5, half=HELD_OUT, seed=3)
    plain, again, shuffled = (draw_words(mine, **given, examples=kind) for kind in (ITS_OWN, ITS_OWN, SHUFFLED))
    another = draw_words(mine, **given, examples=ANOTHER, others=[other])
    assert plain == again != draw_words(mine, **given | dict(seed=4))
    assert all(right[q.x] == q.answer for q in (*plain, *shuffled, *another))
    assert all(right[x] == y for q in plain for x, y in q.pairs) and all(q.x not in dict(q.pairs) for q in plain)
    assert all(right[x] != y for q in shuffled for x, y in q.pairs)
    assert all(set(q.pairs) <= set(other.pairs) for q in another)
    asked = [q.x for q in plain]
    assert max(map(asked.count, asked)) - min(map(asked.count, set(asked))) <= 1
    for bad in (dict(n_examples=1, examples=SHUFFLED), dict(n_examples=60)):
        with pytest.raises(TaskError):
            draw_words(mine, 2, **{"half": HELD_OUT, **bad})


def test_positions_are_named_for_words_of_any_length(tokenizer):
    prompts = encode_words(draw_words(ODD, 4, 1, SELECTION), ODD, tokenizer, half=SELECTION)
    for i, text in enumerate(prompts.texts):
        at = {name: tokenizer.decode(prompts.tokens[i, places[i]]) for name, places in prompts.positions.items()}
        (x, y), asked = text.split("\n")[0].split(" -> "), text.split("\n")[1].removesuffix(" ->")
        assert at == dict(x_0=x.split()[-1], ask_0="->", y_0=y, x=asked.split()[-1], end="->")
        assert tokenizer.decode(prompts.answers[i]) == dict(ODD.pairs)[asked]
    assert prompts.candidates.shape == (4, 4) and len(set(prompts.candidates[0].tolist())) == 4


@pytest.fixture(scope="module")
def run(bridge, tokenizer):
    return Context("random", loaded=(bridge, tokenizer))


def test_one_pass_over_long_prompts_scores_short_ones(run, bridge, tokenizer, monkeypatch):
    """The table against plain runs of prompts of each length, which the table never makes."""
    some = [relations.load_relation(name, tokenizer) for name in ("plural", "comparative")]
    monkeypatch.setattr(relations, "load_relations", lambda tokenizer: some)
    monkeypatch.setattr(tasks, "WORD_COUNTS", (0, 2, 4, 60))
    table = frame(tasks.words(replace(run, seed=1)))
    assert table.groupby("examples").size().to_dict() == {ITS_OWN: 6, SHUFFLED: 4, ANOTHER: 4}
    for k in (2, 4):
        shuffled = draw_words(some[0], 32, k, HELD_OUT, examples=SHUFFLED, seed=1)
        assert not any(q.answer in dict(q.pairs).values() for q in shuffled), "nothing above a question answers it"
        prompts = encode_words(shuffled, some[0], tokenizer)
        with torch.no_grad():
            logits = bridge(prompts.tokens)[torch.arange(32), prompts.positions["end"]].gather(1, prompts.candidates)
        row = table.query("task == 'plural' and examples == @SHUFFLED and n_examples == @k").iloc[0]
        assert row["among"] == pytest.approx((logits[:, :1] > logits[:, 1:]).all(1).double().mean().item())
    drawn = draw_words(some[0], 32, 4, HELD_OUT, seed=1)
    for k in (0, 2, 4):
        hits = []
        for q in drawn:
            x = (*q.pairs, (q.x, q.answer))[k][0]
            short = relations.WordQuestion(q.pairs[:k], x, dict(some[0].pairs)[x])
            prompts = encode_words([short], some[0], tokenizer)
            with torch.no_grad():
                logits = bridge(prompts.tokens)[0, -1]
            hits.append(bool((logits[prompts.answers[0]] > logits[prompts.distractors[0]]).all()))
        row = table.query("task == 'plural' and examples == @ITS_OWN and n_examples == @k").iloc[0]
        assert row["among"] == pytest.approx(sum(hits) / 32) and row["chance"] == 1 / len(some[0].answers)
        assert row["low"] <= row["accuracy"] <= row["high"]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_whole_answers_equal_a_loop_over_tokens(family, digits):
    bridge, tokenizer = digits[0][family], digits[1]
    drawn = [q for k in (1, 2, 3) for q in whole.draw_questions((2, 3), 3, k, seed=k)]
    candidates = [[*whole.candidates_for(q)[:-2], 7, int(f"{q.answer}0")] for q in drawn]
    prompts, tokens = whole.encode_whole(drawn, candidates, tokenizer)
    assert {len(c) for row in tokens for c in row} >= {2, 3, 4} and len(prompts.mask.sum(1).unique()) > 2
    assert [tokenizer.decode(c).replace(" ", "") for c in tokens[0]] == [f"{c})" for c in candidates[0]]
    found = whole.answer_log_probs(bridge, prompts, tokens, batch=2)
    for i, row in enumerate(tokens):
        for j, candidate in enumerate(row):
            ids, total, greedy = prompts.tokens[i, prompts.mask[i]].tolist(), 0.0, True
            for token in candidate:
                with torch.no_grad():
                    logits = bridge(torch.tensor([ids]))[0, -1]
                total += logits.log_softmax(0)[token].item()
                greedy &= int(logits.argmax()) == token
                ids.append(token)
            assert found.log_prob[i, j].item() == pytest.approx(total, abs=2e-4) and greedy == bool(found.greedy[i, j])
    with pytest.raises(TaskError):
        whole.answer_log_probs(bridge, prompts, [*tokens[:-1], tokens[-1][:1]])


# --- what a model is asked ---


class NoModel:
    """As much of a model as asking needs."""

    class cfg:
        n_ctx = 512


def read_by(tokenizer, model="random"):
    return Context(model, loaded=(NoModel, tokenizer))


@pytest.fixture(scope="module")
def numbers():
    return read_by(number_tokenizer(tasks.REAL.n_numbers, 512))


@pytest.fixture(params=["words", "numbers", "toy"])
def asks(request, run, numbers):
    """Kind of task, and a context that asks it."""
    toy = lambda: read_by(load_tokenizer("mini-icl"), "mini-icl")  # noqa: E731
    return request.param, {"words": lambda: run, "numbers": lambda: numbers, "toy": toy}[request.param]()


def lines(prompts, row):
    """The examples and the question of a prompt as its tokens say them: named tokens alone."""
    at = {name: int(places[row]) for name, places in prompts.positions.items()}
    ids = prompts.tokens[row]
    n = sum(name.startswith("ask_") for name in at)
    return [(int(ids[at[f"x_{k}"]]), int(ids[at[f"y_{k}"]])) for k in range(n)], int(ids[at["x"]])


@pytest.mark.parametrize("half", [SELECTION, HELD_OUT])
def test_twins_differ_from_their_prompts_in_the_examples_alone(asks, half):
    kind, c = asks
    for task in tasks.candidates(c)[:2]:
        asked, again = (task.ask(c, 30, half, seed=seed) for seed in (0, 1))
        assert not torch.equal(asked.prompts.tokens, again.prompts.tokens)
        assert asked.prompts.tokens.shape == asked.twins.tokens.shape and asked.prompts.mask.all()
        assert all((at == at[0]).all() and (asked.twins.positions[name] == at).all()
                   for name, at in asked.prompts.positions.items())  # fmt: skip
        assert torch.equal(task.answers.ids[task.rights(asked.questions)[:, -1]], asked.right)
        for i in range(30):
            (mine, x), (other, twin_x) = lines(asked.prompts, i), lines(asked.twins, i)
            assert len(mine) == len(other) == task.n_examples == 10 and x == twin_x
            if kind == "words":
                assert x not in dict(mine) | dict(other) and not set(mine) & set(other)
            else:
                assert dict(mine).keys() == dict(other).keys() and sum(a != b for a, b in zip(mine, other)) >= 9
        for examples, n in ((Examples.NONE, 0), (Examples.SHUFFLED, 10), (Examples.ANOTHER, 10)):
            control = task.ask(c, 30, half, examples=examples)
            assert torch.equal(control.right, asked.right)
            assert [lines(control.prompts, i)[1] for i in range(30)] == [lines(asked.prompts, i)[1] for i in range(30)]
            assert len(lines(control.prompts, 0)[0]) == n
            if examples == Examples.ANOTHER:
                assert torch.equal(control.prompts.tokens, asked.twins.tokens)
            if examples == Examples.SHUFFLED:
                pairs = [(lines(control.prompts, i)[0], lines(asked.prompts, i)[0]) for i in range(30)]
                assert all(sorted(y for _, y in a) == sorted(y for _, y in b) and a != b for a, b in pairs)


def test_halves_share_no_pair_or_no_function(asks):
    kind, c = asks
    task = tasks.candidates(c)[0]
    halves = [task.ask(c, 60, half).questions for half in (SELECTION, HELD_OUT)]
    of = (lambda q: {q.function}) if kind == "toy" else lambda q: {q.x, *dict(q.pairs)}
    mine, other = ({one for q in questions for one in of(q)} for questions in halves)
    assert mine and other and not mine & other
    clusters = task.ask(c, 60, HELD_OUT).clusters
    assert len(clusters.unique()) == len({q.function if kind == "toy" else q.x for q in halves[1]})


@pytest.mark.parametrize("sees", [Examples.NONE, Examples.SHUFFLED])
def test_b_is_asked_for_another_x_by_the_same_task(asks, sees):
    kind, c = asks
    task = tasks.candidates(c)[0]
    asked = task.ask(c, 24, HELD_OUT)
    b = task.ask_b(c, asked, sees)
    assert len(b) == 24 and (b.right != asked.right).all()
    assert all(a.x != q.x for a, q in zip(asked.questions, b.questions))
    assert {len(q.pairs) for q in b.questions} == {0 if sees == Examples.NONE else 10}
    if kind == "words":
        right = dict(task.relation.pairs)
        assert all(q.answer == right[q.x] and all(right[x] != y for x, y in q.pairs) for q in b.questions)
    else:
        assert [q.function for q in asked.questions] == [q.function for q in b.questions]
        assert b.a_x.tolist() == [q.function[0] * q.x for q in b.questions]
        near = b.about(torch.stack([b.a_x, b.a_x + 1, b.a_x - 2], 1))
        assert near.tolist() == [[True, True, False]] * 24
    with pytest.raises(TaskError, match="not 'own'"):
        task.ask_b(c, asked, Examples.OWN)


# --- what it can do ---


def test_accuracy_is_that_of_plain_runs(run, bridge):
    task = tasks.task_named(run, "plural")
    found = frame(tasks.accuracy(run, task, HELD_OUT, 20))
    assert list(found["n_examples"]) == [0, 1, 2, 4, 10, 10, 10] and found["examples"].nunique() == 3
    for kind in (Examples.OWN, Examples.SHUFFLED, Examples.ANOTHER):
        asked = task.ask(run, 20, HELD_OUT, examples=kind)
        with torch.no_grad():
            logits = bridge(asked.prompts.tokens)[:, -1]
        among = (task.answers.ids[logits[:, task.answers.ids].argmax(1)] == asked.right).double().mean().item()
        row = found[(found["examples"] == DRAWN[kind]) & (found["n_examples"] == 10)].iloc[0]
        exact = (logits.argmax(1) == asked.right).double().mean().item()
        assert (row["among"], row["accuracy"]) == pytest.approx((among, exact))


def test_the_gate_wants_more_than_both_controls_and_chance(run):
    row = words.WordsRow("a", SELECTION, ITS_OWN, 10, 0.7, 0.6, 0.8, 0.7, 0.6, 0.8, 0.1, 64, 60, 0)
    shuffled, another = (replace(row, examples=kind, low=0.1, high=0.5) for kind in (SHUFFLED, ANOTHER))
    few = replace(shuffled, n_examples=4, high=0.9)
    assert tasks.low_end("a", [few, row, shuffled, another]) == 0.6
    for bad in (replace(shuffled, high=0.6), replace(another, high=0.65), replace(row, chance=0.4),
                replace(row, low=0.5), replace(row, half=HELD_OUT)):  # fmt: skip
        rows = {row.examples: row for row in (row, shuffled, another)} | {bad.examples: bad}
        assert tasks.low_end("a", list(rows.values())) is None
    assert tasks.low_end("a", [row, shuffled]) is None and tasks.low_end("b", [row, shuffled, another]) is None


def test_one_prompt_is_shown_with_what_the_model_says(run, bridge, monkeypatch):
    monkeypatch.setattr(tasks, "tasks", lambda c: tasks.candidates(c)[:4])
    shown = tasks.run_shown(run)
    assert len(shown) == 3 * 4 * 5 and len({row.task for row in shown}) == 3
    ids = run.tokenizer(shown[0].prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        most = bridge(ids)[0, -1].softmax(-1).topk(5)
    assert [row.token for row in shown[:5]] == [run.tokenizer.decode([i]) for i in most.indices.tolist()]
    assert [row.probability for row in shown[:5]] == pytest.approx(most.values.tolist(), rel=1e-4)
    assert len({row.right for row in shown if row.task == shown[0].task}) == 1


# --- bad input ---


def test_a_tokenizer_that_splits_everything_leaves_nothing_to_ask(digits):
    with pytest.raises(NotApplicable, match="nothing in context: its tokenizer splits the numbers"):
        tasks.tasks(read_by(digits[1]))
    with pytest.raises(NotApplicable, match="mini-token never saw a number"):
        tasks.tasks(read_by(load_tokenizer("mini-token"), "mini-token"))


def test_more_examples_than_pairs_and_unequal_prompts(run, numbers, tokenizer):
    for c in (run, numbers):
        for bad, says in ((dict(n_examples=60), "60 examples|61 pairs"), (dict(n_examples=-1), "n_examples"),
                          (dict(n_examples=1, examples=Examples.SHUFFLED), "shuffled")):  # fmt: skip
            with pytest.raises(TaskError, match=says):
                tasks.candidates(c)[0].ask(c, 4, HELD_OUT, **bad)
    task = WordTask(
        "two words", words.answers_of(ODD, tokenizer), 1, ODD, (relations.load_relation("plural", tokenizer),)
    )
    with pytest.raises(TaskError, match="two words: this tokenizer reads some prompts or twins in more tokens"):
        task.ask(run, 4, SELECTION)


FUNCTIONS = ["y = 2x + 3", "y = x + 3"]


@pytest.mark.parametrize("digits", [False, True])
def test_a_llama_is_asked_for_numbers_and_words_or_for_words_alone(digits, gpt2_source, tmp_path, monkeypatch):
    if not Path(gpt2_source).is_dir():
        pytest.skip("GPT-2's tokenizer is in no folder; set TALKING_HEADS_GPT2")
    folder = rehearsals.tiny("llama", tmp_path / "llama", Path(gpt2_source), digits=digits)
    assert len(list(folder.glob("*.safetensors"))) > 1
    c = Context(str(folder), quick=True, dtype=torch.bfloat16)
    assert c.bridge.cfg.dtype == torch.bfloat16
    names = [task.name for task in tasks.candidates(c)]
    assert [name for name in names if name in FUNCTIONS] == ([] if digits else FUNCTIONS) and "next_number" in names
    few = [task for task in tasks.candidates(c) if task.name in (*FUNCTIONS, "french", "next_number", "plural")]
    monkeypatch.setattr(tasks, "candidates", lambda c: few)
    names, table = [task.name for task in few], frame(tasks.run_tasks(c))
    assert list(dict.fromkeys(table["task"])) == names and table["low"].notna().all()
    c.finished = {"tasks": table}.get
    with pytest.raises(NotApplicable, match=f"of {len(names)} tasks"):
        tasks.tasks(c)
    monkeypatch.setattr(tasks, "low_end", lambda name, measured: len(name))
    asked = tasks.tasks(c)
    assert len(asked) == len(few) and (digits or [task.name for task in asked[:2]] == FUNCTIONS)
    assert len(tasks.run_shown(c)) == 3 * 4 * 5
    first = asked[0].ask(c, 8, HELD_OUT)
    assert (first.numbers is None) == digits
    if not digits:
        assert [int(c.tokenizer.decode([token])) for token in first.right] == [2 * q.x + 3 for q in first.questions]
