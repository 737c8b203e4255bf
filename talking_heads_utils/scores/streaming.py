"""Composition scores of a checkpoint that does not fit in memory: layer by layer, resumable.

A few reader layers are held at a time, as many as :data:`READER_BYTES` allow; every earlier layer is read from its
shard, taken apart into its components and let go again. A finished reader layer is a parquet file of its own in
``<table>.parts`` until all are there and are joined, row group by row group, into the table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import ResultError
from talking_heads_utils.progress import follow
from talking_heads_utils.provenance import describe_weights
from talking_heads_utils.scores.composition import (
    ReaderScores,
    by_kind,
    check_readers,
    random_directions,
    reader_maps,
    score_readers,
)
from talking_heads_utils.scores.files import read_about, read_groups, row_group, write_groups
from talking_heads_utils.weights.checkpoints import Checkpoint
from talking_heads_utils.weights.heads import HeadWeights, Source, assemble

READER_BYTES = 1_000_000_000  # what the maps of the reader layers held at a time may take


def one_layer(checkpoint: Checkpoint, layer: int, source: Source | None = None) -> HeadWeights:
    """A single layer in float32, processed as by :func:`~talking_heads_utils.weights.checkpoints.load_head_weights`."""
    return assemble(
        [checkpoint.raw_layer(layer, torch.float32)],
        1,
        norm=checkpoint.family.norm,
        source=source or Source(checkpoint.name, checkpoint.family.name),
        rotary=checkpoint.family.rotary(checkpoint.config, checkpoint.shape),
    )


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What :func:`~talking_heads_utils.provenance.describe_weights` says of the loaded weights. One layer is read."""
    return describe_weights(one_layer(checkpoint, 0, checkpoint.source())) | {"n_layers": checkpoint.shape.n_layers}


def iter_streamed(
    checkpoint: Checkpoint,
    readers: Sequence[int],
    kinds: str,
    *,
    n_random: int,
    seed: int,
) -> Iterator[tuple[list[ReaderScores], Float[Tensor, "layer n_heads d_head"]]]:
    """Per reader layer, as soon as it is done, its scores, a block per kind, and singular values of what it reads.

    What a layer gets does not depend on the others that are asked for.
    Raises :class:`OptionError` for a layer that is not there.
    """
    shape = checkpoint.shape
    check_readers(readers, shape.n_layers, checkpoint.name)
    n_maps = sum(shape.n_heads if kind == "Q" else shape.n_kv_heads for kind in kinds)
    per_layer = 4 * n_maps * shape.d_model * shape.d_head
    at_once = max(1, READER_BYTES // per_layer)
    for start in range(0, len(readers), at_once):
        yield from _score_readers(checkpoint, readers[start : start + at_once], kinds, n_random, seed)


def _score_readers(
    checkpoint: Checkpoint, readers: Sequence[int], kinds: str, n_random: int, seed: int
) -> Iterator[tuple[list[ReaderScores], Tensor]]:
    n_heads, d_head = checkpoint.shape.n_heads, checkpoint.shape.d_head
    maps, nulls = {}, {}
    for reader in readers:
        weights = one_layer(checkpoint, reader)
        maps[reader] = reader_maps(weights, 0, kinds)
        nulls[reader] = score_readers(random_directions(weights, n_random, seed), maps[reader])
    scores = {r: torch.empty(r, n_heads * d_head, len(kinds) * n_heads) for r in readers}
    S = torch.empty(max(readers), n_heads, d_head)
    for layer in follow(range(max(readers)), f"writing layers for readers {min(readers)} to {max(readers)}"):
        directions, values = write_directions(one_layer(checkpoint, layer))
        S[layer] = values[0]
        for reader in maps:
            scores[reader][layer] = score_readers(directions[0].flatten(0, 1), maps[reader])
        if (done := layer + 1) in maps:
            flat = scores.pop(done).flatten(0, 1)
            del maps[done]
            yield list(by_kind(kinds, flat, nulls[done], (done, n_heads, d_head, n_heads))), S[:done]


def stream_table(
    checkpoint: Checkpoint,
    readers: Sequence[int],
    path: Path,
    about: Mapping[str, Any],
) -> int:
    """Write the table of :func:`~talking_heads_utils.scores.files.write_table` for these layers; returns its rows.

    about: metadata of the table, with ``kinds, n_random, seed, top, level`` that it is made by. Layers that an earlier
    run finished are kept, and the bytes are the same as of a run in one go. Raises :class:`ResultError` for a part
    that is damaged or of another table.
    """
    path, by_head = Path(path), about["level"] == "head"
    folder = path.with_name(f"{path.name}.parts")
    left = [reader for reader in readers if not _is_whole(_part(folder, reader), about)]
    how = dict(n_random=about["n_random"], seed=about["seed"])
    for blocks, S in iter_streamed(checkpoint, left, about["kinds"], **how):
        own = (row_group(block, S, about, top=about["top"], by_head=by_head) for block in blocks)
        write_groups(own, _part(folder, blocks[0].layer), about, by_head=by_head, may_be_empty=True)
    groups = chain.from_iterable(read_groups(_part(folder, reader)) for reader in readers)
    rows = write_groups(groups, path, dict(about) | {"readers": list(readers)}, by_head=by_head)
    _remove_parts(folder, readers)
    return rows


def _remove_parts(folder: Path, readers: Sequence[int]) -> None:
    """These layers' parts, and the folder with the last of them: another run, of other layers, may need its own."""
    for reader in readers:
        _part(folder, reader).unlink()
    if not any(folder.glob("reader-*.parquet")):
        shutil.rmtree(folder)


def _part(folder: Path, reader: int) -> Path:
    return folder / f"reader-{reader:03d}.parquet"


def _is_whole(part: Path, about: Mapping[str, Any]) -> bool:
    """Whether a reader layer is finished. Raises :class:`ResultError` where its file is not of this table."""
    if not part.exists():
        return False
    try:
        found = read_about(part)
        for _ in read_groups(part):
            pass
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ResultError(
            f"{part} is damaged ({error}). Remove it and run this again: its layer is made anew."
        ) from error
    if changed := [name for name in about if found.get(name) != about[name]]:
        raise ResultError(
            f"{part.parent} holds parts of another table, with other {', '.join(changed)}. Nothing was mixed in: give "
            "the same options, choose another file, or remove the folder."
        )
    return True
