"""Edits as data, in force and baked: on every family of model, with padding between prompts, against hooked runs."""

import json
import shutil
from dataclasses import replace

import gguf_files
import pytest
import torch
from conftest import KINDS_OF_MODEL, case_of, random_prompts
from safetensors.torch import load_file, save_file

from talking_heads_utils.components import direction_of
from talking_heads_utils.editing import bake, edit, weights_to_edit
from talking_heads_utils.edits import edits
from talking_heads_utils.edits.bake import EDIT_FILE
from talking_heads_utils.edits.edits import OV, QK, REMOVE, ROTATE, SCALE, SET, Change, new_edit, target
from talking_heads_utils.errors import EditError, LabelError, OptionError
from talking_heads_utils.labels import Component
from talking_heads_utils.models import load_model
from talking_heads_utils.weights.checkpoints import load_head_weights, open_checkpoint
from talking_heads_utils.weights.gguf import GgufFile
from talking_heads_utils.weights.gguf_model import tokenizer_of
from talking_heads_utils.weights.heads import Processing

A, B, C, Q = Component(0, 1, 0), Component(0, 1, 2), Component(1, 2, 0), Component(0, 0, 1)
EVERY = (
    Change(A, OV, SCALE, 2.5),
    Change(B, OV, REMOVE),
    Change(C, OV, ROTATE, 40.0, (C, A)),
    Change(Q, QK, SCALE, -1.5),
    Change(Component(2, 0, 0), QK, SET, 0.3),
    Change(Component(2, 0, 1), QK, ROTATE, 70.0, (Component(2, 0, 1), Component(0, 0, 0))),
    Change(Component(1, 2, 1), OV, SET, 0.2),
)


@pytest.fixture(scope="module", params=KINDS_OF_MODEL)
def model(request, checkpoints):
    """A model in float64, so that 1e-5 is a statement about the algebra, with prompts."""
    return case_of(request.param, checkpoints, torch.float64)


@pytest.fixture(params=(True, False), ids=("processed", "raw"))
def raw_too(request, model, checkpoints):
    bridge, prompts = model
    if request.param or bridge.cfg.model_name == "planted":
        return bridge, prompts
    name = bridge.original_model.config.model_type
    name = "llama" if name == "qwen2" else name  # raw, its values have biases and its output none: see below
    return load_model(checkpoints[name], dtype=torch.float64, processing=Processing(False, False)), prompts


def state(bridge):
    return {name: tensor.clone() for name, tensor in bridge.state_dict().items()}


def logits_of(bridge, prompts):
    with torch.no_grad():
        return bridge(prompts.tokens)


def unchanged(bridge, before):
    after = state(bridge)
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def by_activations(bridge, prompts, change):
    """The same edit made by projecting activations: what a head writes, or what its queries read."""
    layer, head = change.component.layer, change.component.head
    attn, ln, seen = bridge.blocks[layer].attn, getattr(bridge.blocks[layer], "ln1", None), []
    d, t = (v.to(attn.W_O) for v in target(weights_to_edit(bridge), change))

    def written(tensor, hook):
        b_V = 0 if attn.b_V is None else attn.b_V[head // (len(attn.W_O) // len(attn.b_V))]
        write = (seen[0][:, :, head] - b_V) @ attn.W_O[head]
        return tensor + (write @ d)[..., None] * (t - d)

    def asked(tensor, hook):
        x, tensor = seen[0] if bridge.cfg.normalization_type is None else ln(seen[0]), tensor.clone()
        tensor[:, :, head] += (x @ (t - d))[..., None] * (d @ attn.W_Q[head])
        return tensor

    names = ("attn.hook_z", "hook_attn_out") if change.matrix == OV else ("hook_resid_pre", "attn.hook_q")
    keep = lambda tensor, hook: seen.append(tensor)  # noqa: E731
    changed = written if change.matrix == OV else asked
    hooks = [(f"blocks.{layer}.{name}", f) for name, f in zip(names, (keep, changed))]
    return bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)


@pytest.mark.parametrize("change", EVERY, ids=str)
def test_editing_the_weight_is_projecting_the_activation(raw_too, change):
    bridge, prompts = raw_too
    untouched, expected = logits_of(bridge, prompts), by_activations(bridge, prompts, change)
    with edit(bridge, change):
        torch.testing.assert_close(logits_of(bridge, prompts), expected, atol=1e-5, rtol=1e-5)
    if bridge.cfg.model_name != "planted":  # whose strong components are others
        assert (expected - untouched).abs().max() > 1e-3, "an edit without effect would prove nothing"


