"""Two labels in context: sequences, simulated readers whose nature is known, tables, contributions that add or not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from conftest import build_model

from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.experiments import rules
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import additivity, evidence, measures
from talking_heads_utils.experiments.icl import sequences as drawn
from talking_heads_utils.experiments.icl.additivity import changed, contributions, enough, sum_rows
from talking_heads_utils.experiments.icl.readers import Reader, features, simulated, without_bias
from talking_heads_utils.experiments.icl.sequences import ANIMALS, FRUITS, Sequences, draw, encode
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.verdicts import Verdict
from talking_heads_utils.models import load_model


@pytest.fixture(scope="module")
def sequences():
    return draw(seed=3)


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<bos>", "->", "A", "B", "no", "yes", *ANIMALS, *FRUITS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<bos>", eos_token="<bos>")


@pytest.fixture(scope="module", params=("gpt2", "llama"))
def tiny(request, tmp_path_factory):
    """A random model of the words, and its tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    build_model(request.param, vocab_size=100).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return load_model(folder), word_tokenizer()


# --- sequences ---


def test_sequences_are_balanced_and_their_orders_hold_the_same_examples(sequences):
    assert sequences.kinds.shape == (500, 5, 33)
    assert (sequences.kinds[..., :-1].sum(-1) == 16).all()  # as many of either kind
    lines = sequences.words + 100 * sequences.kinds
    assert (lines[:, 0].sort(1).values.diff(dim=1) > 0).all()  # no word twice
    assert (lines[..., -1] == lines[:, :1, -1]).all()
    shown = torch.stack([lines[..., :-1], sequences.labels], -1).flatten(-2).unflatten(-1, (-1, 2))
    keys = (10 * shown[..., 0] + shown[..., 1]).sort(-1).values
    assert (keys == keys[:, :1]).all() and (lines[:, 0] != lines[:, 1]).any()
    for flip in drawn.FLIPS:
        against = (sequences.sides[(sequences.flip - flip).abs() < 1e-6, 0] == -1).float().mean()
        assert abs(against - flip) < 0.02
    for pair in product((0, 1), (0, 1)):
        alike = (sequences.rule == pair[0]) & (sequences.kinds[:, 0, -1] == pair[1])
        assert 120 <= alike.sum() <= 130


def test_one_sequence_by_hand():
    one = Sequences(torch.tensor([0.1]), torch.tensor([1]), torch.tensor([[[0, 1, 0, 1]]]),
                    torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[1, 1, 0]]]))  # fmt: skip
    assert one.right.tolist() == [[[1, 0, 1, 0]]]  # by rule 1 the second label belongs to the first kind
    assert one.sides.tolist() == [[[1, -1, -1]]] and one.signed.tolist() == [[[0, 1, 0, -1]]]
    prompts = encode(one, ("A", "B"), word_tokenizer())
    assert prompts.texts == [f" {ANIMALS[0]} -> B\n {FRUITS[0]} -> B\n {ANIMALS[1]} -> A\n {FRUITS[1]} ->"]


@pytest.mark.parametrize(
    "error, options",
    [(TaskError, dict(n=0)), (TaskError, dict(n_shown=1)), (TaskError, dict(n_orders=0)), (TaskError, dict(seed=-1)),
     (NotApplicable, dict(n_shown=40))],
)  # fmt: skip
def test_sequences_that_cannot_be_drawn(error, options):
    with pytest.raises(error):
        draw(**{"n": 2, **options})


def test_log_odds_are_those_of_the_models_own_logits(tiny):
    bridge, tokenizer = tiny
    some = draw(2, flips=(0.2, 0.4), n_shown=6, n_orders=2, seed=1)
    found = drawn.log_odds(bridge, tokenizer, some, ("A", "B"), batch=3)
    for i, o in product(range(4), range(2)):
        text = encode(some.of(torch.tensor([i])), ("A", "B"), tokenizer).texts[o]
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        logits = bridge(ids)[0].double()
        a, b = (tokenizer.convert_tokens_to_ids(label) for label in "AB")
        for q in range(7):
            sign = 1 if some.right[i, o, q] == 0 else -1
            by_hand = sign * (logits[3 * q + 1, a] - logits[3 * q + 1, b])
            assert found[i, o, q].item() == pytest.approx(by_hand.item(), abs=1e-4)
    last = drawn.log_odds(bridge, tokenizer, some, ("A", "B"), only_last=True)
    assert torch.allclose(last, found[..., -1:], atol=1e-4)


# --- readers ---


