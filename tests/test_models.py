"""Loading whole models: the logits of plain transformers, the weights of the checkpoint, clear refusals."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_model, edit, edit_config, random_prompts, save_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from talking_heads_utils import known, models
from talking_heads_utils.device import free_memory
from talking_heads_utils.errors import CheckpointError, ModelError, OptionError, ProcessingError, UnsupportedModelError
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.forward.recording import record
from talking_heads_utils.known import known_models
from talking_heads_utils.models import as_bridge, load_model, load_tokenizer
from talking_heads_utils.prompts.prefix import begin_ids, prefix_of
from talking_heads_utils.weights.bridge import is_processed
from talking_heads_utils.weights.checkpoints import load_head_weights
from talking_heads_utils.weights.heads import Processing

RAW = Processing(fold_ln=False, center=False)
TOKENS = torch.tensor([[0, 5, 7, 9, 11, 3], [0, 2, 4, 8, 16, 32]])


@pytest.mark.parametrize("processing", [None, RAW], ids=["processed", "raw"])
def test_logits_are_those_of_plain_transformers(checkpoints, family, processing):
    bridge = load_model(checkpoints[family], processing=processing)
    plain = AutoModelForCausalLM.from_pretrained(checkpoints[family], attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(bridge(TOKENS), plain(TOKENS).logits, atol=1e-4, rtol=1e-4)
        _, cache = bridge.run_with_cache(TOKENS)
    pattern = cache["blocks.1.attn.hook_pattern"]
    assert pattern.shape == (2, 4, 6, 6) and torch.allclose(pattern.sum(-1), torch.ones(2, 4, 6))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_vocabulary_as_long_as_the_stream_is_wide_changes_nothing(family, tmp_path):
    """TransformerLens folds a square unembedding along the wrong side; the model must still say the same."""
    model = build_model(family, vocab_size=24)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    tokens = torch.randint(24, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(tokens), model(tokens).logits, atol=2e-3, rtol=1e-3)


def test_names_without_the_prefix_are_the_hubs_own_format(checkpoints, tmp_path):
    """The Hub's gpt2 stores h.0.attn..., without ``transformer.``."""

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    bridge = load_model(edit(checkpoints["gpt2"], tmp_path / "hub", strip))
    whole = load_model(checkpoints["gpt2"])
    with torch.no_grad():
        torch.testing.assert_close(bridge(TOKENS), whole(TOKENS))