def test_the_model_is_put_back_bit_for_bit(model):
    bridge, prompts = model
    before, untouched = state(bridge), logits_of(bridge, prompts)
    with pytest.raises(ZeroDivisionError), edit(bridge, EVERY):
        assert not torch.equal(logits_of(bridge, prompts), untouched)
        with edit(bridge, {A: 3.0}):
            raise ZeroDivisionError
    assert unchanged(bridge, before)


def test_scale_one_and_a_full_turn_change_nothing_at_all(model):
    bridge, prompts = model
    untouched, before = logits_of(bridge, prompts), state(bridge)
    with edit(bridge, [Change(A, OV, SCALE, 1.0), Change(Q, QK, SCALE, 1), Change(C, QK, SCALE, 1)]):
        assert unchanged(bridge, before)
    own = float(direction_of(weights_to_edit(bridge), A)[1])
    for change in (Change(C, OV, ROTATE, 360.0, (C, A)), Change(A, OV, SET, own)):
        with edit(bridge, change):
            torch.testing.assert_close(logits_of(bridge, prompts), untouched, atol=1e-9, rtol=1e-9)


ONE_MATRIX = {"qwen2": QK, "qwen3": OV}  # no bias could hold what an OV edit moves; queries and keys are normalised


@pytest.mark.parametrize("processed", (True, False), ids=("processed", "raw"))
def test_a_baked_checkpoint_loads_in_plain_transformers_and_does_the_same(family, checkpoints, tmp_path, processed):
    from transformers import AutoModelForCausalLM

    bridge = load_model(checkpoints[family], processing=None if processed else Processing(False, False))
    changes = tuple(change for change in EVERY if change.matrix == ONE_MATRIX.get(family, change.matrix))
    made, prompts = new_edit(weights_to_edit(bridge), changes), random_prompts()
    folder = bake(checkpoints[family], made, tmp_path / "new" / "edited")
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found = plain(prompts.tokens).logits
        untouched = AutoModelForCausalLM.from_pretrained(checkpoints[family]).eval()(prompts.tokens).logits
    with edit(bridge, made):
        expected = logits_of(bridge, prompts)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert (found - untouched).abs().max() > 0.01
    kept = edits.read_edit(folder / EDIT_FILE)
    assert replace(kept, sha256=None, stored=None) == made
    assert kept.sha256 == open_checkpoint(checkpoints[family]).sha256()
    again = load_model(folder)
    torch.testing.assert_close(logits_of(again, prompts), found, atol=1e-4, rtol=1e-5)
    with pytest.raises(EditError, match="whose weights differ|processing"), edit(again, made):
        pass
    names, before = load_file(folder / "model.safetensors"), load_file(checkpoints[family] / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], names[name])}
    assert names.keys() == before.keys() and changed and all("attn" in n or "attention" in n for n in changed)


def test_a_sharded_half_precision_checkpoint_is_baked_shard_by_shard(checkpoints, tmp_path):
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(checkpoints["llama"], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half", max_shard_size="10KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoints["llama"] / name, tmp_path / "half" / name)
    changes = [Change(A, OV, SCALE, 3.0), Change(Q, QK, REMOVE)]
    folder = bake(tmp_path / "half", changes, tmp_path / "edited")
    assert len(list(folder.glob("*.safetensors"))) == len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    bridge, again = load_model(tmp_path / "half"), load_model(folder)
    with edit(bridge, changes):
        expected = logits_of(bridge, random_prompts())
    assert (logits_of(again, random_prompts()) - expected).abs().max() < 0.02 * expected.abs().max()
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_labels_are_enough_to_edit(checkpoints, tmp_path):
    bridge, prompts = load_model(checkpoints["gpt2"]), random_prompts()
    before, factors = state(bridge), {"L0H1.0": 2.5, B: 0.0}
    with edit(bridge, [Change(A, OV, SCALE, 2.5), Change(B, OV, REMOVE)]):
        expected = logits_of(bridge, prompts)
    with edit(bridge, factors) as edited:
        assert torch.equal(logits_of(edited, prompts), expected)
        with edit(bridge, {"L0H0.1": -1}, "QK"), pytest.raises(LabelError), edit(bridge, {"8.10": 1}):
            pass
    assert unchanged(bridge, before)
    with pytest.raises(EditError, match="is no change"), edit(bridge, ["L0H1.0"]):
        pass
    with pytest.raises(EditError, match="has no checkpoint"):
        bake("planted", factors, tmp_path / "none")
    assert Change("L0H1.0", span=("L1H2.0", "L0H1.0"), operation=ROTATE, value=4).span == (C, A)


