"""A whole model and its tokenizer out of a GGUF file, by transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.weights.gguf import ROPE_FACTORS, GgufFile

# Ways to cut text up before the merges, by the name in tokenizer.ggml.pre; transformers knows others, by their regex.
GPT2_SPLIT = frozenset({"gpt-2", "mpt", "olmo", "phi-2"})
DIGITS_SPLIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


class _Lazy:
    """A tensor that is dequantised only when transformers puts it into the model."""

    def __init__(self, file: GgufFile, name: str):
        self.file, self.name = file, name

    def __getitem__(self, index: Any) -> Tensor:
        return self.file.tensor(self.name)[index]


def described_by(file: GgufFile) -> tuple[Any, Any, dict[str, str]]:
    """Config and class of the model that the metadata describe, and its tensors' names -> those in the file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    described = AutoConfig.for_model(**file.config)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(described)
    return described, type(shell), {name: file.names[name] for name in shell.state_dict() if name in file.names}


def from_gguf(file: GgufFile, **options: Any) -> Any:
    """What ``from_pretrained(**options)`` of the model's class gives. With ``device_map="meta"`` nothing is read.

    Raises :class:`CheckpointError` for a tensor that the model which the metadata describe has no place for.
    """
    described, model, held = described_by(file)
    if stray := sorted(set(file.tensors) - set(held.values()) - {ROPE_FACTORS}):
        raise CheckpointError(
            f"The file holds {stray[0]}, for which the {described.model_type} model of its metadata has no place."
        )
    meta = options.get("device_map") == "meta"
    state = {name: file.empty(own) if meta else _Lazy(file, own) for name, own in held.items()}
    return model.from_pretrained(None, config=described, state_dict=state, **options)


def tokenizer_of(file: GgufFile) -> Any:
    """The tokenizer that the file's metadata describe, held against their vocabulary and merges.

    Raises :class:`CheckpointError` where the file has none, where it cuts text up in a way that is not known here, and
    where what transformers makes of it has another vocabulary.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    where = file.path
    if not {"tokenizer.ggml.model", "tokenizer.ggml.tokens"} <= set(file.metadata):
        raise CheckpointError(
            f"{where} has no tokenizer. What needs attention weights alone can be had from it: "
            "talking_heads_utils.weights.checkpoints.load_head_weights."
        )
    try:
        architecture, parts, options = get_gguf_tokenizer(str(where))
        backend, more = convert_gguf_tokenizer(architecture, parts)
        backend.pre_tokenizer = _split(file, backend)
        made = PreTrainedTokenizerFast(
            tokenizer_object=backend, name_or_path=str(where), clean_up_tokenization_spaces=False, **options, **more
        )
    except CheckpointError:
        raise
    except Exception as error:  # the libraries refuse what they cannot build by errors of many kinds
        raise CheckpointError(f"The tokenizer in {where} is damaged ({type(error).__name__}: {error}).") from error
    _check_vocabulary(made, parts, str(where))
    return made


def _split(file: GgufFile, backend: Any) -> Any:
    """How text is cut up before merges apply. transformers takes GPT-2's way for every name that it does not know."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pre = file.metadata.get("tokenizer.ggml.pre", "gpt-2" if file.architecture == "gpt2" else None)
    if file.metadata["tokenizer.ggml.model"] != "gpt2" or pre in GGUF_PRE_TOKENIZER_SPLITS:
        return backend.pre_tokenizer
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in GPT2_SPLIT:
        return whole
    if pre in DIGITS_SPLIT:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    known = ", ".join(sorted({*GPT2_SPLIT, *DIGITS_SPLIT, *GGUF_PRE_TOKENIZER_SPLITS}))
    raise CheckpointError(
        f"The tokenizer in {file.path} cuts text up in the way {pre!r}, which is not known here. Known: {known}."
    )


def _check_vocabulary(made: Any, parts: dict[str, Any], where: str) -> None:
    """Every id stands for the file's token, and every merge makes one of them."""
    tokens, vocabulary = parts["tokens"], made.get_vocab()
    wrong = [token for i, token in enumerate(tokens) if vocabulary.get(token) != i]
    wrong += [merge for merge in parts.get("merges", ()) if merge.replace(" ", "", 1) not in vocabulary]
    if wrong or len(vocabulary) != len(tokens):
        raise CheckpointError(
            f"The tokenizer made from {where} has {len(vocabulary)} tokens, the file {len(tokens)}; {len(wrong)} "
            f"tokens or merges differ, such as {(wrong or ['none'])[0]!r}. Take another file."
        )
