"""Every small model that ships: its constraint, its card, its size, and its answers on the tasks."""

import json

import pytest
import torch
from safetensors.torch import load_file

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.tasks import number_tasks
from talking_heads_utils.experiments.toys import learners, longest_trained
from talking_heads_utils.known import shipped_models
from talking_heads_utils.metrics import accuracy, answer_logits
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.training.card import card_text
from talking_heads_utils.training.functions import FunctionsRun
from talking_heads_utils.training.lists import LAST, SETTLED, ListsRun
from talking_heads_utils.training.model import constrain
from talking_heads_utils.training.spec import FREE, N_LAST, SPECS, MiniSpec

FOLDERS = shipped_models()
LEARNERS = learners()


def card_of(name):
    return json.loads((FOLDERS[name] / "training.json").read_text())


def test_what_ships():
    lists = {"mini-token", "mini-token/early", "mini-place", "mini-place/early", "mini-free", "mini-narrow"}
    assert set(FOLDERS) == lists | {*LEARNERS}
    assert longest_trained("mini-place") < 10 <= longest_trained("mini-token") < longest_trained("gpt2")
    assert LEARNERS == ["mini-icl", "mini-icl-plain", "mini-icl-noisy"]


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in LEARNERS])
def test_its_constraint_holds(name, tmp_path):
    card = card_of(name)
    run = ListsRun(MiniSpec(**card["spec"]), card["seed"], tmp_path)
    stored = load_file(FOLDERS[name] / "model.safetensors")
    run.model.load_state_dict(stored, strict=True)
    outside = stored["transformer.h.0.attn.c_proj.weight"][:, : 2 * run.spec.d_head].abs().max()
    assert (outside > 0) == (run.spec.keys == FREE), "only a free model writes where the others may not"
    constrain(run.model, run.spec, card["step"])
    for key, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, stored[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", FOLDERS)
def test_the_card_says_what_the_checkpoint_does(model, tmp_path):
    card = card_of(model)
    made = FunctionsRun if model in LEARNERS else ListsRun
    run = made(SPECS[card["spec"]["name"]], card["seed"], tmp_path)
    assert type(run.spec)(**card["spec"]) == run.spec, "the command that the card names makes this model"
    assert (FOLDERS[model] / "README.md").read_text(encoding="utf-8") == card_text(card)
    assert (FOLDERS[model] / "model.safetensors").stat().st_size < 4_000_000
    run.model.load_state_dict(load_file(FOLDERS[model] / "model.safetensors"))
    for key, value in run.accuracy().items():
        assert value == pytest.approx(card["accuracy"][key], abs=0.011), key
    if model in LEARNERS:
        assert run.spec.noise or card["accuracy"]["k=12"] >= 0.9 > card["accuracy"]["k=1"]
    elif model.endswith("early"):
        assert card["step"] >= card["complete_at"] + SETTLED, "no length is shown before it was trained"
    else:
        longest, last = f"n={card['longest']}", card["last"]["accuracy"]
        again, _ = run.answers(300, LAST, [longest])[longest]
        assert card["last"]["n"] == N_LAST and last[longest] == pytest.approx(again, abs=0.02), "of some of them"
        assert min(last.values()) >= 0.99, "of every kind that it was trained on"


@pytest.mark.parametrize("name", ["mini-token", *LEARNERS])
def test_it_loads_by_one_call_answers_as_in_plain_transformers_and_solves_its_task(name):
    from transformers import AutoModelForCausalLM

    c = Context(name)
    if name in LEARNERS:
        (task,) = number_tasks(name, c.tokenizer)
        asked = task.ask(c, 60, laundry.SELECTION)
        prompts, n = asked.prompts, 60
        right, twin = (float((answer_logits(c.bridge, of).argmax(-1) == asked.right).float().mean())
                       for of in (prompts, asked.twins))  # fmt: skip
        assert right > twin + 0.1
    else:
        prompts, n = laundry.build_laundry(c.tokenizer, 8, 100), 100
        assert all(accuracy(c.bridge, of).mean >= 0.97 for of in (prompts, ioi.build_ioi(c.tokenizer, 100)))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(FOLDERS[name])(prompts.tokens).logits
    wanted = theirs[torch.arange(n), prompts.positions["end"]]
    torch.testing.assert_close(answer_logits(c.bridge, prompts), wanted, atol=2e-3, rtol=1e-3)