def test_an_edit_survives_json_and_another_model_is_refused(checkpoints, tmp_path):
    weights = {name: load_head_weights(checkpoints[name]) for name in ("gpt2", "gpt_neox", "llama")}
    for name, own in weights.items():
        made = new_edit(own, EVERY, model=name)
        edits.save_edit(made, tmp_path / "edit.json")
        assert edits.read_edit(tmp_path / "edit.json") == made
        for other in weights.keys() - {name}:
            with pytest.raises(EditError):
                made.check(weights[other])
    raw = load_head_weights(checkpoints["gpt2"], processing=Processing(False, False))
    with pytest.raises(EditError, match="processing"):
        new_edit(weights["gpt2"], EVERY).check(raw)
    shown = json.loads(edits.to_json(made))["changes"]
    assert shown[1] == {"component": "L0H1.2", "matrix": "OV", "operation": "remove"}
    assert shown[2]["span"] == ["L1H2.0", "L0H1.0"] and shown[2]["value"] == 40


BAD = {
    "is not in": (LabelError, Change(Component(0, 40, 0), OV, SCALE, 2.0)),
    "components are 0": (LabelError, [EVERY[0], Change(Component(0, 1, 999), OV, SCALE, 2.0)]),
    "changed twice": (EditError, [EVERY[0], EVERY[0]]),
    "span no plane": (EditError, Change(C, OV, ROTATE, 9.0, (C, C))),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_edits_are_one_clear_error_each_and_touch_nothing(model, message):
    bridge, _ = model
    before = state(bridge)
    with pytest.raises(BAD[message][0], match=message), edit(bridge, BAD[message][1]):
        pass
    wrong = replace(new_edit(weights_to_edit(bridge), EVERY), fingerprint=(1.0,))
    with pytest.raises(EditError, match="whose weights differ"), edit(bridge, wrong):
        pass
    assert unchanged(bridge, before)


@pytest.mark.parametrize("wrong", [
    *(dict(value=value) for value in (float("nan"), float("inf"), None, "2", True)), dict(matrix="KV"),
    dict(operation="double"), dict(operation=REMOVE), dict(operation=ROTATE), dict(operation=SET, value=-1.0),
    dict(span=(A, B)),
])  # fmt: skip
def test_a_change_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(EditError, match="finite number" if wrong.keys() == {"value"} else None):
        Change(**dict(component=A, matrix=OV, operation=SCALE, value=2.0) | wrong)


def test_files_that_are_no_edits(tmp_path, checkpoints):
    path = tmp_path / "edit.json"
    with pytest.raises(EditError, match="cannot be read"):
        edits.read_edit(path)
    good = json.loads(edits.to_json(new_edit(load_head_weights(checkpoints["gpt2"]), EVERY)))
    change = good["changes"][0]
    for text in (
        "no json", "[]", "{}", json.dumps(good | {"changes": [change | {"strength": 2}]}),
        json.dumps(good | {"changes": [change | {"span": ["L0H0.0"]}]}), json.dumps(good | {"changes": [{}]}),
        json.dumps(good | {"processing": {}}), json.dumps(good | {"changes": [change | {"value": float("nan")}]}),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(EditError):
            edits.read_edit(path)
    path.write_text(json.dumps(good | {"changes": [change | {"component": "8.10"}]}))
    with pytest.raises(LabelError, match="8.10"):
        edits.read_edit(path)


@pytest.mark.parametrize("message", ["tied to that of another", "packed integer storage"])
def test_tensors_that_cannot_be_edited_in_place_are_refused(checkpoints, message):
    bridge = load_model(checkpoints["gpt2"])
    module, other = (bridge.blocks[layer].attn.o._modules["_original_component"] for layer in (0, 1))
    packed = torch.nn.Parameter(module.weight.detach().to(torch.int8), requires_grad=False)
    module.weight = other.weight if message.startswith("tied") else packed
    before = state(bridge)
    with pytest.raises(EditError, match=message), edit(bridge, EVERY[0]):
        pass
    assert unchanged(bridge, before)


def test_what_cannot_be_baked_is_refused_and_leaves_nothing(checkpoints, tmp_path):
    for name in ("full", "lacking"):
        shutil.copytree(checkpoints["gpt_neox"], tmp_path / name)
    weights = tmp_path / "lacking" / "model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if not name.endswith("attention.dense.bias")}
    save_file(kept, weights)
    of_another = new_edit(load_head_weights(checkpoints["gpt_neox"]), EVERY)
    for error, message, source, changes, out in (
        (OptionError, "not empty", checkpoints["gpt_neox"], EVERY, "full"),
        (OptionError, None, checkpoints["gpt_neox"], EVERY, "full/config.json/below"),
        (EditError, "sha256 .* make it anew for this file", checkpoints["gpt2"], of_another, "other"),
        (EditError, "would move a constant, and the model has no bias", checkpoints["qwen2"], EVERY[-1], "other"),
        (EditError, "no bias there to hold it", tmp_path / "lacking", EVERY, "other"),
    ):
        with pytest.raises(error, match=message):
            bake(source, changes, tmp_path / out)
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".*"))


