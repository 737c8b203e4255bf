"""Composition scores as parquet: one row per (kind, writer component, reader head), streamed by row group."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import relative_gap
from talking_heads_utils.errors import OptionError
from talking_heads_utils.files import written_whole
from talking_heads_utils.scores.composition import ReaderScores, head_level, null_rms, rank_by_reader
from talking_heads_utils.settings import KINDS

METADATA_KEY = b"talking_heads"

_PAIR = [
    ("kind", pa.dictionary(pa.int8(), pa.string())),
    ("writer_layer", pa.int16()),
    ("writer_head", pa.int16()),
    ("reader_layer", pa.int16()),
    ("reader_head", pa.int16()),
]
COMPONENT_SCHEMA = pa.schema(
    _PAIR[:3]
    + [("component", pa.int16())]
    + _PAIR[3:]
    + [
        ("score", pa.float32()),
        ("z", pa.float32()),
        ("rank", pa.int32()),
        ("singular_value", pa.float32()),
        ("gap", pa.float32()),
    ]
)
HEAD_SCHEMA = pa.schema(_PAIR + [("score", pa.float32()), ("null_rms", pa.float32()), ("rank", pa.int32())])


def write_table(
    blocks: Iterable[ReaderScores],
    S: Float[Tensor, "n_layers n_heads d_head"],
    path: Path,
    about: Mapping[str, Any],
    *,
    top: int | None = None,
    by_head: bool = False,
) -> int:
    """Stream ``blocks`` into a parquet file, a row group each, and return the number of rows.

    top: keep only the rows of the ``top`` best ranks per reader and kind. by_head: one row per pair of heads
    instead of per component. ``about`` goes into the file's metadata as JSON. The file is written whole or not
    at all. Raises :class:`OptionError` for a ``top`` below 1, or if no score is defined.
    """
    check_top(top)
    groups = (row_group(block, S, about, top=top, by_head=by_head) for block in blocks)
    return write_groups(groups, path, about, by_head=by_head)


def check_top(top: int | None) -> None:
    """Raises :class:`OptionError` for a ``top`` that keeps nothing."""
    if top is not None and top < 1:
        raise OptionError(f"--top must keep at least one row, not {top}.")


def row_group(
    block: ReaderScores,
    S: Float[Tensor, "n_layers n_heads d_head"],
    about: Mapping[str, Any],
    *,
    top: int | None,
    by_head: bool,
) -> pa.Table:
    """The rows of one block, without those whose score is undefined or whose rank is beyond ``top``."""
    group = _head_rows(block, S, about["d_model_effective"]) if by_head else _component_rows(block, S)
    keep = group["rank"] > 0 if top is None else (group["rank"] > 0) & (group["rank"] <= top)
    if not keep.all():
        group = {name: column[keep] for name, column in group.items()}
    return _arrow(group, block.kind, _schema(by_head))


def _schema(by_head: bool) -> pa.Schema:
    return HEAD_SCHEMA if by_head else COMPONENT_SCHEMA


def write_groups(
    groups: Iterable[pa.Table], path: Path, about: Mapping[str, Any], *, by_head: bool, may_be_empty: bool = False
) -> int:
    """Write row groups one by one, each page with its checksum; returns the number of rows.

    Raises :class:`OptionError` if there are none, unless that may be.
    """
    schema = _schema(by_head).with_metadata({METADATA_KEY: json.dumps(dict(about))})
    rows = 0
    repeated = [
        name for name in schema.names if name not in ("score", "z", "rank")
    ]  # a dictionary of the rest is waste
    how = dict(compression="zstd", use_dictionary=repeated, write_page_checksum=True)
    with written_whole(path) as part, pq.ParquetWriter(part, schema, **how) as writer:
        for group in groups:
            writer.write_table(group.cast(schema), row_group_size=max(1, len(group)))
            rows += len(group)
        if rows == 0 and not may_be_empty:
            raise OptionError("There is nothing to score: every writer or every reader in these weights is zero.")
    return rows


def read_groups(path: Path) -> Iterator[pa.Table]:
    """The row groups of a file one by one, their checksums verified."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for i in range(file.num_row_groups):
            yield file.read_row_group(i)


def read_about(path: Path) -> dict[str, Any]:
    """The metadata that :func:`write_table` stored."""
    return json.loads(pq.read_schema(path).metadata[METADATA_KEY])


def _component_rows(block: ReaderScores, S: Tensor) -> dict[str, np.ndarray]:
    """The rows of one block, all of a reader together."""
    n_heads, d_head = block.score.shape[1:3]
    # [n_readers, writers]
    writer_layer, writer_head, component = (
        np.broadcast_to(a, (n_heads, a.size))
        for a in map(np.ravel, np.indices((block.layer, n_heads, d_head), np.int16))
    )
    S = S[: block.layer]
    return _columns(
        block.layer,
        n_heads,
        {"writer_layer": writer_layer, "writer_head": writer_head, "component": component},
        {"score": block.score, "z": block.z, "rank": block.rank},
        {"singular_value": S, "gap": relative_gap(S)},
    )


def _head_rows(block: ReaderScores, S: Tensor, d_model_effective: int) -> dict[str, np.ndarray]:
    n_heads = block.score.shape[1]
    score = head_level(block.score, S)
    null = torch.full_like(score, null_rms(d_model_effective))
    writer_layer, writer_head = (
        np.broadcast_to(a, (n_heads, a.size)) for a in map(np.ravel, np.indices((block.layer, n_heads), np.int16))
    )
    return _columns(
        block.layer,
        n_heads,
        {"writer_layer": writer_layer, "writer_head": writer_head},
        {"score": score, "null_rms": null, "rank": rank_by_reader(score)},
        {},
    )


def _columns(
    layer: int, n_heads: int, writers: dict[str, np.ndarray], by_reader: dict[str, Tensor], by_writer: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    columns = {name: array.ravel() for name, array in writers.items()}
    n_writers = len(columns["writer_layer"]) // n_heads
    columns["reader_layer"] = np.full(n_heads * n_writers, layer, np.int16)
    columns["reader_head"] = np.repeat(np.arange(n_heads, dtype=np.int16), n_writers)
    for name, tensor in by_reader.items():  # the reader is the last axis
        columns[name] = tensor.reshape(-1, n_heads).T.cpu().numpy().ravel()
    for name, tensor in by_writer.items():
        columns[name] = np.broadcast_to(tensor.cpu().numpy().ravel(), (n_heads, n_writers)).ravel()
    return columns


def _arrow(group: dict[str, np.ndarray], kind: str, schema: pa.Schema) -> pa.Table:
    codes = pa.array(np.full(len(group["rank"]), KINDS.index(kind), np.int8))
    arrays = {"kind": pa.DictionaryArray.from_arrays(codes, pa.array(list(KINDS)))}
    arrays |= {name: pa.array(column) for name, column in group.items()}
    return pa.table([arrays[name].cast(field.type) for name, field in zip(schema.names, schema)], schema=schema)
