"""Weights: both ways of reading agree, and processing leaves the model as it was."""

import shutil

import pytest
import torch
from conftest import build_model, edit, edit_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from talking_heads_utils.errors import CheckpointError, LabelError, ProcessingError
from talking_heads_utils.weights.bridge import head_weights_from_bridge
from talking_heads_utils.weights.checkpoints import assembled, load_head_weights, open_checkpoint
from talking_heads_utils.weights.heads import LAYER_NORM, Processing

TENSORS = ("W_Q", "W_K", "W_V", "W_O", "b_O")


def boot(folder):
    from transformer_lens.model_bridge import TransformerBridge

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", use_safetensors=True)
    return TransformerBridge.boot_transformers(str(folder), hf_model=model, device="cpu")


@pytest.mark.parametrize("compatibility_mode", [False, True])
def test_checkpoint_and_bridge_agree(checkpoints, family, compatibility_mode):
    bridge = boot(checkpoints[family])
    if compatibility_mode:  # TransformerLens' own folding and centring: a second, independent route
        bridge.enable_compatibility_mode(disable_warnings=True)
    ours, theirs = load_head_weights(checkpoints[family]), head_weights_from_bridge(bridge)
    for name in TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=1e-5)
        # TransformerLens has no stacked b_O for a model without biases
        if compatibility_mode and (name != "b_O" or family in ("gpt2", "gpt_neox", "qwen2")):
            torch.testing.assert_close(getattr(ours, name), getattr(bridge, name).detach(), atol=1e-5, rtol=1e-5)
    assert ours.processing == theirs.processing and ours.norm == theirs.norm
    assert ours.rotary == theirs.rotary and (ours.rotary is None) == (family == "gpt2")
    assert ours.source.family == theirs.source.family and torch.equal(ours.kv_index, theirs.kv_index)


def test_raw_weights_agree_and_are_refused_from_a_processed_bridge(checkpoints):
    raw = Processing(fold_ln=False, center=False)
    bridge = boot(checkpoints["gpt2"])
    ours = load_head_weights(checkpoints["gpt2"], processing=raw)
    theirs = head_weights_from_bridge(bridge, processing=raw)
    for name in TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-6, rtol=1e-6)
    assert ours.d_model_effective == ours.d_model and ours.processing.describe() == "raw weights"
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ProcessingError, match="processed already"):
        head_weights_from_bridge(bridge, processing=raw)


