"""The finished composition scores of a model: to look up, rank, compare, save and load.

Their file is a safetensors file for models of any size, whose metadata say what the scores were made from. Its tensors:

``{kind}.{layer}.null``     ``[3, n_heads]`` float32: mean, standard deviation, maximum over random directions
``singular_values.{layer}`` ``[n_heads, d_head]`` float16
``{kind}.{layer}.score``    ``[layer, n_heads, d_head, n_heads]`` float16: writer layer, writer head, component, reader
``crc32``                   checksum plus 1 of each of them, int64: nulls, singular values and scores by layer and kind
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import CheckpointError, LabelError
from talking_heads_utils.files import data_dir, written_whole
from talking_heads_utils.labels import Component, Head, as_head
from talking_heads_utils.provenance import describe_weights, versions
from talking_heads_utils.scores.composition import ReaderScores, check_kinds, head_level, iter_composition, null_rms
from talking_heads_utils.scores.tables import component_rows
from talking_heads_utils.settings import KINDS, N_RANDOM, SEED
from talking_heads_utils.weights.heads import HeadWeights

if TYPE_CHECKING:
    import pandas as pd

SHIPPED = "composition.safetensors"
WHOLE_BYTES = 50_000_000  # files up to this size are read at once
META = "talking_heads"
SUMS = "crc32"

Key = tuple[str, int]  # kind and reader layer


@dataclass(frozen=True)
class CompositionScores:
    """Scores of all components into all later heads, with what they were made from.

    blocks: ``(kind, reader layer)`` -> :class:`~talking_heads_utils.scores.composition.ReaderScores`.
    singular_values: ``[n_layers, n_heads, d_head]``.
    about: model, processing, checkpoint, seed and number of random directions, versions.
    """

    blocks: Mapping[Key, ReaderScores]
    singular_values: Float[Tensor, "n_layers n_heads d_head"]
    about: Mapping[str, Any]

    @property
    def n_layers(self) -> int:
        return self.singular_values.shape[0]

    @property
    def n_heads(self) -> int:
        return self.singular_values.shape[1]

    @property
    def d_head(self) -> int:
        return self.singular_values.shape[2]

    @property
    def kinds(self) -> list[str]:
        """The kinds that are held, in the order Q, K, V."""
        return [kind for kind in KINDS if any(held == kind for held, _ in self.blocks)]

    @property
    def null_rms(self) -> float:
        """1 / sqrt(d_model'): root mean square score of a random direction."""
        return null_rms(self.about["d_model_effective"])

    def describe(self) -> str:
        """Model and processing in one line."""
        about = self.about
        return f"{about['model']} ({about['processing']}; d_model' = {about['d_model_effective']})"

    def block(self, reader: Head | str, kind: str) -> tuple[ReaderScores, Head]:
        """The block that holds a reader. Raises :class:`LabelError` for a head that has no earlier writer."""
        head = as_head(reader)
        if (kind, head.layer) not in self.blocks or head.head >= self.n_heads:
            held = [layer for _, layer in self.blocks]
            layers = f"{min(held)}..{max(held)}"
            raise LabelError(
                f"No scores of kind {kind} into {head}: the kinds here are {', '.join(self.kinds)}, "
                f"with readers in layers {layers} and heads 0..{self.n_heads - 1}."
            )
        return self.blocks[kind, head.layer], head

    def pair(self, writer: Head | str, reader: Head | str, kind: str) -> Float[Tensor, "d_head"]:
        """Score of every component of one writer into one reader; NaN unless the reader is in a later layer."""
        block, into = self.block(reader, kind)
        out = as_head(writer)
        if out.layer >= self.n_layers or out.head >= self.n_heads:
            raise LabelError(f"{out} is not in {self.about['model']}.")
        if out.layer >= into.layer:
            return torch.full((self.d_head,), torch.nan)
        return block.score[out.layer, out.head, :, into.head]

    def table(self, reader: Head | str, kind: str) -> pd.DataFrame:
        """Every earlier component of one reader, the strongest first: the columns of
        :func:`~talking_heads_utils.scores.tables.component_rows` that name the writer and its score, and ``writer``."""
        block, head = self.block(reader, kind)
        frame = component_rows(block, self.singular_values, head.head)
        rows = zip(frame["writer_layer"], frame["writer_head"], frame["component"])
        frame.insert(0, "writer", [str(Component(*row)) for row in rows])
        frame = frame.drop(columns=["kind", "reader_layer", "reader_head"])
        return frame.sort_values("score", ascending=False, ignore_index=True, kind="stable")

    def head_level(self, kind: str) -> Float[Tensor, "n_layers n_heads n_layers n_heads"]:
        """Elhage et al.'s score ``[writer layer, writer head, reader layer, reader head]``; NaN where undefined."""
        return self._over_pairs(kind, lambda block: head_level(block.score, self.singular_values))

    def best_component(self, kind: str) -> Float[Tensor, "n_layers n_heads n_layers n_heads"]:
        """Largest score of any single component of a writer into a reader, shaped as :meth:`head_level`."""
        return self._over_pairs(kind, lambda block: _largest(block.score))

    def _over_pairs(self, kind: str, measure: Callable[[ReaderScores], Tensor]) -> Tensor:
        if (kind := check_kinds(kind)) not in self.kinds:
            raise LabelError(f"These scores of {self.about['model']} do not hold kind {kind}.")
        pairs = torch.full((self.n_layers, self.n_heads, self.n_layers, self.n_heads), torch.nan)
        for layer in (layer for held, layer in self.blocks if held == kind):
            pairs[:layer, :, layer] = measure(self.blocks[kind, layer])
        return pairs


def _largest(values: Float[Tensor, "layer n_heads d_head n_heads"]) -> Float[Tensor, "layer n_heads n_heads"]:
    """Maximum over components; NaN only where all of them are."""
    return values.nan_to_num(nan=-torch.inf).amax(2).masked_fill(values.isnan().all(2), torch.nan)


def compute_scores(
    weights: HeadWeights,
    kinds: str = KINDS,
    *,
    n_random: int = N_RANDOM,
    seed: int = SEED,
    layers: Sequence[int] | None = None,
) -> CompositionScores:
    """All scores of a model, or those into some reader layers, kept on the CPU: for GPT-2 small 7 MB, 1.8 million
    scores. Raises as :func:`~talking_heads_utils.scores.composition.iter_composition`."""
    directions, S = write_directions(weights)
    found = iter_composition(weights, kinds, n_random=n_random, seed=seed, layers=layers, directions=directions)
    blocks = {(block.kind, block.layer): block.cpu() for block in found}
    about = describe_weights(weights) | {"n_random": n_random, "seed": seed, "versions": versions()}
    return CompositionScores(blocks, S.cpu(), about)


def save_scores(scores: CompositionScores, path: Path) -> None:
    """Write scores in the format of :mod:`talking_heads_utils.scores.scores`: float16, checksums, ``about``."""
    write_file(path, scores.about, tensors_of(scores.blocks.values(), scores.singular_values))


def load_scores(path: Path) -> CompositionScores:
    """Read a file of scores, as float32. Of a large one blocks are read when they are asked for, a few at a time.

    Raises :class:`CheckpointError` for any other file, and for damage where it is read.
    """
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
    return CompositionScores(dict(blocks) if path.stat().st_size <= WHOLE_BYTES else blocks, S, about)


def load_shipped_scores(model: str = "gpt2-small") -> CompositionScores:
    """The scores of a real model that come with the book, so that a page needs no weights and no network."""
    return load_scores(data_dir() / model / SHIPPED)


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
        self.path, self.sums, self.keys_held = path, sums, keys_of(sums)
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


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} holds no composition scores, or damaged ones ({reason}). Make it again.")