@pytest.mark.parametrize("reader, parameter", [
    (Reader.EXACT, 0), (Reader.SATURATION, 4.0), (Reader.RECENCY, 2.0), (Reader.LAST, 0), (Reader.LAST, 1),
    (Reader.COUNT, 0),
])  # fmt: skip
def test_readers_by_hand(reader, parameter):
    some = draw(3, n_shown=8, n_orders=2, seed=5)
    found = features(reader, parameter, some)
    for i, o, q in product(range(len(some)), range(2), range(9)):
        sides, kinds = some.sides[i, o, :q].tolist(), some.kinds[i, o].tolist()
        w = np.log(1 / some.flip[i].item() - 1)
        alike = [side for side, kind in zip(sides, kinds) if kind == kinds[q] or not parameter]
        by_hand = {
            Reader.EXACT: w * sum(sides),
            Reader.SATURATION: 4 * np.tanh(w * sum(sides) / 4),
            Reader.RECENCY: w * sum(side * 0.5 ** ((q - k) / 2) for k, side in enumerate(sides)),
            Reader.LAST: alike[-1] if alike else 0,
            Reader.COUNT: np.sign(sum(sides)) * q,
        }[reader]
        assert found[i, o, q].item() == pytest.approx(by_hand, abs=1e-5)


OTHERS = ((Reader.SATURATION, 8.0), (Reader.SATURATION, 32.0), (Reader.RECENCY, 4.0), (Reader.RECENCY, 8.0),
          (Reader.LAST, 0.0), (Reader.LAST, 1.0), (Reader.COUNT, 0.0))  # fmt: skip


def judged(sequences, reader, noise=0.2, **options):
    log_odds = simulated(reader, sequences, noise, seed=1, scale=0.05, **options)
    return rules.EVIDENCE(measures.evidence(frame(evidence.slope_rows("", "", log_odds, sequences, n_boot=300))))


def test_the_exact_reader_passes_the_rule_and_the_others_fail(sequences):
    assert judged(sequences, Reader.EXACT) == Verdict.SUPPORTED
    for reader, parameter in OTHERS:
        assert judged(sequences, reader, parameter=parameter) == Verdict.NOT_SUPPORTED, reader


@pytest.mark.parametrize("reader, parameter", [
    (Reader.EXACT, None), (Reader.SATURATION, 8.0), (Reader.RECENCY, 4.0), (Reader.LAST, 1.0), (Reader.COUNT, None),
])  # fmt: skip
def test_each_reader_is_told_from_the_others(sequences, reader, parameter):
    log_odds = simulated(reader, sequences, 0.2, seed=1, scale=0.05, parameter=parameter or 0)
    rows = {row.reader: row for row in evidence.reader_rows("", "", log_odds, sequences, n_boot=300)}
    assert max(rows.values(), key=lambda row: row.explained).reader == reader
    assert rows[reader].parameter == parameter and rows[reader].slope == pytest.approx(0.05, rel=0.1)
    assert reader == Reader.EXACT or rows[reader].beyond_low > 0


def test_slopes_and_curvature_are_those_of_least_squares(sequences):
    log_odds = simulated(Reader.SATURATION, sequences, 0.3, seed=2, parameter=16.0)
    y = without_bias(log_odds, sequences)[..., -1].mean(1).numpy()
    E = sequences.signed[:, 0, -1].double().numpy()
    rates = sequences.flip.unique()
    by_rate = np.stack([E * (sequences.flip == flip).numpy() for flip in rates], 1)
    rows = evidence.slope_rows("", "", log_odds, sequences, n_boot=100)
    assert [row.flip for row in rows] == [*drawn.FLIPS, 0.0]
    slopes = np.linalg.lstsq(by_rate, y, rcond=None)[0]
    assert [row.slope for row in rows] == pytest.approx([*slopes, slopes.mean()])
    bends = np.linalg.lstsq(np.concatenate([by_rate, (E * abs(E))[:, None]], 1), y, rcond=None)[0]
    assert rows[-1].curvature == pytest.approx(bends[-1]) and rows[-1].curvature_high < 0
    rise = np.polyfit(np.log(1 / np.array(drawn.FLIPS) - 1), slopes, 1)[0]
    assert rows[-1].follows == pytest.approx(rise, rel=1e-5) and rows[0].follows is None


# --- contributions ---


@pytest.fixture(scope="module")
def few():
    some = draw(60, flips=additivity.RATES, n_orders=1, seed=3)
    return some.of(enough(some))


@pytest.mark.parametrize("reader, adds", [(Reader.EXACT, True), (Reader.RECENCY, True), (Reader.SATURATION, False)])
def test_an_additive_reader_has_ratio_one_and_a_saturating_one_less(few, reader, adds):
    made = changed(few, seed=4)
    table = frame(sum_rows("", "", simulated(reader, made.sequences, parameter=16.0), made))
    last = table[(table["flip"] == 0) & (table["n_changed"] == 8)].iloc[0]
    assert last["summed_low"] > 0
    if adds:
        assert np.allclose(table["ratio"], 1) and np.allclose(table["difference"], 0)
    else:
        assert last["high"] < 1 and last["difference_high"] < 0
    if reader == Reader.EXACT:
        assert rules.ADDS(measures.adds(table)) == Verdict.SUPPORTED


