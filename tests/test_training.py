"""Small models: the constraint holds, training learns, and a run that was stopped ends where an unbroken one does."""

import dataclasses
import json
from contextlib import suppress

import numpy as np
import pytest
import torch

from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.encoding import render
from talking_heads_utils.prompts.toy import word_tokenizer
from talking_heads_utils.prompts.words import load_templates
from talking_heads_utils.training import lists
from talking_heads_utils.training.card import card_text
from talking_heads_utils.training.functions import FunctionsRun
from talking_heads_utils.training.lists import ListsRun
from talking_heads_utils.training.loop import EARLY, FINAL, train
from talking_heads_utils.training.model import COPY_SCALE, constrain, logits_and_spread, unembedding, writable
from talking_heads_utils.training.spec import PLACE, WORK, FunctionsSpec, MiniSpec

TINY = MiniSpec(
    "tiny", WORK, work=16, n_steps=8, n_items=3, n_layers=2, n_heads=4, d_model=32, d_mlp=64, n_positions=64, batch=12,
    warmup=10, n_names=6, n_places=3, n_objects=8,
)  # fmt: skip
TINY_ICL = FunctionsSpec(
    "tiny-icl", n_steps=8, n_a=2, n_b=3, n_x=6, n_pairs=3, n_layers=2, n_heads=2, d_model=32, d_mlp=64, n_positions=16,
    batch=32, warmup=10, learning_rate=5e-3,
)  # fmt: skip
QUIET = dict(say=lambda line: None)


@pytest.fixture(autouse=True)
def few_last_prompts(monkeypatch):
    monkeypatch.setattr(lists, "N_LAST", 20)


def broken(made, spec, folder, steps, **options):
    """A run that is stopped every so many steps and resumed from its last state; its last piece."""
    while not (folder / FINAL).exists():
        run = made(spec, 3, folder)
        run.step = stopping(run.step, steps)
        with suppress(KeyboardInterrupt):
            train(run, resume=bool(run.store.names()), **options, **QUIET)
    return run


def stopping(step, n):
    left = iter(range(n))

    def one():
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step()

    return one


def test_training_prompts_are_those_of_the_tasks():
    """The ids drawn on the fly equal the text of the same template, tokenized as a whole."""
    tokenizer = word_tokenizer()
    prompts = lists.Prompts(tokenizer)
    assert {len(prompts.ids[kind]) for kind in ("names", "places", "objects")} == {30, 15, 64}

    def same(pieces, fields, text):
        ids = {name: tokenizer.convert_tokens_to_ids(list(words)) for name, words in fields.items()}
        whole = tokenizer(text, add_special_tokens=False).input_ids
        assert prompts._fill(pieces, ids) == [tokenizer.bos_token_id, *whole] and tokenizer.unk_token_id not in whole

    fields = dict(A=["Mary"], B=["John"], S=["Mary"], PLACE=["park"], OBJECT=["hat"])
    for template, pieces in zip(load_templates(ioi.TASK)["templates"].values(), prompts.ioi):
        text, _ = render(template, {name: [(name, word) for word in words] for name, words in fields.items()})
        same(pieces, fields, text)
    items, rest = ["hat", "coat", "sock"], ["hat", "sock"]
    for wording, pieces in zip(laundry.wordings(), prompts.laundry):
        prompt = laundry.laundry_prompt(wording, items, 1, laundry.KEPT, rest, laundry.SELECTION)
        same(pieces, dict(ITEMS=items, REST=rest), prompt.text)


def test_drawn_prompts_can_be_answered():
    """The answer of a list is the one item that is not named again; IOI's is the name that is named once."""
    prompts = lists.Prompts(word_tokenizer(6, 3, 8))
    rng = np.random.default_rng(0)
    for _ in range(50):
        for kind, (row, answer), n in (
            ("objects", prompts.draw_laundry(rng, 5), 9),
            ("names", prompts.draw_ioi(rng), 3),
        ):
            named = [token for token in row if token in prompts.ids[kind]]
            assert [token for token in set(named) if named.count(token) == 1] == [answer] and len(named) == n
    parts = prompts.batches(rng, TINY, 3)
    assert sum(len(part.answers) for part in parts) == TINY.batch and len(parts) == TINY.parts
    assert all(part.tokens.shape[1] == part.end.max() + 1 for part in parts)


@pytest.mark.parametrize("keys", [WORK, PLACE])
def test_the_constraint_holds_after_every_step(tmp_path, keys):
    spec = dataclasses.replace(TINY, keys=keys, work=8 if keys == PLACE else 16)
    run = ListsRun(spec, 0, tmp_path)
    for _ in range(3):
        run.step()
    d, D = spec.d_head, spec.d_model
    body = run.model.transformer
    assert body.wte.weight[:, d:].abs().max() == 0 and body.wte.weight[:, :d].abs().max() > 0
    work = writable(spec)
    for weight in (body.h[0].attn.c_proj.weight, body.h[0].mlp.c_proj.weight, body.h[0].attn.c_proj.bias[None]):
        outside = torch.cat([weight[:, : work.start], weight[:, work.stop :]], 1)
        assert outside.abs().max() == 0 and weight[:, work].abs().max() > 0
    last = body.h[-1]
    reads = slice(D - d, D) if keys == PLACE else slice(2 * d, D)
    assert last.attn.c_attn.weight[: reads.start, D : D + d].abs().max() == 0
    assert torch.equal(last.attn.c_proj.weight[:d, d : 2 * d], COPY_SCALE * torch.eye(d))
    assert last.attn.c_proj.weight[d:].abs().max() == 0 and last.mlp.c_proj.weight.abs().max() == 0
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    constrain(run.model, spec)
    for name, p in run.model.named_parameters():
        torch.testing.assert_close(before[name], p, atol=1e-6, rtol=0, msg=f"{name}: it changes nothing twice")


