"""Composition scores as rows: a pandas frame of one block, and a parquet file of all of them for other programs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import relative_gap
from talking_heads_utils.errors import OptionError
from talking_heads_utils.files import written_whole
from talking_heads_utils.scores.composition import ReaderScores, head_level, null_rms, rank_by_reader
from talking_heads_utils.settings import KINDS

if TYPE_CHECKING:
    import pandas as pd

    from talking_heads_utils.scores.scores import CompositionScores

METADATA_KEY = b"talking_heads"


def component_rows(
    block: ReaderScores, S: Float[Tensor, "n_layers n_heads d_head"], reader: int | None = None
) -> pd.DataFrame:
    """One row per reader head, or for one of them, and earlier component; all of a reader together.

    Columns: kind, writer_layer, writer_head, component, reader_layer, reader_head; score; z and rank as in
    :class:`ReaderScores`; singular_value; gap, to the nearest other singular value relative to its own.
    """
    S = S[: block.layer].cpu()
    by_reader = {"score": block.score, "z": block.z, "rank": block.rank}
    if reader is not None:
        by_reader = {name: tensor[..., reader, None] for name, tensor in by_reader.items()}
    return _rows(block, ["writer_layer", "writer_head", "component"], by_reader, {
        "singular_value": S, "gap": relative_gap(S),
    })  # fmt: skip


def head_rows(block: ReaderScores, S: Float[Tensor, "n_layers n_heads d_head"], d_model_effective: int) -> pd.DataFrame:
    """As :func:`component_rows`, one row per pair of heads: score (Elhage et al. 2021), null_rms, rank."""
    score = head_level(block.score, S.to(block.score))
    frame = _rows(block, ["writer_layer", "writer_head"], {"score": score, "rank": rank_by_reader(score)}, {})
    frame.insert(len(frame.columns) - 1, "null_rms", np.float32(null_rms(d_model_effective)))
    return frame


def _rows(
    block: ReaderScores, names: list[str], by_reader: dict[str, Tensor], by_writer: dict[str, Tensor]
) -> pd.DataFrame:
    import pandas as pd

    *writers, n_readers = by_reader["score"].shape
    index = np.indices((n_readers, *writers), np.int16).reshape(1 + len(writers), -1)
    columns = dict(zip(names, index[1:], strict=True))
    columns |= {"reader_layer": np.full_like(index[0], block.layer), "reader_head": index[0]}
    columns |= {name: tensor.movedim(-1, 0).cpu().numpy().ravel() for name, tensor in by_reader.items()}
    columns |= {name: np.tile(tensor.numpy().ravel(), n_readers) for name, tensor in by_writer.items()}
    kind = pd.Categorical.from_codes(np.full_like(index[0], KINDS.index(block.kind), np.int8), list(KINDS))
    return pd.DataFrame({"kind": kind} | columns, copy=False)


def write_table(scores: CompositionScores, path: Path, *, top: int | None = None, by_head: bool = False) -> int:
    """Write scores as a parquet table, a row group per block, and return the number of rows.

    top: keep the rows of the ``top`` best ranks per reader and kind. by_head: one row per pair of heads instead of per
    component. What the scores were made from goes into the metadata (:func:`read_table_about`). The file is written
    whole or not at all. Raises :class:`OptionError` for a ``top`` below 1, or if no score is defined.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_top(top)
    about = dict(scores.about) | {"top": top, "level": "head" if by_head else "component"}
    rows, writer = 0, None
    with written_whole(path) as part, ExitStack() as stack:
        for block in scores.blocks.values():
            S = scores.singular_values
            frame = head_rows(block, S, about["d_model_effective"]) if by_head else component_rows(block, S)
            keep = (frame["rank"] > 0) & (frame["rank"] <= (top or np.inf))
            table = pa.Table.from_pandas(frame if keep.all() else frame[keep], preserve_index=False)
            kinds = (pa.float32() if field.type == pa.float64() else field.type for field in table.schema)
            schema = pa.schema(zip(table.column_names, kinds), metadata={METADATA_KEY: json.dumps(about)})
            if writer is None:
                writer = pq.ParquetWriter(part, schema, compression="zstd", write_page_checksum=True)
                stack.enter_context(writer)
            writer.write_table(table.cast(schema), row_group_size=max(1, len(table)))
            rows += len(table)
        if rows == 0:
            raise OptionError("There is nothing to score: every writer or every reader in these weights is zero.")
    return rows


def check_top(top: int | None) -> None:
    """Raises :class:`OptionError` for a ``top`` that keeps nothing."""
    if top is not None and top < 1:
        raise OptionError(f"--top must keep at least one row, not {top}.")


def read_table_about(path: Path) -> dict[str, Any]:
    """The metadata that :func:`write_table` stored."""
    import pyarrow.parquet as pq

    return json.loads(pq.read_schema(path).metadata[METADATA_KEY])
