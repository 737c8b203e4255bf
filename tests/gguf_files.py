"""Small GGUF files, laid out by hand as llama.cpp's converter does: another route than the one that reads them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as tf
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "1 2", "Ġ Ġ", "Ġ 1", "n d", "a nd"]
N_TOKENS = 288  # a multiple of 32, the length of a block
SPECIAL = "<|endoftext|>"
SIZES = dict(
    vocab_size=N_TOKENS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=96, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
CLASSES = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}


def build(family: str, **more):
    """A tiny random model of a family; norms and biases are random too."""
    torch.manual_seed(0)
    if family == "gpt2":
        config = tf.GPT2Config(
            vocab_size=N_TOKENS, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    else:
        odd = {"head_dim": 16} | ({"sliding_window": None} if family == "mistral" else {})
        config = getattr(tf, CLASSES[family])(**SIZES | odd | more)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (0.7 if parameter.ndim == 1 else 0.0))
    return model


def write(model, path: Path, kind: str = "F32", *, tokenizer: bool = True, pre: str | None = "smollm", extra=None,
          drop=(), tensors=None, kinds=None) -> Path:  # fmt: skip
    """The model as a GGUF file, its matrices stored as ``kind``. The model's own weights become what the file holds.

    extra: metadata after the usual ones; drop: metadata to leave out; tensors: name -> array, added or put in place;
    kinds: name of a tensor -> what it is stored as instead.
    """
    config, family = model.config, model.config.model_type
    arch = "llama" if family == "mistral" else family
    writer = gguf.GGUFWriter(path, arch)
    values = _metadata(config, arch) | (extra or {})
    for name, value in values.items():
        if name not in drop:
            _add(writer, name, value)
    if tokenizer:
        write_tokenizer(writer, pre)
    for name, data, dtype in _tensors(model, arch, kind, tensors or {}, kinds or {}):
        writer.add_tensor(name, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value) -> None:
    kinds = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool, str: writer.add_string}
    kinds[type(value)](name, value)


def _metadata(config, arch: str) -> dict:
    if arch == "gpt2":
        return {
            "gpt2.context_length": config.n_positions, "gpt2.embedding_length": config.n_embd,
            "gpt2.block_count": config.n_layer, "gpt2.feed_forward_length": 4 * config.n_embd,
            "gpt2.attention.head_count": config.n_head, "gpt2.attention.layer_norm_epsilon": 1e-5,
        }  # fmt: skip
    values = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }  # fmt: skip
    return {f"{arch}.{name}": value for name, value in values.items()}


def write_tokenizer(writer: gguf.GGUFWriter, pre: str | None) -> None:
    tokens = [SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
    tokens += [f"<unused{i}>" for i in range(N_TOKENS - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (N_TOKENS - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _tensors(model, arch: str, kind: str, others: dict, kinds: dict):
    """Name, bytes and type of every tensor; what was rounded on the way is put back into the model."""
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), model.config.num_hidden_layers
    )
    for name, parameter in model.named_parameters():
        stem, _, end = name.rpartition(".")
        own = f"{names.get_name(stem)}.{end}"
        data, back = _laid_out(parameter.detach().numpy(), name, model.config, arch)
        dtype = gguf.GGMLQuantizationType[kinds.get(own, kind) if parameter.ndim == 2 else "F32"]
        stored = gguf.quantize(data, dtype)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(back(gguf.dequantize(stored, dtype)).copy()))
        if own not in others:
            yield own, stored, dtype
    for name, data in others.items():
        yield name, data, gguf.GGMLQuantizationType.F32


def _laid_out(data: np.ndarray, name: str, config, arch: str):
    """As llama.cpp's ``convert_hf_to_gguf.py`` lays a tensor out, and the way back, written out by hand."""
    if arch == "gpt2" and data.ndim == 2 and ".h." in name:
        return np.ascontiguousarray(data.T), lambda stored: stored.T
    if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
        n = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        rows = np.arange(len(data)).reshape(n, 2, -1).swapaxes(1, 2).ravel()
        return np.ascontiguousarray(data[rows]), lambda stored: stored[np.argsort(rows)]
    return data, lambda stored: stored