def test_the_saved_model_is_a_plain_gpt2_with_the_same_logits(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = ListsRun(TINY, 0, tmp_path)
    run.step()
    folder = run.save_model(FINAL)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    part = run.prompts.batches(np.random.default_rng(1), TINY, 3)[-1]
    with torch.no_grad():
        plain = model(part.tokens).logits[torch.arange(len(part.end)), part.end]
        ours, _ = logits_and_spread(run.model, TINY, part.tokens, part.end)
        torch.testing.assert_close(plain, ours, atol=1e-5, rtol=1e-5)
        assert torch.equal(model.lm_head.weight[:, 8:16], unembedding(run.model, TINY))
    assert tokenizer("Mary , hat").input_ids == run.tokenizer("Mary , hat").input_ids
    assert sorted(p.name for p in tmp_path.iterdir()) == [FINAL]


@pytest.mark.parametrize("made, spec, falls_to", [
    (ListsRun, dataclasses.replace(TINY, batch=48, ioi_share=0.0, n_items=2, n_objects=6, learning_rate=1e-2), 0.2),
    (FunctionsRun, TINY_ICL, 0.6),
])  # fmt: skip
def test_training_learns(made, spec, falls_to, tmp_path):
    run = made(dataclasses.replace(spec, n_steps=300), 0, tmp_path)
    losses = [run.step() for _ in range(300)]
    assert np.mean(losses[-20:]) < falls_to * np.mean(losses[:10]), "the loss must fall"
    if made is ListsRun:
        assert run.accuracy()["n=2"] > 0.9, "chance among the two items is 0.5"


def test_prompts_of_functions_are_their_text(tmp_path):
    run = FunctionsRun(TINY_ICL, 0, tmp_path)
    family = run.spec.family()
    examples = family.draw(3, 4, torch.Generator().manual_seed(0), ~family.held_out)
    text = "".join(f"({x}, {y})\n" for x, y in zip(examples.x[0].tolist(), examples.y[0].tolist()))
    assert run.tokenizer(text).input_ids == run.tokens(examples)[0].tolist()
    assert set(run.accuracy()) == {f"{kind}k={k}" for kind in ("", "held-out ") for k in range(4)}


@pytest.mark.parametrize("made, spec, steps", [
    (ListsRun, dataclasses.replace(TINY, lengthen_below=99.0), 3),
    (FunctionsRun, dataclasses.replace(TINY_ICL, n_steps=4, noise=0.5, ramp=2), 2),
])  # fmt: skip
def test_a_stopped_run_ends_where_an_unbroken_one_does(made, spec, steps, tmp_path, monkeypatch):
    """Broken over and over: over longer lists and the early checkpoint, over dropout and noise that grows."""
    monkeypatch.setattr(lists, "SETTLED", 3)
    monkeypatch.setattr(lists, "SOLVED", 0.0)
    done = train(made(spec, 3, tmp_path / "a"), every=2, **QUIET)
    resumed = broken(made, spec, tmp_path / "b", steps, every=2)
    assert resumed.progress == done and len(resumed.store.names()) == 1
    whole, pieces = ((tmp_path / name / FINAL / "model.safetensors").read_bytes() for name in "ab")
    assert whole == pieces
    if made is FunctionsRun:
        assert done.early_at is None and not (tmp_path / "a" / EARLY).exists()
        return
    assert (done.complete_at, done.longest, done.early_at) == (1, 3, 4)
    for stage, at in ((EARLY, 4), (FINAL, 8)):
        card = json.loads((tmp_path / "b" / stage / "training.json").read_text())
        assert card["step"] == at and (tmp_path / "b" / stage / "README.md").read_text() == card_text(card)


def test_runs_are_not_mixed(tmp_path):
    with pytest.raises(OptionError):
        train(ListsRun(TINY, 0, tmp_path), resume=True)
    ListsRun(TINY, 0, tmp_path).save_state()
    with pytest.raises(OptionError):
        train(ListsRun(TINY, 0, tmp_path))
    for other, seed, field in ((TINY, 1, "seed"), (dataclasses.replace(TINY, batch=9), 0, "batch")):
        with pytest.raises(OptionError, match=field):
            train(ListsRun(other, seed, tmp_path), resume=True)
    (state,) = tmp_path.glob("*.pt")
    whole = state.read_bytes()
    for damaged in (whole[:-40], whole[:-1] + b"x"):
        state.write_bytes(damaged)
        with pytest.raises(ResultError, match=state.name):
            train(ListsRun(TINY, 0, tmp_path), resume=True)
