"""Small models: the constraint holds, training learns, and a run that was stopped ends where an unbroken one does."""

import dataclasses

import numpy as np
import pytest
import torch

from talking_heads_utils.commands import main
from talking_heads_utils.errors import CheckpointError, OptionError, TaskError
from talking_heads_utils.tasks import ioi, laundry
from talking_heads_utils.tasks.prompts import render
from talking_heads_utils.tasks.words import load_templates
from talking_heads_utils.training.data import Prompts, check_fits, word_tokenizer
from talking_heads_utils.training.loop import FINAL, STATE, Run, train
from talking_heads_utils.training.model import COPY_SCALE, constrain, end_logits, unembedding, writable
from talking_heads_utils.training.spec import FREE, PLACE, SPECS, WORK, MiniSpec

TINY = MiniSpec(
    "tiny", WORK, work=16, n_steps=8, n_items=3, n_layers=2, n_heads=4, d_model=32, n_positions=64, batch=12, warmup=10,
    n_names=6, n_places=3, n_objects=8,
)  # fmt: skip


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_training_prompts_are_those_of_the_tasks(spec):
    """The ids drawn on the fly equal the text of the same template, tokenized as a whole."""
    tokenizer = word_tokenizer(spec)
    prompts = Prompts(tokenizer)
    check_fits(spec, prompts)
    assert {len(prompts.ids[kind]) for kind in ("names", "places", "objects")} == {30, 15, 64}
    names, items = ["Mary", "John"], ["hat", "coat", "sock"]
    for template, pieces in zip(load_templates(ioi.TASK)["templates"].values(), prompts.ioi):
        fields = {"A": names[:1], "B": names[1:], "S": names[1:], "PLACE": ["park"], "OBJECT": ["hat"]}
        text, _ = render(
            template, {name: [(f"{name}{i}", w) for i, w in enumerate(words)] for name, words in fields.items()}
        )
        ids = {name: tokenizer.convert_tokens_to_ids(words) for name, words in fields.items()}
        assert prompts._fill(pieces, ids) == [
            tokenizer.bos_token_id,
            *tokenizer(text, add_special_tokens=False).input_ids,
        ]
    for wording, pieces in zip(laundry.wordings(), prompts.laundry):
        prompt = laundry.laundry_prompt(wording, items, 1, laundry.KEPT, [items[0], items[2]], laundry.SELECTION)
        ids = {
            "ITEMS": tokenizer.convert_tokens_to_ids(items),
            "REST": tokenizer.convert_tokens_to_ids([items[0], items[2]]),
        }
        whole = tokenizer(prompt.text, add_special_tokens=False).input_ids
        assert prompts._fill(pieces, ids) == [tokenizer.bos_token_id, *whole]
        assert tokenizer.unk_token_id not in whole


def test_drawn_prompts_can_be_answered():
    """The answer of a list is the one item that is not named again; IOI's is the name that is named once."""
    prompts = Prompts(word_tokenizer(TINY))
    rng = np.random.default_rng(0)
    for _ in range(50):
        row, answer = prompts.draw_laundry(rng, 5)
        named = [token for token in row if token in prompts.ids["objects"]]
        assert [token for token in set(named) if named.count(token) == 1] == [answer] and len(named) == 9
        row, answer = prompts.draw_ioi(rng)
        named = [token for token in row if token in prompts.ids["names"]]
        assert [token for token in set(named) if named.count(token) == 1] == [answer] and len(named) == 3
    parts = prompts.batches(rng, TINY, 3)
    assert sum(len(part.answers) for part in parts) == TINY.batch and len(parts) == TINY.parts
    assert all((part.tokens.shape[1] == part.end.max() + 1) for part in parts)


@pytest.mark.parametrize("keys", [WORK, PLACE])
def test_the_constraint_holds_after_every_step(tmp_path, keys):
    spec = dataclasses.replace(TINY, keys=keys, work=8 if keys == PLACE else 16)
    run = Run(spec, 0, tmp_path)
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
    assert all(torch.equal(before[name], p) for name, p in run.model.named_parameters()), "it changes nothing twice"