def test_processing_leaves_what_attention_computes_unchanged(checkpoints, family):
    """The write of layer 0's attention, by the model itself and by the processed weights, up to the residual's mean."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints[family], attn_implementation="eager")
    block = (model.transformer.h if family == "gpt2" else model.base_model.layers)[0]
    norm = block.ln_1 if family == "gpt2" else block.input_layernorm
    attention = block.attn if family == "gpt2" else getattr(block, "attention", None) or block.self_attn
    resid = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # a single position attends to itself alone, so the pattern is 1 whatever Q and K
        positions = (
            {}
            if family == "gpt2"
            else {"position_embeddings": model.base_model.rotary_emb(resid, torch.zeros(1, 1, dtype=torch.long))}
        )
        write = attention(norm(resid), attention_mask=None, **positions)[0][0, 0]
        weights = load_head_weights(checkpoints[family])
        x = resid[0, 0] - resid.mean() if weights.norm == LAYER_NORM else resid[0, 0]
        x = x / (x.square().mean() + (norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)).sqrt()
        ours = torch.einsum("m,hmd,hdn->n", x, weights.W_V[0][weights.kv_index], weights.W_O[0]) + weights.b_O[0]
    expected = write - write.mean() if weights.processing.center else write
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_what_the_model_has_not_is_one_clear_error(checkpoints):
    with pytest.raises(ProcessingError, match="only LayerNorm subtracts the mean"):
        load_head_weights(checkpoints["llama"], processing=Processing(fold_ln=True, center=True))
    with pytest.raises(ProcessingError, match="folded in first"):
        Processing(fold_ln=False, center=True).check(LAYER_NORM)
    with pytest.raises(LabelError, match=r"layers 0\.\.2 with heads 0\.\.3"):
        load_head_weights(checkpoints["gpt2"]).head("L3H0")


def test_shards_and_bfloat16(checkpoints, family, tmp_path):
    model = build_model(family).bfloat16()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = load_head_weights(tmp_path / "whole"), load_head_weights(tmp_path / "shards")
    assert all(torch.equal(getattr(whole, name), getattr(shards, name)) for name in TENSORS)
    assert (
        whole.W_Q.dtype == torch.float32
        and whole.source.dtype == "bfloat16"
        and whole.source.sha256 != shards.source.sha256
    )
    held = open_checkpoint(tmp_path / "shards")
    other = next(path for name, path in held.files.items() if "embed" in name or "wte" in name)
    save_file({name: 2 * tensor for name, tensor in load_file(other).items()}, other)
    again = open_checkpoint(tmp_path / "shards")
    assert assembled(again).source == assembled(held).source and again.sha256() != shards.source.sha256, (
        "the sum of what is read alone"
    )


def test_only_attention_tensors_are_read(checkpoints, family, tmp_path):
    """A folder that holds nothing else loads the same."""
    folder = shutil.copytree(checkpoints[family], tmp_path / "attention")
    tensors = load_file(folder / "model.safetensors")
    wanted = ("attn.c_", "ln_1", "attention.", "input_layernorm", "self_attn")
    save_file({name: t for name, t in tensors.items() if any(w in name for w in wanted)}, folder / "model.safetensors")
    ours, theirs = load_head_weights(folder), load_head_weights(checkpoints[family])
    assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in TENSORS)


ATTENTION = "transformer.h.1.attn.c_proj.weight"
DAMAGED_TENSORS = [
    (lambda t: t.pop(ATTENTION), f"partial: 1 attention tensors are missing: {ATTENTION}"),
    (lambda t: t[ATTENTION][3].fill_(torch.nan), f"{ATTENTION} .* NaN or infinite"),
    (lambda t: t.update({ATTENTION: t[ATTENTION].double() * 1e60}), "infinite values .as torch.float32"),
    *(
        (lambda t, dtype=dtype: t.update({ATTENTION: t[ATTENTION].to(dtype)}), f"{ATTENTION} .* no plain float")
        for dtype in (torch.int8, torch.bool, torch.float8_e4m3fn)
    ),
]
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DAMAGED_FILES = [
    ({CONFIG: "{"}, "is damaged"),
    ({CONFIG: "null"}, "no table of names and values"),
    ({CONFIG: None}, "holds no config.json"),
    ({SINGLE: "x" * 100}, "not a whole safetensors file"),
    ({SINGLE: None, "pytorch_model.bin": "pickle"}, "Only safetensors are read, never a pickle"),
    ({SINGLE: None, INDEX: '{"weight_map": {}}'}, "lists no shards"),
    ({SINGLE: None, INDEX: '{"weight_map": {"a": "lost.safetensors"}}'}, "holds no lost.safetensors"),
]
WRONG_CONFIGS = [
    ("gpt2", {"n_embd": 48}, r"is \[24, 72\], but its config makes it \[48, 144\]"),
    ("gpt2", {"n_head": 5}, "No gpt2 model can be of .* head_dim = None"),
    ("gpt2", {"n_head": "4"}, "No gpt2 model can be of .*n_head = '4'"),
    ("gpt2", {"n_layer": 2}, "says 2 layers, but the file also holds transformer.h.2"),
    ("gpt2", {"n_layer": 4}, "partial: 6 attention tensors are missing"),
    ("gpt2", {"model_type": "mamba"}, "'mamba', which is not known here. Known: gpt2, gpt_neox, llama"),
    ("gpt2", {"n_head": ...}, "n_head = None"),
    ("gpt_neox", {"rope_parameters": "fast"}, "no table of names and values"),
    ("llama", {"head_dim": 3}, "but its config makes it"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
]
REFUSED = [("gpt2", *row) for row in DAMAGED_TENSORS + DAMAGED_FILES] + WRONG_CONFIGS


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_damaged_checkpoint_or_a_config_that_does_not_fit_it_is_one_clear_error(
    checkpoints, tmp_path, name, change, message
):
    """change: of the tensors; of files, by name, whole or gone; or of values in the config."""
    folder = tmp_path / "damaged"
    if callable(change):
        edit(checkpoints[name], folder, change)
    elif CONFIG in change or SINGLE in change:
        shutil.copytree(checkpoints[name], folder)
        for file, content in change.items():
            (folder / file).unlink(missing_ok=True)
            if content is not None:
                (folder / file).write_text(content)
    else:
        edit_config(checkpoints[name], folder, **change)
    with pytest.raises(CheckpointError, match=message):
        load_head_weights(folder)
    if "torch.float32" in message:
        assert load_head_weights(folder, dtype=torch.float64).W_O.abs().max() > 1e50


@pytest.mark.parametrize(("normalization", "norm"), [(None, "none"), ("LN", "LayerNorm"), ("RMS", "RMSNorm")])
def test_a_natively_built_bridge_is_read_too(normalization, norm):
    from transformer_lens.model_bridge import TransformerBridge

    config = dict(n_layers=2, d_model=24, n_ctx=16, d_head=6, n_heads=4, d_vocab=30, attn_only=True, seed=0)
    bridge = TransformerBridge.boot_native(config | {"normalization_type": normalization})
    weights = head_weights_from_bridge(bridge)
    assert (
        weights.norm == norm and weights.processing == Processing.default(norm) and weights.W_O.shape == (2, 4, 6, 24)
    )
    assert (weights.W_O.sum(-1).abs().max() < 1e-5) == (norm == "LayerNorm")
    output = next(p for name, p in bridge.named_parameters() if "layers.1." in name and ".o." in name)
    with torch.no_grad():
        output[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"blocks\[1\] W_O holds NaN"):
        head_weights_from_bridge(bridge)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "x" * 5000])
def test_a_name_that_can_be_neither_folder_nor_id_is_refused(name):
    with pytest.raises(CheckpointError, match="can be no folder and no Hub id"):
        load_head_weights(name)
