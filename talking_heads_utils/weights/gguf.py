"""Weights out of a GGUF file, the format of llama.cpp and Ollama, dequantised tensor by tensor.

The file is read and dequantised by the ``gguf`` library. Which tensor is which, how its rows lie and what the
metadata are called in a Hugging Face config is taken from that library's and transformers' own tables. What those
tables drop without a word is read here (Llama 3's rotary positions, a window, an odd d_head) or refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, GGUFValueType, ReaderTensor, dequantize, get_tensor_name_map
from torch import Tensor

from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.weights.families import family_of

ROPE_FACTORS = "rope_freqs.weight"  # where llama.cpp keeps what a Hugging Face config calls rope_type llama3
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_READ_HERE = {
    "attention.key_length", "attention.value_length", "attention.sliding_window", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.finetuned", "tensor_data_layout",
}  # fmt: skip


class _Reader(GGUFReader):
    """The library's reader, but for lists of strings: two arrays for each of 100,000 tokens and merges take seconds."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise EOFError("it ends before all that its header names")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[np.ndarray], list[int], list[GGUFValueType]]:
        kinds = [GGUFValueType.ARRAY, GGUFValueType.STRING]
        if raw_type == kinds[0] and int(self._get(orig_offs + 4, np.uint64)[0]) > len(self.data) - orig_offs:
            raise EOFError("it ends before all that its header names")
        if raw_type != kinds[0] or self._get(orig_offs, np.uint32)[0] != kinds[1]:
            return super()._get_field_parts(orig_offs, raw_type)
        order = ">" if self.byte_order == "S" else "<"
        held, offset = memoryview(self.data), orig_offs + 12  # type: ignore[arg-type]  # numpy does not say it
        for _ in range(int(self._get(orig_offs + 4, np.uint64)[0])):
            offset += 8 + struct.unpack_from(f"{order}Q", held, offset)[0]
        return offset - orig_offs, [self.data[orig_offs:offset]], [], kinds


class GgufFile:
    """A GGUF file whose header has been read, and its tensors under their Hugging Face names.

    metadata: name -> value; a list of strings is left out. tensors: name -> the library's view into the mapped file.
    Raises :class:`CheckpointError` for a file that is no GGUF, is cut short or damaged, or is one part of several.
    """

    def __init__(self, path: Path):
        self.path, self._reader = path, _read(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in self._reader.fields.items()}
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        if (parts := self.metadata.get("split.count")) not in (None, 0, 1):
            raise CheckpointError(
                f"{path} is one of {parts} parts. Join them first, by llama.cpp's `llama-gguf-split --merge`."
            )
        self.architecture = str(self.metadata.get("general.architecture"))

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def n_params(self) -> int:
        """Values in all tensors together."""
        return sum(tensor.n_elements for tensor in self.tensors.values())

    @cached_property
    def config(self) -> dict[str, Any]:
        """The Hugging Face config that the metadata stand for, whole. Raises :class:`CheckpointError`."""
        from transformers import AutoConfig

        plain = plain_config(self)
        try:
            return AutoConfig.for_model(**plain).to_dict()
        except Exception as error:  # transformers refuses a config by errors of many kinds
            raise CheckpointError(
                f"The metadata of {self.path} describe no {plain['model_type']} model: {error}"
            ) from error

    @cached_property
    def names(self) -> dict[str, str]:
        """Hugging Face name -> name in the file. A tensor has every name that some family gives it."""
        arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == self.architecture), None)
        n_layers = self.metadata.get(f"{self.architecture}.block_count", 0)
        if arch is None or not isinstance(n_layers, int) or not 0 < n_layers <= len(self):
            raise CheckpointError(
                f"{self.path} says that it is a {self.architecture!r} with {n_layers!r} layers, which cannot be. "
                "Download or convert it again."
            )
        return {
            name + end: own + end
            for name, (_, own) in get_tensor_name_map(arch, n_layers + 1).mapping.items()
            for end in (".weight", ".bias")
            if own + end in self.tensors
        }

    @cached_property
    def files(self) -> dict[str, Path]:
        """Hugging Face name -> the file that holds it."""
        return dict.fromkeys(self.names, self.path)

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape of a tensor in the Hugging Face layout, and the type it is stored in."""
        own = self.names[name]
        return tuple(self.empty(own).shape), self.tensors[own].tensor_type.name

    def empty(self, own: str) -> Tensor:
        """The tensor without values, by its name in the file."""
        shape = tuple(reversed(self.tensors[own].shape.tolist()))
        return self.laid_out(own, torch.empty(shape, device="meta"))

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        """Part -> tensor of that name, in float32; no other is dequantised."""
        for part, name in names.items():
            yield part, self.tensor(self.names[name])

    def tensor(self, own: str) -> Tensor:
        """A tensor by its name in the file, in float32 and the Hugging Face layout."""
        return torch.from_numpy(np.array(self.laid_out(own, self.dequantised(own)), order="C"))

    def dequantised(self, name: str) -> np.ndarray:
        """One tensor in float32, its shape in the order of torch."""
        tensor = self.tensors[name]
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused where it is used
                return dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{name} in {self.path} is stored as {tensor.tensor_type.name}, which the gguf library cannot "
                "dequantise. Take a file of another quantisation."
            ) from error

    def laid_out(self, own: str, weights: Any) -> Any:
        """Rows and sides as Hugging Face has them: Llama's queries and keys lie otherwise, GPT-2's matrices across."""
        parsed: dict[str, Any] = {"tensors": {}}
        try:
            return self._processor.process(weights, own, tensor_key_mapping={}, parsed_parameters=parsed).weights
        except (RuntimeError, ValueError) as error:  # rows that do not divide among the heads
            raise CheckpointError(
                f"{own} in {self.path} is {list(weights.shape)}, which its metadata do not allow. Download it again."
            ) from error

    @cached_property
    def _processor(self) -> Any:
        """What lays tensors out: transformers' own, for the file's family."""
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        return TENSOR_PROCESSORS.get(self.architecture, TensorProcessor)(config=self.config)


def _read(path: Path) -> _Reader:
    try:
        with path.open("rb") as file:
            if (magic := file.read(4)) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF file: it begins with {magic!r}, not with b'GGUF'.")
        with np.errstate(over="ignore"):  # of an offset beyond all files
            reader = _Reader(path)
        _check_places(reader)
        return reader
    except CheckpointError:
        raise
    except Exception as error:  # the library finds a damaged header by whatever goes wrong first
        raise CheckpointError(
            f"{path} is no whole GGUF file ({type(error).__name__}: {error}): it is cut short or damaged. "
            "Download it again."
        ) from error


def _check_places(reader: _Reader) -> None:
    """Raises :class:`ValueError` for a tensor that does not begin where the format lets it, or within another one."""
    stop, last = reader.data_offset, "the header"
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.data_offset):
        if (tensor.data_offset - reader.data_offset) % int(reader.alignment):
            raise ValueError(f"{tensor.name} begins at no multiple of {reader.alignment} bytes")
        if tensor.data_offset < stop:
            raise ValueError(f"{tensor.name} lies over {last}")
        stop, last = tensor.data_offset + tensor.n_bytes, tensor.name


def plain_config(file: GgufFile) -> dict[str, Any]:
    """The part of a Hugging Face config that the file's metadata and tensors say, under the names that it has there."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    kind, where = file.architecture, f"The file {file.path.name}"
    family_of({"model_type": kind}, where)
    table = GGUF_TO_TRANSFORMERS_MAPPING["config"].get(kind)
    if table is None:
        raise CheckpointError(f"{where} is of the family {kind!r}, which transformers does not read from GGUF.")
    of_kind = {name: value for name, value in file.metadata.items() if name.startswith(f"{kind}.")}
    said = {name.removeprefix(f"{kind}."): value for name, value in of_kind.items()}
    if unknown := sorted(set(said) - set(table) - _READ_HERE):
        raise CheckpointError(
            f"{where} says {kind}.{unknown[0]} = {said[unknown[0]]!r}, and what that changes in the model is not known "
            "here."
        )
    config = {table[name]: value for name, value in said.items() if table.get(name)}
    config |= {"model_type": kind, "tie_word_embeddings": "output.weight" not in file.tensors}
    for special in ("bos", "eos"):
        config[f"{special}_token_id"] = file.metadata.get(f"tokenizer.ggml.{special}_token_id")
    if "token_embd.weight" in file.tensors:
        config["vocab_size"] = int(file.tensors["token_embd.weight"].shape[-1])
    if kind == "gpt2":
        return config | {"n_positions": said.get("context_length", 1024), "n_inner": said.get("feed_forward_length")}
    return config | _llama_like(file, kind, said, where)


