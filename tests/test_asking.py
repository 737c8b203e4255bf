"""One question to a model with parts moved by hand, against steering, ablation, editing and the raw weights."""

import gguf_files
import numpy as np
import pytest
import torch

import talking_heads_utils as th
from talking_heads_utils.components import direction_of
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts.texts import from_texts
from talking_heads_utils.weights.bridge import head_weights_from_bridge
from talking_heads_utils.weights.heads import Processing

CLOSE = dict(atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module", params=["planted", "llama", "gpt2", "gpt2, raw"])
def asked(request, checkpoints, tmp_path_factory):
    """A model, a text and two answers: no norm; one key for two heads; biases, also where none was folded in."""
    if request.param == "planted":
        planted = plant(strength=20.0)
        text = "When Mary and John went to the school, John gave the hat to"
        return planted.bridge, text, " Mary", " John"
    if request.param == "llama":
        path = tmp_path_factory.mktemp("asking") / "tiny.gguf"
        return load_model(gguf_files.write(gguf_files.build("llama"), path)), "hello the 12 and", "hello", " the"
    raw = Processing(False, False) if "raw" in request.param else None
    return load_model(checkpoints["gpt2"], processing=raw), "w1 w5 w9 w3 w5", " w7", " w11"


def first(frame, column: str = "value") -> float:
    return frame[column].iloc[0]


@torch.no_grad()
def test_parts_moved_by_hand_are_what_steering_ablation_and_editing_do(asked):
    bridge, text, right, wrong = asked
    prompts = from_texts([text], [right], [wrong], bridge.tokenizer, add_space=False)

    def diff(**moves) -> float:
        return th.ask(bridge, text, **moves).logit_diff(right, wrong)

    plain = th.ask(bridge, text)
    logits, cache = bridge.run_with_cache(prompts.tokens)
    torch.testing.assert_close(plain.logits, logits[0, -1], **CLOSE)
    assert plain.tokens.tolist() == prompts.tokens[0].tolist() and plain.pattern.shape[-1] == len(plain.tokens)
    for layer in range(bridge.cfg.n_layers):
        torch.testing.assert_close(plain.pattern[layer], cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1], **CLOSE)
    near = dict(abs=2e-4, rel=2e-4)
    at, last = "L1H0.0", Component(bridge.cfg.n_layers - 1, 1, 0)
    now = plain.coefficient(at)
    steered = th.steer(bridge, prompts, [at, str(last)], {at: 3.0, str(last): -2.0}, at="end")
    assert diff(add={at: 3.0, last: -2.0}) == pytest.approx(first(steered), **near)
    assert diff(set={at: now + 3.0}, add={last: -2.0}) == pytest.approx(first(steered), **near)
    assert diff(set={at: now}) == pytest.approx(diff(), **near)
    gone = first(th.ablate(bridge, at, prompts, how="zero", positions="end"))
    assert diff(set={at: 0}) == pytest.approx(gone, **near) == diff(scale={at: 0.0})
    head = first(th.ablate(bridge, "L0H0", prompts, how="zero"))
    assert diff(scale={"L0H0": 0.0}) == pytest.approx(head, **near) == diff(scale={Head(0, 0): np.float32(0)})
    if bridge.cfg.normalization_type in (None, "RMSPre"):  # a raw model's components are stated otherwise in an edit
        with th.edit(bridge, {last: 2.5}):
            edited = diff()
        assert diff(scale={last: 2.5}) == pytest.approx(edited, **near)
    assert len({round(n, 3) for n in (diff(), first(steered), gone, head)}) >= 3


@torch.no_grad()
def test_a_head_is_scaled_before_its_components_are_moved(asked):
    bridge, text, right, wrong = asked
    whole, at = th.ask(bridge, text), "L1H0.1"
    scaled = th.ask(bridge, text, scale={"L1H0": -2.0})
    assert scaled.coefficient(at) == pytest.approx(-2 * whole.coefficient(at), abs=1e-5)
    moved = th.ask(bridge, text, scale={"L1H0": -2.0}, add={at: 2.0})
    assert moved.coefficient(at) == scaled.coefficient(at), "read before it is moved"
    same = th.ask(bridge, text, scale={"L1H0": -2.0}, set={at: scaled.coefficient(at) + 2.0})
    torch.testing.assert_close(moved.logits, same.logits, **CLOSE)


@torch.no_grad()
def test_what_heads_write_is_what_the_answers_logits_lose_without_them(asked):
    """Behind the last attention: at the final norm's scale, with everything else as it was."""
    bridge, text, right, wrong = asked
    whole = th.ask(bridge, text)
    ids = [bridge.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (right, wrong)]
    found, layers = whole.direct(right, wrong), range(bridge.cfg.n_layers)
    kept = {}

    def freeze(value, hook):
        return kept.setdefault(hook.name, value)

    for head in (Head(0, 2), Head(layers[-1], 1)):
        W_O = bridge.blocks[head.layer].attn.W_O[head.head]
        written = whole.z[head.layer, head.head] @ W_O

        def less(resid, hook, written=written):
            resid = resid.clone()
            resid[0, -1] -= written
            return resid

        hooks = [(f"blocks.{layers[-1]}.hook_resid_post", less)]
        if bridge.cfg.normalization_type is not None:
            bridge.run_with_hooks(whole.tokens[None], fwd_hooks=[("ln_final.hook_scale", freeze)])
            hooks.append(("ln_final.hook_scale", freeze))
        logits = bridge.run_with_hooks(whole.tokens[None], fwd_hooks=hooks)[0, -1]
        lost = whole.logits[ids] - logits[ids]
        assert found[head.layer, head.head].item() == pytest.approx((lost[0] - lost[1]).item(), abs=2e-4, rel=1e-3)


