"""Composition scores of a checkpoint that does not fit in memory: layer by layer, resumable.

A few reader layers are held at a time, as many as :data:`READER_BYTES` allow; every earlier layer is read from its
shard, taken apart into its components and let go again. Finished reader layers stand in the folder ``FILE.part`` until
all do; only the scores themselves, in float16, must fit into memory at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from talking_heads_utils.cluster import Unit, run_units
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import ResultError
from talking_heads_utils.files import check_file
from talking_heads_utils.progress import follow
from talking_heads_utils.provenance import describe_weights, versions
from talking_heads_utils.resume import Store
from talking_heads_utils.scores.composition import (
    ReaderScores,
    by_kind,
    check_kinds,
    check_readers,
    random_directions,
    reader_maps,
    score_readers,
)
from talking_heads_utils.scores.scores import tensors_of, write_file
from talking_heads_utils.settings import KINDS, N_RANDOM, SEED
from talking_heads_utils.weights.checkpoints import Checkpoint, assembled
from talking_heads_utils.weights.families import check_bilinear
from talking_heads_utils.weights.heads import Source

READER_BYTES = 1_000_000_000  # what the maps of the reader layers held at a time may take


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What :func:`~talking_heads_utils.provenance.describe_weights` says of the loaded weights. One layer is read."""
    return describe_weights(assembled(checkpoint, [0])) | {"n_layers": checkpoint.shape.n_layers}


def iter_streamed(
    checkpoint: Checkpoint, readers: Sequence[int], kinds: str, *, n_random: int, seed: int
) -> Iterator[tuple[list[ReaderScores], Float[Tensor, "layer n_heads d_head"]]]:
    """Per reader layer, as soon as it is done, its scores, a block per kind, and singular values of what it reads.

    All of ``readers`` are held at once. What a layer gets does not depend on the others that are asked for.
    """
    n_heads, d_head = checkpoint.shape.n_heads, checkpoint.shape.d_head
    maps, nulls = {}, {}
    for reader in readers:
        weights = assembled(checkpoint, [reader])
        maps[reader] = reader_maps(weights, 0, kinds)
        nulls[reader] = score_readers(random_directions(weights, n_random, seed), maps[reader])
    scores = {r: torch.empty(r, n_heads * d_head, len(kinds) * n_heads) for r in readers}
    S = torch.empty(max(readers), n_heads, d_head)
    for layer in follow(range(max(readers)), f"writing layers for readers {min(readers)} to {max(readers)}"):
        directions, values = write_directions(assembled(checkpoint, [layer]))
        S[layer] = values[0]
        for reader in maps:
            scores[reader][layer] = score_readers(directions[0].flatten(0, 1), maps[reader])
        if (done := layer + 1) in maps:
            flat = scores.pop(done).flatten(0, 1)
            del maps[done]
            yield list(by_kind(kinds, flat, nulls[done], (done, n_heads, d_head, n_heads))), S[:done]


def _make(checkpoint: Checkpoint, layers: Sequence[int], kinds: str, n_random: int, seed: int, store: Store) -> None:
    """Write the parts of some reader layers."""
    for blocks, S in iter_streamed(checkpoint, layers, kinds, n_random=n_random, seed=seed):
        with store.part(str(blocks[0].layer)) as part:
            save_file(tensors_of(blocks, S), part.file)


def stream_scores(
    checkpoint: Checkpoint,
    path: Path,
    kinds: str = KINDS,
    *,
    n_random: int = N_RANDOM,
    seed: int = SEED,
    layers: Sequence[int] | None = None,
    ray: str | None = None,
) -> None:
    """Write the file of what :func:`~talking_heads_utils.scores.scores.compute_scores` gives, a few layers at a time.

    Reader layers that an earlier, interrupted call finished are kept. ray: the address of a Ray whose workers share the
    layers; None: in this process. Raises :class:`OptionError` where that call's are of other scores,
    :class:`ResultError` where they are damaged, and as ``compute_scores`` does.
    """
    kinds, shape, path = check_kinds(kinds), checkpoint.shape, check_file(path)
    check_bilinear(Source(checkpoint.name, checkpoint.family.name), kinds)
    readers = range(1, shape.n_layers) if layers is None else layers
    check_readers(readers, shape.n_layers, checkpoint.name)
    about = describe_checkpoint(checkpoint) | {"n_random": n_random, "seed": seed, "versions": versions()}
    store = Store(path.with_name(f"{path.name}.part"), about | {"kinds": kinds}, ".safetensors")
    n_maps = sum(shape.n_heads if kind == "Q" else shape.n_kv_heads for kind in kinds)
    at_once = max(1, READER_BYTES // (4 * n_maps * shape.d_model * shape.d_head))
    left = sorted(map(int, store.left(map(str, readers))))
    groups = [left[start : start + at_once] for start in range(0, len(left), at_once)]
    if ray is None:
        for group in groups:
            _make(checkpoint, group, kinds, n_random, seed, store)
    elif groups:
        how = kinds, n_random, seed, replace(store, folder=store.folder.absolute())
        units = [Unit(f"layers {group}", _make, (checkpoint, group, *how)) for group in groups]
        if failed := run_units(units, ray, memory=4 * READER_BYTES):
            raise ResultError(f"{len(failed)} of {len(units)} parts are not there; {next(iter(failed.values()))}")
    tensors = {name: t for layer in readers for name, t in load_file(store.path(str(layer))).items()}
    for layer in range(max(readers), shape.n_layers):
        tensors[f"singular_values.{layer}"] = write_directions(assembled(checkpoint, [layer]))[1][0].half()
    write_file(path, about, tensors)
    shutil.rmtree(store.folder)