def test_joint_less_summed_of_two_is_a_quarter_of_their_second_difference(monkeypatch):
    monkeypatch.setattr(additivity, "GROUPS", (2,))
    f = {pair: value for pair, value in zip(product((0, 1), (0, 1)), (0.3, 1.1, 0.7, 2.9))}  # by own label of each
    found = []
    for a, b in product((0, 1), (0, 1)):
        values = [f[a, b], f[1 - a, b], f[a, 1 - b], f[1, 1], f[1 - a, 1 - b]]
        log_odds = torch.tensor(values, dtype=torch.float64)[None, :, None]
        joint, summed = contributions(log_odds, torch.tensor([[a, b]]))
        found.append((joint - summed).item())
    assert np.mean(found) == pytest.approx((f[1, 1] - f[0, 1] - f[1, 0] + f[0, 0]) / 4)


def test_groups_speak_for_the_rule_and_each_variant_is_what_it_says(few, monkeypatch):
    monkeypatch.setattr(additivity, "GROUPS", (2, 4))
    made, own = changed(few, seed=1), few.labels[:, :1]
    labels = made.sequences.labels
    assert labels.shape[1] == 1 + 4 + 2 * 2
    some, turned, rest = labels.split([1, 4, 4], 1)
    assert ((turned != some).sum(-1) == 1).all() and ((turned != some).any(1).sum(-1) == 4).all()
    slots = (turned != some).any(1)  # of the group
    assert (few.sides[:, 0][slots] == 1).all() and torch.equal(labels[:, 0][~slots], own[:, 0][~slots])
    for k in range(4):
        at = turned[:, k] != some[:, 0]
        assert torch.equal((some[:, 0] == own[:, 0])[at], made.own[:, k].bool())
    assert torch.equal(rest[:, 2], own[:, 0]) and ((rest[:, 3] != some[:, 0]) == slots).all()  # all four
    two = (turned[:, :2] != some).any(1)
    assert torch.equal(rest[:, 1] != some[:, 0], two)
    assert torch.equal(rest[:, 0], torch.where(two, own[:, 0], some[:, 0]))
    monkeypatch.setattr(additivity, "GROUPS", (2, 40))
    with pytest.raises(TaskError):
        changed(few)


# --- one model ---


def test_a_model_at_chance_has_a_gate_and_no_more(tiny):
    c = Context("tiny", quick=True, loaded=tiny)
    if tiny[0].cfg.n_ctx < 130:
        with pytest.raises(TaskError, match="context"):
            evidence.run_gate(c)
        return
    table = frame(evidence.run_gate(c))
    assert set(table["half"]) == {"selection", "held-out"} and set(table["labels"]) == {"A, B", "yes, no"}
    for run in (evidence.run_evidence, evidence.run_readers, evidence.run_slopes, additivity.run):
        with pytest.raises(NotApplicable, match="chance"):
            run(c)


def test_all_tables_of_a_model_that_reads_exactly_share_one_pass(tiny, monkeypatch):
    passes = []

    def read(bridge, tokenizer, some, labels, only_last=False):
        passes.append(some.labels.shape)
        found = simulated(Reader.EXACT, some, 0.1 if labels[0] == "A" else 0, seed=1, scale=0.1)
        return found[..., -1:] if only_last else found

    for module in (drawn, additivity):
        monkeypatch.setattr(module, "log_odds", read)
    c = Context("tiny", quick=True, loaded=tiny)
    runs = (evidence.run_gate, evidence.run_evidence, evidence.run_readers, evidence.run_slopes, additivity.run)
    gate, means, readers, slopes, sums = (frame(run(c)) for run in runs)
    assert [len(shape) for shape in passes] == [3] * 4 and passes[-1][:2] == (20, 15)
    last = gate[(gate["half"] == "held-out") & (gate["n_examples"] == 32)]
    assert list(last["flip"]) == [*drawn.FLIPS] and np.allclose(last["accuracy"], last["exact"], atol=0.1)
    assert set(means["n_examples"]) == set(evidence.COUNTS) and len(readers) == len(Reader)
    assert slopes["of_exact"].iloc[-1] == pytest.approx(0.1, rel=0.1)
    assert set(sums["flip"]) == {0.0, 0.2, 0.3} and (sums["low"] < 1.05).all() and (sums["high"] > 0.95).all()