def test_the_saved_model_is_a_plain_gpt2_with_the_same_logits(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = Run(TINY, 0, tmp_path)
    run.step()
    folder = run.save_model(FINAL)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    part = run.prompts.batches(np.random.default_rng(1), TINY, 3)[-1]
    with torch.no_grad():
        plain = model(part.tokens).logits[torch.arange(len(part.end)), part.end]
        torch.testing.assert_close(plain, end_logits(run.model, TINY, part.tokens, part.end), atol=1e-5, rtol=1e-5)
        assert torch.equal(model.lm_head.weight[:, 8:16], unembedding(run.model, TINY))
    assert tokenizer("Mary , hat").input_ids == run.tokenizer("Mary , hat").input_ids
    assert sorted(p.name for p in tmp_path.iterdir()) == [FINAL]


def test_training_learns(tmp_path):
    spec = dataclasses.replace(TINY, n_steps=160, batch=48, ioi_share=0.0, n_items=2, n_objects=6, learning_rate=4e-3)
    run = Run(spec, 0, tmp_path)
    first = np.mean([run.step() for _ in range(10)])
    last = np.mean([run.step() for _ in range(140)][-20:])
    assert last < 0.7 * first, "the loss must fall"
    assert run.accuracy()["n=2"] > 0.3


def test_a_stopped_run_ends_where_an_unbroken_one_does(tmp_path):
    unbroken, broken = Run(TINY, 3, tmp_path / "a"), Run(TINY, 3, tmp_path / "b")
    train(unbroken, every=4, say=lambda line: None)
    train(broken, minutes=0, every=4, say=lambda line: None)
    assert broken.progress.step == 1
    resumed = Run(TINY, 3, tmp_path / "b")
    done = train(resumed, resume=True, every=4, say=lambda line: None)
    assert done.step == TINY.n_steps and done.log == unbroken.progress.log
    for name, p in unbroken.model.named_parameters():
        assert torch.equal(p, dict(resumed.model.named_parameters())[name]), name
    assert (tmp_path / "b" / FINAL / "model.safetensors").read_bytes() == (
        tmp_path / "a" / FINAL / "model.safetensors"
    ).read_bytes()


def test_runs_are_not_mixed(tmp_path):
    run = Run(TINY, 0, tmp_path)
    train(run, minutes=0, say=lambda line: None)
    assert (tmp_path / STATE).exists()
    with pytest.raises(OptionError, match="already holds a run. Add --resume"):
        train(Run(TINY, 0, tmp_path))
    for other in (Run(TINY, 1, tmp_path), Run(dataclasses.replace(TINY, n_steps=9), 0, tmp_path)):
        with pytest.raises(CheckpointError, match="holds another run"):
            train(other, resume=True)


def test_seeds_and_the_curriculum(tmp_path):
    a, b, c = (Run(TINY, seed, tmp_path) for seed in (0, 0, 1))
    assert a.step() == b.step() != c.step()
    a.progress.running_loss = -9.0  # whatever the loss of this step
    a.step()
    assert a.progress.longest == 3 and a.progress.running_loss >= 4 * TINY.harder_below
    assert a.progress.complete_at == 2


def test_a_free_model_is_left_alone(tmp_path):
    run = Run(dataclasses.replace(TINY, keys=FREE), 0, tmp_path)
    before = run.model.lm_head.weight.clone()
    run.step()
    assert not torch.equal(before, run.model.lm_head.weight)
    assert run.model.transformer.h[0].attn.c_proj.weight[:, 0].abs().max() > 0


def test_bad_requests_are_one_clear_error_each(tmp_path, capsys):
    assert main(["train", "mini", "--out", str(tmp_path)]) == 2
    assert "there are mini-token, mini-place, mini-free, mini-narrow" in capsys.readouterr().err
    assert main(["train", "mini-token", "--out", str(tmp_path), "--seed", "-3"]) == 2
    assert "A seed is an integer" in capsys.readouterr().err
    with pytest.raises(TaskError, match="knows 8"):
        Run(dataclasses.replace(TINY, n_items=9), 0, tmp_path)
    with pytest.raises(TaskError, match="has 20 positions"):
        Run(dataclasses.replace(TINY, n_positions=20), 0, tmp_path)
