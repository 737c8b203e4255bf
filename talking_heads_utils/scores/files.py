"""The file of composition scores, for models of any size: written block by block, read block by block.

It is a safetensors file whose metadata say what the scores were made from. Its tensors, in this order:

``crc32``                   checksum plus 1 of every tensor after it, int64; 0 where that one is not written yet
``{kind}.{layer}.null``     ``[3, n_heads]`` float32: mean, standard deviation, maximum over random directions
``singular_values.{layer}`` ``[n_heads, d_head]`` float16
``{kind}.{layer}.score``    ``[layer, n_heads, d_head, n_heads]`` float16: writer layer, writer head, component, reader
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import CheckpointError, ResultError
from talking_heads_utils.scores.composition import ReaderScores
from talking_heads_utils.settings import KINDS

META = "talking_heads"
SUMS = "crc32"
_DTYPES = {"I64": torch.int64, "F32": torch.float32, "F16": torch.float16}

Layout = dict[str, tuple[str, tuple[int, ...]]]  # tensor name -> dtype and shape, in the file's order
Key = tuple[str, int]  # kind and reader layer


def in_order(keys: Iterable[Key]) -> list[Key]:
    """Blocks in the order of the file: by reader layer, then by kind."""
    return sorted(keys, key=lambda key: (key[1], KINDS.index(key[0])))


def layout_of(about: Mapping[str, Any], keys: Sequence[Key]) -> Layout:
    """Every tensor of a file with the blocks of ``keys``, which are in order."""
    n_layers, n_heads, d_head = (about[name] for name in ("n_layers", "n_heads", "d_head"))
    layout: Layout = {SUMS: ("I64", (2 * len(keys) + n_layers,))}
    layout |= {f"{kind}.{layer}.null": ("F32", (3, n_heads)) for kind, layer in keys}
    layout |= {f"singular_values.{layer}": ("F16", (n_heads, d_head)) for layer in range(n_layers)}
    return layout | {f"{kind}.{layer}.score": ("F16", (layer, n_heads, d_head, n_heads)) for kind, layer in keys}


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return _DTYPES[dtype].itemsize * math.prod(shape)


class ScoresWriter:
    """Writes a scores file tensor by tensor. In a file that holds some of the same scores already, those are kept.

    missing: names of the tensors that are not there yet, or whose bytes do not fit their checksum.
    Raises :class:`ResultError` for a file of other scores.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], keys: Sequence[Key]):
        self.layout, at = layout_of(about, in_order(keys)), 0
        spans = {}
        for name, (dtype, shape) in self.layout.items():
            spans[name] = (at, at := at + _size(dtype, shape))
        header = {name: {"dtype": d, "shape": s, "data_offsets": spans[name]} for name, (d, s) in self.layout.items()}
        text = json.dumps({"__metadata__": {META: json.dumps(dict(about))}} | header).encode()
        text += b" " * (-len(text) % 8)
        start = struct.pack("<Q", len(text)) + text
        self.at = {name: len(start) + first for name, (first, _) in spans.items()}
        if path.exists() and path.stat().st_size:
            _check_same(path, start, about)
        else:
            with path.open("wb") as new:
                new.write(start)
                new.truncate(len(start) + at)
        self.file = path.open("r+b")
        self.missing = {name for name in self.layout if name != SUMS and not self._stands(name)}

    def __enter__(self) -> ScoresWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, name: str, values: Tensor) -> None:
        """Write one tensor, then its checksum."""
        dtype, shape = self.layout[name]
        content = values.detach().cpu().to(_DTYPES[dtype]).reshape(shape).contiguous().numpy().tobytes()
        self.file.seek(self.at[name])
        self.file.write(content)
        self.file.flush()
        self.file.seek(self._sum_at(name))
        self.file.write(struct.pack("<q", zlib.crc32(content) + 1))
        self.file.flush()
        self.missing.discard(name)

    def write_block(self, block: ReaderScores) -> None:
        """Write the scores of one kind into one reader layer."""
        name = f"{block.kind}.{block.layer}"
        self.write(f"{name}.null", torch.stack([block.null_mean, block.null_std, block.null_max]))
        self.write(f"{name}.score", block.score)

    def _sum_at(self, name: str) -> int:
        return self.at[SUMS] + 8 * (list(self.layout).index(name) - 1)

    def _stands(self, name: str) -> bool:
        self.file.seek(self._sum_at(name))
        (expected,) = struct.unpack("<q", self.file.read(8))
        if not expected:
            return False
        self.file.seek(self.at[name])
        return zlib.crc32(self.file.read(_size(*self.layout[name]))) + 1 == expected


def _check_same(path: Path, start: bytes, about: Mapping[str, Any]) -> None:
    with path.open("rb") as file:
        if file.read(len(start)) == start:
            return
    try:
        found = read_about(path)
    except CheckpointError as error:
        raise ResultError(f"{path} is damaged. Remove it and run this again.") from error
    changed = [name for name in about if found.get(name) != about[name]] or ["kinds or reader layers"]
    raise ResultError(
        f"{path} holds part of other scores, with other {', '.join(changed)}. Nothing was mixed in: give the same "
        "options, choose another file, or remove it."
    )


class FileBlocks(Mapping[Key, ReaderScores]):
    """The blocks of a scores file, each read and checked when it is asked for; the last few are kept.

    Raises :class:`CheckpointError` for a block that is damaged.
    """

    def __init__(self, path: Path, layout: Layout, keys: Sequence[Key], sums: Sequence[int]):
        self.path, self.layout, self.keys_held = path, layout, dict.fromkeys(keys)
        self.sums = dict(zip(list(layout)[1:], sums, strict=True))
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
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            tensor = file.get_tensor(name)
        if zlib.crc32(tensor.numpy().tobytes()) + 1 != self.sums[name]:
            raise _refusal(self.path, f"{name} does not fit its checksum")
        return tensor.float()


def read_file(path: Path) -> tuple[FileBlocks, Float[Tensor, "n_layers n_heads d_head"], dict[str, Any]]:
    """Blocks, singular values and metadata of a scores file. Raises :class:`CheckpointError` for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        about = read_about(path)
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            sums = file.get_tensor(SUMS).tolist()
        parts = [name.split(".") for name in shapes if name.endswith(".score")]
        keys = in_order((kind, int(layer)) for kind, layer, _ in parts)
        if about["n_layers"] > len(shapes):
            raise ValueError(f"{about['n_layers']} layers")
        layout = layout_of(about, keys)
        if not keys or shapes != {name: shape for name, (_, shape) in layout.items()} or 0 in sums:
            raise ValueError("its tensors are not those of its metadata")
        if not about["d_model_effective"] > 0:
            raise ValueError(f"d_model' = {about['d_model_effective']}")
        blocks = FileBlocks(path, layout, keys, sums)
        S = torch.stack([blocks.tensor(f"singular_values.{layer}") for layer in range(about["n_layers"])])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _refusal(path, repr(error)) from error
    return blocks, S, about


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} holds no composition scores, or damaged ones ({reason}). Make it again.")


def read_about(path: Path) -> dict[str, Any]:
    """What a file of scores was made from. Raises :class:`CheckpointError` for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[META])
        if not isinstance(about, dict):
            raise TypeError("its metadata are no table")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise _refusal(path, repr(error)) from error
    return about