MLP = "transformer.h.1.mlp.c_fc.weight"
DAMAGED = {
    f"1 tensors are missing: {MLP}.*load_head_weights": lambda tensors: tensors.pop(MLP),
    f"{MLP} of odd holds NaN": lambda tensors: tensors[MLP][0].fill_(torch.nan),
    "does not fit its config": lambda tensors: tensors.update({MLP: tensors[MLP][:, :-1].contiguous()}),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damage_that_attention_does_not_see_is_refused_in_a_whole_model(checkpoints, tmp_path, message):
    folder = edit(checkpoints["gpt2"], tmp_path / "odd", DAMAGED[message])
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
    assert load_head_weights(folder).n_layers == 3


def test_a_missing_tokenizer_and_too_little_memory(checkpoints, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoints["llama"], tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="neither tokenizer.json nor vocab.json"):
        load_model(folder)
    assert free_memory(torch.device("cpu")) > 1e8
    monkeypatch.setattr(models, "free_memory", lambda device: 1000)
    with pytest.raises(ModelError, match=r"needs 0\.0 GB on cpu; 0\.0 GB are free.*bfloat16"):
        load_model(checkpoints["gpt2"])


def test_a_model_adds_its_prefix_by_itself_and_only_once(checkpoints, monkeypatch, tmp_path):
    """The bridge's own tokens are the prompt sets'; what no table names and no tokenizer adds is not there, bos or
    not."""
    bare = load_model(checkpoints["llama"])
    assert bare.tokenizer.bos_token == "w0" and bare.to_tokens("w5 w6").tolist() == [[5, 6]]
    table = {"known": dataclasses.replace(known_models()["gpt2"], name="known", prefix="w0")}
    monkeypatch.setattr(models, "known_models", lambda: table)
    monkeypatch.setattr(models, "model_source", lambda name, revision=None: (checkpoints["llama"], None))
    bridge = load_model("known")
    assert prefix_of(bridge.tokenizer) == prefix_of(load_tokenizer("known")) == "w0"
    assert bridge.to_tokens("w5 w6").tolist() == [begin_ids(bridge.tokenizer) + [5, 6]] == [[0, 5, 6]]
    assert bridge.to_single_token("w5") == 5 and "add_bos_token" not in bridge.tokenizer.init_kwargs
    assert prefix_of(load_model(checkpoints["llama"]).tokenizer) == "", "a folder is not the model of that name"
    bridge.tokenizer.save_pretrained(tmp_path)
    assert prefix_of(AutoTokenizer.from_pretrained(tmp_path)) == "w0"


def test_the_books_own_models_begin_as_they_were_trained():
    for name in (known.PLANTED, *known.shipped_models()):
        assert prefix_of(load_tokenizer(name)) == "<bos>", name
    assert load_model("mini-token").to_tokens("Mary")[0].tolist() == load_tokenizer("mini-token")("Mary").input_ids


def test_planted_is_loaded_by_the_same_call():
    from talking_heads_utils.planted.model import plant

    bridge, truth = load_model("planted"), plant()
    tokens = truth.tokenizer(["I need to wash the hat"], return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(bridge(tokens), truth.bridge(tokens), atol=1e-4, rtol=1e-5)
    with pytest.raises(ProcessingError, match="whose norm is none"):
        load_model("planted", processing=Processing(fold_ln=True, center=True))


def test_a_name_is_a_small_model_that_ships_else_a_folder_and_a_path_a_folder(checkpoints, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="'mini-nothing' ships with the book; there are .*mini-token"):
        load_model("mini-nothing")
    for name in ("mini-mine", "mini-token/final"):
        shutil.copytree(checkpoints["gpt2"], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert load_model("mini-mine").cfg.n_layers == 3
    local = models.find_checkpoint(Path("mini-token") / "final").folder
    assert local.resolve() == (tmp_path / "mini-token" / "final").resolve()
    assert models.find_checkpoint("mini-token/final").folder == known.shipped_models()["mini-token"]


def test_a_spread_model_is_refused_where_single_layers_run(case, monkeypatch):
    bridge, prompts = case
    elsewhere = [torch.zeros(1), torch.zeros(1, device="meta")]
    monkeypatch.setattr(type(bridge), "parameters", lambda self, **options: iter(elsewhere))
    with pytest.raises(ModelError, match="is spread over cpu, meta"):
        prepare(bridge, prompts, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_do_something_else_are_refused(checkpoints, tmp_path, dtype):
    """A checkpoint whose config asks for another attention than the one that is known here."""
    folder = edit_config(checkpoints["gpt2"], tmp_path / "scaled", scale_attn_by_inverse_layer_idx=True)
    odd, plain = (load_model(folder, dtype=dtype) for folder in (folder, checkpoints["gpt2"]))
    prompts = random_prompts()
    for ask in (lambda bridge: prepare(bridge, prompts, 0), lambda bridge: record(bridge, prompts, [2])):
        with pytest.raises(UnsupportedModelError, match="not known here"):
            ask(odd)
        ask(plain)


SOME = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
WINDOWS = {"mistral": {"sliding_window": 4}, "qwen2": SOME, "qwen3": SOME}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_runs_as_it_is_and_is_refused_where_attention_runs_by_itself(checkpoints, tmp_path, name):
    folder = edit_config(checkpoints[name], tmp_path / "4", **WINDOWS[name])
    bridge, tokens = load_model(folder), random_prompts().tokens
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(bridge(tokens), plain(tokens).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(bridge(tokens), load_model(checkpoints[name])(tokens), atol=1e-2)
    if name == "qwen3":
        return
    for ask in (lambda prompts: prepare(bridge, prompts, 1), lambda prompts: record(bridge, prompts, [2])):
        with pytest.raises(UnsupportedModelError, match="a window of 4 tokens, and these prompts have 9"):
            ask(random_prompts())
    record(load_model(edit_config(folder, tmp_path / "9", sliding_window=9)), random_prompts(), [2])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3"])
def test_any_loaded_model_serves_as_a_bridge(checkpoints, family):
    """A Hugging Face model, plain bridges and ours give the same logits, and what was passed in is left as it was."""
    from transformer_lens.model_bridge import TransformerBridge

    plain, tokenizer = build_model(family), AutoTokenizer.from_pretrained(checkpoints[family])
    with torch.no_grad():
        wanted = plain(TOKENS).logits
        wrapped = as_bridge(plain, tokenizer)
        booted = TransformerBridge.boot_transformers(str(checkpoints[family]), device="cpu")
        for bridge in (wrapped, as_bridge(booted), as_bridge(load_model(checkpoints[family]))):
            torch.testing.assert_close(bridge(TOKENS), wanted, atol=1e-4, rtol=1e-4)
        assert not is_processed(wrapped) and not is_processed(booted)
        assert as_bridge(plain) is wrapped and as_bridge(wrapped) is wrapped and wrapped.tokenizer is not None
        torch.testing.assert_close(plain(TOKENS).logits, wanted, atol=1e-5, rtol=1e-5)
        booted.enable_compatibility_mode(disable_warnings=True)
        assert is_processed(booted) and as_bridge(booted) is booted
        ours, theirs = (logits.log_softmax(-1) for logits in (wanted, booted(TOKENS)))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_what_cannot_serve_as_a_bridge_is_one_clear_error(checkpoints):
    plain = build_model("gpt2")
    with pytest.raises(OptionError, match="needs its tokenizer"):
        as_bridge(plain)
    for model in (plain.train(), load_model(checkpoints["gpt2"]).train()):
        with pytest.raises(ModelError, match="training mode.*eval"):
            as_bridge(model)
    for odd in (None, torch.nn.Linear(2, 2)):
        with pytest.raises(OptionError, match="A model is a TransformerBridge"):
            as_bridge(odd)
    assert as_bridge("planted").cfg.n_layers == 3
