"""Folders in the Hub's format that stand in for real models: real tokenizer, and random weights where the real ones
are not at hand. What runs on them rehearses what a GPU with a network will run.

``python tests/rehearsals.py FOLDER`` writes the one that the notebooks are run with.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

TOKENIZER = ("tokenizer_config.json", "vocab.json", "merges.txt")


def tiny(family: str, folder: Path, source: Path, *, digits: bool = False) -> Path:
    """A random model of a family, with GPT-2's tokenizer: bfloat16, in shards; llama with grouped heads.

    digits: numbers are split into digits, as they are in many tokenizers; GPT-2's and Llama 3's keep them whole.
    """
    import transformers as tf

    torch.manual_seed(0)
    vocab, bos = tf.GPT2Config.from_pretrained(source).vocab_size, dict(bos_token_id=50256, eos_token_id=50256)
    sizes = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, vocab_size=vocab)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "gpt2":
        config = tf.GPT2Config(vocab_size=vocab, n_embd=64, n_layer=4, n_head=4, **bos)
    else:
        sizes |= dict(num_key_value_heads=2, max_position_embeddings=512)
        config = tf.LlamaConfig(**sizes, rope_parameters=rope, **bos)
    folder.mkdir(parents=True, exist_ok=True)
    model = tf.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="3MB")
    for name in TOKENIZER:
        shutil.copyfile(Path(source) / name, folder / name)
    if digits:
        _split_digits(folder)
    return folder


def _split_digits(folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    fast, end = AutoTokenizer.from_pretrained(folder).backend_tokenizer, "<|endoftext|>"
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), fast.pre_tokenizer])
    for name in TOKENIZER:
        (folder / name).unlink()
    PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=end, eos_token=end).save_pretrained(folder)


if __name__ == "__main__":
    from talking_heads_utils.files import gpt2_source

    where = gpt2_source()
    if Path(where).is_dir():
        print(tiny("gpt2", Path(sys.argv[1]), Path(where)))
