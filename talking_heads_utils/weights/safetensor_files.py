"""The tensors of a checkpoint in safetensors, in one file or in shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from talking_heads_utils.errors import CheckpointError

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class SafeTensors:
    """The tensors of a checkpoint in safetensors: name -> the file that holds it."""

    files: dict[str, Path]

    def __len__(self) -> int:
        return len(self.files)

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor. Raises :class:`CheckpointError` for one that is no plain float."""
        with safe_open(self.files[name], "pt") as file:
            header = file.get_slice(name)
            shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{name} in {self.files[name]} is stored as {dtype}, which is no plain float: a quantised checkpoint "
                f"cannot be scored unless it is a GGUF file. Take one in {', '.join(DTYPES.values())}."
            )
        return shape, DTYPES[dtype]

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Part -> tensor of that name, as it is stored."""
        for part, name in names.items():
            with safe_open(self.files[name], "pt") as file:
                yield part, file.get_tensor(name)


def header_of(path: Path) -> dict[str, Path]:
    """Tensor name -> file, for one safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}). Download it again.") from error