@pytest.mark.parametrize("processing", [None, Processing(False, False)])
@torch.no_grad()
def test_within_an_edit_a_label_means_what_it_means_outside(checkpoints, processing):
    """The first component is made the smallest, which numbers all anew in the edited weights."""
    bridge, text, words = load_model(checkpoints["gpt2"], processing=processing), "w1 w5 w9", ("w7", "w11")
    prompts, clean = (
        from_texts([t], [" w7"], [" w11"], bridge.tokenizer, add_space=False) for t in (text, "w2 w5 w8")
    )  # fmt: skip
    at, near = Component(2, 0, 1), dict(abs=2e-4, rel=2e-4)
    v = direction_of(head_weights_from_bridge(bridge), at)[0].float()

    def add(written, hook):
        written[:, -1] += 2 * v
        return written

    with th.edit(bridge, {"L2H0.0": 1e-3}):
        logits = bridge.run_with_hooks(prompts.tokens, fwd_hooks=[("blocks.2.hook_attn_out", add)])[0, -1]
        here, there = (th.ask(bridge, t).coefficient(at) for t in (text, "w2 w5 w8"))
        added, moved, gone = (
            th.ask(bridge, text, add={at: amount}).logit_diff(*words) for amount in (2.0, there - here, -here)
        )
        assert added == pytest.approx((logits[7] - logits[11]).item(), **near)
        assert first(th.steer(bridge, prompts, at, np.float32(2))) == pytest.approx(added, **near)
        assert first(th.ablate(bridge, at, prompts, how="zero", positions="end")) == pytest.approx(gone, **near)
        patched = th.patch(bridge, clean, prompts, sites=str(at), positions=["end"])
        assert first(patched) == pytest.approx(moved, **near)
    if processing is None:  # a component of the raw weights is another one
        with th.edit(bridge, {at: 0}), pytest.raises(LabelError, match="an edit that is in force"):
            th.ask(bridge, text, add={at: 1.0})


def test_half_precision_is_asked_and_answers_alike(checkpoints):
    whole, half = (th.ask(load_model(checkpoints["gpt2"], dtype=d), "w1 w5") for d in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(half.direct("w7", "w11"), whole.direct("w7", "w11"), atol=0.1, rtol=0.1)


def test_a_raw_model_and_a_processed_one_say_the_same(checkpoints):
    """A component is the same direction in both, and what is constant is no part of it."""
    models = [load_model(checkpoints["gpt2"], processing=p) for p in (None, Processing(False, False))]
    folded, raw = (th.ask(model, "w1 w5 w9", set={"L1H2.0": 1.5}, scale={"L0H1.1": -2.0}) for model in models)
    torch.testing.assert_close(folded.logits, raw.logits, **CLOSE)
    torch.testing.assert_close(folded.direct("w7", "w11"), raw.direct("w7", "w11"), **CLOSE)
    assert folded.coefficient("L1H2.0") == pytest.approx(raw.coefficient("L1H2.0"), abs=1e-4)
    top = raw.likeliest(3)
    assert top["token"].tolist() == folded.logits.topk(3).indices.tolist()
    assert top["text"].tolist() == [f"w{token}" for token in top["token"]] and 0 < top["probability"].sum() < 1


@pytest.mark.parametrize(("error", "text", "moves"), [
    (TaskError, "", {}), (TaskError, ["w1", "w2"], {}), (TaskError, "w1 " * 40, {}),
    (LabelError, "w1", {"set": {"L0H9.0": 1}}), (LabelError, "w1", {"scale": {"L7H0": 1}}),
    (LabelError, "w1", {"add": {"L0H0.17": 1}}), (LabelError, "w1", {"scale": {"head": 1}}),
    (LabelError, "w1", {"set": {"L0H1": 1}}), (LabelError, "w1", {"add": {Head(0, 1): 1}}),
    (LabelError, "w1", {"set": {"L0H1.0": 1}, "add": {Component(0, 1, 0): 1}}),
    (LabelError, "w1", {"scale": {"L0H1": 1, Head(0, 1): 1}}),
    (OptionError, "w1", {"set": {"L0H1.0": float("nan")}}), (OptionError, "w1", {"scale": {"L0H0": float("inf")}}),
    (OptionError, "w1", {"add": {"L0H1.0": "much"}}), (OptionError, "w1", {"add": {"L0H1.0": True}}),
])  # fmt: skip
def test_bad_questions_are_one_clear_error(checkpoints, error, text, moves):
    with pytest.raises(error):
        th.ask(checkpoints["gpt2"], text, **moves)