def test_in_gpt2_small_a_value_bias_lies_along_a_component_and_baking_keeps_it(gpt2, gpt2_source, tmp_path):
    checkpoint = open_checkpoint(gpt2_source)
    raw = checkpoint.family.unpack(checkpoint.read_layer(7, torch.float64), checkpoint.shape)
    constant = (raw.b_V[3] + raw.ln_bias @ raw.W_V[3]) @ raw.W_O[3]
    components = [Component(7, 3, i) for i in range(64)]
    along = torch.stack([constant @ direction_of(gpt2, c)[0] for c in components]).abs()
    strongest = components[int(along.argmax())]
    assert along.max() > 0.5, "an edit that moved biases would move this much"
    changes = [Change(strongest, OV, SCALE, 3.0), Change(Component(9, 9, 0), QK, REMOVE)]
    after = load_head_weights(bake(gpt2_source, changes, tmp_path / "edited"))
    torch.testing.assert_close(after.b_O, gpt2.b_O, atol=2e-3, rtol=0)  # the released copy is in float16
    d = direction_of(gpt2, strongest)[0].float()
    torch.testing.assert_close(after.W_O[7, 3] @ d, 3 * gpt2.W_O[7, 3] @ d, atol=2e-3, rtol=2e-3)
    u = direction_of(gpt2, Component(9, 9, 0), QK)[0].float()
    assert (u @ after.W_Q[9, 9]).norm() < 0.01 * (u @ gpt2.W_Q[9, 9]).norm()


GGUF_CASES = [("llama", "Q4_1"), ("llama", "F16"), ("gpt2", "Q4_1"), ("mistral", "F32"), ("qwen2", "Q8_0")]


def of_gguf(family: str):
    """Changes that a model of the family has room for."""
    parts = (Change(Component(0, 1, 0), OV, SCALE, 3.0), Change(Component(1, 2, 1), OV, REMOVE))
    more = (Change(Component(0, 0, 1), QK, SCALE, -1.5), Change(Component(1, 3, 0), QK, REMOVE))
    return more if family == "qwen2" else (*parts, *more)  # where no bias could hold what an OV edit moves


@pytest.mark.parametrize(("name", "kind"), GGUF_CASES)
def test_an_edit_of_a_gguf_file_is_baked_into_a_checkpoint_that_plain_transformers_loads(name, kind, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = gguf_files.write(gguf_files.build(name), tmp_path / "model.gguf", kind)
    bridge, tokens = load_model(file), torch.randint(gguf_files.N_TOKENS, (3, 12))
    made = new_edit(weights_to_edit(bridge), of_gguf(name))
    folder = bake(file, made, tmp_path / "baked")
    plain, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert plain.dtype == torch.float32 and not hasattr(plain.config, "quantization_config")
    with torch.no_grad(), edit(bridge, made):
        expected = bridge(tokens)
        torch.testing.assert_close(plain.eval()(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    assert (bridge(tokens) - expected).abs().max() > 0.01
    again, text = AutoTokenizer.from_pretrained(folder), "hello and the 12\nhello"
    assert again(text).input_ids == tokenizer_of(GgufFile(file))(text).input_ids
    kept = edits.read_edit(folder / EDIT_FILE)
    assert kept == replace(made, sha256=open_checkpoint(file).sha256(), stored=load_head_weights(file).source.dtype)
    torch.testing.assert_close(load_model(folder)(tokens), expected, atol=1e-4, rtol=1e-4)


def test_an_edit_of_another_file_or_quantisation_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    files = {kind: gguf_files.write(gguf_files.build("llama"), tmp_path / f"{kind}.gguf", kind)
             for kind in ("F32", "Q8_0")}  # fmt: skip
    made = new_edit(load_head_weights(files["F32"]), of_gguf("llama"))
    assert edits.from_json(edits.to_json(made)) == made and made.stored == "F32"
    with pytest.raises(EditError, match="F32, sha256 .* is Q8_0, F32, sha256 .*: make it anew"):
        bake(files["Q8_0"], made, tmp_path / "out" / "baked")
    whole = GgufFile.tensor

    def on_a_full_disk(self, own):
        if own.startswith("token_embd"):
            raise OSError("no space left")
        return whole(self, own)

    monkeypatch.setattr(GgufFile, "tensor", on_a_full_disk)
    with pytest.raises(OptionError, match="no space left"):
        bake(files["F32"], {"L0H0.0": 1.0}, tmp_path / "out" / "baked")
    assert not list((tmp_path / "out").iterdir())
