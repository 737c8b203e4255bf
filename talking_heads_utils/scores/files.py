"""The file of composition scores, for models of any size.

It is a safetensors file whose metadata say what the scores were made from. Its tensors:

``{kind}.{layer}.null``     ``[3, n_heads]`` float32: mean, standard deviation, maximum over random directions
``singular_values.{layer}`` ``[n_heads, d_head]`` float16
``{kind}.{layer}.score``    ``[layer, n_heads, d_head, n_heads]`` float16: writer layer, writer head, component, reader
``crc32``                   checksum plus 1 of each of them, int64: nulls, singular values and scores by layer and kind
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.files import written_whole
from talking_heads_utils.scores.composition import ReaderScores
from talking_heads_utils.settings import KINDS

META = "talking_heads"
SUMS = "crc32"

Key = tuple[str, int]  # kind and reader layer


def shapes_of(about: Mapping[str, Any], keys: Iterable[Key]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a file with the blocks of ``keys``, in the order of the checksums."""
    n_layers, n_heads, d_head = (about[name] for name in ("n_layers", "n_heads", "d_head"))
    keys = sorted(keys, key=lambda key: (key[1], KINDS.index(key[0])))
    shapes: dict[str, tuple[int, ...]] = {f"{kind}.{layer}.null": (3, n_heads) for kind, layer in keys}
    shapes |= {f"singular_values.{layer}": (n_heads, d_head) for layer in range(n_layers)}
    return shapes | {f"{kind}.{layer}.score": (layer, n_heads, d_head, n_heads) for kind, layer in keys}


def keys_of(names: Iterable[str]) -> list[Key]:
    """The blocks whose scores are among these tensors."""
    parts = [name.split(".") for name in names if name.endswith(".score")]
    return [(kind, int(layer)) for kind, layer, _ in parts]


def tensors_of(blocks: Iterable[ReaderScores], S: Float[Tensor, "layer n_heads d_head"]) -> dict[str, Tensor]:
    """Blocks and the singular values of the layers from 0 on as a file holds them."""
    found = {f"singular_values.{layer}": values.cpu().half() for layer, values in enumerate(S)}
    for block in blocks:
        name, null = f"{block.kind}.{block.layer}", torch.stack([block.null_mean, block.null_std, block.null_max])
        found |= {f"{name}.null": null.cpu().float(), f"{name}.score": block.score.cpu().half()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def write_file(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of whole scores with their checksums, whole or not at all."""
    sums = torch.tensor([_sum(tensors[name]) for name in shapes_of(about, keys_of(tensors))])
    with written_whole(path) as part:
        save_file({**tensors, SUMS: sums}, part, {META: json.dumps(dict(about))})


def _sum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.numpy().tobytes()) + 1


class FileBlocks(Mapping[Key, ReaderScores]):
    """The blocks of a scores file, each read and checked when it is asked for; the last few are kept.

    Raises :class:`CheckpointError` for a block that is damaged.
    """

    def __init__(self, path: Path, sums: Mapping[str, int]):
        self.path, self.sums, self.keys_held = path, sums, dict.fromkeys(keys_of(sums))
        self._kept = lru_cache(maxsize=len(KINDS))(self._read)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys_held)

    def __len__(self) -> int:
        return len(self.keys_held)

    def __contains__(self, key: object) -> bool:
        return key in self.keys_held

    def __getitem__(self, key: Key) -> ReaderScores:
        return self._kept(key)

    def _read(self, key: Key) -> ReaderScores:
        kind, layer = key
        if key not in self:
            raise KeyError(key)
        score = self.tensor(f"{kind}.{layer}.score")
        if not ((score >= 0) & (score < 1.001) | score.isnan()).all():
            raise _refusal(self.path, f"{kind}.{layer}.score is not from 0 to 1")
        return ReaderScores(kind, layer, score, *self.tensor(f"{kind}.{layer}.null"))

    def tensor(self, name: str) -> Tensor:
        """One tensor, in float32."""
        with safe_open(self.path, "pt") as file:
            tensor = file.get_tensor(name)
        if _sum(tensor) != self.sums[name]:
            raise _refusal(self.path, f"{name} does not fit its checksum")
        return tensor.float()


def read_file(path: Path) -> tuple[FileBlocks, Float[Tensor, "n_layers n_heads d_head"], dict[str, Any]]:
    """Blocks, singular values and metadata of a scores file. Raises :class:`CheckpointError` for any other file."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[META])
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            sums = file.get_tensor(SUMS).tolist()
        if lacking := {"model", "processing"} - set(about):
            raise ValueError(f"its metadata lack {min(lacking)}")
        if about["n_layers"] > len(found) or not about["d_model_effective"] > 0:
            raise ValueError(f"{about['n_layers']} layers, d_model' = {about['d_model_effective']}")
        shapes = shapes_of(about, keys_of(found))
        if found != {SUMS: (len(shapes),)} | shapes or len(shapes) == about["n_layers"]:
            raise ValueError("its tensors are not those of its metadata")
        blocks = FileBlocks(path, dict(zip(shapes, sums, strict=True)))
        S = torch.stack([blocks.tensor(f"singular_values.{layer}") for layer in range(about["n_layers"])])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _refusal(path, repr(error)) from error
    return blocks, S, about


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} holds no composition scores, or damaged ones ({reason}). Make it again.")