def _llama_like(file: GgufFile, kind: str, said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What transformers' table lacks of a family like Llama: d_head, rotary positions and a window."""
    d_model, n_heads = said.get("embedding_length"), said.get("attention.head_count")
    d_head = said.get("attention.key_length")
    if d_head is None and isinstance(d_model, int) and isinstance(n_heads, int) and n_heads > 0:
        d_head = d_model // n_heads
    turned, values = said.get("rope.dimension_count", d_head), said.get("attention.value_length", d_head)
    if not d_head or turned != d_head or values != d_head:
        raise CheckpointError(
            f"{where} has keys of {d_head} dimensions, of which {turned} turn by position, and values of {values}: "
            "only heads where the three are one are known here."
        )
    found = {"head_dim": d_head, "rope_parameters": _rope(file, said, d_head, where)}
    window, length = said.get("attention.sliding_window"), said.get("context_length", 0)
    if kind == "mistral" or (window and window < length):
        if kind not in ("llama", "mistral"):
            raise CheckpointError(f"{where} attends within a window of {window} tokens, which is not known here.")
        found |= {"model_type": "mistral", "sliding_window": window}
    return found


def _rope(file: GgufFile, said: Mapping[str, Any], d_head: int, where: str) -> dict[str, Any]:
    """The rotary positions as a config has them.

    llama.cpp keeps the factors that scale each of Llama 3's frequencies, not what they were made from: that is found,
    and tried. Raises :class:`CheckpointError` for any other scaling.
    """
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found: dict[str, Any] = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base", 10000.0))}
    kind, scales = said.get("rope.scaling.type", "none"), [name for name in file.tensors if name.startswith("rope_")]
    if kind == "none" and not scales:
        return found
    if kind == "none" and scales == [ROPE_FACTORS]:
        factors = file.dequantised(ROPE_FACTORS).astype(np.float64)
        found |= _LLAMA3 | {"rope_type": "llama3", "factor": float(factors.max())}
        longest = said.get("context_length", 2048)
        config = LlamaConfig(head_dim=d_head, rope_parameters=found, max_position_embeddings=longest)
        made, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = found["rope_theta"] ** -(np.arange(0, d_head, 2) / d_head)
        if factors.shape == plain.shape and np.allclose(plain / factors, made.double().numpy(), rtol=1e-4, atol=0):
            return found
    raise CheckpointError(
        f"{where} scales its rotary positions ({kind}, {', '.join(scales) or 'no factors'}) in a way that is not known "
        "here: no model's own, nor that of Llama 3."
    )
